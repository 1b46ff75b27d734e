import http.server
import json
import socket
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from prefjax import logprobs
from prefjax.errors import InputError, TrainingError
from prefjax.models import decoder
from prefjax.rollout.draws import Controls
from prefjax.rollout.sampler import DecoderSampler, Sampler, collect
from prefjax.rollout.server import ServerSampler, seeds
from prefjax.types import PreferenceBatch

VOCAB, PAD, MOST = tiny.SIZES['vocab_size'], 1, 7
STOPS = (3, 7, 11)
PROMPTS = ([5, 6, 1, 2, 9], [4], [8, 8, 2], [11, 3])
GREEDY = Controls(greedy=True)


class Stub(http.server.ThreadingHTTPServer):
  """Answers as `reply` says, and remembers what it was asked."""

  daemon_threads = False  # closing waits for what is under way
  request_queue_size = 64

  def __init__(self):
    super().__init__(('127.0.0.1', 0), Handler)
    self.url = f'http://127.0.0.1:{self.server_port}'
    self.reply = completion
    self.asked, self.headers, self.failures = [], [], []
    self.lock = threading.Lock()
    self.gate = threading.Event()  # what a slow answer waits for

  def handle_error(self, request, client_address):
    if not isinstance(sys.exception(), ConnectionError):  # of a client that has gone
      self.failures.append(sys.exception())


class Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'

  def do_POST(self):
    size = int(self.headers['Content-Length'])
    body = self.rfile.read(size)
    if len(body) < size:
      return  # cut off while asking
    asked = json.loads(body)
    with self.server.lock:
      self.server.asked.append(asked)
      self.server.headers.append((self.path, dict(self.headers)))
    answer = self.server.reply(asked)
    if isinstance(answer, dict):
      answer = 200, json.dumps(answer).encode(), {}
    status, text, headers = answer
    if status is None:
      return
    self.send_response(status)
    if isinstance(text, bytes):
      headers, text = {'Content-Length': len(text)} | headers, [text]
    for name, value in headers.items():
      self.send_header(name, str(value))
    self.end_headers()
    for part in text:
      self.wfile.write(part)

  def log_message(self, *args):
    pass


@pytest.fixture
def stub():
  server = Stub()
  thread = threading.Thread(target=server.serve_forever, args=(0.01,))
  thread.start()
  yield server
  server.gate.set()
  server.shutdown()
  thread.join()
  server.server_close()
  assert not server.failures


def responses(asked):
  """Tokens of a request's seed, each to its first stop, and their log-probs."""
  for i in range(asked['n']):
    rng = np.random.default_rng(asked['seed'] + i)
    ids = rng.integers(0, VOCAB, asked['max_tokens']).tolist()
    ends = [j for j, x in enumerate(ids) if x in asked['stop_token_ids']]
    ids = ids[: ends[0] + 1] if ends else ids
    yield ids, (-rng.exponential(size=len(ids))).tolist(), bool(ends)


def completion(asked, form='ids'):
  choices = []
  for i, (ids, logps, stopped) in enumerate(responses(asked)):
    names = [f'token_id:{x}' if form != 'ids' else 'word' for x in ids]
    choices.append(
      {
        'index': i,
        'text': 'what was said',
        'finish_reason': 'stop' if stopped else 'length',
        'stop_reason': ids[-1] if stopped else None,
        'logprobs': {'tokens': names, 'token_logprobs': logps, 'top_logprobs': None},
        'token_ids': None if form == 'names' else ids,
        'prompt_token_ids': None if form == 'names' else asked['prompt'],
      }
    )
  return {'id': 'cmpl-1', 'object': 'text_completion', 'choices': choices}


def make(stub, **options):
  fixed = dict(model='tiny', vocab_size=VOCAB, stop_ids=STOPS, pad_id=PAD, backoff=0.01)
  url = stub.url if stub else 'http://host'
  return ServerSampler(**dict(url=url) | fixed | options)


def keys(*numbers):
  return jnp.stack([jax.random.key(number) for number in numbers])


