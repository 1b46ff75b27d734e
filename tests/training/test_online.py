"""The online loop on scripted rollouts: what an iteration is, and that it can stop."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
import tiny

from prefjax import objectives
from prefjax.data import buckets
from prefjax.errors import InputError, Preempted, TrainingError
from prefjax.models import heads
from prefjax.training import mesh as meshes
from prefjax.training import metrics
from prefjax.training.correction import Correction
from prefjax.training.minibatches import Cutter
from prefjax.training.online import Collected, OnlineLoop, OnlinePlan
from prefjax.training.optimizers import Optimizer
from prefjax.training.process import ProcessModel
from prefjax.training.step import Step
from prefjax.types import RolloutBatch

P, K, L, T = 8, 4, 6, 7


def rollout(n, params, p=P):
  """A rollout that depends on the iteration and on the policy, as a real one does."""
  rng = np.random.default_rng([7, n])
  shift = float(np.asarray(params['mix']).sum())
  rng = np.random.default_rng([7, n, int(abs(shift) * 1e6) % 2**31])
  batch = tiny.batch(seed=int(rng.integers(1 << 30)), p=p, k=K, l=L, t=T)
  exists = np.arange(T) < batch.response_length[..., None]
  rewards = np.zeros((p, K, T), np.float32)
  last = np.maximum(batch.response_length - 1, 0)[..., None]
  right = rng.random((p, K, 1)) < 0.5
  np.put_along_axis(rewards, last, right.astype(np.float32), axis=-1)
  return RolloutBatch(
    prompts=batch.prompts,
    responses=batch.responses,
    prompt_length=batch.prompt_length,
    response_length=batch.response_length,
    mask=exists,
    weight=(batch.response_length > 0).astype(np.float32),
    old_logps=np.where(exists, -rng.uniform(1, 4, (p, K, T)), 0).astype(np.float32),
    truncated=rng.random((p, K)) < 0.3,
    rewards=np.where(exists, rewards, 0),
    label=right[..., 0].astype(np.float32),
  )


def collect(params, carry, n):
  batch = rollout(n, params)
  carry = {'position': carry['position'] + P, 'rows': carry['rows'] + n}
  rows = [{'response': n, 'reward': float(batch.rewards.sum())}]
  return Collected(batch, carry, {'reward': float(batch.rewards.mean())}, rows)


@functools.cache
def made(forward, name, numbers, updates, mesh):
  """One step for all runs of a kind: they share what is compiled."""
  return Step(
    forward=forward,
    objective=objectives.create(name, **dict(numbers)),
    optimizer=Optimizer(name='adamw', learning_rate=1e-2, steps=updates, clip_norm=1.0),
    mesh=mesh,
  )


@functools.cache
def process(mesh=None, learning_rate=1e-2, updates=1):
  """A process reward model on the same forward; one for all runs of a kind."""
  step = Step(
    forward=tiny.bag_forward,
    objective=objectives.create('cross_entropy', beta=0.5),
    optimizer=Optimizer(name='adamw', learning_rate=learning_rate, steps=99),
    mesh=mesh,
  )
  return ProcessModel(step=step, params=tiny.bag_params(), updates=updates)


def make(folder, name='grpo', *, numbers=(), mesh=None, shards=1, **changes):
  options = dict(plan=OnlinePlan(iterations=4, save_every=1, eval_every=2))
  options |= changes
  plan = options['plan']
  updates = plan.iterations * plan.epochs * plan.minibatches
  step = made(
    options.pop('forward', tiny.bag_forward),
    name,
    tuple(sorted(dict(numbers).items())),
    updates,
    mesh,
  )
  if name == 'prime':
    options.setdefault('process', process(mesh))
  folder.mkdir(exist_ok=True)
  return OnlineLoop(
    step=step,
    collect=options.pop('collect', collect),
    carry={'position': np.zeros((), np.int64), 'rows': np.zeros((2, 3), np.int32)},
    cutter=Cutter(
      grid=buckets.grid(L, T, multiple=2, growth=options.pop('growth', float('inf'))),
      max_tokens=options.pop('max_tokens', 80),
      at_once=options.pop('at_once', 0),
      shards=shards,
    ),
    folder=folder,
    clock=metrics.PhaseClock(),
    description=name,
    seed=0,
    evaluate=lambda params, n: {'accuracy': float(np.asarray(params['mix']).sum())},
    say=lambda text: None,
    **options,
  )


def lasting(folder):
  rows = metrics.read(folder / 'metrics.jsonl')
  clean = [{k: v for k, v in r.items() if not k.startswith('time/')} for r in rows]
  return clean, (folder / 'samples.jsonl').read_text()


def bits(params):
  return jax.tree.map(lambda x: np.asarray(x).tobytes(), params)


BUSY = OnlinePlan(
  iterations=4, epochs=2, minibatches=2, refresh_every=2, save_every=1, eval_every=2
)


def test_every_update_is_made_and_logged(tmp_path):
  loop = make(tmp_path / 'run', plan=BUSY)
  calls, update = [], Step.update

  def counting(self, state, batches, hyper):
    calls.append(sum(int((b.weight > 0).any(axis=1).sum()) for b in batches))
    return update(self, state, batches, hyper)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Step, 'update', counting)
    _, last = loop.run(tiny.bag_params())
  # Four iterations of two epochs of two halves, each of four prompts.
  assert calls == [P // 2] * 16
  rows = metrics.read(tmp_path / 'run' / 'metrics.jsonl')
  assert [r['step'] for r in rows if 'loss' in r] == [1, 2, 3, 4]
  assert [r['step'] for r in rows if 'eval/accuracy' in r] == [0, 2, 4]
  assert last == {'eval/accuracy': rows[-1]['eval/accuracy']}
  samples = (tmp_path / 'run' / 'samples.jsonl').read_text().splitlines()
  assert [json.loads(row)['step'] for row in samples] == [1, 2, 3, 4]


@pytest.mark.parametrize('name', ['grpo', 'prime'])
@pytest.mark.parametrize('refresh_every', [0, 2])
def test_references_may_wait_in_the_memory_of_the_host(
  tmp_path, monkeypatch, name, refresh_every
):
  plan = dataclasses.replace(BUSY, refresh_every=refresh_every)
  kept, waiting = {'host': [], 'device': []}, OnlineLoop._waiting

  def seen(self, reference):
    kept[self.reference_memory].append(waiting(self, reference))
    return kept[self.reference_memory][-1]

  monkeypatch.setattr(OnlineLoop, '_waiting', seen)
  runs = []
  for memory in kept:
    loop = make(tmp_path / memory, name, plan=plan, reference_memory=memory)
    runs.append((bits(loop.run(tiny.bag_params())[0]), lasting(tmp_path / memory)))
  assert runs[0] == runs[1]
  for memory, kind in (('host', 'pinned_host'), ('device', 'device')):
    # The first, PRIME's, and one for each time that the policy became the reference.
    count = 1 + (name == 'prime') + (2 if refresh_every else 0)
    assert len(kept[memory]) == count
    leaves = jax.tree.leaves(kept[memory])
    assert {leaf.sharding.memory_kind for leaf in leaves} == {kind}


@pytest.mark.slow
def test_a_killed_process_reward_model_ends_with_the_same_bits(tmp_path):
  options = dict(name='prime', plan=BUSY, process=process(updates=2))
  whole, _ = make(tmp_path / 'whole', **options).run(tiny.bag_params())
  judge, calls = ProcessModel.judge, []

  def dying(*args):
    found = judge(*args)
    calls.append(None)
    if len(calls) == 3:  # it has learnt, and the policy has not
      raise KeyboardInterrupt
    return found

  with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(ProcessModel, 'judge', dying)
    make(tmp_path / 'run', **options).run(tiny.bag_params())
  found, _ = make(tmp_path / 'run', **options).run(tiny.bag_params())
  assert bits(found) == bits(whole)
  assert lasting(tmp_path / 'run') == lasting(tmp_path / 'whole')


@pytest.mark.parametrize('when', ['rollout', 'update', 'accumulation', 'save'])
def test_killed_anywhere_it_ends_with_the_same_bits(tmp_path, when):
  whole, _ = make(tmp_path / 'whole', plan=BUSY).run(tiny.bag_params())
  calls = []

  def after(limit, function):
    def dying(*args, **kwargs):
      calls.append(None)
      if len(calls) == limit:
        raise KeyboardInterrupt
      return function(*args, **kwargs)

    return dying

  loop = make(tmp_path / 'run', plan=BUSY)
  with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
    if when == 'rollout':  # sampled, and nothing learnt of it
      patch.setattr(OnlineLoop, '_scored', after(3, OnlineLoop._scored))
    elif when == 'update':  # the second update of the third rollout
      patch.setattr(Step, 'update', after(10, Step.update))
    elif when == 'accumulation':
      dying = after(23, loop.step._accumulate)
      patch.setattr(Step, '_accumulate', property(lambda step: dying))
    else:
      patch.setattr(OnlineLoop, '_settle', after(3, OnlineLoop._settle))
    loop.run(tiny.bag_params())
  found, _ = make(tmp_path / 'run', plan=BUSY).run(tiny.bag_params())
  assert bits(found) == bits(whole)
  assert lasting(tmp_path / 'run') == lasting(tmp_path / 'whole')


def test_sigterm_ends_after_the_iteration(tmp_path, monkeypatch):
  import signal

  whole, _ = make(tmp_path / 'whole').run(tiny.bag_params())

  def stopping(params, carry, n):
    if n == 1:
      signal.raise_signal(signal.SIGTERM)
    return collect(params, carry, n)

  with pytest.raises(Preempted, match='iteration 2 is saved'):
    make(tmp_path / 'run', collect=stopping).run(tiny.bag_params())
  found, _ = make(tmp_path / 'run').run(tiny.bag_params())
  assert bits(found) == bits(whole)


def first_update(folder, **changes):
  plan = OnlinePlan(iterations=1)
  loop = make(folder, plan=plan, **changes)
  params, _ = loop.run(tiny.bag_params())
  rows = metrics.read(folder / 'metrics.jsonl')
  row = next(r for r in rows if 'loss' in r)
  return params, {k: v for k, v in row.items() if not k.startswith('time/')}


@pytest.mark.parametrize('name', ['grpo', 'dapo', 'rloo', 'reinforce_pp'])
def test_the_cut_changes_nothing(tmp_path, name):
  params, row = first_update(tmp_path / 'whole', name=name, max_tokens=10_000)
  cuts = [dict(max_tokens=60, growth=1.5), dict(at_once=2), dict(at_once=1)]
  for i, changes in enumerate(cuts):
    cut, other = first_update(tmp_path / str(i), name=name, **changes)
    tiny.assert_same(params, cut, 1e-4)
    assert other['loss'] == pytest.approx(row['loss'], abs=1e-5)
    assert other['kl_to_old'] == pytest.approx(row['kl_to_old'], rel=1e-4)


def test_eight_devices_learn_the_same(tmp_path):
  mesh = meshes.create({'data': 8})
  params, row = first_update(tmp_path / 'one', max_tokens=10_000)
  spread, other = first_update(
    tmp_path / 'eight', mesh=mesh, shards=8, max_tokens=10_000
  )
  tiny.assert_same(params, jax.device_get(spread), 1e-4)
  assert other['loss'] == pytest.approx(row['loss'], abs=1e-5)


def test_the_reference_is_the_first_policy_until_it_is_refreshed(tmp_path):
  seen = []

  def spying(self, batch, state):
    found = scored(self, batch, state)
    seen.append(found.reference_logps)
    seen.append(self._scoring.logps(state['policy']['params'], batch))
    return found

  scored = OnlineLoop._scored
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(OnlineLoop, '_scored', spying)
    plan = OnlinePlan(iterations=3, refresh_every=2)
    make(tmp_path / 'run', plan=plan).run(tiny.bag_params())
  np.testing.assert_array_equal(seen[0], seen[1])  # nothing learnt yet
  assert np.abs(seen[2] - seen[3]).max() > 1e-3  # the old reference
  np.testing.assert_array_equal(seen[4], seen[5])  # after two iterations


def test_overlong_filtering_leaves_them_in_their_groups_mean(tmp_path):
  seen = []
  credited = OnlineLoop._credited

  def spying(self, batch):
    seen.append(credited(self, batch))
    return seen[-1]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(OnlineLoop, '_credited', spying)
    first_update(tmp_path / 'kept')
    first_update(tmp_path / 'filtered', filter_truncated=True)
  kept, filtered = seen
  np.testing.assert_array_equal(kept.advantages, filtered.advantages)
  cut = kept.truncated & (kept.weight > 0)
  assert cut.any()
  assert (filtered.weight[cut] == 0).all()
  assert (filtered.weight[~cut] == kept.weight[~cut]).all()
  lost = np.where(cut, kept.mask.sum(axis=-1), 0).sum(axis=-1)
  np.testing.assert_allclose(kept.group_tokens - filtered.group_tokens, lost)


def test_a_correction_scores_again_and_weighs(tmp_path):
  seen = []
  scored = OnlineLoop._scored

  def spying(self, batch, state):
    seen.append((batch, scored(self, batch, state)))
    return seen[-1][1]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(OnlineLoop, '_scored', spying)
    correction = Correction(level='token', cap=2.0)
    _, row = first_update(tmp_path / 'run', correction=correction)
  before, after = seen[0]
  # The old policy is now the trainer's.
  assert row['mismatch'] < 1e-6
  gap = np.where(before.mask, after.old_logps - before.old_logps, 0.0)
  np.testing.assert_allclose(after.correction, np.minimum(np.exp(gap), 2.0), rtol=1e-6)
  assert after.correction.max() == pytest.approx(2.0)


@pytest.mark.parametrize('trunk', ['shared', 'separate'])
def test_ppo_learns_values(tmp_path, trunk):
  width = 8
  valued = heads.forward(tiny.bag_forward)
  params = tiny.bag_params()
  options = dict(name='ppo', numbers={'trunk': trunk, 'kl_coef': 0.0})
  if trunk == 'shared':
    options['forward'] = valued
    start = heads.with_scalar(params, width)
  else:
    start = params
    options['critic'] = Step(
      forward=valued,
      objective=objectives.create('critic'),
      optimizer=Optimizer(name='adamw', learning_rate=1e-2, steps=40),
    )
    options['critic_params'] = heads.with_scalar(params, width)
  plan = OnlinePlan(iterations=20, epochs=2)
  make(tmp_path / 'run', plan=plan, **options).run(start)
  rows = [r for r in metrics.read(tmp_path / 'run' / 'metrics.jsonl') if 'loss' in r]
  name = 'value_error' if trunk == 'shared' else 'critic/value_error'
  errors = [row[name] for row in rows]
  # The critic starts at 0, and half of the returns are 1: from 1/2 towards 1/4.
  assert np.mean(errors[-5:]) < 0.75 * errors[0]


def test_a_loss_that_is_not_finite_stops_with_the_batch_kept(tmp_path):
  def broken(params, carry, n):
    found = collect(params, carry, n)
    rewards = np.where(n == 1, np.nan, found.batch.rewards).astype(np.float32)
    return found._replace(batch=found.batch.replace(rewards=rewards))

  with pytest.raises(TrainingError, match='step 2 is not finite'):
    make(tmp_path / 'run', collect=broken).run(tiny.bag_params())
  assert (tmp_path / 'run' / 'not_finite_2.npz').exists()


def test_a_process_reward_model_learns_before_it_judges(tmp_path):
  model = process()
  batch = rollout(0, tiny.bag_params())
  cutter = make(tmp_path / 'run').cutter
  state, params = model.start(), model.params
  accuracy = []
  for _ in range(20):
    state, found, values = model.judge(state, params, batch, cutter)
    accuracy.append(values['process/accuracy'])
    ratios = found.implicit
  # The same rollout again and again: it tells right from wrong, and by the tokens.
  assert accuracy[-1] > 0.9
  outcome = ratios.sum(axis=-1)
  right = (batch.label == 1) & (batch.weight > 0)
  assert outcome[right].mean() > outcome[~right & (batch.weight > 0)].mean()
  assert not ratios[~batch.mask].any()
  assert found.label is None
  # What it says is beta times the log-ratio of what it has become.
  part = batch.replace(label=None)
  own, first = (model.step.score(p, part).logps for p in (state['params'], params))
  np.testing.assert_allclose(ratios, 0.5 * (own - first), atol=1e-5)
  # How the rollout is cut changes nothing.
  cutter = dataclasses.replace(cutter, max_tokens=60, at_once=2)
  got, want = (
    model.judge(model.start(), params, batch, each)[1].implicit
    for each in (cutter, make(tmp_path / 'a').cutter)
  )
  np.testing.assert_allclose(got, want, atol=1e-6)


def test_prime_without_its_process_is_rloo(tmp_path):
  plan = OnlinePlan(iterations=3)
  rloo = make(tmp_path / 'rloo', 'rloo', numbers={'kl': 'none'}, plan=plan)
  numbers = {'process_coef': 0.0, 'outcome_coef': 1.0, 'whiten': False}
  numbers |= {'aggregate': 'sequence_sum'}
  prime = make(tmp_path / 'prime', 'prime', numbers=numbers, plan=plan)
  drawn = {}
  for loop in (rloo, prime):
    loop.collect = functools.partial(on_policy, loop.step, drawn)
  want, _ = rloo.run(tiny.bag_params())
  got, _ = prime.run(tiny.bag_params())
  tiny.assert_same(want, got, 1e-5)
  whole = make(tmp_path / 'whole', 'prime', plan=plan)
  whole.collect = functools.partial(on_policy, prime.step, {})
  assert bits(whole.run(tiny.bag_params())[0]) != bits(got)


def on_policy(step, drawn, params, carry, n):
  """The same samples for all, for a rounding decides what is drawn; a ratio of 1."""
  found = drawn.setdefault(n, collect(params, carry, n))
  logps = np.asarray(step.score(params, found.batch).logps)
  return found._replace(batch=found.batch.replace(old_logps=logps))


def test_an_objective_without_credit_is_refused(tmp_path):
  with pytest.raises(InputError, match='sft does not learn from rollouts'):
    make(tmp_path / 'run', name='sft').run(tiny.bag_params())
