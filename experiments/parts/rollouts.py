"""From a resolved config to the rollouts of a run: questions, judge, groups."""

from collections.abc import Callable, Collection, Mapping, Sequence
import dataclasses
from typing import Any, NamedTuple

from flax import serialization
import grain
import jax
import numpy as np

from experiments.parts import build, rollout_metrics, samplers
from experiments.parts.adapted import Trained
from experiments.parts.build import Config
from experiments.parts.corpus import Split
from prefjax.data.encoding import encode_prompt
from prefjax.data.questions import Question
from prefjax.data.tokenizers import Tokenizer
from prefjax.errors import InputError
from prefjax.models import heads
from prefjax.rewards.judge import Judge, Sampled
from prefjax.rollout import groups as groups_lib
from prefjax.rollout.draws import Controls
from prefjax.rollout.groups import Carry, Collector, Groups, Request
from prefjax.rollout.responses import Rolled, Roller
from prefjax.training.correction import Correction
from prefjax.training.online import Collected
from prefjax.types import RolloutBatch

# Purposes of noise, so that no two draws of a run share any.
_TRAIN, _EVALUATE = 3, 4
_NO_LIMIT = 2**30  # tokens
_COLLECTOR = ('dynamic', 'refill', 'oversample', 'max_rounds', 'max_staleness')


class Asked(NamedTuple):
  """A question as text and as tokens."""

  question: Question
  ids: list[int]


def encoded(
  config: Config, tokenizer: Tokenizer, found: Split, say: Callable[[str], None]
) -> Split:
  """The questions with their tokens; long ones are refused, or left out and counted.

  Raises:
    InputError: where prompts are longer than `data.max_prompt` and
      `data.drop_long_prompts` is off.
  """
  most = config['data']['max_prompt']
  parts = []
  for name, part in zip(Split._fields, found, strict=True):
    asked = [
      Asked(
        question,
        encode_prompt(
          question.prompt,
          tokenizer,
          max_prompt=_NO_LIMIT,
          messages=question.messages,
        ),
      )
      for question in part
    ]
    kept = [one for one in asked if len(one.ids) <= most]
    long = len(asked) - len(kept)
    if long and not config['data']['drop_long_prompts']:
      longest = max(len(one.ids) for one in asked)
      raise InputError(
        f'{long} of {len(asked)} prompts are longer than data.max_prompt={most} '
        f'tokens, the longest has {longest}: raise it, or set data.drop_long_prompts.'
      )
    if not kept:
      raise InputError(f'{config["data"]["source"]}: no {name} prompt is left.')
    say(f'questions {name}: {len(kept)} prompts, {long} left out as too long')
    parts.append(kept)
  return Split(*parts)


def collector(config: Config) -> Collector:
  """How batches of groups are filled."""
  options = {name: config['rollout'][name] for name in _COLLECTOR}
  size = config['rollout']['prompts']
  return Collector(batch=size, capacity=size if options['dynamic'] else 0, **options)