def stream(sampler, rows=(0, 1, 2, 3), params=None, **options):
  table = [[PAD] * (5 - len(PROMPTS[i % 4])) + PROMPTS[i % 4] for i in rows]
  length = jnp.asarray([len(PROMPTS[i % 4]) for i in rows])
  options = dict(num_responses=3, max_tokens=MOST) | options
  return sampler.stream(params, jnp.asarray(table), length, keys(*rows), **options)


def check(samples, requests):
  """The samples are what the stub says to these requests, in their order."""
  k = samples.length.shape[1]
  for row, asked in enumerate(requests):
    for j, (ids, logps, stopped) in zip(range(k), responses(asked), strict=True):
      length = samples.length[row, j]
      assert samples.tokens[row, j, :length].tolist() == ids
      assert (samples.tokens[row, j, length:] == PAD).all()
      np.testing.assert_allclose(samples.logps[row, j, :length], logps, rtol=1e-6)
      assert (samples.logps[row, j, length:] == 0).all()
      assert samples.truncated[row, j] != stopped


def ordered(stub, rows=(0, 1, 2, 3)):
  """What was asked, in the order of the prompts."""
  wanted = [PROMPTS[i % 4] for i in rows]
  return sorted(stub.asked, key=lambda asked: wanted.index(asked['prompt']))


# Samples ----------------------------------------------------------------------


@pytest.mark.parametrize('form', ['ids', 'names', 'both'])
def test_samples_are_the_servers_tokens(stub, form):
  stub.reply = lambda asked: completion(asked, form)
  sampler = make(stub)
  assert isinstance(sampler, Sampler)
  samples = collect(stream(sampler))
  assert samples.tokens.shape == samples.logps.shape == (4, 3, MOST)
  assert samples.length.shape == samples.truncated.shape == (4, 3)
  assert [x.dtype.name for x in samples] == ['int32', 'int32', 'float32', 'bool']
  assert 0 < samples.truncated.sum() < 12
  check(samples, ordered(stub))


def test_an_answer_may_come_in_chunks(stub):
  def reply(asked):
    text = json.dumps(completion(asked)).encode()
    parts = [text[:100], text[100:], b'']
    parts = [b'%x\r\n%s\r\n' % (len(part), part) for part in parts]
    # The first try of each prompt ends too early.
    parts = parts if stub.asked.count(asked) > 1 else parts[:1]
    return 200, parts, {'Transfer-Encoding': 'chunked'}

  stub.reply = reply
  samples = collect(stream(make(stub)))
  assert len(stub.asked) == 8
  check(samples, ordered(stub)[::2])


def test_responses_are_put_in_the_order_of_their_index(stub):
  def reply(asked):
    answer = completion(asked)
    answer['choices'].reverse()
    return answer

  stub.reply = reply
  check(collect(stream(make(stub))), ordered(stub))


def test_a_request_names_what_is_on(stub):
  sampler = make(
    stub,
    url=stub.url + '/v1/',
    headers={'Authorization': 'Bearer secret'},
    extra={'repetition_penalty': 1.0, 'top_k': -1, 'temperature': 9.0},
  )
  assert 'secret' not in repr(sampler)
  collect(stream(sampler))
  fixed = {
    'model': 'tiny',
    'n': 3,
    'max_tokens': MOST,
    'logprobs': 0,
    'stop_token_ids': list(STOPS),
    'return_token_ids': True,
    'return_tokens_as_token_ids': True,
    'repetition_penalty': 1.0,
  }
  for i, asked in enumerate(ordered(stub)):
    varying = {'prompt': PROMPTS[i], 'seed': seeds(keys(i))[0]}
    drawn = {'temperature': 1.0, 'top_p': 1.0, 'top_k': -1}
    assert asked == fixed | varying | drawn
  for path, headers in stub.headers:
    assert path == '/v1/completions'
    assert headers['Content-Type'] == 'application/json'
    assert headers['Authorization'] == 'Bearer secret'
  stub.asked.clear()
  on = dict(temperature=0.7, top_p=0.9, top_k=5, min_p=0.1)
  collect(stream(make(stub), rows=(2,), controls=Controls(**on)))
  assert on.items() <= stub.asked[0].items()


