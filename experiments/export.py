"""Writes what a finished run has learned as a Hugging Face folder.

python -m experiments.export --run=runs/dpo/sentiment --to=exported
"""

import json
from pathlib import Path
import shutil
from typing import Any

from absl import flags

from experiments import sft
from experiments.parts import build, launch
from prefjax.data import sources
from prefjax.errors import InputError
from prefjax.models import config as model_configs
from prefjax.models import decoder, heads, hub

# Beside a tokenizer, what says how it is used.
_COMPANIONS = (
  'tokenizer_config.json',
  'special_tokens_map.json',
  'chat_template.jinja',
  'generation_config.json',
)


def export(workdir: Path, folder: Path) -> None:
  """The final parameters of a run, adapters merged, for `hub.load` and transformers.

  The tokenizer goes with them where the config names it; one that was trained lies in
  the run's cache.

  Raises:
    InputError: where there is no finished run, or no known architecture is its model's.
  """
  if not (workdir / 'DONE').exists():
    raise InputError(f'{workdir} holds no finished run.')
  config = json.loads((workdir / 'config.json').read_text())['config']
  shape = model_configs.create(**config['model'])
  params = sft.final_params(workdir, _like(config, shape))
  hub.save(folder, shape, heads.trunk(params))
  if config['tokenizer']['path']:
    _copy_tokenizer(sources.find(config['tokenizer']['path']), folder)


def _like(config: dict[str, Any], shape: Any) -> Any:
  """What the run's last save holds: the model, and a scalar head where it has one."""
  shapes = decoder.create(shape)[1]
  if {'values', 'scores'} & build.objective(config).needs:
    return heads.with_scalar(shapes, shape.width)
  return shapes


def _copy_tokenizer(path: Path, folder: Path) -> None:
  name = 'tokenizer.model' if path.suffix == '.model' else path.name
  shutil.copyfile(path, folder / name)
  for companion in _COMPANIONS:
    if (path.parent / companion).is_file():
      shutil.copyfile(path.parent / companion, folder / companion)


_FROM = flags.DEFINE_string('run', None, 'Folder of a finished run.')
_TO = flags.DEFINE_string('to', None, 'Folder that the model is written to.')


def main(arguments: list[str]) -> None:
  """Exports the run in --run to --to."""
  if arguments or not _FROM.value or not _TO.value:
    raise InputError('Give a finished run as --run and a folder as --to.')
  export(Path(_FROM.value), Path(_TO.value))
  print(f'exported to {_TO.value}')


if __name__ == '__main__':
  launch.command(main)
