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
_BYTES = {'pred': 1.0, 'bf': 2.0, 'f': 1 / 8, 's': 1 / 8, 'u': 1 / 8, 'c': 1 / 8}
_ARRAY = re.compile(r'\b(pred|bf|f|s|u|c)(\d*)(?:e\d\w*)?\[([\d,]*)\]')
_CALLED = re.compile(r'(calls|to_apply|body|condition)=%?([\w.\-]+)')
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
_TRIPS = re.compile(r'known_trip_count"?:\{"?n"?:"?(\d+)')
_CHANNEL = re.compile(r'channel_id=(\d+)')
_CONDITION = re.compile(r'condition=%?([\w.\-]+)')
_BOUND = re.compile(r'%?([\w.\-]+) = [su]\d+\[\]\S* constant\((\d+)\)')
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
  (the layers), and once where it does not (chunks of the log-prob op, which on a mesh
  without `tensor` send nothing). A ring is assumed: of a result of S bytes over n
  devices an all-gather brings S (n - 1) / n, an all-reduce twice that.
  """
  times, received = collections.Counter(), collections.Counter()
  seen = set()
  for lines, runs in _executed(_computations(text)):
    for line in lines:
      found = _OPERATION.search(line)
      # A transfer that goes on beside other work is in each part of that work.
      channel = _CHANNEL.search(line)
      if found is None or (channel and channel[1] in seen):
        continue
      seen |= {channel[1]} if channel else set()
      times[found['kind']] += runs
      received[found['kind']] += runs * _received(found, line)
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
      for role, called in _CALLED.findall(line):
        more = _trips(line, parts) if role == 'body' else 1.0
        waiting.append((called, runs * more))
      branches = _BRANCHES.search(line)
      if branches:
        for called in re.findall(r'%?([\w.\-]+)', branches[1]):
          waiting.append((called, runs))


def _trips(line: str, parts: dict[str, list[str]]) -> float:
  """How often a loop runs: as it says, or the bound of its counter; 1 if neither."""
  known, condition = _TRIPS.search(line), _CONDITION.search(line)
  if known or not condition:
    return float(known[1]) if known else 1.0
  lines = parts.get(condition[1], [])
  bounds = dict(_BOUND.findall('\n'.join(lines)))
  for end in lines:
    if end.strip().startswith('ROOT') and 'direction=LT' in end:
      for operand in re.findall(r'%([\w.\-]+)', end.split('compare(')[-1]):
        if operand in bounds:
          return float(bounds[operand])
  return 1.0


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
  named = re.search(r'replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}', line)
  if named:
    sizes = dict(re.findall(r"'([^']+)'=(\d+)", named[1]))
    return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", named[2]))
  listed = re.search(r'replica_groups=\{\{([\d,]+)\}', line)
  return len(listed[1].split(',')) if listed else 1
