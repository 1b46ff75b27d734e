"""Which part of which published tensor an array of ours is, layer by layer."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from flax import traverse_util
import numpy as np

from prefjax.models import decoder
from prefjax.models.architectures import Architecture
from prefjax.models.config import DecoderConfig

_QUERY_KEY_VALUE = ('query', 'key', 'value')
Path = tuple[str, ...]


class Part(NamedTuple):
  """One layer of an array of ours, or an unstacked array, as a part of a tensor.

  Attributes:
    name: the tensor's.
    shape: ours, of one layer.
    kernel: [inputs, outputs] here, [outputs, inputs] there where `transposed`.
    third: which third of the tensor it is, or None for all of it.
    heads: of a tensor whose thirds lie head by head, or 0 where they lie end to end.
  """

  name: str
  shape: tuple[int, ...]
  kernel: bool = False
  transposed: bool = False
  third: int | None = None
  heads: int = 0

  @property
  def tensor_shape(self) -> tuple[int, ...]:
    """The whole tensor's shape."""
    *inputs, outputs = self.shape
    shape = (*inputs, outputs * (1 if self.third is None else 3))
    return shape[::-1] if self.kernel and self.transposed else shape

  def view(self, tensor: np.ndarray) -> np.ndarray:
    """Our part of a tensor without a copy, its axes in our order.

    The outputs of thirds by head stay two axes, heads and their size; reshaping to
    `shape` joins them.
    """
    outputs_last = tensor.T if self.kernel and self.transposed else tensor
    if self.third is None:
      return outputs_last
    if not self.heads:
      size = self.shape[-1]
      return outputs_last[..., self.third * size : (self.third + 1) * size]
    # Transposed again, so that the outputs can be split without a copy.
    split = outputs_last.T.reshape(self.heads, 3, -1, *self.shape[:-1])[:, self.third]
    return np.moveaxis(split, (0, 1), (-2, -1))


class Leaf(NamedTuple):
  """An array of ours: its shape, and the tensors its layers are parts of."""

  shape: tuple[int, ...]
  stacked: bool
  parts: tuple[Part, ...]

  def read(
    self,
    tensors: Mapping[str, np.ndarray],
    dtype: np.dtype,
    index: tuple[slice, ...] | None = None,
  ) -> np.ndarray:
    """The array, or the slice of it at `index`; no more than that is read."""
    index = (slice(None),) * len(self.shape) if index is None else index
    rows, within = (index[0], index[1:]) if self.stacked else (slice(None), index)
    chosen = [
      part.view(tensors[part.name]).reshape(part.shape)[within]
      for part in self.parts[rows]
    ]
    out = np.empty((len(chosen), *chosen[0].shape), dtype)
    for row, value in zip(out, chosen, strict=True):
      row[...] = value
    return out if self.stacked else out[0]

  def write(self, array: np.ndarray, tensors: Mapping[str, np.ndarray]) -> None:
    """Puts the array where it belongs in those of the tensors that are here."""
    for part, value in zip(self.parts, self.layers(array), strict=True):
      if part.name in tensors:
        view = part.view(tensors[part.name])
        view[...] = value.reshape(view.shape)

  def layers(self, array: np.ndarray) -> Iterator[np.ndarray]:
    """The array layer by layer."""
    return iter(array if self.stacked else array[None])


def leaves(architecture: Architecture, config: DecoderConfig) -> dict[Path, Leaf]:
  """Every array of a decoder by its path."""
  shapes = traverse_util.flatten_dict(decoder.create(config)[1])
  return {
    path: _leaf(architecture, config, path, array.shape)
    for path, array in shapes.items()
  }


def _leaf(architecture, config, path, shape):
  # A table is an array itself; all else is a folder of kernel, scale or bias.
  ours = '.'.join(path[:-1] or path)
  names = architecture.names
  name = f'{names[ours]}.{"bias" if path[-1] == "bias" else "weight"}'
  stacked = path[0] == 'layers'
  options = {
    'shape': shape[1:] if stacked else shape,
    'kernel': path[-1] == 'kernel',
    'transposed': architecture.transposed,
  }
  if architecture.thirds and len(path) > 1 and path[-2] in _QUERY_KEY_VALUE:
    options['third'] = _QUERY_KEY_VALUE.index(path[-2])
    by_head = architecture.thirds == 'by head'
    options['heads'] = config.num_heads if by_head else 0
  if not stacked:
    return Leaf(shape, stacked, (Part(name, **options),))
  layers = range(config.num_layers)
  numbered = [f'{names["layers"]}.{layer}.{name}' for layer in layers]
  return Leaf(shape, stacked, tuple(Part(each, **options) for each in numbered))
