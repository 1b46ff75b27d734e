"""Two process reward models in parts small enough that each has several."""

from experiments.configs.prm import arithmetic


def get_config(variant='smoke'):
  config = arithmetic.get_config(variant)
  config.data.update(documents=500, prompts=16, held_out=8)
  config.reference.train.update(steps=100, eval_every=100, save_every=50)
  config.pool.update(at_once=32)
  config.monte_carlo.update(prompts_at_once=4)
  config.prms = {name: config.prms[name] for name in ('dpo', 'mc_soft')}
  config.evaluation.update(sizes=(1, 4))
  return config