def correction(config: Config) -> Correction:
  """What is done about a sampler that is not the trainer."""
  options = config['rollout']
  if options['server'] and options['correction'] == 'none':
    raise InputError(
      'rollout.server is another program, with log-probs of its own: '
      'set rollout.correction to token or sequence.'
    )
  return Correction(level=options['correction'], cap=options['correction_cap'])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rollouts:
  """The rollouts of a run: a batch of judged groups for every iteration.

  Attributes:
    asked: the questions, train and held out.
    shown: groups of an iteration whose responses are written to samples.jsonl.
    whole: from trained parameters to all that the sampler's model has.
  """

  config: Config
  roller: Roller
  judge: Judge  # for held-out questions: it writes nothing down
  collector: Collector
  asked: Split
  shown: int
  whole: Callable[[Any], Any]

  def carry(self) -> dict[str, Any]:
    """What the first iteration starts from."""
    k, data = self.roller.num_responses, self.config['data']
    l, t = data['max_prompt'], data['max_response']
    one = Groups(
      position=np.zeros(1, np.int64),
      attempt=np.zeros(1, np.int64),
      born=np.zeros(1, np.int64),
      prompts=np.zeros((1, l), np.int32),
      prompt_length=np.zeros(1, np.int32),
      tokens=np.zeros((1, k, t), np.int32),
      length=np.zeros((1, k), np.int32),
      logps=np.zeros((1, k, t), np.float32),
      truncated=np.zeros((1, k), bool),
      rewards=np.zeros((1, k, t), np.float32),
      step=np.zeros((1, k, t), np.int32),
      scored=np.zeros((1, k), bool),
      right=np.zeros((1, k), bool),
    )
    empty = groups_lib.empty_carry(one, self.collector.capacity)
    return serialization.to_state_dict(empty)

  def collect(self, params: Any, carry: Mapping[str, Any], iteration: int) -> Collected:
    """A batch of groups, what waits for the next one, and what happened."""
    rolled: list[Rolled] = []
    alone = self._sampled_with(params)

    def sample(requests: Sequence[Request]) -> Groups:
      rolled.append(self.roller.sample(alone, requests, iteration))
      return rolled[-1].groups

    before = serialization.from_state_dict(
      Carry(0, 0, Groups(*[0] * len(Groups._fields))), dict(carry)
    )
    groups, after, counts = self.collector.collect(sample, before, iteration)
    metrics = {f'groups/{name}': float(count) for name, count in counts.items()}
    needs = build.objective(self.config).needs
    return Collected(
      as_batch(groups, self.collector.batch, self.roller.tokenizer.pad_id, needs),
      serialization.to_state_dict(after),
      metrics | rollout_metrics.sampled(rolled, groups, iteration),
      self._samples(rolled),
    )

  def _samples(self, rolled):
    for part in rolled[:1]:
      groups = part.groups
      for i, texts in enumerate(part.texts[: self.shown]):
        position = int(groups.position[i])
        for k, text in enumerate(texts):
          yield {
            'position': position,
            'prompt': self.roller.question(position)[0],
            'response': text,
            'reward': float(groups.rewards[i, k].sum()),
            'right': bool(groups.right[i, k]),
          }

  def evaluate(self, params: Any, iteration: int) -> dict[str, float]:
    """pass@1, pass@k and majority on held-out questions, with standard errors."""
    del iteration  # the same noise each time: differences are the policy's
    options, asked = self.config['evaluation'], self.asked.held_out
    held_out = dataclasses.replace(
      self.roller,
      question=lambda i: _plain(asked[i]),
      judge=lambda **groups: self.judge.submit(Sampled(**groups)),
      num_responses=options['samples'],
      seed=jax.random.fold_in(jax.random.key(self.config['seed']), _EVALUATE),
      controls=Controls(**{name: options[name] for name in ('temperature', 'top_p')}),
    )
    requests = [Request(i) for i in range(min(options['prompts'], len(asked)))]
    return rollout_metrics.held_out(
      held_out.sample(self._sampled_with(params), requests, 0), options
    )

  def _sampled_with(self, params):
    """The decoder's parameters, where the sampler wants them."""
    params = heads.trunk(self.whole(params))
    if getattr(self.roller.sampler, 'mesh', None) is None:
      return build.on_one_device(params)
    return params


def create(
  config: Config,
  trained: Trained,
  tokenizer: Tokenizer,
  mesh: Any,
  asked: Split,
  judges: Split,
) -> Rollouts:
  """The rollouts of a config; `judges` are those of training and of held-out."""
  order = grain.MapDataset.range(len(asked.train)).seed(config['seed'])
  order = order.shuffle().repeat()

  def question(position: int):
    return _plain(asked.train[order[position]])

  roller = Roller(
    sampler=samplers.create(config, trained.model, tokenizer, mesh),
    tokenizer=tokenizer,
    question=question,
    judge=lambda **groups: judges.train.submit(Sampled(**groups)),
    num_responses=config['rollout']['group_size'],
    max_prompt=config['data']['max_prompt'],
    max_tokens=config['data']['max_response'],
    seed=jax.random.fold_in(jax.random.key(config['seed']), _TRAIN),
    controls=samplers.controls(config),
  )
  return Rollouts(
    config=config,
    roller=roller,
    judge=judges.held_out,
    collector=collector(config),
    asked=asked,
    shown=config['log']['samples'],
    whole=trained.whole,
  )


def _plain(asked: Asked):
  return asked.question.prompt, asked.ids, asked.question.record


def as_batch(
  groups: Groups, size: int, pad_id: int, needs: Collection[str] = ()
) -> RolloutBatch:
  """Groups as a batch of `size` prompts; what is missing is filling of weight 0.

  Numbers of steps, and outcomes as labels, are in it where an objective `needs` them.
  """
  missing = size - len(groups)

  def filled(x, value=0):
    widths = [(0, missing)] + [(0, 0)] * (x.ndim - 1)
    return np.pad(x, widths, constant_values=value)

  length = filled(groups.length)
  t = groups.tokens.shape[-1]
  return RolloutBatch(
    prompts=filled(groups.prompts, pad_id),
    responses=filled(groups.tokens, pad_id),
    prompt_length=filled(groups.prompt_length, 1).astype(np.int32),
    response_length=length.astype(np.int32),
    mask=np.arange(t) < length[..., None],
    weight=filled(groups.scored).astype(np.float32),
    old_logps=filled(groups.logps),
    truncated=filled(groups.truncated),
    rewards=filled(groups.rewards),
    step=filled(groups.step, -1) if 'step' in needs else None,
    label=filled(groups.right).astype(np.float32) if 'implicit' in needs else None,
  )
