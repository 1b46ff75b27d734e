"""The process reward models of a run: what each learns, its training and its scores."""

from collections.abc import Mapping
import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

from experiments import dpo, sft
from experiments.parts import build, corpus, pools, process_scores
from experiments.parts.adapted import Trained
from experiments.parts.build import Config
from experiments.parts.corpus import Split
from experiments.parts.pools import Author, Continued
from experiments.parts.process_scores import Steps
from prefjax.data import prepare
from prefjax.data.mismatched import mismatched
from prefjax.data.pipeline import Batches
from prefjax.data.prepare import Prepared
from prefjax.data.records import Record
from prefjax.errors import InputError
from prefjax.models import heads
from prefjax.rewards import outcomes
from prefjax.training import monitor
from prefjax.training.files import fingerprint
from prefjax.training.loop import Loop
from prefjax.training.mesh import place
from prefjax.training.metrics import PhaseClock
from prefjax.training.step import Step

_FORWARDS = 3  # of an update


class Member(NamedTuple):
  """One model of a run.

  `valued` says that it gives the probability that all is right up to a step; another
  gives log-ratios, the implicit rewards.
  """

  name: str
  config: Config  # of its own training
  labels: str  # of the steps it learns from: outcome, hard, soft; '': outcomes
  balance: str
  valued: bool


class Scored(NamedTuple):
  """What a model says of every step, by pool, and what it cost.

  `costs` are FLOPs: `sampling` of the responses to learn from, `labelling` of their
  steps, `training`, and `scoring` of one response.
  """

  member: Member
  steps: Mapping[str, Steps]
  costs: Mapping[str, float]


def members(config: Config) -> list[Member]:
  """The models that a config names."""
  found = []
  for name, block in config.get('prms', {}).items():
    own = {**config, 'objective': block['objective']}
    valued = 'step_label' in build.objective(own).needs
    found.append(Member(name, own, block['labels'], block['balance'], valued))
  return found


