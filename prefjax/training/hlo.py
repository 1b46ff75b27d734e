"""What a compiled program sends between devices, read from its own text."""

import collections
from collections.abc import Iterator
import math
import re
from typing import NamedTuple

KINDS = (
  'all-gather',
  'all-reduce',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
)
_BYTES = {'pred': 1, 'bf': 2, 'f': 1 / 8, 's': 1 / 8, 'u': 1 / 8, 'c': 1 / 8}
_ARRAY = re.compile(r'\b(pred|bf|f|s|u|c)(\d*)(?:e\d\w*)?\[([\d,]*)\]')
_CALLED = re.compile(r'(calls|to_apply|body|condition)=%?([\w.\-]+)')
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
_TRIPS = re.compile(r'known_trip_count"?:\{"?n"?:"?(\d+)')
_OPERATION = re.compile(
  rf'= (?P<type>.*?) (?P<kind>{"|".join(KINDS)})(?P<start>-start)?\('
)


class Collective(NamedTuple):
  """One kind of traffic: how often a device takes part, and the bytes it receives."""

  kind: str
  times: float
  received: float  # bytes a device, of all times together


def collectives(text: str) -> list[Collective]:
  """What one device receives in one run of a program, by kind, the most first.

  A loop's body counts as often as it runs, where the program says how often that is
  (the layers), and once where it does not (chunks of the log-prob op, which send
  nothing on a mesh without `tensor`). A ring is assumed: of a result of S bytes over n
  devices an all-gather brings S (n - 1) / n, an all-reduce twice that.
  """
  parts = _computations(text)
  times, received = collections.Counter(), collections.Counter()
  for lines, runs in _executed(parts):
    for line in lines:
      found = _OPERATION.search(line)
      if found is not None:
        kind, size = found['kind'], _received(found, line)
        times[kind] += runs
        received[kind] += runs * size
  rows = [Collective(kind, times[kind], received[kind]) for kind in times]
  return sorted(rows, key=lambda row: -row.received)


def _computations(text: str) -> dict[str, list[str]]:
  """Each computation's lines by its name; the entry's is ''."""
  found: dict[str, list[str]] = {}
  name = None
  for line in text.splitlines():
    start = re.match(r'(ENTRY )?%?([\w.\-]+) .*\{$', line)
    if start and not line.startswith(' '):
      name = '' if start[1] else start[2]
      found[name] = []
    elif name is not None and line.startswith('  '):
      found[name].append(line)
  return found


def _executed(parts: dict[str, list[str]]) -> Iterator[tuple[list[str], float]]:
  """The lines of each computation with how often it runs, once for every caller."""
  waiting = [('', 1.0)]
  while waiting:
    name, runs = waiting.pop()
    lines = parts.get(name, [])
    yield lines, runs
    for line in lines:
      trips = _TRIPS.search(line)
      for role, called in _CALLED.findall(line):
        more = float(trips[1]) if trips and role == 'body' else 1.0
        waiting.append((called, runs * more))
      branches = _BRANCHES.search(line)
      if branches:
        for called in re.findall(r'%?([\w.\-]+)', branches[1]):
          waiting.append((called, runs))


def _received(found: re.Match, line: str) -> float:
  sizes = [_size(*array) for array in _ARRAY.findall(found['type'])]
  if found['start'] and found['kind'] in ('all-gather', 'collective-permute'):
    # The start of a transfer gives its operands, its results, and small contexts.
    sizes = [size for size in sizes if size > 8]
    sizes = sizes[len(sizes) // 2 :]
  size, group = sum(sizes), _group(line)
  if found['kind'] == 'collective-permute':
    return size
  if found['kind'] == 'reduce-scatter':
    return size * (group - 1)
  share = (group - 1) / group
  return size * share * (2 if found['kind'] == 'all-reduce' else 1)


def _size(kind: str, bits: str, shape: str) -> float:
  count = math.prod(int(n) for n in shape.split(',') if n)
  one = _BYTES[kind] if kind in ('pred', 'bf') else _BYTES[kind] * int(bits)
  return count * one


def _group(line: str) -> int:
  """How many devices take part together."""
  counted = re.search(r'replica_groups=\[(\d+),(\d+)\]', line)
  if counted:
    return int(counted[2])
  listed = re.search(r'replica_groups=\{\{([\d,]+)\}', line)
  return len(listed[1].split(',')) if listed else 1
