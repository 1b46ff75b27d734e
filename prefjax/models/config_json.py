"""From a Hugging Face config.json to our config, and back."""

from collections.abc import Mapping
import dataclasses
import inspect
from typing import Any, Literal, get_args, get_origin

from prefjax.errors import InputError
from prefjax.models import config as configs
from prefjax.models.architectures import ARCHITECTURES, Architecture
from prefjax.models.config import DecoderConfig

RUNNING = ('attention', 'layout', 'remat', 'dtype', 'param_dtype')
"""How a model is run, which a checkpoint leaves open; all else is the checkpoint's."""

_DERIVED = {
  'head_dim': lambda fields: fields['width'] // fields['num_heads'],
  'num_kv_heads': lambda fields: fields['num_heads'],
  'mlp_width': lambda fields: 4 * fields['width'],
}


def read(
  described: Mapping[str, Any], where: str
) -> tuple[Architecture, DecoderConfig]:
  """The architecture and the config that a config.json describes.

  Raises:
    InputError: naming `where` and the key that is missing, wrong or not supported.
  """
  names = described.get('architectures')
  if names not in [[name] for name in ARCHITECTURES]:
    raise InputError(
      f'{where} has architectures={names!r}; prefjax knows one of '
      f'{sorted(ARCHITECTURES)}.'
    )
  found = ARCHITECTURES[names[0]]
  for key, only in (found.only | {'quantization_config': None}).items():
    if described.get(key) not in (None, only):
      raise InputError(f'{where} has {key}={described[key]!r}; supported is {only!r}.')
  said = {**found.defaults, **described}
  left_out = {ours for ours in found.derived if said.get(found.keys.get(ours)) is None}
  keys = {ours: key for ours, key in found.keys.items() if ours not in left_out}
  missing = sorted(set(keys.values()) - set(said))
  if missing:
    raise InputError(f'{where} lacks {missing}.')
  values = {ours: (key, said[key]) for ours, key in keys.items()}
  for section in found.sections:
    fields = section.read(said, where)
    values |= {ours: (f'{ours} of ours', value) for ours, value in fields.items()}
  checked = {
    ours: _value(_TYPES[ours], key, value, where)
    for ours, (key, value) in values.items()
  }
  for ours in left_out:
    checked[ours] = _DERIVED[ours](checked)
  return found, configs.create(family=found.family, **checked)


def describe(config: DecoderConfig) -> tuple[Architecture, dict[str, Any]]:
  """The architecture of a config, and a config.json from which `read` takes it.

  Raises:
    InputError: where no known architecture can say all of it.
  """
  running = {name: getattr(config, name) for name in RUNNING}
  for name, architecture in ARCHITECTURES.items():
    described = {
      'architectures': [name],
      'model_type': architecture.family,
      'torch_dtype': config.param_dtype,
      **architecture.only,
      **{key: getattr(config, ours) for ours, key in architecture.keys.items()},
    }
    for section in architecture.sections:
      described |= section.write(config)
    try:
      _, found = read(described, name)
    except InputError:  # a value that this architecture cannot have
      continue
    if dataclasses.replace(found, **running) == config:
      return architecture, described
  raise InputError(f'None of {sorted(ARCHITECTURES)} can say all of {config}.')


_TYPES = {field.name: field.type for field in dataclasses.fields(DecoderConfig)}
_MAY_BE_ZERO = ('global_first of ours',)


def _value(kind, key, value, where):
  if kind in (float, float | None) and type(value) is int:
    value = float(value)
  number = type(value) in (int, float) and key not in _MAY_BE_ZERO
  if not _fits(value, kind) or (number and not value > 0):
    raise InputError(
      f'{where} has {key}={value!r}; it must be {inspect.formatannotation(kind)}, and '
      'positive where that is a number.'
    )
  return value


def _fits(value, kind):
  if get_origin(kind) is Literal:
    return value in get_args(kind)
  return isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
