"""Process rewards without process labels, on sums with written-out steps.

  python -m experiments.prm --config=experiments/configs/prm/arithmetic.py

A policy of mixed quality writes eight responses to each prompt. From their outcomes
alone come implicit process reward models, one for every loss of Implicit PRM
(arXiv:2412.01981), Table 1, and an outcome model; from four continuations of every
step, by the same policy, Monte-Carlo ones in the manner of Math-Shepherd
(arXiv:2312.08935). Each chooses among 64 candidates for held-out prompts, and is asked
which steps are right, which the task knows exactly.

Variant: `smoke`, for a run of seconds.
"""

from experiments.configs import blocks
from experiments.configs.grpo import arithmetic

SMOKE_MODELS = ('dpo', 'kto', 'ce_dataset', 'outcome', 'mc_soft')


def get_config(variant=''):
  config = blocks.run()
  base = arithmetic.get_config()
  config.model, config.tokenizer = base.model, base.tokenizer
  config.reference, config.data = base.reference, base.data
  config.data.update(prompts=512, held_out=128, batch_size=32)
  config.log.entropy = False
  # A policy that can hardly add makes models that cannot tell a right sum either.
  config.reference.train.update(steps=1600, eval_every=1600, save_every=400)
  config.steps = dict(separator='')  # '': the task's own steps
  config.pool = dict(
    responses=8,  # to learn from, a prompt
    candidates=64,  # a held-out prompt
    temperature=1.0,
    at_once=1024,  # responses sampled at once
  )
  config.monte_carlo = dict(
    samples=4,  # continuations of a step
    temperature=1.0,
    at_once=1024,  # continuations sampled at once
    prompts_at_once=256,  # whose steps are continued before they are written down
  )
  config.prms = prms(beta=0.1)
  config.optimizer = blocks.optimizer('adamw', 5e-4, warmup_steps=5, clip_norm=1.0)
  config.train = blocks.train(40, eval_every=40, save_every=20)
  config.evaluation = dict(
    sizes=(1, 4, 16, 64),  # N of best-of-N
    form='single',  # or accumulated: the rewards of implicit models
    how='min',  # or sum, mean, last
    reference=True,  # whether implicit rewards are log-ratios, or log-probs
    answer_after='=',  # what follows the last one is the answer; '': no votes
    step_responses=8,  # of a held-out prompt, whose steps are looked at
  )
  config.processbench = bench('')
  return smoke(config) if variant == blocks.SMOKE else config


def prms(beta):
  """A model for each loss of the paper, an outcome model, and two by Monte Carlo."""

  def learnt(name, labels='', balance='none', **numbers):
    objective = blocks.objective(name, **numbers)
    return dict(objective=objective, labels=labels, balance=balance)

  return dict(
    dpo=learnt('dpo', beta=beta),
    kto=learnt('kto', beta=beta),
    nca=learnt('nca_pair', beta=beta),
    ce=learnt('cross_entropy', beta=beta),
    ce_dataset=learnt('cross_entropy', balance='dataset', beta=beta),
    ce_instruction=learnt('cross_entropy', balance='instruction', beta=beta),
    outcome=learnt('step_cross_entropy', labels='outcome'),
    mc_hard=learnt('step_cross_entropy', labels='hard'),
    mc_soft=learnt('step_cross_entropy', labels='soft'),
  )


def bench(source):
  """ProcessBench, and how its problems and steps become prompts and responses."""
  return dict(
    source=source,  # '': none
    prompt='{problem}',
    separator='\n\n',  # between steps
    lead='',  # before the first
  )


def smoke(config):
  """The same path in seconds, with a model that knows little."""
  config.model.update(width=64, num_layers=1, head_dim=16, mlp_width=128)
  config.data.update(documents=2000, prompts=32, held_out=8)
  config.reference.optimizer.learning_rate = 1e-2
  config.reference.train.update(steps=200, eval_every=200, save_every=100)
  config.pool.update(responses=8, candidates=16, at_once=64)
  config.monte_carlo.update(samples=2, at_once=64, prompts_at_once=16)
  config.prms = {name: config.prms[name] for name in SMOKE_MODELS}
  config.train.update(steps=4, eval_every=4, save_every=2, log_every=1)
  config.evaluation.update(sizes=(1, 4, 16), step_responses=4)
  return config
