"""Verifiers that misbehave on request: the response says how."""

import ctypes
import itertools
import os
from pathlib import Path
import sys
import time

import numpy as np

_VALUES = {
  'none': None,
  'nan': float('nan'),
  'integer': 3,
  'true': True,
  'numpy': np.float32(0.25),
  'numpy bool': np.bool_(True),
  'text': '1.0',
  'infinity': float('inf'),
  'array': np.ones(2),
  'huge': 10**400,
}


class Unprintable(Exception):
  def __str__(self):
    raise ValueError('not even that')


def obey(prompt, response, record):
  match response:
    case 'hang':
      while True:
        pass
    case 'sleep':
      time.sleep(60)
    case 'spin':
      sum(itertools.repeat(0))
    case 'raise':
      raise KeyError('answer')
    case 'interrupt':
      raise KeyboardInterrupt
    case 'unprintable':
      raise Unprintable
    case 'deep':
      return obey(prompt, response, record)
    case 'leave':
      sys.exit(1)
    case 'die':
      os._exit(3)
    case 'die once':
      if not Path(record['marker']).exists():
        Path(record['marker']).touch()
        os._exit(3)
    case 'die quietly':
      os._exit(0)
    case 'crash':
      ctypes.string_at(0)
    case 'slow':
      time.sleep(record['seconds'])
    case 'pid':
      return float(os.getpid())
    case 'modules':
      return float('jax' in sys.modules)
  return _VALUES.get(response, float(len(response)))


_calls = itertools.count()


def change(prompt, response, record):
  """Another reward every time."""
  return float(next(_calls))
