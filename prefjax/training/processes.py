"""Several processes that run one program: who starts, who writes, when all stop.

Every process runs the same host program on the same decisions; devices are shared,
data is read and rewards are given in parts, and the first process alone writes reports.
Nothing here waits for a process that died: the heartbeat ends the others.
"""

from collections.abc import Callable
import functools
import importlib.util
import itertools
import json
import os
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from prefjax.errors import InputError

# Marks of the clusters on which jax finds out by itself who is who.
_CLUSTERS = (
  'SLURM_STEP_NODELIST',
  'OMPI_MCA_orte_hnp_uri',
  'KUBERNETES_SERVICE_HOST',
  'TPU_WORKER_HOSTNAMES',
  'TPU_PROCESS_ADDRESSES',
  'JAX_COORDINATOR_ADDRESS',
)


def start(
  coordinator: str | None,
  num_processes: int | None,
  process_id: int | None,
  *,
  heartbeat_seconds: int,
) -> None:
  """Joins the other processes of a run; before anything touches a device.

  Without arguments they are found on TPU pods, Slurm, Open MPI and Kubernetes; where
  none of these is seen, or `num_processes` is 1, this process is alone. One that is
  not heard of for `heartbeat_seconds` ends all others (exit code 134).

  Raises:
    InputError: where the others cannot be found or reached.
  """
  given = (coordinator, num_processes, process_id)
  if num_processes == 1 or (given == (None, None, None) and not _on_a_cluster()):
    return
  try:
    jax.distributed.initialize(
      coordinator,
      num_processes,
      process_id,
      heartbeat_timeout_seconds=heartbeat_seconds,
    )
  except Exception as error:
    if given == (None, None, None) and 'should be defined' in str(error):
      return  # a machine of such a cluster, but no job of several processes
    raise InputError(
      f'The processes of this run do not find each other ({error}). Give '
      '--coordinator=HOST:PORT, --num_processes and --process_id, or '
      '--num_processes=1 for a run of one process.'
    ) from error


def _on_a_cluster() -> bool:
  # A TPU VM has no mark in its environment: jax asks the machine, where it can use it.
  marked = any(name in os.environ for name in _CLUSTERS)
  return marked or importlib.util.find_spec('libtpu') is not None


def alone() -> bool:
  """Whether this is the run's only process."""
  return jax.process_count() == 1


def first() -> bool:
  """Whether this process writes what people read."""
  return jax.process_index() == 0


def shared(function: Callable[[], Any]) -> Any:
  """What `function` gives the first process, as JSON, to all; it runs there alone.

  All processes call this together, and none goes on before the first has ended.

  Raises:
    InputError: in every process, what the first one raised.
  """
  if alone():
    return function()
  value, error = None, None
  if first():
    try:
      value = function()
    except InputError as raised:
      error = str(raised)
  value, error = json.loads(_broadcast(json.dumps([value, error])))
  if error is not None:
    raise InputError(error)
  return value


def _broadcast(text: str) -> str:
  data = np.frombuffer(text.encode(), np.uint8)
  size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
  sent = data if first() else np.zeros(size, np.uint8)
  return bytes(np.asarray(multihost_utils.broadcast_one_to_all(sent))).decode()


def gathered(value: Any) -> list[Any]:
  """The values of all processes, in their order; each is plain JSON."""
  if alone():
    return [value]
  data = np.frombuffer(json.dumps(value).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.int32(len(data)))
  padded = np.pad(data, (0, int(sizes.max()) - len(data)))
  rows = multihost_utils.process_allgather(padded)
  return [
    json.loads(bytes(row[:size]).decode())
    for row, size in zip(np.asarray(rows), sizes.tolist(), strict=True)
  ]


@functools.cache
def _calls():
  return itertools.count(1)


def stop_agreed() -> bool:
  """Whether all processes are to stop at this call, because one was told to.

  All call this once a step. jax spreads the signal that one process got, and picks
  the same call for all.
  """
  return multihost_utils.reached_preemption_sync_point(next(_calls()))
