"""A scalar reward model from pairs, by the Bradley-Terry likelihood.

python -m experiments.rm --config=experiments/configs/rm/sentiment.py
"""

from collections.abc import Callable
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import adapted, build, launch, preferences, sft
from experiments.adapted import Trained
from experiments.build import Config, Split
from prefjax.data.tokenizers import Tokenizer
from prefjax.errors import InputError
from prefjax.evaluation.report import write_report
from prefjax.models import config as model_configs
from prefjax.models import decoder, heads
from prefjax.objectives.reward import expected_calibration_error, length_correlation
from prefjax.training import monitor
from prefjax.training import reference as references
from prefjax.training.loop import Loop
from prefjax.training.mesh import place_batch
from prefjax.training.metrics import PhaseClock
from prefjax.training.step import Step
from prefjax.types import PreferenceBatch

_ROWS = 64  # responses that a reward model scores at once


def main(config: Config, workdir: Path, cache: Path) -> None:
  """Trunk of the reference, pairs, training, and how well it is calibrated."""
  sft.validate(config)
  preferences.check(config)
  if 'scores' not in build.objective(config).needs:
    raise InputError(f'{config["objective"]["name"]} trains no reward model.')
  run = sft.opened(config, workdir)
  if run.finished:
    sft.print_summary(run)
    return
  clock = PhaseClock()
  trained, batches = prepare(config, cache, clock, print)
  step = build.step(config, trained.model, build.mesh(config), trained.frozen)
  loop = Loop(
    step=step,
    batches=batches.train,
    held_out=batches.held_out,
    plan=build.plan(config),
    folder=run.folder,
    clock=clock,
    description=config['objective']['name'],
    flops=build.flops(config),
    peak=monitor.peak_flops(trained.model.config.dtype),
    wandb_project=config['log']['wandb'] or None,
  )
  params, evaluation = loop.run(trained.params)
  sft.save_final(run.folder, config['train']['steps'], trained.merged(params))
  with clock('evaluate'):
    quality = judged(step, params, batches.held_out)
  summary = {**evaluation, **quality}
  with clock('report'):
    title = f'Reward model on {config["data"]["source"]}'
    write_report(run.folder, title=title, table=summary)
  run.finish(summary)
  sft.print_summary(run)


def prepare(
  config: Config, cache: Path, clock: PhaseClock, say: Callable[[str], None]
) -> tuple[Trained, Split]:
  """The model with a scalar head on the reference's trunk, and the pairs."""
  reference, tokenizer = sft.reference_policy(config, cache, clock, say)
  base, mesh = build.model(config), build.mesh(config)
  alone = build.on_one_device(reference)
  identity = references.params_fingerprint(alone)
  data = preferences.prepared(config, cache, clock, base, tokenizer, alone, identity)
  build.say_counts(data, say)
  batches = Split(
    *(build.batches(config, part, mesh, tokenizer.pad_id) for part in data)
  )
  trained = adapted.trained(config, base, build.placed(alone, mesh), mesh)
  params = heads.with_scalar(trained.params, base.config.width)
  model = trained.model
  return trained._replace(
    model=model._replace(forward=heads.forward(model.forward)),
    params=build.placed(params, mesh),
  ), batches


def judged(step: Step, params: Any, held_out: Any) -> dict[str, float]:
  """Of held-out pairs: accuracy with its error, calibration, and bias to length."""
  gaps, wanted, weights, scores, sizes = ([] for _ in range(5))
  for _, batch in held_out.once():
    placed = batch if step.mesh is None else place_batch(batch, step.mesh)
    score = np.asarray(step.score(params, placed).scores)
    counted = batch.pair_weight > 0
    gap = np.take_along_axis(score, batch.chosen, 1)
    gap = gap - np.take_along_axis(score, batch.rejected, 1)
    gaps.append(gap[counted]), wanted.append(batch.preference[counted])
    weights.append(batch.pair_weight[counted])
    present = batch.weight > 0
    scores.append(score[present]), sizes.append(batch.response_length[present])
  gap, preference, weight = map(np.concatenate, (gaps, wanted, weights))
  probability = 1.0 / (1.0 + np.exp(-gap))
  # Both orders of every pair: the error must not depend on which came first.
  calibration = expected_calibration_error(
    *(
      jnp.asarray(np.concatenate(x), jnp.float32)
      for x in (
        (probability, 1 - probability),
        (preference, 1 - preference),
        (weight, weight),
      )
    )
  )
  right = (gap > 0).mean()
  length = jnp.asarray(np.concatenate(sizes), jnp.float32)
  score = jnp.asarray(np.concatenate(scores), jnp.float32)
  return {
    'held_out/pairs': float(len(gap)),
    'held_out/accuracy': float(right),
    'held_out/accuracy_se': float(np.sqrt(right * (1 - right) / len(gap))),
    'held_out/calibration_error': float(calibration),
    'held_out/length_correlation': float(
      length_correlation(score, length, jnp.ones_like(length))
    ),
  }


def model_reward(workdir: Path, tokenizer: Tokenizer) -> Callable[..., np.ndarray]:
  """The rewards of sampled groups by the reward model of a finished run.

  Raises:
    InputError: where there is none, or it reads other tokens.
  """
  if not (workdir / 'DONE').exists():
    raise InputError(f'rewards.models: {workdir} holds no finished run.')
  stored = json.loads((workdir / 'config.json').read_text())['config']
  shape = model_configs.create(**stored['model'])
  if shape.vocab_size < tokenizer.vocab_size:
    raise InputError(
      f'rewards.models: the model of {workdir} has {shape.vocab_size} tokens, the '
      f'tokenizer {tokenizer.vocab_size}.'
    )
  graph, shapes = decoder.create(shape)
  like = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  params = sft.final_params(workdir, heads.with_scalar(like, shape.width))
  forward = heads.forward(decoder.forward(graph))

  @jax.jit
  def score(batch):
    hidden, head = forward(params, batch)
    return heads.scores(hidden, head, batch)

  def rewards(prompts, prompt_length, tokens, length):
    n, k, t = tokens.shape
    found = np.zeros((n, k))
    size = max(_ROWS // k, 1)
    for start in range(0, n, size):
      rows = np.minimum(np.arange(start, start + size), n - 1)
      batch = PreferenceBatch(
        prompts=prompts[rows],
        responses=tokens[rows],
        prompt_length=prompt_length[rows],
        response_length=length[rows],
        mask=np.arange(t) < length[rows][..., None],
        weight=np.ones((size, k), np.float32),
      )
      found[rows] = np.asarray(score(batch))
    return found

  return rewards


if __name__ == '__main__':
  launch.run(main, 'rm')