def test_greedy_asks_for_one_response_and_repeats_it(stub):
  samples = collect(stream(make(stub), controls=GREEDY))
  assert {(x['temperature'], x['top_p'], x['n']) for x in stub.asked} == {(0, 1, 1)}
  assert samples.tokens.shape == (4, 3, MOST)
  for x in samples:
    assert (x == x[:, :1]).all()
  check(type(samples)(*(x[:, :1] for x in samples)), ordered(stub))


def test_a_seed_is_a_function_of_its_key():
  many = seeds(keys(*range(200)))
  assert many[7:9] == seeds(keys(7, 8))
  assert len(set(many)) == 200
  assert 0 <= min(many) < 2**29 < 2**30 < max(many) < 2**31
  # Fixed, so that a run can be drawn again years later.
  assert seeds(keys(0)) == [1470806138]


def test_a_stop_on_the_last_token_allowed_is_no_truncation(stub):
  def reply(asked):
    answer = completion(asked)
    for choice in answer['choices']:
      choice['finish_reason'] = 'length'  # as an older vLLM says
    return answer

  stub.reply = reply
  samples = collect(stream(make(stub, stop_ids=range(VOCAB)), max_tokens=1))
  assert not samples.truncated.any()
  check(samples, ordered(stub))


def test_a_log_prob_that_rounding_put_above_0_is_0(stub):
  def reply(asked):
    answer = completion(asked)
    of_first(*LOGPS, 0, 1e-7)(answer)
    return answer

  stub.reply = reply
  samples = collect(stream(make(stub)))
  assert (samples.logps[:, 0, 0] == 0).all()
  assert (samples.logps[:, 1:, 0] < 0).all()


@pytest.mark.parametrize('name', ['stop_reason', 'matched_stop'])
def test_a_stop_string_ends_a_response(stub, name):
  def reply(asked):
    answer = completion(asked)
    for choice in answer['choices']:
      del choice['stop_reason']
      choice |= {'finish_reason': 'stop', name: '###'}
    return answer

  stub.reply = reply
  sampler = make(stub, stop_ids=(), extra={'stop': ['###']})
  assert not collect(stream(sampler)).truncated.any()
  assert stub.asked[0]['stop'] == ['###']


def test_update_gets_the_params_before_the_first_request(stub):
  seen = []
  sampler = make(stub, update=lambda params: seen.append((params, len(stub.asked))))
  for params in ('old', 'new'):
    collect(stream(sampler, params=params))
  assert seen == [('old', 0), ('new', 4)]


# Trouble ----------------------------------------------------------------------


def failing(times, answer):
  """Fails the first tries of each prompt."""
  tries = {}

  def reply(asked):
    tries[asked['seed']] = tries.get(asked['seed'], 0) + 1
    return answer if tries[asked['seed']] <= times else completion(asked)

  return reply


@pytest.mark.parametrize(
  'answer',
  [
    (503, b'busy', {}),
    (429, b'{"error": "busy"}', {'Retry-After': '0'}),
    (500, b'', {'Retry-After': 'Wed, 21 Oct 2015 07:28:00 GMT'}),
    (None, b'', {}),
    (200, b'{"choices": [', {'Content-Length': 99}),
  ],
  ids=['503', '429', '500', 'hung up', 'cut short'],
)
def test_what_may_pass_is_asked_again(stub, answer):
  stub.reply = failing(2, answer)
  samples = collect(stream(make(stub)))
  asked = ordered(stub)
  assert len(asked) == 12
  assert asked[::3] == asked[1::3] == asked[2::3]
  check(samples, asked[::3])


def test_a_wait_that_the_server_asks_for_is_kept(stub):
  stub.reply = failing(1, (429, b'', {'Retry-After': '1'}))
  start = time.monotonic()
  collect(stream(make(stub), rows=(0,)))
  assert 1 <= time.monotonic() - start < 5


def test_giving_up_names_the_prompt_the_place_and_the_servers_words(stub):
  text = json.dumps({'error': {'message': 'the engine\n is dead'}}).encode()
  stub.reply = lambda asked: (503, text, {})
  wanted = f'Prompt 0: {stub.url}/v1/completions failed 3 times, the last with HTTP 503'
  with pytest.raises(TrainingError, match=f'{wanted}: the engine is dead'):
    collect(stream(make(stub, retries=2), rows=(0,)))
  assert len(stub.asked) == 3


