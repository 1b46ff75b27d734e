"""Responses beside prompts that they do not answer, as KTO's KL estimate needs them."""

import dataclasses
import functools

import numpy as np

from prefjax.data.prepare import Prepared


class _Mismatched(Prepared):
  @functools.cached_property
  def digest(self):
    return f'{super().digest}-mismatched'

  def read(self, indices):
    size = len(self)
    keys = [range(size)[int(index)] for index in indices]
    examples = super().read(keys)
    others = super().read([(key + 1) % size for key in keys])
    return [
      dataclasses.replace(
        example, responses=(*example.responses, other.responses[0]), further=1
      )
      for example, other in zip(examples, others, strict=True)
    ]


def mismatched(data: Prepared) -> Prepared:
  """The data with one more response a prompt: the first of the next prompt's.

  It is scored and read, but has weight 0 and is in no pair. KTO (arXiv:2402.01306),
  Section 4.1, shifts responses so within a batch; here the partner does not depend on
  the order of training.
  """
  response_length = np.pad(data.response_length, ((0, 0), (0, 1)))
  place = (data.response_length > 0).sum(axis=1)
  others = np.roll(data.response_length[:, 0], -1)
  response_length[np.arange(len(data)), place] = others
  fields = {field.name: getattr(data, field.name) for field in dataclasses.fields(data)}
  return _Mismatched(**fields | {'response_length': response_length})
