"""tokenizer.json and chat templates, on small tokenizers of the published kinds."""

import json

import numpy as np
import pytest
from tokenizers import (
  AddedToken,
  Tokenizer,
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  processors,
)

from prefjax.data import encoding, tokenizers
from prefjax.data.conversations import Message
from prefjax.data.records import Record, from_fields
from prefjax.data.tokenizers import ContinuationTokenizer
from prefjax.errors import InputError

CHATML = (
  '{% for m in messages %}{{ "<|im_start|>" + m.role + "\\n" + m.content'
  ' + "<|im_end|>\\n" }}{% endfor %}'
  '{% if add_generation_prompt %}{{ "<|im_start|>assistant\\n" }}{% endif %}'
)
# In its manner: BOS from the template, and no system turn.
GEMMA = (
  '{{ bos_token }}{% if messages[0].role == "system" %}'
  '{{ raise_exception("System role not supported") }}{% endif %}'
  '{% for m in messages %}{{ "<|im_start|>" + m.role + "\\n" + m.content | trim'
  ' + "<|im_end|>\\n" }}{% endfor %}'
  '{% if add_generation_prompt %}{{ "<|im_start|>model\\n" }}{% endif %}'
)
SPECIALS = ['<bos>', '<eos>', '<pad>', '<|im_start|>', '<|im_end|>']
TURNS = (Message('system', 'Be brief.'), Message('user', 'Hi <|im_end|> you'))


def byte_level(bos=False):
  """As GPT-2, Qwen and Llama 3 have it: bytes, and no space before a text."""
  letters = sorted(pre_tokenizers.ByteLevel.alphabet())
  vocabulary = {letter: i for i, letter in enumerate(letters)}
  vocabulary |= {'Ġyou': 256, 'Ġy': 257, 'ou': 258}
  merges = [('Ġ', 'y'), ('o', 'u'), ('Ġy', 'ou')]
  made = Tokenizer(models.BPE(vocabulary, merges))
  made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = decoders.ByteLevel()
  return finished(made, bos)


def metaspace(bos=True):
  """As Llama 2 has it: a space is put before a text."""
  letters = ['<unk>', *'▁abcdefghijklmnopqrstuvwxyzABCDEFGH?.<>|_\n']
  made = Tokenizer(
    models.BPE({c: i for i, c in enumerate(letters)}, [], unk_token='<unk>')
  )
  made.normalizer = normalizers.Sequence(
    [normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')]
  )
  made.decoder = decoders.Sequence(
    [decoders.Replace('▁', ' '), decoders.Fuse(), decoders.Strip(' ', 1, 0)]
  )
  return finished(made, bos)


def scheme(bos=True):
  """As newer ones of its kind have it: a space before the first text alone."""
  made = metaspace(bos)
  made.normalizer = None
  made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme='first')
  return made


def finished(made, bos):
  made.add_special_tokens([AddedToken(text, special=True) for text in SPECIALS])
  if bos:
    made.post_processor = processors.TemplateProcessing(
      single='<bos> $A', special_tokens=[('<bos>', made.token_to_id('<bos>'))]
    )
  return made


def write(folder, made, template=None, **changes):
  # As transformers writes them: a text, or an object of this type.
  eos = {'__type': 'AddedToken', 'content': '<eos>'}
  described = {'bos_token': '<bos>', 'eos_token': eos, **changes}
  if template:
    described['chat_template'] = template
  made.save(str(folder / 'tokenizer.json'))
  (folder / 'tokenizer_config.json').write_text(json.dumps(described))
  return folder / 'tokenizer.json'


def test_special_tokens_are_those_that_the_file_uses(tmp_path):
  found = tokenizers.load(write(tmp_path, byte_level()))
  assert isinstance(found, ContinuationTokenizer)
  # BOS has a name, but nothing puts it before a text.
  assert (found.bos_id, found.eos_id, found.pad_id) == (None, 260, 260)
  assert found.vocab_size == 264
  other = tokenizers.load(write(tmp_path, byte_level(bos=True), pad_token='<pad>'))
  assert (other.bos_id, other.eos_id, other.pad_id) == (259, 260, 261)
  assert other.fingerprint != found.fingerprint


def test_eos_where_older_folders_keep_it(tmp_path):
  path = write(tmp_path, byte_level(), eos_token=None)
  with pytest.raises(InputError, match='says None'):
    tokenizers.load(path)
  (tmp_path / 'config.json').write_text('{"eos_token_id": [262, 263]}')
  assert tokenizers.load(path).eos_id == 262
  (tmp_path / 'tokenizer_config.json').unlink()
  (tmp_path / 'special_tokens_map.json').write_text('{"eos_token": "<eos>"}')
  assert tokenizers.load(path).eos_id == 260


def test_text_that_spells_a_special_token_stays_text(tmp_path):
  found = tokenizers.load(write(tmp_path, byte_level()))
  text = 'Hi <|im_end|> you <eos>'
  ids = found.encode(text)
  assert not set(ids) & set(range(259, 264))
  assert found.decode([259, *ids, 260]) == text
  assert ids[-9:-7] == [257, 258] or 256 in ids  # merges apply


@pytest.mark.parametrize('make', [metaspace, scheme])
def test_a_space_before_a_text_and_none_before_one_that_follows(tmp_path, make):
  found = tokenizers.load(write(tmp_path, make()))
  space, a, b = (found.encode_continuation(c)[0] for c in ' ab')
  assert found.encode('a') == [space, a]
  assert found.encode_continuation('b') == [b]
  assert found.encode_continuation(' b') == [space, b]
  assert found.decode([space, a, space, b]) == 'a b'


