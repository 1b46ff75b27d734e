"""Flags, folders and exit codes, the same for every experiment."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import os
from pathlib import Path
import sys
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from prefjax.errors import InputError, Preempted, TrainingError
from prefjax.training import determinism, processes

_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'Experiment, `file.py` or `file.py:variant`.',
  lock_config=True,
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of the run; default runs/<experiment>/<config>.'
)
_CACHE = flags.DEFINE_string(
  'cache', 'runs/cache', 'Folder that runs share: data, references, log-probs.'
)

_COORDINATOR = flags.DEFINE_string(
  'coordinator',
  None,
  'HOST:PORT of the first process; found on TPU pods, Slurm, Open MPI and Kubernetes.',
)
_NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes', None, 'Processes of the run; 1 looks for no others.'
)
_PROCESS_ID = flags.DEFINE_integer(
  'process_id', None, 'Which of the processes this is, from 0.'
)
_HEARTBEAT = flags.DEFINE_integer(
  'heartbeat_seconds', 60, 'A process not heard of for so long ends all others.'
)

# Exit codes. A user's error and a failed run differ, so that a sweep can tell.
_INPUT, _TRAINING, _SIGTERM = 2, 1, 128 + 15

Experiment = Callable[[Mapping[str, Any], Path, Path], None]


def run(
  experiment: Experiment, name: str, before: Callable[[], None] = lambda: None
) -> None:
  """Parses flags and runs `experiment(config, workdir, cache)`.

  `before` runs first, while no device has been used.

  What the user got wrong ends in one paragraph and exit code 2, a run that cannot
  go on in one paragraph and exit code 1, SIGTERM in exit code 143; only a bug shows
  a traceback.
  """

  def main(arguments: list[str]) -> None:
    if arguments:
      raise InputError(f'Unknown arguments {arguments}; flags begin with --.')
    config, workdir, cache = asked(name)
    before()
    configure_jax(cache)
    processes.start(
      _COORDINATOR.value,
      _NUM_PROCESSES.value,
      _PROCESS_ID.value,
      heartbeat_seconds=_HEARTBEAT.value,
    )
    with _only_the_first_speaks():
      experiment(config.to_dict(), workdir, cache)

  command(main)


def command(main: Callable[[list[str]], None]) -> None:
  """Parses flags and runs `main(other arguments)`, with the exit codes of `run`."""

  def called(argv: list[str]) -> None:
    if not flags.FLAGS['verbosity'].present:
      logging.set_verbosity(logging.WARNING)  # orbax tells every save at INFO
    main(argv[1:])

  app.run(_guarded(called), flags_parser=_guarded(_parse))


def asked(name: str) -> tuple[ConfigDict, Path, Path]:
  """The config that the flags name, the run's folder and the cache."""
  config = _CONFIG.value
  if config is None:
    raise InputError(
      f'Give a config: python -m experiments.{name} --config=experiments/configs/...'
    )
  workdir = _WORKDIR.value or str(Path('runs') / name / config_name())
  return config, Path(workdir), Path(_CACHE.value)


def config_file() -> tuple[str, str]:
  """The path and the variant of `--config=path:variant`."""
  named = config_flags.get_config_filename(flags.FLAGS['config'])
  path, _, variant = named.partition(':')
  return path, variant


def overrides() -> dict[str, Any]:
  """What `--config.NAME=VALUE` flags changed, by dotted name."""
  return dict(config_flags.get_override_values(flags.FLAGS['config']))


@contextlib.contextmanager
def _only_the_first_speaks() -> Iterator[None]:
  if processes.first():
    yield
    return
  with open(os.devnull, 'w') as nowhere, contextlib.redirect_stdout(nowhere):
    yield


def _guarded(function):
  def guarded(*args):
    try:
      return function(*args)
    except InputError as error:
      _leave(error, _INPUT)
    except TrainingError as error:
      _leave(error, _TRAINING)
    except Preempted as error:
      _leave(error, _SIGTERM)

  return guarded


def _leave(error: Exception, code: int) -> None:
  sys.stdout.flush()
  print(f'prefjax: {error}', file=sys.stderr, flush=True)
  sys.exit(code)


def _parse(argv: list[str]) -> list[str]:
  """Parses flags; what ml_collections raises for a bad one is the user's error."""
  try:
    rest = flags.FLAGS(argv)
    # A file that cannot be read is told only when the config is touched.
    getattr(_CONFIG.value, 'to_dict', None)
    return rest
  except Exception as error:
    own = _input_error(error)
    known = (
      flags.Error,
      AttributeError,
      KeyError,
      OSError,
      TypeError,
      ValueError,
    )
    if own is None and not isinstance(error, known):
      raise
    raise own or InputError(f'A flag is wrong: {_words(error)}') from error


def _input_error(error: BaseException | None) -> InputError | None:
  """The first InputError that a config raised; ml_collections wraps it in others."""
  found = None
  while error is not None:
    found = error if isinstance(error, InputError) else found
    error = error.__cause__ or error.__context__
  return found


def _words(error: Exception) -> str:
  # str() of a KeyError is the repr of its message.
  text = error if isinstance(error, OSError) else (error.args or (error,))[0]
  return ' '.join(str(text).split())


def config_name() -> str:
  """A name for what is made of the config: its file's and its variant's."""
  path, variant = config_file()
  name = Path(path).stem
  return f'{name}-{variant.replace(",", "-")}' if variant else name


def configure_jax(cache: Path) -> None:
  """Sets up the same bits, the compilation cache, and threads for fake devices."""
  import jax

  determinism.ask()
  if 'xla_force_host_platform_device_count' in os.environ.get('XLA_FLAGS', ''):
    # XLA's pool has no more threads than devices, and each thread that waits in a
    # collective holds one: without spare ones fake devices hang.
    os.environ.setdefault('NPROC', '64')
  # Compiled programs outlive the process, so that a restart does not compile.
  os.makedirs(cache / 'xla', exist_ok=True)
  jax.config.update('jax_compilation_cache_dir', str(cache / 'xla'))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
