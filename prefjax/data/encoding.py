"""Records to token ids: where BOS, EOS and cuts go is decided here alone."""

from collections import Counter
from collections.abc import Sequence
import dataclasses

from jaxtyping import Float32, Int32
import numpy as np

from prefjax.data.chat import ChatTokenizer
from prefjax.data.conversations import Message
from prefjax.data.records import Record
from prefjax.data.tokenizers import Tokenizer, encode_continuation
from prefjax.errors import InputError

COUNTS = (
  'prompts',
  'responses',
  'pairs',
  'prompts_truncated',
  'responses_truncated',
  'round_trip_changed',
  'prompt_tokens',
  'response_tokens',
)
"""What `encode` counts; readers add `skipped_<reason>`."""


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
  """One record as token ids; `chosen` and `rejected` index into `responses`.

  The last `further` responses are read, but not trained on.
  """

  prompt: Int32[np.ndarray, ' l']
  responses: tuple[Int32[np.ndarray, ' _'], ...]
  chosen: Int32[np.ndarray, ' m']
  rejected: Int32[np.ndarray, ' m']
  preference: Float32[np.ndarray, ' m']
  labels: Float32[np.ndarray, ' k'] | None = None
  win_rates: Float32[np.ndarray, ' k'] | None = None
  steps: tuple[Int32[np.ndarray, ' _'], ...] | None = None  # tokens of each step
  step_labels: tuple[Float32[np.ndarray, ' _'], ...] | None = None  # NaN: none
  further: int = 0


def encode(
  record: Record,
  tokenizer: Tokenizer,
  *,
  max_prompt: int,
  max_response: int,
  counts: Counter[str],
) -> Example:
  """The record as token ids, under the token contract of docs/data.md.

  Args:
    record: the text.
    tokenizer: what turns text into ids; it adds no special token by itself.
    max_prompt: tokens, with BOS; a longer prompt loses its beginning.
    max_response: tokens, with EOS; a longer response loses its end and its EOS.
    counts: is added to, under the names in `COUNTS`.

  Raises:
    InputError: a limit below 1, a tokenizer that turns text into a special
      token, or a text without a token where one is needed.
  """
  check_limits(max_prompt, max_response)
  prompt, pieces, before = _texts(record, tokenizer)
  parts = [_pieces_ids(tokenizer, some, begins=not prompt) for some in pieces]
  responses = [[i for ids in part for i in ids] for part in parts]
  counts['round_trip_changed'] += sum(
    tokenizer.decode(prompt + ids) != before + ''.join(some)
    for ids, some in zip(responses, pieces, strict=True)
  )
  moved = 0
  if not isinstance(tokenizer, ChatTokenizer):
    moved = int(not prompt and tokenizer.bos_id is None)
    prompt, responses = _with_first_token(tokenizer, prompt, responses)
  prompt = _cut_prompt(tokenizer, prompt, max_prompt, counts)
  ends = [_cut_response(tokenizer, ids, max_response, counts) for ids in responses]
  _count(record, prompt, ends, counts)
  example = _example(record, prompt, ends)
  if record.steps is None:
    return example
  return _with_steps(example, record, parts, moved)


def encode_prompt(
  text: str,
  tokenizer: Tokenizer,
  *,
  max_prompt: int,
  messages: Sequence[Message] | None = None,
) -> list[int]:
  """The ids of a prompt that is to be answered, as `encode` would have them.

  Raises:
    InputError: an empty prompt under a tokenizer without BOS.
  """
  if isinstance(tokenizer, ChatTokenizer):
    ids = tokenizer.encode_chat(_turns(text, messages))
  else:
    ids, _ = _with_first_token(tokenizer, _text_ids(tokenizer, text), [])
  return _cut_prompt(tokenizer, ids, max_prompt, Counter())


def check_limits(max_prompt: int, max_response: int) -> None:
  """Refuses limits that leave no token."""
  for name, value in dict(max_prompt=max_prompt, max_response=max_response).items():
    if value < 1:
      raise InputError(f'`{name}` must be at least 1 token, got {value}.')


