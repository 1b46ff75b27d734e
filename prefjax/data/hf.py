"""Data sets by the `datasets` library: from the Hugging Face hub, or a local folder."""

from collections.abc import Iterator, Sequence
import hashlib
import json
from pathlib import Path
from typing import Any

from prefjax.errors import InputError

_FORM = '`hf:ORG/NAME[/CONFIG]:SPLIT`'


def rows(name: str, places: Sequence[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
  """The rows of ORG/NAME[/CONFIG]:SPLIT, each with its place for errors.

  `places` are where ORG/NAME may be a folder: such a one is read, and nothing fetched.
  """
  data = _load(name, places)
  return ((f'hf:{name}, row {i + 1}', row) for i, row in enumerate(data))


def fingerprint(name: str, places: Sequence[Path]) -> str:
  """What the rows are, as a sha256 in hex.

  A folder is its bytes. A data set of the hub is the library's own files, which it
  names by a hash of the version that it has fetched.
  """
  data = _load(name, places)
  files = [Path(file['filename']).parts[-6:] for file in data.cache_files]
  parts = [name.partition(':')[2], len(data), str(data.features), files]
  return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _load(name: str, places: Sequence[Path]) -> Any:
  try:
    import datasets
  except ImportError as error:
    raise InputError(
      f"The source `hf:{name}` needs the datasets library: pip install 'prefjax[hf]'."
    ) from error
  path, config, split = _parts(name, places)
  options = {}
  if isinstance(path, Path):
    # By itself the library may give what a folder held before it was changed.
    cache = Path(datasets.config.HF_DATASETS_CACHE) / f'folder-{_digest(path)}'
    options['cache_dir'] = str(cache)
  try:
    return datasets.load_dataset(str(path), config, split=split, **options)
  except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
    reason = ' '.join(str(error).split())
    raise InputError(
      f'The source `hf:{name}` cannot be read as {_FORM}, from the hub or as a folder: '
      f'{reason}'
    ) from error


def _parts(name: str, places: Sequence[Path]) -> tuple[str | Path, str | None, str]:
  """Where the data are, their config, and the split; a Path is a folder."""
  path, _, split = name.partition(':')
  if not path or not split:
    raise InputError(f'The source `hf:{name}` must be {_FORM}, as in `hf:a/b:train`.')
  above, _, last = path.rpartition('/')
  for place in places:
    if (place / path).is_dir():
      return place / path, None, split
    if above and (place / above).is_dir():
      return place / above, last, split
  parts = path.split('/')
  if len(parts) not in (2, 3) or not all(parts):
    raise InputError(f'The source `hf:{name}` must be {_FORM}, or name a folder.')
  return '/'.join(parts[:2]), parts[2] if len(parts) == 3 else None, split


def _digest(folder: Path) -> str:
  """A hash of every file's name and bytes."""
  digest = hashlib.sha256()
  for file in sorted(path for path in folder.rglob('*') if path.is_file()):
    digest.update(f'{file.relative_to(folder)} {file.stat().st_size}\n'.encode())
    with file.open('rb') as content:
      digest.update(hashlib.file_digest(content, 'sha256').digest())
  return digest.hexdigest()[:32]