@dataclasses.dataclass(kw_only=True)
class Workshop:
  """Makes the models of a run, each once and in a folder of its own.

  Attributes:
    learnt: the records that models learn from.
    judged: records whose steps every model scores: the `pool`, and a bench if any.
    sampling: FLOPs that the records to learn from have cost.
  """

  config: Config
  folder: Path
  cache: Path
  clock: PhaseClock
  author: Author
  learnt: list[Record]
  judged: Mapping[str, list[Record]]
  sampling: float = 0.0

  def __post_init__(self):
    self._steps: dict[str, Step] = {}
    self._checked = False

  def scored(self, member: Member) -> Scored:
    """What a model says of all that is judged, and what it cost."""
    folder = self.folder / member.name
    batches, labelling = self._batches(member)
    found = {name: folder / f'scores-{name}' for name in self.judged}
    params = None
    if not all(path.exists() for path in found.values()):
      params = self._trained(member, batches)
    steps = {name: self._scores(member, name, params, found[name]) for name in found}
    costs = {
      'sampling': self.sampling,
      'labelling': labelling,
      'training': self._training_flops(member, batches),
      'scoring': self._scoring_flops(member),
    }
    return Scored(member, steps, costs)

  def _step(self, member) -> Step:
    """The step of an objective, the same one for the same objective: it compiles."""
    key = fingerprint(member.config['objective'])
    if key not in self._steps:
      model, mesh = self.author.model, build.mesh(self.config)
      if member.valued:
        model = model._replace(forward=heads.forward(model.forward))
      self._steps[key] = build.step(member.config, model, mesh)
    return self._steps[key]

  # What it learns from ----------------------------------------------------------

  def _batches(self, member) -> tuple[Batches, float]:
    """The data of a model, and the FLOPs of its labels."""
    records, flops, found = self.learnt, 0.0, None
    if member.labels in ('hard', 'soft'):
      found, flops = self._continued
    if member.labels:
      records = outcomes.labelled(records, member.labels, found)
    records = outcomes.balanced(records, member.balance, self.config['seed'])
    needs = self._step(member).objective.needs
    if 'pairs' in needs:
      records = outcomes.paired(records)
    if not records:
      raise InputError(f'prms.{member.name}: no prompt has right and wrong responses.')
    data = self._prepared(records)
    data = mismatched(data) if 'mismatched' in needs else data
    return self._referred(member, data), flops

  @functools.cached_property
  def _continued(self) -> Continued:
    task = corpus.embedded_task(self.config['data']['source'])
    where = (self.config, self.cache, task, self.author)
    with self.clock('rollout'):
      return pools.continued(*where, self.learnt)

  @functools.cached_property
  def _judged(self) -> dict[str, Prepared]:
    return {name: self._prepared(records) for name, records in self.judged.items()}

  def _prepared(self, records) -> Prepared:
    tokenizer, data = self.author.tokenizer, self.config['data']
    limits = {name: data[name] for name in ('max_prompt', 'max_response')}
    rows = [dataclasses.asdict(record) for record in records]
    key = fingerprint([rows, limits, tokenizer.fingerprint])
    with self.clock('data'):
      folder = self.cache / f'data-{key}'
      return prepare.prepare(records, tokenizer, directory=folder, **limits)

  def _referred(self, member, data) -> Batches:
    """Batches, with the policy's log-probs where the objective reads them."""
    step = self._step(member)
    batches = build.batches(
      member.config, data, step.mesh, self.author.tokenizer.pad_id
    )
    if member.valued:
      return batches
    policy = place(self.author.policy, step.mesh)
    where = (self.cache, self.clock, print, step, policy, self.author.identity)
    return dpo.scored(member.config, *where, batches)

  # Training and scores ----------------------------------------------------------

  def _trained(self, member, batches) -> Any:
    """A model's parameters; it starts from the policy, as its reference does."""
    author, step = self.author, self._step(member)
    start = author.policy
    if member.valued:
      start = heads.with_scalar(start, author.model.config.width)
    start = place(start, step.mesh)
    if not (member.valued or self._checked):
      self._checked = True  # all implicit models start from one policy
      where = (author.model, author.tokenizer, start, Trained(author.model, start))
      setting = dpo.Setting(*where, step, Split(batches, None))
      dpo.check_step_zero(setting, lambda text: print(f'{member.name}: {text}'))
    folder = self.folder / member.name
    folder.mkdir(exist_ok=True)
    loop = Loop(
      step=step,
      batches=batches,
      plan=build.plan(member.config),
      folder=folder,
      clock=self.clock,
      description=member.name,
      flops=build.flops(member.config),
      peak=monitor.peak_flops(author.model.config.dtype),
      wandb_project=self.config['log']['wandb'] or None,
    )
    params, _ = loop.run(start)
    sft.save_final(folder, loop.plan.steps, params)
    return params

  def _scores(self, member, name, params, directory) -> Steps:
    if params is None:
      return process_scores.load(directory)
    batches = self._referred(member, self._judged[name])
    beta = member.config['objective'].get('beta', 1.0)
    with self.clock('evaluate'):
      return process_scores.stored(
        self._step(member), params, batches, directory, valued=member.valued, beta=beta
      )

  # Costs ------------------------------------------------------------------------

  def _training_flops(self, member, batches) -> float:
    """Of all updates, and of the reference's forward over the data, once."""
    flops = functools.partial(monitor.forward_flops, self.author.model.config)
    prompt, response = batches.data.prompt_length, batches.data.response_length
    rows = map(batches.indices, range(member.config['train']['steps']))
    total = _FORWARDS * sum(flops(prompt[i], response[i]) for i in rows)
    return total if member.valued else total + flops(prompt, response)

  def _scoring_flops(self, member) -> float:
    """Of one response: the model's forward, and the reference's where it has one."""
    data = self._judged['pool']
    config, responses = self.author.model.config, (data.response_length > 0).sum()
    total = monitor.forward_flops(config, data.prompt_length, data.response_length)
    return (1 if member.valued else 2) * total / int(responses)