def _example(record, prompt, responses):
  pairs = list(zip(*record.pairs, strict=True)) or [(), (), ()]
  return Example(
    prompt=_integers(prompt),
    responses=tuple(_integers(ids) for ids in responses),
    chosen=_integers(pairs[0]),
    rejected=_integers(pairs[1]),
    preference=np.asarray(pairs[2], np.float32),
    labels=_floats(record.labels),
    win_rates=_floats(record.win_rates),
  )


def _texts(record, tokenizer):
  """The prompt's ids, the responses' pieces, and what the ids decode to."""
  pieces = record.steps or [(text,) for text in record.responses]
  if not isinstance(tokenizer, ChatTokenizer):
    return _text_ids(tokenizer, record.prompt), pieces, record.prompt
  prompt = tokenizer.encode_chat(_turns(record.prompt, record.messages))
  # A template puts nothing between the turn's title and its text.
  pieces = [(first.removeprefix(' '), *more) for first, *more in pieces]
  return prompt, pieces, tokenizer.decode(prompt)


def _turns(text, messages):
  """A prompt's turns; plain text is one of the user's."""
  return [Message('user', text)] if messages is None else messages


def _with_steps(example, record, parts, moved):
  """How many tokens each step has; a step that was cut has lost its label.

  `moved` tokens of the first step have become the prompt.
  """
  steps, labels = [], []
  for i, (pieces, response) in enumerate(zip(parts, example.responses, strict=True)):
    ends = np.cumsum([len(piece) for piece in pieces]) - moved
    kept = np.clip(ends, 0, len(response))
    kept[-1] = len(response)  # EOS belongs to the last step
    steps.append(_integers(np.diff(kept, prepend=0)))
    if record.step_labels is not None:
      whole = ends <= len(response)
      labels.append(_floats(np.where(whole, record.step_labels[i], np.nan)))
  return dataclasses.replace(
    example, steps=tuple(steps), step_labels=tuple(labels) or None
  )


def _pieces_ids(tokenizer, pieces, *, begins):
  """The ids of a response by its pieces, so that each ends where a token does."""
  first, *more = pieces
  begin = _text_ids if begins else _continued_ids
  return [begin(tokenizer, first), *(_continued_ids(tokenizer, x) for x in more)]


def _continued_ids(tokenizer, text):
  return _no_special(tokenizer, encode_continuation(tokenizer, text))


def _text_ids(tokenizer, text):
  return _no_special(tokenizer, tokenizer.encode(text) if text else [])


def _no_special(tokenizer, ids):
  special = {tokenizer.bos_id, tokenizer.eos_id} & set(ids)
  if special:
    raise InputError(
      'A tokenizer must never turn text into BOS or EOS, but '
      f'{type(tokenizer).__name__} gave the special ids {sorted(special)} for '
      'a text of the data; text that spells a special token must stay text.'
    )
  return ids


def _with_first_token(tokenizer, prompt, responses):
  """A prompt is never empty: BOS, or the first token of the text itself."""
  if tokenizer.bos_id is not None:
    return [tokenizer.bos_id, *prompt], responses
  if prompt:
    return prompt, responses
  first = {tuple(ids[:1]) for ids in responses}
  if len(first) != 1 or first == {()}:
    raise InputError(
      f'{type(tokenizer).__name__} has no BOS, so an empty prompt is replaced '
      'by the first token of its response; that needs responses that all '
      f'begin with the same token, but these {len(responses)} do not.'
    )
  return list(first.pop()), [ids[1:] for ids in responses]


def _cut_prompt(tokenizer, ids, limit, counts):
  if len(ids) <= limit:
    return ids
  counts['prompts_truncated'] += 1
  kept = ids[:1] if tokenizer.bos_id is not None else []
  return kept + ids[len(ids) - limit + len(kept) :]


def _cut_response(tokenizer, ids, limit, counts):
  if len(ids) < limit:
    return [*ids, tokenizer.eos_id]
  counts['responses_truncated'] += 1
  return ids[:limit]  # an EOS here would claim that the text ended


def _count(record, prompt, responses, counts):
  counts['prompts'] += 1
  counts['responses'] += len(responses)
  counts['pairs'] += len(record.pairs)
  counts['prompt_tokens'] += len(prompt)
  counts['response_tokens'] += sum(map(len, responses))


def _integers(values):
  return np.asarray(values, np.int32)


def _floats(values):
  return None if values is None else np.asarray(values, np.float32)
