"""How the iterates of an arm compare: win rates, distance to the winner, exports."""

from collections.abc import Sequence
import json
from typing import Any

import numpy as np

from experiments.parts import self_play
from experiments.parts.self_play import Rows, SelfPlay
from prefjax import tasks
from prefjax.evaluation import win_rate
from prefjax.rewards.oracles import Oracle
from prefjax.tabular import games
from prefjax.training import processes
from prefjax.training.files import replacing


def compare(
  arm: SelfPlay, oracle: Oracle, contest: tasks.Contest | None
) -> dict[str, float]:
  """The numbers of an arm, by the oracle of its evaluation and, where there is one,
  by the game of its task.

      win_rate/a_b      P(iterate a > iterate b) on held-out prompts, +- its error
      length/a          mean tokens of a response
      gap/a, distance/a as `winner_numbers` has them
  """
  iterates = arm.iterates()
  found = _win_rates(arm, oracle, iterates)
  for t, rows in enumerate(iterates):
    found[f'length/{t}'] = float(np.mean([row['tokens'] for row in rows]))
    if contest is not None:
      found |= {f'{k}/{t}': v for k, v in winner_numbers(contest, rows).items()}
  return found


def _win_rates(arm, oracle, iterates):
  means = _means(arm, oracle, iterates)
  estimate = win_rate.summary(means)
  found = {}
  for a in range(len(iterates)):
    for b in range(a):
      found[f'win_rate/{a}_{b}'] = float(estimate.mean[a, b])
      found[f'win_rate/{a}_{b}_se'] = float(estimate.standard_error[a, b])
  return found


def _means(arm: SelfPlay, oracle: Oracle, iterates: Sequence[Rows]) -> np.ndarray:
  """Win rates [p, a, a] on each prompt, in `head_to_head.jsonl` once they are known."""
  path, asked_of = (arm.folder / f'{x}.jsonl' for x in ('head_to_head', 'compared'))
  if not processes.shared(path.exists):
    rows = [_together(rows) for rows in zip(*iterates, strict=True)]
    self_play.write(asked_of, rows)
    questions = arm.asked.held_out[: len(rows)]
    with arm.clock('evaluate'):
      wins = self_play.asked(oracle, questions, rows, asked_of)
      size = arm.config['evaluation']['samples']
      owners = np.repeat(np.arange(len(iterates)), size).tolist()
      means = win_rate.head_to_head(wins, owners)
    self_play.write(path, ({'win_rates': each.tolist()} for each in means))
  return np.asarray([row['win_rates'] for row in self_play.read(path)])


def _together(rows: Rows) -> dict[str, Any]:
  """The responses of all iterates to one prompt."""
  responses = [text for row in rows for text in row['responses']]
  return {'prompt': rows[0]['prompt'], 'responses': responses}


def winner_numbers(contest: tasks.Contest, rows: Rows) -> dict[str, float]:
  """How far a policy is from the von Neumann winner, from its responses.

      gap       2 (max_y P(y > pi) - 1/2), over the kinds y of response; 0 at a winner
      distance  sum_y |pi(y) - winner(y)| / 2, total variation over the kinds
      reward    the task's own, mean

  pi is the mean over prompts of the policy, as its game is the same on each.
  """
  kinds = np.concatenate(
    [contest.kinds(row['prompt'], row['responses']) for row in rows]
  )
  policy = np.bincount(kinds, minlength=len(contest.KINDS)) / len(kinds)
  rewards = [
    contest.rewards([row['prompt']] * len(row['responses']), row['responses'])
    for row in rows
  ]
  return {
    'gap': float(games.duality_gap(policy, contest.game())),
    'distance': float(abs(policy - contest.winner()).sum() / 2),
    'reward': float(np.mean(rewards)),
  }


def export(arm: SelfPlay, name: str) -> None:
  """Writes `alpaca_eval/iterate-T.json` for every iterate.

  The list of objects that alpaca_eval reads as `model_outputs`; an instruction is the
  field `evaluation.instruction` of the question's row, or the whole prompt, and the
  output is the first response.
  """
  field = arm.config['evaluation']['instruction']
  folder = arm.folder / 'alpaca_eval'
  folder.mkdir(exist_ok=True)
  for t, rows in enumerate(arm.iterates()):
    outputs = [
      {
        'instruction': question.record[field] if field else question.prompt,
        'output': row['responses'][0],
        'generator': f'{name}-iterate-{t}',
      }
      for question, row in zip(arm.asked.held_out[: len(rows)], rows, strict=True)
    ]
    with replacing(folder / f'iterate-{t}.json') as file:
      json.dump(outputs, file, indent=1, ensure_ascii=False)


def metrics(arm: SelfPlay, found: dict[str, float]) -> None:
  """Writes an arm's metrics.jsonl: its iterations end to end, then what they came to.

  Steps go on from iteration to iteration; `eval/` numbers stand at the step that made
  the iterate.
  """
  config = arm.config
  size, count = config['train']['steps'], config['self_play']['iterations']
  rows = [_of_iterate(found, 0, 0)]
  for t in range(1, count + 1):
    own = self_play.read(arm.folder / f'iteration-{t}' / 'metrics.jsonl')
    rows += [{**row, 'step': row['step'] + (t - 1) * size} for row in own]
    rows.append(_of_iterate(found, t, t * size))
  self_play.write(arm.folder / 'metrics.jsonl', rows)


def _of_iterate(found, t, step):
  row = {'step': step, 'eval/win_rate': found.get(f'win_rate/{t}_0', 0.5)}
  names = ('length', 'gap', 'distance', 'reward')
  return row | {f'eval/{k}': found[f'{k}/{t}'] for k in names if f'{k}/{t}' in found}
