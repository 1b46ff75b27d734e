"""What a config.json says in more than one key: rotary positions, windows, scales.

Each has a reader `(described, where) -> fields of a DecoderConfig` and a writer back.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from prefjax.errors import InputError
from prefjax.models.config import DecoderConfig

Described = Mapping[str, Any]


class Section(NamedTuple):
  """A reader, and the writer of what it reads."""

  read: Callable[[Described, str], dict[str, Any]]
  write: Callable[[DecoderConfig], dict[str, Any]]


# Our field -> the key in a section of rotary positions.
_SCALINGS = {
  'default': {},
  'linear': {'rope_factor': 'factor'},
  'llama3': {
    'rope_factor': 'factor',
    'rope_low_factor': 'low_freq_factor',
    'rope_high_factor': 'high_freq_factor',
    'rope_original_positions': 'original_max_position_embeddings',
  },
}
_NOT_SCALED = {None: 'default', 'none': 'default'}


def _rope_section(section: Any, where: str) -> dict[str, Any]:
  """What a section of rotary positions says, by its own names.

  Raises:
    InputError: for a way of scaling, or a number of one, that is not known.
  """
  section = {} if section is None else section
  name = f'{where} has the rotary positions {section!r}'
  if not isinstance(section, Mapping):
    raise InputError(f'{name}; they must be an object.')
  kind = section.get('rope_type', section.get('type'))
  kind = _NOT_SCALED.get(kind, kind)
  if kind not in _SCALINGS:
    raise InputError(f'{name}; the known ways of scaling are {sorted(_SCALINGS)}.')
  wanted = set(_SCALINGS[kind].values())
  known = {'rope_type', 'type', 'rope_theta', 'partial_rotary_factor'} | wanted
  if set(section) - known or wanted - set(section):
    raise InputError(f'{name}; {kind!r} has {sorted(wanted)} and nothing else.')
  found = {ours: section[theirs] for ours, theirs in _SCALINGS[kind].items()}
  if kind != 'default':
    found['rope_scaling'] = kind
  if section.get('rope_theta') is not None:
    found['rope_theta'] = section['rope_theta']
  if section.get('partial_rotary_factor') is not None:
    found['rotary_fraction'] = section['partial_rotary_factor']
  return found


def _read_rope(described, where):
  # Transformers 5 keeps in `rope_parameters` what stood in two keys before.
  sections = (described.get('rope_scaling'), described.get('rope_parameters'))
  old, new = (_rope_section(section, where) for section in sections)
  return old | new


def _write_rope(config):
  if config.rope_scaling == 'none':
    return {'rope_scaling': None}
  keys = _SCALINGS[config.rope_scaling].items()
  numbers = {theirs: getattr(config, ours) for ours, theirs in keys}
  return {'rope_scaling': {'rope_type': config.rope_scaling, **numbers}}


ROPE = Section(_read_rope, _write_rope)


def _read_two_ropes(described, where):
  parameters = described.get('rope_parameters') or {}
  if not isinstance(parameters, Mapping):
    raise InputError(
      f'{where} has rope_parameters={parameters!r}; it must be an object.'
    )
  full, local = (
    _rope_section(parameters.get(f'{name}_attention'), where)
    for name in ('full', 'sliding')
  )
  if local.get('rope_scaling'):
    raise InputError(f'{where} scales the rotary positions of sliding layers.')
  if 'rope_theta' in local:
    full['local_rope_theta'] = local['rope_theta']
  return _rope_section(described.get('rope_scaling'), where) | full


TWO_ROPES = Section(_read_two_ropes, _write_rope)


def _pattern(types: tuple[bool, ...], where: str) -> dict[str, Any]:
  """The rule by which these layers, and no others, look at everything.

  Raises:
    InputError: where there is none: neither the first ones nor every n-th.
  """
  first = types.index(False) if False in types else len(types)
  if True not in types[first:]:
    return {'global_first': first, 'global_every': None}
  every = types.index(True) + 1
  if types == tuple((layer + 1) % every == 0 for layer in range(len(types))):
    return {'global_first': 0, 'global_every': every}
  raise InputError(
    f'{where} has layer_types of which neither the first nor every n-th are full.'
  )


_TYPES = {'full_attention': True, 'sliding_attention': False}


def _read_layers(described, where, types, window):
  if described.get('layer_types') is not None:
    named = described['layer_types']
    count = described['num_hidden_layers']
    if not isinstance(named, list) or len(named) != count or set(named) - set(_TYPES):
      raise InputError(
        f'{where} has layer_types={named!r}; it must be {count} of {sorted(_TYPES)}.'
      )
    types = tuple(_TYPES[name] for name in named)
  if all(types):
    return {'window': None, 'global_first': 0, 'global_every': None}
  return {'window': window, **_pattern(types, where)}


def _write_layers(config):
  names = {is_global: name for name, is_global in _TYPES.items()}
  return {'layer_types': [names[is_global] for is_global in config.layer_is_global]}


def _layers(described):
  count = described.get('num_hidden_layers')
  return range(count if isinstance(count, int) else 0)


def _read_qwen_layers(described, where):
  if not described.get('use_sliding_window'):
    return {'window': None}
  first = described.get('max_window_layers', 28)
  types = tuple(layer < first for layer in _layers(described))
  return _read_layers(described, where, types, described['sliding_window'])


def _write_qwen_layers(config):
  return {
    'use_sliding_window': config.window is not None,
    'sliding_window': config.window,
    'max_window_layers': sum(config.layer_is_global),
    **_write_layers(config),
  }


QWEN_LAYERS = Section(_read_qwen_layers, _write_qwen_layers)


def _gemma_layers(every: int) -> Section:
  def read(described, where):
    pattern = described.get('sliding_window_pattern') or every
    types = tuple((layer + 1) % pattern == 0 for layer in _layers(described))
    return _read_layers(described, where, types, described['sliding_window'])

  def write(config):
    return {'sliding_window': config.window, **_write_layers(config)}

  return Section(read, write)


GEMMA2_LAYERS, GEMMA3_LAYERS = _gemma_layers(2), _gemma_layers(6)


def _read_scale(described, where):
  scalar = described.get('query_pre_attn_scalar', 256)
  if type(scalar) not in (int, float) or not scalar > 0:
    raise InputError(
      f'{where} has query_pre_attn_scalar={scalar!r}; it must be a positive number.'
    )
  return {'attention_scale': scalar**-0.5}


def _write_scale(config):
  scale = config.attention_scale or config.head_dim**-0.5
  return {'query_pre_attn_scalar': round(scale**-2)}


SCALE = Section(_read_scale, _write_scale)
