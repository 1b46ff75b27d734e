import os
from pathlib import Path

import pytest


@pytest.fixture(scope='session')
def real_file():
  folder = Path(os.environ.get('PREFJAX_DATA') or Path(__file__).parents[2] / 'data')

  def find(name):
    path = folder / name
    if not path.is_file():
      pytest.skip(f'{path} is not there (docs/data.md says where to get it)')
    return path

  return find


@pytest.fixture
def hostile(monkeypatch):
  """The import path of a verifier that misbehaves on request."""
  monkeypatch.syspath_prepend(str(Path(__file__).parent))
  return 'hostile.obey'
