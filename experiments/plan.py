"""What a run needs and can reach on devices that need not be here.

  python -m experiments.plan --config=experiments/configs/dpo/llama3.py \
    --topology=v5e:8x8

Compiles the update (and the rollout, where the config has one) for the topology, on a
machine with a CPU: any TPU topology that libtpu knows (`pip install 'prefjax[plan]'`),
or `cpu:8` for fake devices. Ends with exit code 1 where it does not fit. Several
topologies, with commas between, give a table of weak scaling: `mesh.fsdp` and the
prompts of an update grow with the devices.
"""

import copy
from pathlib import Path
import time
from typing import Any

from absl import flags
import jax
from jax.experimental import topologies

from experiments.parts import bounds, build, compiled, launch
from experiments.parts.build import Config
from prefjax.errors import InputError, TrainingError
from prefjax.training.chips import TPUS, Chip
from prefjax.training.online import OnlinePlan

_TOPOLOGY = flags.DEFINE_string(
  'topology', None, 'KIND:SHAPE of a TPU slice, as v5e:8x8, or cpu:N.'
)
_SEARCH = flags.DEFINE_bool(
  'search', False, 'Look for the largest micro-batch that fits, by remat policy.'
)
_REMAT = ('none', 'dots', 'mixed', 'full')  # the fastest first


def main(config: Config, workdir: Path, cache: Path) -> None:
  """Prints the plan of each topology."""
  del workdir, cache
  names = [name for name in (_TOPOLOGY.value or '').split(',') if name]
  if not names:
    raise InputError('Give a topology: --topology=v5e:8x8, or cpu:8 for fake devices.')
  if len(names) > 1:
    _weak_scaling(config, names)
    return
  fits = _plan(config, names[0])
  if _SEARCH.value or not fits:
    _search(config, names[0])
  if not fits:
    raise TrainingError(f'{names[0]} does not hold this run.')


def devices(topology: str) -> tuple[list[Any], Chip | None]:
  """The devices of a topology, and the data sheet of one; None of a fake one.

  Raises:
    InputError: where libtpu is missing or does not know the topology.
  """
  kind, _, shape = topology.partition(':')
  if kind == 'cpu':
    if not shape.isdigit() or len(jax.devices('cpu')) != int(shape):
      raise InputError(f'--topology={topology}: give cpu:N, in a fresh process.')
    return jax.devices('cpu'), None
  if kind not in TPUS:
    raise InputError(
      f'--topology={topology}: the kind must be cpu or one of {sorted(TPUS)}.'
    )
  try:
    found = topologies.get_topology_desc(platform='tpu', topology_name=topology)
  except Exception as error:
    raise InputError(
      f'--topology={topology} cannot be compiled for ({error}). It takes libtpu '
      "(pip install 'prefjax[plan]') and a shape that it knows, as 4x4 or 4x4x4."
    ) from error
  return list(found.devices), TPUS[kind]


def fake_devices() -> None:
  """Makes the devices of cpu:N; before any is used."""
  jax.config.update('jax_platforms', 'cpu')
  # A program of a chip that is not here can be made again, but not read back.
  jax.config.update('jax_enable_compilation_cache', False)
  kind, _, count = (_TOPOLOGY.value or '').partition(':')
  if kind == 'cpu' and count.isdigit():
    jax.config.update('jax_num_cpu_devices', int(count))


def planned(config: Config, topology: str) -> bounds.Plan:
  """What the programs of a config, compiled for a topology, take."""
  found, chip = devices(topology)
  mesh = build.mesh(config, found)
  start = time.perf_counter()
  shapes = compiled.shapes(config, mesh)
  programs = compiled.update(shapes)
  if isinstance(build.plan(config), OnlinePlan) and not config['rollout']['server']:
    programs |= compiled.rollout(config, shapes)
  seconds = time.perf_counter() - start
  return bounds.Plan(config, topology, chip, shapes, programs, seconds)


def _plan(config: Config, topology: str) -> bool:
  plan = planned(config, topology)
  print('\n'.join(plan.lines()))
  return plan.fits


def _search(config: Config, topology: str) -> None:
  """Prints the largest micro-batch that fits under each remat policy."""
  print('\nsearch over remat policies and micro-batches:')
  best = None
  for remat in _REMAT:
    rows = 1  # a data shard
    while True:
      plan = planned(_changed(config, remat, rows), topology)
      print(f'  {plan.summary()}', flush=True)
      if plan.fits and (best is None or plan.seconds_bound < best.seconds_bound):
        best = plan
      if not plan.fits or plan.shapes.micro_batches == 1:
        break
      rows *= 2
  if best is None:
    print('  nothing fits: take more chips, mesh.tensor, or shorter rows')
    return
  data, model = best.config['data'], best.config['model']
  print(
    f'suggested: --config.model.remat={model["remat"]} '
    f'--config.data.max_tokens={data["max_tokens"]}'
  )


def _changed(config: Config, remat: str, rows: int) -> Config:
  """The config with another remat policy, and so many prompts a shard at once."""
  changed = copy.deepcopy(dict(config))
  changed['model']['remat'] = remat
  changed['data']['max_tokens'] = rows * compiled.prompt_tokens(config)
  return changed


def _weak_scaling(config: Config, names: list[str]) -> None:
  """One line a topology; a chip's share of the work is that of the first."""
  first = len(devices(names[0])[0])
  print(bounds.HEADER)
  for name in names:
    scale = len(devices(name)[0]) / first
    changed = copy.deepcopy(dict(config))
    for block, key in (('data', 'batch_size'), ('rollout', 'prompts')):
      if key in changed.get(block, {}):
        changed[block][key] = int(changed[block][key] * scale)
    print(planned(changed, name).row(), flush=True)


if __name__ == '__main__':
  launch.run(main, 'plan', before=fake_devices)
