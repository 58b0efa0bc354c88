"""Tokenizers: any file's special tokens and padding are honoured, characters come back exactly."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from mtmm_jax import text
from mtmm_jax.registry import ConfigError

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "play", "##ing", "##s")
PAD, UNK, CLS, SEP, THE, CAT, PLAY, ING, S = range(9)


def word_piece(pad: int | None = None, lowercase: bool = True) -> str:
    """A BERT-like file; with `pad`, one that pads to 12 and cuts at 8, as published ones do."""
    tokenizer = Tokenizer(
        models.WordPiece(dict(zip(WORDS, range(9), strict=True)), unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(list(WORDS[:4]))
    if pad is not None:
        tokenizer.enable_padding(length=12, pad_id=pad, pad_token=WORDS[pad])
        tokenizer.enable_truncation(8)
    return tokenizer.to_str()


@pytest.mark.parametrize("pad", [None, PAD])
def test_special_tokens_are_the_files_and_survive_cutting(pad):
    tokenizer = text.read_tokenizer(word_piece(pad))
    texts = ["The CAT plays", "the cat playing the cat the cat", "dog", ""]
    ids, mask = text.encode_with_mask(tokenizer, texts, 6)
    assert ids.dtype == np.int32
    assert ids.tolist() == [
        [CLS, THE, CAT, PLAY, S, SEP],
        [CLS, THE, CAT, PLAY, ING, SEP],
        [CLS, UNK, SEP, PAD, PAD, PAD],
        [CLS, SEP, PAD, PAD, PAD, PAD],
    ]
    assert mask.sum(1).tolist() == [6, 6, 3, 2]
    assert np.array_equal(text.encode(tokenizer, texts, 6), ids)
    assert text.decode(tokenizer, ids) == ["the cat plays", "the cat playing", "", ""]


def test_without_a_length_the_longest_text_says_it_whatever_the_file_cuts_at():
    tokenizer = text.read_tokenizer(word_piece(PAD))
    ids, mask = text.encode_with_mask(tokenizer, ["the " * 20, "cat"], None)
    assert ids.shape == (2, 22)
    assert mask.sum(1).tolist() == [22, 3]
    assert text.encode(text.read_tokenizer(text.train_characters("a")), [""], None).shape == (1, 1)


def test_case_is_the_files():
    ids = text.encode(text.read_tokenizer(word_piece(lowercase=False)), ["The cat"], 5)
    assert ids.tolist() == [[CLS, UNK, CAT, SEP, PAD]]


def test_the_padding_id_is_the_files():
    assert text.padding_id(text.read_tokenizer(word_piece())) == PAD
    assert text.padding_id(text.read_tokenizer(word_piece(SEP))) == SEP
    other = json.loads(text.train_characters(["ab"]))
    other["model"]["vocab"] = {"a": 0, "b": 1, "[UNK]": 2, "<pad>": 3}
    assert text.padding_id(text.read_tokenizer(json.dumps(other))) == 3
    ids, mask = text.encode_with_mask(text.read_tokenizer(json.dumps(other)), ["a"], 2)
    assert (ids.tolist(), mask.tolist()) == ([[0, 3]], [[True, False]])
    other["model"]["vocab"] = {"a": 0, "b": 1, "[UNK]": 2}
    nameless = text.read_tokenizer(json.dumps(other))
    assert text.padding_id(nameless) is None
    ids, mask = text.encode_with_mask(nameless, ["a"], 2)
    assert (ids.tolist(), mask.tolist()) == ([[0, 0]], [[True, False]])
    assert text.decode(nameless, np.array([[0, 1]])) == ["ab"]


def test_encoding_leaves_the_tokenizer_as_it_was():
    tokenizer = text.read_tokenizer(word_piece(PAD))
    before = tokenizer.to_str()
    text.encode(tokenizer, ["the cat"], 5)
    assert tokenizer.to_str() == before


def test_characters_come_back_exactly():
    texts = [
        "see  it\n",
        "[PAD] na\u00efve",
        "nai\u0308ve",
        " tab\there",
        "族 🦊",
    ]  # composed or not
    made = text.train_characters(texts)
    assert made == text.train_characters(texts[::-1])
    tokenizer = text.read_tokenizer(made.encode())
    assert tokenizer.get_vocab_size() == 2 + len(set("".join(texts)))
    ids, mask = text.encode_with_mask(tokenizer, texts, 16)
    assert text.decode(tokenizer, ids) == texts
    assert mask.sum(1).tolist() == [len(t) for t in texts]
    assert (ids[~mask] == text.PADDING).all()
    assert (ids[mask] > text.UNKNOWN).all()
    known = sorted(set("".join(texts)))
    assert ids[0, :3].tolist() == [2 + known.index(c) for c in "see"]


def test_an_unknown_character_is_one_unknown_token():
    tokenizer = text.read_tokenizer(text.train_characters(["abc"]))
    ids = text.encode(tokenizer, ["aжb"], 4)
    assert ids.tolist() == [[2, text.UNKNOWN, 3, text.PADDING]]
    assert text.decode(tokenizer, ids) == ["a[UNK]b"]


def test_a_trained_tokenizer_decodes_to_words():
    tokenizer = text.read_tokenizer(text.train_tokenizer(["red fox", "red cat", "red fox"], 40))
    ids = text.encode(tokenizer, ["Red  FOX"], 8)
    assert text.decode(tokenizer, ids) == ["red fox"]
    assert text.encode(tokenizer, [], 8).shape == (0, 8)


def test_words_are_split_at_spaces_and_lower_cased():
    texts = ["Red fox", "red  CAT's", "red fox [PAD]"]
    made = text.train_words(texts, 5)
    assert made == text.train_words(texts[::-1], 5)
    tokenizer = text.read_tokenizer(made)
    # The most frequent words; of those that are as frequent, the first by letters.
    assert [tokenizer.id_to_token(i) for i in range(5)] == [*text.SPECIAL, "red", "fox", "[pad]"]
    assert tokenizer.get_vocab_size() == 5
    ids, mask = text.encode_with_mask(tokenizer, ["FOX's Red fox", "\tred\nfox"], 4)
    assert ids.tolist() == [[text.UNKNOWN, 2, 3, text.PADDING], [2, 3, 0, 0]]
    assert mask.sum(1).tolist() == [3, 2]
    assert text.decode(tokenizer, ids[1:]) == ["red fox"]


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda: text.read_tokenizer("{}"), "tokenizer.json: cannot be read"),
        (lambda: text.read_tokenizer(b"\xff"), "tokenizer.json: cannot be read"),
        (lambda: text.train_characters([]), "no character"),
        (lambda: text.encode(text.read_tokenizer(word_piece()), ["cat"], 2), "2 tokens leave no"),
    ],
)
def test_refusals(act, said):
    with pytest.raises(ConfigError, match=said):
        act()


def _with_regex(pattern):
    tokenizer = json.loads(text.train_tokenizer(["red apple"], 40))
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    tokenizer["pre_tokenizer"] = {**split, "invert": False}
    return json.dumps(tokenizer)


@pytest.mark.parametrize("pattern", [r"(a+)+$", r"(\w*)*\d", r"(?:x|xx){2,}", r"((ab)*c)+"])
def test_regexes_that_repeat_a_group_are_refused(pattern):
    with pytest.raises(ConfigError, match="repeats a group, which may take for ever"):
        text.read_tokenizer(_with_regex(pattern))


@pytest.mark.parametrize(
    "pattern",
    [
        r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+(?!\S)",
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|\)+",
        r"\p{L}+(?i:'s|'t)?",
    ],
)
def test_regexes_of_well_known_tokenizers_are_read(pattern):
    text.read_tokenizer(_with_regex(pattern))


def test_a_tokenizer_that_is_too_large_or_deep_is_refused(monkeypatch):
    with pytest.raises(ConfigError, match="cannot be read: maximum recursion"):
        text.read_tokenizer('{"a":' * 100_000)
    monkeypatch.setattr(text, "LIMIT", 100)
    with pytest.raises(ConfigError, match="bytes, over 100"):
        text.read_tokenizer(text.train_tokenizer(["red apple"], 40))


def test_a_tokenizer_that_panics_is_one_line():
    class Panicking:
        padding = None

        def encode_batch(self, texts, add_special_tokens):
            raise type("PanicException", (BaseException,), {})("Onig: retry-limit")

        def num_special_tokens_to_add(self, pair):
            return 0

    with pytest.raises(ConfigError, match="cannot take apart a text: Onig: retry-limit"):
        text.encode(Panicking(), ["a"], 3)