@pytest.mark.parametrize(
  ('text', 'said'),
  [
    (b'{"detail": "no such model"}', 'HTTP 404: no such model'),
    (b'{"object": "error", "message": "no such model"}', 'HTTP 404: no such model'),
    (b'<p>nothing</p>', 'HTTP 404: <p>nothing</p>'),
    (b'[' * 9999, r'HTTP 404: \[+$'),
  ],
  ids=['fastapi', 'sglang', 'text', 'deep'],
)
def test_a_request_that_is_refused_is_not_repeated(stub, text, said):
  stub.reply = lambda asked: (404, text, {})
  with pytest.raises(InputError, match=f'Prompt 0: .* refused the request, {said}'):
    collect(stream(make(stub), rows=(0,)))
  assert len(stub.asked) == 1


def test_nobody_there():
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    url = f'http://127.0.0.1:{free.getsockname()[1]}'
    with pytest.raises(TrainingError, match=f'{url}.*failed 2 times.*Refused'):
      collect(stream(make(None, url=url, retries=1), rows=(0,)))


def test_a_request_has_a_time_limit(stub):
  def silent(asked):
    stub.gate.wait(10)
    return completion(asked)

  def trickling(asked):
    # Each packet is in time, and the whole is not.
    return 200, (b'' if stub.gate.wait(0.05) else b' ' for _ in range(200)), {}

  for reply in (silent, trickling):
    stub.reply = reply
    start = time.monotonic()
    with pytest.raises(TrainingError, match=r'Prompt 0: .* longer than timeout=0\.3 s'):
      collect(stream(make(stub, timeout=0.3), rows=(0,)))
    assert 0.3 <= time.monotonic() - start < 5
  assert len(stub.asked) == 2


def test_an_answer_has_a_size_limit(stub):
  for text in (b' ' * 300_000, [b' ' * 300_000]):  # with its length, and without
    stub.reply = lambda asked, text=text: (200, text, {})
    with pytest.raises(TrainingError, match='more than max_bytes=100000'):
      collect(stream(make(stub, max_bytes=100_000), rows=(0,)))


def put(*path):
  """Puts the last thing where the path through the answer leads."""
  *path, last, value = path

  def change(answer):
    for step in path:
      answer = answer[step]
    answer[last] = value

  return change


def of_first(*path):
  return put('choices', 0, *path)


LOGPS = ('logprobs', 'token_logprobs')
BROKEN = {
  'no choices': (put('choices', None), 'no completion'),
  'no index': (of_first('index', None), 'no completion'),
  'index twice': (of_first('index', 1), r'3 responses .* 3 .*\(index \[1, 1, 2\]\)'),
  'too few': (lambda x: x['choices'].pop(), '2 responses where 3 were asked for'),
  'no tokens': (of_first('token_ids', []), 'has 0 tokens'),
  'too many': (of_first('token_ids', [0] * 8), 'has 8 tokens, not 1 to max_tokens=7'),
  'beyond': (of_first('token_ids', [VOCAB]), f'token {VOCAB}, outside the vocab'),
  'negative': (of_first('token_ids', [-1]), 'token -1, outside the vocabulary'),
  'no id': (of_first('token_ids', [True]), 'token True, outside the vocabulary'),
  'unequal': (of_first('token_ids', [2, 2]), 'has 2 tokens with 1 log-probs'),
  'not listed': (of_first(*LOGPS, None), 'has 1 tokens with no log-probs'),
  'positive': (of_first(*LOGPS, [0.1]), r'log-prob 0\.1, .* not finite and at most 0'),
  'nan': (of_first(*LOGPS, [float('nan')]), 'log-prob nan'),
  'infinite': (of_first(*LOGPS, [float('-inf')]), 'log-prob -inf'),
  'huge': (of_first(*LOGPS, [-(10**400)]), 'log-prob -1000'),
  'null': (of_first(*LOGPS, [None]), 'log-prob None'),
  'aborted': (of_first('finish_reason', 'abort'), "ended by 'abort'"),
  'goes on': (
    lambda x: [of_first('token_ids', [3, 2])(x), of_first(*LOGPS, [-1, -1])(x)],
    'goes on after a stop token',
  ),
  'other prompt': (of_first('prompt_token_ids', [0, 5]), 'is to another prompt'),
}
UNFIT = {
  'no log-probs': (of_first('logprobs', None), 'has no log-probs'),
  'no ids': (of_first('token_ids', None), 'knows neither return_token_ids'),
  'no stop token': (of_first('token_ids', [2]), r'stopped at the token 2, which is n'),
}


