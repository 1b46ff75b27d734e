"""Public data sets whose rows are not records yet: by name, what their columns mean."""

from collections.abc import Callable, Mapping
import re
from typing import Any

from prefjax.data.records import Skipped
from prefjax.errors import InputError

Row = Mapping[str, Any]
Map = Callable[[Row, str], dict[str, Any] | Skipped]

_TURN = re.compile(r'\n\n(Human|Assistant):')


def _hh_rlhf(row: Row, where: str) -> dict[str, Any]:
  """Anthropic/hh-rlhf: transcripts, as conversations (plain text needs no map)."""
  del where
  found = {}
  for side in ('chosen', 'rejected'):
    # What stands before the first turn is empty; then title and text by turns.
    _, *parts = _TURN.split(row[side])
    turns = zip(parts[::2], parts[1::2], strict=True)
    found[side] = [
      {'from': title.lower().replace('assistant', 'gpt'), 'value': text.strip()}
      for title, text in turns
    ]
  return found


def _ultrafeedback(row: Row, where: str) -> dict[str, Any]:
  """HuggingFaceH4/ultrafeedback_binarized: two conversations, and the better again."""
  del where
  return {side: row[side] for side in ('chosen', 'rejected')}


def _tldr(row: Row, where: str) -> dict[str, Any] | Skipped:
  """openai/summarize_from_feedback, comparisons: two summaries and a choice.

  The prompt is that of Stiennon et al. (arXiv:2009.01325), Appendix B.2. News articles,
  which the validation split has too, are no posts.
  """
  info, texts = row['info'], [summary['text'] for summary in row['summaries']]
  if info.get('post') is None:
    return Skipped('no_post', where)
  prompt = (
    f'SUBREDDIT: r/{info["subreddit"]}\n\nTITLE: {info["title"]}\n\n'
    f'POST: {info["post"]}\n\nTL;DR:'
  )
  choice = row['choice']
  chosen, rejected = (f' {texts[i].strip()}' for i in (choice, 1 - choice))
  return {'prompt': prompt, 'chosen': chosen, 'rejected': rejected}


def _ultrainteract(row: Row, where: str) -> dict[str, Any]:
  """openbmb/UltraInteract_pair: a trajectory and two next steps; _sft: one answer."""
  del where
  if 'trajectory' in row:
    sides = {side: row[side] for side in ('chosen', 'rejected')}
    return {'prompt': row['trajectory'], **sides}
  turn = {'role': 'user', 'content': row['instruction']}
  return {'prompt': [turn], 'response': row['response']}


def _gsm8k(row: Row, where: str) -> dict[str, Any]:
  """openai/gsm8k: a question and its worked answer; both keep their names too."""
  del where
  turn = {'role': 'user', 'content': row['question']}
  return {**row, 'prompt': [turn], 'response': row['answer']}


def _dapo_math(row: Row, where: str) -> dict[str, Any]:
  """BytedTsinghua-SIA/DAPO-Math-17k: a conversation, and the answer to be checked."""
  del where
  return {'prompt': row['prompt'], 'answer': row['reward_model']['ground_truth']}


COLUMNS: dict[str, Map] = {
  'hh_rlhf': _hh_rlhf,
  'ultrafeedback': _ultrafeedback,
  'tldr': _tldr,
  'ultrainteract': _ultrainteract,
  'gsm8k': _gsm8k,
  'dapo_math': _dapo_math,
}


def check(name: str) -> None:
  """Refuses a map that does not exist; '' is none."""
  if name and name not in COLUMNS:
    raise InputError(
      f'records.columns={name!r} is no map of columns; known are {sorted(COLUMNS)}.'
    )


def mapped(name: str, row: Row, where: str) -> dict[str, Any] | Skipped:
  """A row in the words of a record, by the map of that name; '' leaves it.

  Raises:
    InputError: naming `where`, for a row that is not of this data set.
  """
  if not name:
    return dict(row)
  try:
    return COLUMNS[name](row, where)
  except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
    raise InputError(
      f'{where}: the row is none of records.columns={name!r}, which has the columns of '
      f'{COLUMNS[name].__doc__.partition(":")[0]}; it has {sorted(map(str, row))}.'
    ) from error