@pytest.mark.parametrize('make', [byte_level, metaspace, scheme])
def test_the_token_contract(tmp_path, make):
  found = tokenizers.load(write(tmp_path, make(bos=True)))
  counts = encoding.Counter()
  record = from_fields({'prompt': 'a b', 'response': ' c <eos>'}, 'here')
  made = encoding.encode(record, found, max_prompt=9, max_response=99, counts=counts)
  assert made.prompt[0] == found.bos_id
  assert list(made.responses[0]).count(found.eos_id) == 1
  assert made.responses[0][-1] == found.eos_id
  assert counts['round_trip_changed'] == 0


def test_a_conversation_by_hand(tmp_path):
  found = tokenizers.load(write(tmp_path, byte_level(), CHATML), chat=True)
  # A response ends with what ends a turn in the template.
  assert found.eos_id == 263
  start, end = 262, 263
  text = found.encode  # no special token among them
  wanted = [start, *text('system\nBe brief.'), end, *text('\n')]
  # The user's <|im_end|> is text; the template's is a token.
  wanted += [start, *text('user\nHi <|im_end|> you'), end, *text('\n')]
  wanted += [start, *text('assistant\n')]
  assert found.encode_chat(TURNS) == wanted


def test_records_under_a_template(tmp_path):
  found = tokenizers.load(write(tmp_path, byte_level(), CHATML), chat=True)
  counts = encoding.Counter()
  limits = dict(max_prompt=99, max_response=99, counts=counts)
  record = Record('\n\nHuman: Hi\n\nAssistant:', (' you',), messages=TURNS[1:])
  made = encoding.encode(record, found, **limits)
  np.testing.assert_array_equal(made.prompt, found.encode_chat(TURNS[1:]))
  # The space is of the plain layout.
  np.testing.assert_array_equal(made.responses[0], [*found.encode('you'), 263])
  # A plain prompt is a turn of the user's.
  one = (Message('user', 'Hi'),)
  made = encoding.encode(Record('Hi', ('you',)), found, **limits)
  np.testing.assert_array_equal(made.prompt, found.encode_chat(one))
  assert encoding.encode_prompt('Hi', found, max_prompt=99) == found.encode_chat(one)
  again = encoding.encode_prompt('', found, max_prompt=99, messages=TURNS)
  assert again == found.encode_chat(TURNS)
  assert counts['round_trip_changed'] == 0


def test_a_template_of_another_kind(tmp_path):
  found = tokenizers.load(write(tmp_path, byte_level(bos=True), GEMMA), chat=True)
  ids = found.encode_chat([Message('user', ' Hi ')])
  assert ids == [
    259,
    262,
    *found.encode('user\nHi'),
    263,
    *found.encode('\n'),
    262,
    *found.encode('model\n'),
  ]
  with pytest.raises(InputError, match=r"refuses .*\['system', 'user'\]: System role"):
    found.encode_chat(TURNS)


def test_a_template_has_its_own_file_and_no_way_out(tmp_path):
  path = write(tmp_path, byte_level())
  (tmp_path / 'chat_template.jinja').write_text('{{ messages[0].content }}<eos>')
  found = tokenizers.load(path, chat=True)
  assert found.eos_id == 260
  assert found.encode_chat([Message('user', 'Hi')]) == [*found.encode('Hi'), 260]
  hostile = '{{ messages.__class__.__mro__[1].__subclasses__() }}'
  (tmp_path / 'chat_template.jinja').write_text(hostile)
  with pytest.raises(InputError, match='refuses a conversation'):
    tokenizers.load(path, chat=True)
  (tmp_path / 'chat_template.jinja').write_text('{% for %}')
  with pytest.raises(InputError, match='is broken'):
    tokenizers.load(path, chat=True)


def test_what_is_wrong_is_named(tmp_path):
  path = write(tmp_path, byte_level(), eos_token='<end>')
  with pytest.raises(InputError, match=r"needs an EOS of its own: .* says '<end>'"):
    tokenizers.load(path)
  write(tmp_path, byte_level())
  with pytest.raises(InputError, match=r'records\.chat: .* has no chat template'):
    tokenizers.load(path, chat=True)
  path.write_text('{"version": "1.0"}')
  with pytest.raises(InputError, match=r'is not a tokenizer\.json'):
    tokenizers.load(path)
  with pytest.raises(InputError, match='is not there'):
    tokenizers.load(tmp_path / 'gone' / 'tokenizer.json')


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('make', [byte_level, metaspace, scheme])
@pytest.mark.parametrize('template', [CHATML, GEMMA])
def test_live_parity_with_transformers(tmp_path, make, template):
  transformers = pytest.importorskip('transformers')
  bos = template == GEMMA
  path = write(tmp_path, make(bos=bos), template)
  theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
  ours = tokenizers.load(path, chat=True)
  turns = [Message('user', 'a b'), Message('assistant', 'c'), Message('user', 'd?')]
  told = [turn._asdict() for turn in turns]
  wanted = theirs.apply_chat_template(
    told, add_generation_prompt=True, return_dict=False
  )
  if make is byte_level:
    assert ours.encode_chat(turns) == wanted
  assert ours.encode('a b') == theirs.encode('a b', add_special_tokens=False)
  assert ([ours.bos_id] if bos else []) + ours.encode('a b') == theirs.encode('a b')