@pytest.mark.parametrize('name', [*BROKEN, *UNFIT])
def test_an_answer_that_cannot_be_right(stub, name):
  change, said = (BROKEN | UNFIT)[name]
  kind = TrainingError if name in BROKEN else InputError

  def reply(asked):
    answer = completion(asked)
    of_first('token_ids', [3])(answer)
    of_first('finish_reason', 'stop')(answer)
    of_first(*LOGPS, [-0.5])(answer)
    change(answer)
    return answer

  stub.reply = reply
  with pytest.raises(kind, match=f'(?s)Prompt 0: {stub.url}.* answered with .*{said}'):
    collect(stream(make(stub), rows=(0,)))
  assert len(stub.asked) == 1


@pytest.mark.parametrize('text', [b'', b'hello', b'[]', b'{"choices": {"a": 1}}'])
def test_an_answer_that_is_no_completion(stub, text):
  stub.reply = lambda asked: (200, text, {})
  with pytest.raises(TrainingError, match=r'Prompt 0: .* what is no completion'):
    collect(stream(make(stub), rows=(0,)))


def test_responses_with_one_seed_are_noticed(stub):
  def reply(asked):
    answer = completion(asked)
    answer['choices'] = [answer['choices'][0] | {'index': i} for i in range(3)]
    answer['choices'][0][LOGPS[0]][LOGPS[1]][0] = logp
    return answer

  stub.reply = reply
  logp = -14.0
  with pytest.raises(InputError, match=r'3 responses that are all the same \(chance e'):
    collect(stream(make(stub), rows=(0,)))
  # Below temperature 1 a server's log-probs may be those of another policy.
  collect(stream(make(stub), rows=(0,), controls=Controls(temperature=0.1)))
  logp = -0.1
  collect(stream(make(stub), rows=(0,)))


def test_what_a_sampler_cannot_have():
  wrong = dict(
    url=['127.0.0.1:8000', 'ftp://host', 'http://me:secret@host', 'http://h:99999', ''],
    stop_ids=[(VOCAB,), (-1,)],
    concurrency=[0],
    timeout=[0.0],
    retries=[-1],
    backoff=[-1.0],
  )
  for name, values in wrong.items():
    for value in values:
      with pytest.raises(InputError, match=f'^{name} must be'):
        make(None, **{name: value})
  with pytest.raises(InputError, match=r"headers\['A'\] must be") as error:
    make(None, headers={'A': 'secret\n'})
  assert 'secret' not in str(error.value)
  assert make(None, url='https://[::1]:8000/a/v1').endpoint == (
    'https://[::1]:8000/a/v1/completions'
  )


def test_a_prompt_longer_than_its_bucket_is_refused(stub):
  prompts, options = jnp.zeros((1, 5), int), dict(num_responses=1, max_tokens=2)
  for length in (0, 6):
    with pytest.raises(InputError, match='1 to 5 tokens, the length of their bucket'):
      make(stub).stream(None, prompts, jnp.asarray([length]), keys(0), **options)
  assert not stub.asked


# Many at once -----------------------------------------------------------------


def test_so_many_are_in_flight_and_no_more(stub):
  flying, most, three = [], [], threading.Barrier(3)

  def reply(asked):
    flying.append(None)
    most.append(len(flying))
    three.wait(10)
    time.sleep(0.02)  # for a fourth, if there were one
    flying.pop()
    return completion(asked)

  stub.reply = reply
  samples = collect(stream(make(stub, concurrency=3), rows=range(12)))
  assert max(most) == 3
  assert len(samples.length) == 12


