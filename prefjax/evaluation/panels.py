"""What a report plots of a run: which metrics stand in one plot, and what it says."""

from collections.abc import Mapping
from typing import NamedTuple


class Panel(NamedTuple):
  """One plot of metrics over steps: its lines, its axis, its caption."""

  name: str
  title: str
  axis: str
  lines: Mapping[str, str]  # metric -> label
  caption: str
  level: float | None = None  # a value to compare with, drawn dashed


OF_UPDATES = (
  Panel(
    'loss',
    'Loss',
    'loss (unit of the objective)',
    {'loss': 'loss'},
    'The mean loss of an update, in the unit of the objective.',
  ),
  Panel(
    'margin',
    'Margin',
    'margin (unit of the reward)',
    {'margin': 'margin'},
    "The chosen response's implicit reward less the rejected one's, mean over "
    'pairs, in the unit of the reward; the reference has 0.',
    0.0,
  ),
  Panel(
    'accuracy',
    'Accuracy',
    'accuracy (share of pairs)',
    {'accuracy': 'accuracy'},
    'The share of pairs whose margin is above 0; guessing has 0.5.',
    0.5,
  ),
  Panel(
    'drift',
    'Log-prob drift',
    'drift (nats a response)',
    {'chosen_drift': 'chosen', 'rejected_drift': 'rejected'},
    'How far the log-probability of chosen and of rejected responses has moved '
    'from the reference, in nats a response; below 0 is less likely.',
    0.0,
  ),
  Panel(
    'reward',
    'Implicit reward',
    'reward (unit of the reward)',
    {'chosen_reward': 'chosen', 'rejected_reward': 'rejected'},
    'The implicit rewards whose difference is the margin, in the unit of the '
    'reward; the reference has 0.',
    0.0,
  ),
  Panel(
    'kl',
    'KL to the reference',
    'KL (nats a response)',
    {'kl_to_reference': 'KL'},
    'The estimated divergence from the reference, in nats a response.',
    0.0,
  ),
  Panel(
    'gradient_coefficient',
    'Gradient coefficient',
    'coefficient (no unit)',
    {'gradient_coefficient': 'coefficient'},
    'The mean weight of a pair in the gradient, without a unit; 0.5 at the '
    'reference, towards 0 as pairs are learnt.',
    0.5,
  ),
  Panel(
    'entropy',
    'Entropy',
    'entropy (nats a token)',
    {'entropy': 'entropy'},
    'The mean entropy of the next-token distribution, in nats a token.',
  ),
  Panel(
    'grad_norm',
    'Gradient norm',
    'global norm (no unit)',
    {'grad_norm': 'norm'},
    'The global norm of the gradient before clipping, without a unit.',
  ),
  Panel(
    'learning_rate',
    'Learning rate',
    'learning rate (a step)',
    {'learning_rate': 'rate'},
    'The learning rate of an update.',
  ),
)

# Of a run on its own samples, over iterations; what is named as above is as above.
_SAME = ('loss', 'entropy', 'grad_norm', 'learning_rate')
OF_ROLLOUTS = (
  Panel(
    'reward',
    'Reward',
    'reward (unit of the task)',
    {'reward': 'reward'},
    'The mean reward of the sampled responses, shaping included.',
  ),
  Panel(
    'accuracy',
    'Accuracy',
    'accuracy (share of responses)',
    {'accuracy': 'accuracy'},
    'The share of sampled responses that are right, before any group is left out.',
  ),
  Panel(
    'length',
    'Length',
    'length (tokens)',
    {'response_length': 'length'},
    'The mean length of the responses, in tokens.',
  ),
  Panel(
    'kl',
    'KL to the reference',
    'KL (nats a response)',
    {'kl_to_reference': 'KL'},
    'The estimated divergence from the reference, in nats a response.',
    0.0,
  ),
  Panel(
    'groups',
    'Groups',
    'share of sampled groups or responses',
    {'sampled/mixed': 'mixed groups', 'sampled/truncated': 'truncated responses'},
    'The share of groups with right and wrong responses, which alone teach something, '
    'and that of responses cut off by the length limit.',
  ),
  Panel(
    'process',
    'Process reward model',
    'accuracy (share of pairs)',
    {'process/accuracy': 'accuracy'},
    'Of a right and a wrong response to a prompt, how often the process reward model '
    'scores the right one higher, before it learns from them.',
  ),
  Panel(
    'clipped',
    'Clipping',
    'share of tokens',
    {'clipped_low': 'low', 'clipped_high': 'high'},
    'The share of tokens whose ratio a bound holds back.',
    0.0,
  ),
  *(panel for panel in OF_UPDATES if panel.name in _SAME),
)
