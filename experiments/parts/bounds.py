"""What compiled programs say of a run: memory line by line, and bounds on its speed."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jaxlib
import numpy as np

from experiments.parts import build
from experiments.parts.build import Config
from experiments.parts.compiled import Program, Shapes, bytes_here
from prefjax.data.pipeline import assemble
from prefjax.models.sharding import AXES, MEMORIES
from prefjax.training.chips import Chip

_GIB = 2**30
_UPDATES = ('update', 'accumulate', 'apply')
# Forwards that the backward pass does again.
_RECOMPUTED = {'none': 0, 'dots': 0, 'mixed': 1, 'full': 1}
HEADER = (
  '| topology | chips | prompts an update | peak GiB a chip | received GiB a chip '
  '| update >= s | tokens/s a chip <= |\n|---|---|---|---|---|---|---|'
)


class Plan(NamedTuple):
  """A config's programs on a topology; `chip` is None where devices are fake."""

  config: Config
  topology: str
  chip: Chip | None
  shapes: Shapes
  programs: dict[str, Program]
  seconds: float  # of compiling

  # Memory -------------------------------------------------------------------------

  @property
  def state(self) -> dict[str, int]:
    """Bytes a device of what lives in its memory through the run."""
    state, frozen = self.shapes.state, self.shapes.frozen
    sizes = {
      'parameters': bytes_here(state['params']),
      'optimiser state': bytes_here(state['optimizer']),
    }
    if frozen is not None:
      # The frozen base is the reference, and begins with itself.
      return sizes | {'frozen parameters': bytes_here(frozen)}
    if self.config['memory']['reference'] == 'host':
      return sizes
    return sizes | {'parameters that it began with': sizes['parameters']}

  @property
  def waiting(self) -> dict[str, int]:
    """Bytes a device of what waits in its host's memory."""
    moments = bytes_here(self.shapes.state['optimizer'], 'host')
    sizes = {'optimiser state': moments} if moments else {}
    if self.config['memory']['reference'] == 'host':
      sizes['parameters that it began with'] = self.state['parameters']
    return sizes

  def beside(self, name: str) -> int:
    """Bytes a device of state that a program does not take, but that is there."""
    taken = {'parameters', 'frozen parameters'}
    if name in ('update', 'apply'):
      taken.add('optimiser state')
    if name == 'apply':
      taken.remove('frozen parameters')
    return sum(size for key, size in self.state.items() if key not in taken)

  def peak(self, name: str) -> int | None:
    """Bytes a device while a program runs; None where it does not fit."""
    peak = self.programs[name].peak
    return None if peak is None else peak + self.beside(name)

  @property
  def fits(self) -> bool:
    """Whether a chip holds every program beside what lives through the run."""
    peaks = [self.peak(name) for name in self.programs]
    if None in peaks:
      return False
    return self.chip is None or max(peaks) <= self.chip.memory

  # Speed --------------------------------------------------------------------------

  @property
  def tokens(self) -> int:
    """Tokens of an update, every row full, a shared prompt once."""
    return self.shapes.cell.tokens * self.shapes.micro_batches

  @property
  def flops(self) -> float:
    """Of one update, on all devices, without what is computed again."""
    cell = self.shapes.cell
    full = assemble([None] * cell.p, cell, pairs=0).replace(
      prompt_length=np.full(cell.p, cell.l),
      response_length=np.full((cell.p, cell.k), cell.t),
    )
    return self.shapes.micro_batches * build.flops(self.config)(full)

  @property
  def received(self) -> float | None:
    """Bytes that a device receives in an update; None where it cannot be read."""
    names = [name for name in self.programs if name in _UPDATES]
    if any(self.programs[name].sent is None for name in names):
      return None
    return sum(
      sum(row.received for row in self.programs[name].sent)
      * (self.shapes.micro_batches if name == 'accumulate' else 1)
      for name in names
    )

  @property
  def moved(self) -> float:
    """Bytes that a device at least reads and writes in its memory in an update."""
    shape = self.shapes.model.config
    mesh = self.shapes.step.mesh
    parts = 1 if mesh is None else mesh.shape['tensor']
    leaves = jax.tree.leaves((self.shapes.state['params'], self.shapes.frozen))
    once = sum(leaf.size for leaf in leaves) * jax.numpy.dtype(shape.dtype).itemsize
    passes = 2 + _RECOMPUTED[shape.remat]
    kept = sum(bytes_here(self.shapes.state, memory) for memory in MEMORIES)
    return self.shapes.micro_batches * passes * once / parts + 2 * kept

  @property
  def bounds(self) -> dict[str, float]:
    """Seconds that an update takes at least, by what it waits for."""
    if self.chip is None:
      return {}
    again = 1 + _RECOMPUTED[self.shapes.model.config.remat] / 3
    found = {
      'compute': self.flops * again / self.chips / self.chip.flops,
      'memory': self.moved / self.chip.bandwidth,
    }
    if self.received is not None:
      found['links'] = self.received / self.chip.links
    return found

  @property
  def chips(self) -> int:
    """Devices of the mesh."""
    mesh = self.shapes.step.mesh
    return 1 if mesh is None else mesh.size

  @property
  def seconds_bound(self) -> float:
    """Seconds that an update takes at least; 0 where devices are fake."""
    return max(self.bounds.values(), default=0.0)

  # Text ---------------------------------------------------------------------------

  def lines(self) -> Iterator[str]:
    """The plan to be read."""
    mesh, cell = self.shapes.step.mesh, self.shapes.cell
    axes = {} if mesh is None else dict(mesh.shape)
    cut = ', '.join(f'{axis} {axes.get(axis, 1)}' for axis in AXES)
    yield f'{self.topology}: {self.chips} chips, mesh {cut}'
    yield f'jax {jax.__version__}, jaxlib {jaxlib.__version__}; compiled in ' + (
      f'{self.seconds:.0f} s, run nowhere: times are bounds, nothing was measured'
    )
    yield (
      f'update: {self.shapes.micro_batches} micro-batches of {cell.p} prompts x '
      f'{cell.k} responses, {cell.l} + {cell.k} x {cell.t} tokens a prompt; remat '
      f'{self.shapes.model.config.remat}'
    )
    yield from self._memory()
    yield from self._traffic()
    yield from self._speed()

  def _memory(self):
    yield ''
    yield 'GiB a chip'
    for name, size in self.state.items():
      yield f'  {name:<40} {size / _GIB:9.3f}'
    yield f'  {"gradients, inside what an update works in":<40} ' + (
      f'{self.state["parameters"] / _GIB:9.3f}'
    )
    yield f'  {"states kept between layers, inside it too":<40} ' + (
      f'{self._between() / _GIB:9.3f}'
    )
    if self.waiting:
      yield 'GiB a chip, in host memory'
    for name, size in self.waiting.items():
      yield f'  {name:<40} {size / _GIB:9.3f}'
    for name, program in self.programs.items():
      yield f'{name}, by the compiler'
      if program.peak is None:
        yield f'  does not fit: temporaries of {program.working / _GIB:.2f} alone'
        continue
      yield f'  {"arguments":<40} {program.arguments / _GIB:9.3f}'
      yield f'  {"what it works in":<40} {program.working / _GIB:9.3f}'
      yield f'  {"what lies beside it":<40} {self.beside(name) / _GIB:9.3f}'
      yield f'  {"peak":<40} {self.peak(name) / _GIB:9.3f}{self._of_memory()}'
    yield f'{"fits" if self.fits else "DOES NOT FIT"}'

  def _of_memory(self):
    return '' if self.chip is None else f' of {self.chip.memory / _GIB:.0f}'

  def _between(self):
    """Bytes of the residual stream at every layer's entry, which remat keeps."""
    shape, cell = self.shapes.model.config, self.shapes.cell
    mesh = self.shapes.step.mesh
    shards = 1 if mesh is None else mesh.shape['data'] * mesh.shape['fsdp']
    each = cell.tokens // shards * shape.width
    return shape.num_layers * each * jax.numpy.dtype(shape.dtype).itemsize

  def _traffic(self):
    for name, program in self.programs.items():
      if program.peak is None:
        continue
      yield ''
      if program.sent is None:
        yield f'{name}: its program cannot be printed here, so its traffic is unknown'
        continue
      yield f'{name}: received by a chip, times and GiB'
      for row in program.sent:
        yield f'  {row.kind:<20} {row.times:9.0f} {row.received / _GIB:9.3f}'

  def _speed(self):
    yield ''
    yield f'FLOPs of an update, counted: {self.flops:.3e} for {self.tokens} tokens'
    if self.chip is None:
      yield 'fake devices: no bound on speed'
      return
    texts = {
      'compute': 'FLOPs x (1 + recomputed forwards / 3) / chips / peak FLOP/s',
      'memory': '(passes x parameters / tensor + 2 x state) / bandwidth',
      'links': 'bytes received / bytes/s of all links',
    }
    for name, seconds in self.bounds.items():
      yield f'  {name:<8} {seconds:9.4f} s = {texts[name]}'
    if 'links' not in self.bounds:
      yield '  links    unknown, and in no bound'
    if self.waiting:
      yield '  host     what comes from its memory and goes back is in no bound'
    bound = self.seconds_bound
    speed = self.tokens / bound
    yield (
      f'bound: an update takes at least {bound:.4f} s, at most {speed:.0f} tokens/s '
      f'({speed / self.chips:.0f} a chip)'
    )
    yield 'measured: nothing'

  def summary(self) -> str:
    """One line of a search."""
    cell, shape = self.shapes.cell, self.shapes.model.config
    what = f'remat {shape.remat:<5} max_tokens {self.config["data"]["max_tokens"]:>7}'
    size = f'{cell.p} prompts a micro-batch'
    if not self.fits:
      return f'{what} {size}: does not fit'
    peak = max(self.peak(name) for name in self.programs) / _GIB
    return f'{what} {size}: peak {peak:.2f} GiB, update >= {self.seconds_bound:.3f} s'

  def row(self) -> str:
    """One line of a table of weak scaling."""
    prompts = self.shapes.cell.p * self.shapes.micro_batches
    if not self.fits:
      return f'| {self.topology} | {self.chips} | {prompts} | does not fit | | | |'
    peak = max(self.peak(name) for name in self.programs) / _GIB
    sent = 'unknown' if self.received is None else f'{self.received / _GIB:.1f}'
    bound = self.seconds_bound
    speed = self.tokens / bound / self.chips if bound else float('inf')
    return (
      f'| {self.topology} | {self.chips} | {prompts} | {peak:.2f} | {sent} | '
      f'{bound:.3f} | {speed:.0f} |'
    )
