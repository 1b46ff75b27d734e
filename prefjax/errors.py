"""The one exception that a user's input can cause."""


class InputError(ValueError):
  """Something the user gave breaks a rule.

  The message names the rule and the offender (file and line, config key, batch
  field), and is complete by itself: the experiments print it without a traceback.
  """


class TrainingError(RuntimeError):
  """A run that cannot go on: a loss or gradient that is not finite, a failed check.

  The message says what was found, at which step, and what was kept.
  """


class Preempted(Exception):
  """SIGTERM arrived, and the state of the step named in the message is saved."""