def slow(stub, prompt=0):
  """One prompt's answer waits for the gate."""

  def reply(asked):
    if asked['prompt'] == PROMPTS[prompt]:
      stub.gate.wait(10)
    return completion(asked)

  return reply


def test_a_slow_prompt_holds_nobody_back(stub):
  stub.reply = slow(stub)
  parts = stream(make(stub))
  first = [next(parts)[0].tolist() for _ in range(3)]
  assert sorted(first) == [[1], [2], [3]]
  stub.gate.set()
  assert [index.tolist() for index, _ in parts] == [[0]]


def test_closing_cuts_off_what_is_in_flight(stub):
  stub.reply = slow(stub)
  start = time.monotonic()
  parts = stream(make(stub))
  next(parts)
  parts.close()
  assert time.monotonic() - start < 5
  assert not any(x.name.startswith('sampler') for x in threading.enumerate())


@pytest.mark.parametrize('status', [404, 503])
def test_a_failure_cuts_off_what_is_in_flight_or_waits(stub, status):
  def reply(asked):
    if asked['prompt'] == PROMPTS[1]:
      return 404, b'', {}
    return (503, b'', {}) if status == 503 else slow(stub)(asked)

  stub.reply = reply
  start = time.monotonic()
  with pytest.raises(InputError, match='Prompt 1'):
    collect(stream(make(stub, backoff=9.0)))
  assert time.monotonic() - start < 5


# A real model -----------------------------------------------------------------


def served(graph, params):
  """The stub's answers are a decoder's, with its log-probs."""
  sampler = DecoderSampler(graph=graph, stop_ids=STOPS, pad_id=PAD)
  lock = threading.Lock()

  def reply(asked):
    ids, n = asked['prompt'], asked['n']
    table = jnp.asarray([[PAD] * (5 - len(ids)) + ids])
    controls = Controls(
      temperature=asked['temperature'] or 1.0, greedy=asked['temperature'] == 0
    )
    args = params, table, jnp.asarray([len(ids)]), keys(asked['seed'])
    options = dict(num_responses=n, max_tokens=asked['max_tokens'], controls=controls)
    with lock:
      drawn = collect(sampler.stream(*args, **options))
    choices = []
    for i in range(n):
      length = drawn.length[0, i]
      scores = {'token_logprobs': drawn.logps[0, i, :length].tolist()}
      reason = 'length' if drawn.truncated[0, i] else 'stop'
      found = {'token_ids': drawn.tokens[0, i, :length].tolist(), 'logprobs': scores}
      choices.append(found | {'index': i, 'finish_reason': reason})
    return {'choices': choices}

  return reply


def teacher_forced(params, samples, temperature):
  """Log-probs of the samples as the trainer has them."""
  table = [[PAD] * (5 - len(ids)) + ids for ids in PROMPTS]
  mask = np.arange(MOST) < samples.length[..., None]
  batch = PreferenceBatch(
    prompts=jnp.asarray(table),
    responses=jnp.asarray(samples.tokens),
    prompt_length=jnp.asarray([len(ids) for ids in PROMPTS]),
    response_length=jnp.asarray(samples.length),
    mask=jnp.asarray(mask),
    weight=jnp.ones(samples.length.shape),
  )
  hidden, head = jax.jit(tiny.forward())(params, batch)
  args = hidden[:, :, :-1], head, batch.responses, batch.mask
  return np.asarray(logprobs.from_hidden(*args, temperature=temperature).logps), mask


@pytest.mark.parametrize('controls', [Controls(temperature=0.7), GREEDY])
def test_a_real_models_log_probs_are_the_trainers(stub, controls):
  params = tiny.params()
  stub.reply = served(decoder.create(tiny.config())[0], params)
  samples = collect(stream(make(stub), controls=controls))
  temperature = 1.0 if controls.greedy else controls.temperature
  logps, mask = teacher_forced(params, samples, temperature)
  assert mask.sum() > 30
  assert len(np.unique(samples.tokens[mask])) > 3
  np.testing.assert_allclose(samples.logps, logps, rtol=0, atol=1e-4)
  other, _ = teacher_forced(params, samples, 1.7 - temperature)
  assert np.abs(samples.logps - other).max() > 0.1
