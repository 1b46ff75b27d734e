"""One arm of self-play: sample, compare, pick, train against pi_t, and go on.

SPPO (arXiv:2405.00675), Algorithm 1. Every iteration leaves its responses, win matrices
and picks as JSON lines, each file whole or not there, and is trained in a folder of its
own: killed anywhere and started again, an arm reads what it has and does the rest.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import dpo, sft
from experiments.parts import build, picks
from experiments.parts.adapted import Trained
from experiments.parts.build import Config, Model
from experiments.parts.corpus import Split
from prefjax.data import prepare
from prefjax.data.mismatched import mismatched
from prefjax.data.questions import Question
from prefjax.data.tokenizers import Tokenizer
from prefjax.errors import InputError
from prefjax.rewards import oracles, wins
from prefjax.rewards.oracles import Oracle
from prefjax.rollout.draws import Controls
from prefjax.rollout.responses import Writer
from prefjax.rollout.sampler import DecoderSampler
from prefjax.training import monitor, processes
from prefjax.training import reference as references
from prefjax.training.checkpoints import Checkpoints
from prefjax.training.files import replacing
from prefjax.training.loop import Loop
from prefjax.training.mesh import place
from prefjax.training.metrics import PhaseClock
from prefjax.training.step import Step

Rows = list[dict[str, Any]]

# Purposes of noise, so that no two draws of a run share any.
_TRAIN, _HELD_OUT = 5, 6


@dataclasses.dataclass(frozen=True)
class Tools:
  """What all arms of a run share, so that they compile once."""

  model: Model
  mesh: jax.sharding.Mesh | None
  sampler: DecoderSampler
  steps: dict[str, Step] = dataclasses.field(default_factory=dict)

  def step(self, config: Config) -> Step:
    """The step of a config's objective, the same one for the same objective."""
    key = json.dumps(config['objective'], sort_keys=True)
    if key not in self.steps:
      self.steps[key] = build.step(config, self.model, self.mesh)
    return self.steps[key]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelfPlay:
  """An arm in a folder; `run` starts or resumes it.

  Attributes:
    base: the parameters of pi_0.
    asked: questions to sample for and held-out ones; no iteration shares one with
      another.
  """

  config: Config
  folder: Path
  tools: Tools
  base: Any
  tokenizer: Tokenizer
  asked: Split
  oracle: Oracle
  clock: PhaseClock
  say: Callable[[str], None]

  def run(self) -> Any:
    """The last iterate's parameters; held-out responses of all lie in the folder."""
    params = self._waiting(self.base)
    self._held_out(0, params)
    for t in range(1, self.config['self_play']['iterations'] + 1):
      params = self._iteration(t, params)
      self._held_out(t, params)
    return params

  def _waiting(self, params):
    """An iterate where it waits for what samples, scores and trains."""
    memory = self.config['memory']['reference']
    return place(params, self.tools.mesh, memory=memory)

  def iterates(self) -> list[Rows]:
    """The held-out responses of pi_0, pi_1, ..., a row for each prompt."""
    count = self.config['self_play']['iterations'] + 1
    return [read(self._held_out_path(t)) for t in range(count)]

  def _held_out_path(self, t):
    return self.folder / f'iterate-{t}' / 'held_out.jsonl'

  def _held_out(self, t, params):
    options = self.config['evaluation']
    questions = self.asked.held_out[: options['prompts']]
    self._sampled(
      self._held_out_path(t),
      params,
      questions,
      options['samples'],
      # No noise in common: it would tie an iterate's responses to another's.
      self._noise(_HELD_OUT, t),
      'evaluate',
    )

  def _noise(self, purpose, t):
    seed = jax.random.fold_in(jax.random.key(self.config['seed']), purpose)
    return jax.random.fold_in(seed, t)

  def _sampled(self, path, params, questions, count, noise, phase):
    """The responses in `path`, drawn where they are not there yet."""
    if not processes.shared(path.exists):
      with self.clock(phase):
        write(path, self._draw(params, questions, count, noise))
    return read(path)

  def _draw(self, params, questions, count, noise) -> Iterator[dict[str, Any]]:
    data, options = self.config['data'], self.config['self_play']
    writer = Writer(
      sampler=self.tools.sampler,
      tokenizer=self.tokenizer,
      num_responses=count,
      max_prompt=data['max_prompt'],
      max_tokens=data['max_response'],
      prompts_at_once=options['prompts_at_once'],
      controls=controls(self.config),
    )
    there = place(params, self.tools.mesh)
    for drawn in writer.draw(there, [q.prompt for q in questions], noise):
      sizes = drawn.samples.length.tolist()
      for question, texts, tokens in zip(
        questions[drawn.index], drawn.texts, sizes, strict=True
      ):
        yield {'prompt': question.prompt, 'responses': texts, 'tokens': tokens}

  # One iteration ----------------------------------------------------------------

  def _iteration(self, t, params):
    folder = self.folder / f'iteration-{t}'
    found = trained(folder, params)
    if found is not None:
      return self._waiting(found)
    self.say(f'{self.folder.name}: iteration {t}')
    size, count = (self.config['self_play'][k] for k in ('prompts', 'responses'))
    questions = self.asked.train[(t - 1) * size : t * size]
    noise = self._noise(_TRAIN, t)
    path = folder / 'responses.jsonl'
    rows = self._sampled(path, params, questions, count, noise, 'rollout')
    compared = self._compared(folder / 'wins.jsonl', questions, rows, path)
    records = self._picked(folder / 'picks.jsonl', rows, compared)
    return self._trained(folder, t, params, records)

  def _compared(self, path, questions, rows, asked_of):
    """The win matrices in `path`, asked of the oracle where they are not there yet."""
    if not processes.shared(path.exists):
      with self.clock('reward'):
        found = asked(self.oracle, questions, rows, asked_of)
        write(path, ({'wins': matrix.tolist()} for matrix in found))
    return np.asarray([row['wins'] for row in read(path)])

  def _picked(self, path, rows, compared):
    options = self.config['self_play']
    used = wins.as_used(compared, self.config['oracle']['win_rate'])
    picked = list(picks.records(rows, used, options['use'], soft=options['soft_pairs']))
    write(path, map(dataclasses.asdict, picked))
    self.say(f'picks: {len(picked)} of {len(rows)} prompts')
    return picked

  def _trained(self, folder, t, params, records):
    config, model = self.config, self.tools.model
    step = self.tools.step(config)
    loop = Loop(
      step=step,
      batches=self._scored(folder, t, params, records, step),
      plan=build.plan(config),
      folder=folder,
      clock=self.clock,
      description=f'{step.objective.name}, iteration {t}',
      flops=lambda batch: monitor.training_flops(model.config, batch),
      peak=monitor.peak_flops(model.config.dtype),
      say=self.say,
      wandb_project=config['log']['wandb'] or None,
    )
    params, _ = loop.run(params)
    sft.save_final(folder, config['train']['steps'], params)
    return self._waiting(params)

  def _scored(self, folder, t, params, records, step):
    """Batches with the log-probs of pi_t, the reference and what training starts at."""
    with self.clock('data'):
      batches = self._batches(folder, records, step)
    there = place(params, step.mesh)
    if 'reference_logps' in step.objective.needs:
      identity = references.params_fingerprint(there)
      batches = dpo.scored(
        self.config, folder, self.clock, self.say, step, there, identity, batches
      )
    model = self.tools.model
    setting = dpo.Setting(
      model, self.tokenizer, there, Trained(model, there), step, Split(batches, None)
    )
    dpo.check_step_zero(setting, self.say if t == 1 else lambda line: None)
    return batches

  def _batches(self, folder, records, step):
    data = prepare.prepare(
      records,
      self.tokenizer,
      directory=folder / 'data',
      **{name: self.config['data'][name] for name in ('max_prompt', 'max_response')},
    )
    if 'mismatched' in step.objective.needs:
      data = mismatched(data)
    return build.batches(self.config, data, self.tools.mesh, self.tokenizer.pad_id)


