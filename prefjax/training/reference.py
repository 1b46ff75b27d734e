"""The reference's per-token log-probs: computed once, stored, reused by every run."""

import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from prefjax.data.pipeline import Batches, Stored, offsets
from prefjax.training.files import built
from prefjax.training.mesh import on_host, place_batch
from prefjax.training.step import Step

_FILE = 'logps.npy'


def params_fingerprint(params: Any) -> str:
  """A hash of every parameter's path, type, shape and bytes."""
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    x = on_host(leaf)
    digest.update(f'{jax.tree_util.keystr(path)} {x.dtype} {x.shape}'.encode())
    digest.update(np.ascontiguousarray(x).tobytes())
  return digest.hexdigest()[:16]


def stored_logps(step: Step, params: Any, batches: Batches, directory: Path) -> Stored:
  """Log-probs of every response token under `params`, from `directory` or computed.

  They are computed in the order and the bucketing of the data, which depend on no
  seed, and written whole or not at all. The caller names the directory after all
  that decides them: parameters, tokens, backend, versions, attention, precision.
  """

  def build(folder: Path) -> None:
    logps = compute_logps(step, params, batches)
    np.save(folder / _FILE, logps, allow_pickle=False)

  built(directory, build)
  logps = np.load(directory / _FILE, mmap_mode='r', allow_pickle=False)
  return Stored(logps, offsets(batches.data.response_length))


def compute_logps(step: Step, params: Any, batches: Batches) -> np.ndarray:
  """Per-token log-probs of a whole data set, responses laid end to end, nats."""
  lengths = batches.data.response_length
  start = offsets(lengths)
  flat = np.zeros(int(lengths.sum()), np.float32)
  for rows, batch in batches.once():
    placed = batch if step.mesh is None else place_batch(batch, step.mesh)
    logps = on_host(step.score(params, placed).logps)
    for i, row in enumerate(rows):
      for k in range(lengths.shape[1] if row >= 0 else 0):
        n = lengths[row, k]
        flat[start[row, k] : start[row, k] + n] = logps[i, k, :n]
  return flat