def controls(config: Config) -> Controls:
  """How responses are drawn, in training and of held-out prompts."""
  names = ('temperature', 'top_k', 'top_p', 'min_p')
  return Controls(**{name: config['self_play'][name] for name in names})


def trained(folder: Path, like: Any) -> Any | None:
  """The parameters that an iteration ended with, or None if it has not."""
  with Checkpoints(folder / 'final', keep=1) as saver:
    found = saver.restore(like)
  return None if found is None else found.state


def asked(
  oracle: Oracle, questions: Sequence[Question], rows: Rows, path: Path
) -> wins.Wins:
  """The oracle's win matrices for rows of responses, which lie in `path`.

  Raises:
    InputError: what the oracle gave that is none, naming the prompt and the file.
  """
  try:
    return oracles.ask(
      oracle,
      [row['prompt'] for row in rows],
      [row['responses'] for row in rows],
      [question.record for question in questions],
    )
  except InputError as error:
    raise InputError(f'{error} The responses are the lines of {path}.') from error


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
  """JSON lines, whole or not at all; of several processes the first writes them."""
  lines = [json.dumps(row) + '\n' for row in rows]  # drawn by all together

  def write_lines() -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
      file.writelines(lines)

  processes.shared(write_lines)


def read(path: Path) -> Rows:
  """The rows of JSON lines."""
  return [json.loads(line) for line in path.read_text().splitlines()]
