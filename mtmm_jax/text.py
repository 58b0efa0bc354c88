"""Text to token ids: tokenizers trained on the train split's texts, or any `tokenizer.json`."""

from __future__ import annotations

import collections
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mtmm_jax.registry import ConfigError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

PADDING, UNKNOWN = 0, 1  # of the tokenizers trained here
Tokenizers = Mapping[str, str] | None
"""Modality -> the `tokenizer.json` that its texts must be read by."""
SPECIAL = ("[PAD]", "[UNK]")
_PADDINGS = ("[PAD]", "<pad>", "<|pad|>", "<PAD>")


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> str:
    """A `tokenizer.json`: lower case, accents stripped, at most `vocabulary` entries.

    Byte-pair encoding, as its trainer is deterministic (the tokenizers library's WordPiece trainer
    is not: it numbers its pieces in the order of a randomised hash table). Frequent words are one
    token, rare ones several, and a letter that the texts do not have is `[UNK]`.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL[UNKNOWN]))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.Metaspace(prepend_scheme="always"),
        ]
    )
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, min_frequency=2, special_tokens=list(SPECIAL), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str(pretty=True)


def train_words(texts: Sequence[str], vocabulary: int) -> str:
    """A `tokenizer.json` of lower-cased words, split at spaces and nowhere else.

    At most `vocabulary` entries, the most frequent words; any other word is `[UNK]`.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    counts = collections.Counter(word for text in texts for word in text.lower().split())
    words = sorted(counts, key=lambda word: (-counts[word], word))[: vocabulary - len(SPECIAL)]
    ids = {token: i for i, token in enumerate((*SPECIAL, *words))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=SPECIAL[UNKNOWN]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer.to_str(pretty=True)


# What a token is -> how such a tokenizer is trained on texts, with at most so many entries.
UNITS = {"pieces": train_tokenizer, "words": train_words}


def train_characters(texts: Sequence[str]) -> str:
    """A `tokenizer.json` of the characters that the texts have, for transcripts and CTC.

    Id 0 is padding and CTC's blank, 1 stands for any character that the texts lack, the others
    are in the order of Unicode. Nothing is normalised, so `decode` gives back every text of known
    characters as it was: change case and accents before, if they are to be the same.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    characters = sorted(set().union(*texts))
    if not characters:
        raise ConfigError("tokenizer: there is no character in the texts to train it on")
    # The special names are in the vocabulary only: as added tokens they would be looked for in
    # texts, and a "[PAD]" that someone wrote would become a blank.
    ids = {token: i for i, token in enumerate((*SPECIAL, *characters))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=SPECIAL[UNKNOWN]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer.to_str(pretty=True)


def read_tokenizer(tokenizer_json: str | bytes) -> Tokenizer:
    """Any `tokenizer.json`: normalisation (lower case and so on) and special tokens are the file's.

    A length that the file cuts or pads to is forgotten: lengths are the source's to say. A file of
    over `LIMIT` bytes is refused, and so are regexes that repeat a group, which may try a text in
    exponentially many ways.
    """
    from tokenizers import Tokenizer

    if len(tokenizer_json) > LIMIT:
        raise ConfigError(f"tokenizer.json: has {len(tokenizer_json):,} bytes, over {LIMIT:,}")
    try:
        text = tokenizer_json.decode() if isinstance(tokenizer_json, bytes) else tokenizer_json
        for pattern in _regexes(json.loads(text)):
            if _REPEATED_GROUP.search(_CLASS.sub("x", pattern)):
                raise ConfigError(
                    f"tokenizer.json: the regex {pattern[:80]!r} repeats a group, which may take "
                    "for ever on some texts; write it without"
                )
        tokenizer = Tokenizer.from_str(text)
    except ConfigError:
        raise
    except BaseException as error:  # the library raises Exception, and panics, which are none
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"tokenizer.json: cannot be read: {reason}") from error
    tokenizer.no_truncation()
    if tokenizer.padding:  # kept without its length: it says which id pads
        keep = ("pad_id", "pad_token", "pad_type_id")
        tokenizer.enable_padding(**{key: tokenizer.padding[key] for key in keep})
    return tokenizer


LIMIT = 2**26
"""Bytes of a `tokenizer.json`; those of the largest vocabularies have 2**25."""
# Escapes and character classes stand for one character each; a group that is repeated is left.
_CLASS = re.compile(r"\\.|\[\^?\]?(?:\\.|\[:\w+:\]|[^\]\\])*\]", re.DOTALL)
_REPEATED_GROUP = re.compile(r"\)(?:[*+]|\{\d*,?\d*\})")


def _regexes(value: Any) -> Iterator[str]:
    """The regexes of a tokenizer, wherever they stand in it."""
    if isinstance(value, Mapping):
        if isinstance(value.get("Regex"), str):
            yield value["Regex"]
        for entry in value.values():
            yield from _regexes(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _regexes(entry)


def tokenizer_of(assets: Mapping[str, bytes], modality: str) -> bytes | None:
    """The `tokenizer.json` of one text among a source's assets: its own, or that of all texts."""
    return assets.get(f"{modality}.tokenizer.json", assets.get("tokenizer.json"))


def padding_id(tokenizer: Tokenizer) -> int | None:
    """The padding id of the file, or else the id of a token such as [PAD]; None if there is
    none."""
    if tokenizer.padding:
        return tokenizer.padding["pad_id"]
    found = (tokenizer.token_to_id(token) for token in _PADDINGS)
    return next((id for id in found if id is not None), None)


def encode(tokenizer: Tokenizer, texts: Sequence[str], length: int | None) -> np.ndarray:
    """`[N, length]` int32, cut at the end, padded with `padding_id`; as `encode_with_mask`."""
    return encode_with_mask(tokenizer, texts, length)[0]


def encode_with_mask(
    tokenizer: Tokenizer, texts: Sequence[str], length: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """`[N, length]` int32 ids, and bool where there is a token.

    Special tokens ([CLS], [SEP]) are set as the file says, and stay where a text is cut. Filled up
    with `padding_id`, or 0 where the tokenizer has none: the mask holds for any.

    Args:
        tokenizer: from `read_tokenizer`.
        texts: any number of them.
        length: tokens, special ones included; None is the longest text's.
    """
    special = tokenizer.num_special_tokens_to_add(False)
    if length is not None and length <= special:
        raise ConfigError(
            f"text: {length} tokens leave no room for a word and the tokenizer's {special} "
            "special ones"
        )
    encodings = _encodings(tokenizer, list(texts))
    if special:
        if length is not None:
            for encoding in encodings:
                encoding.truncate(length - special)
        encodings = [tokenizer.post_process(encoding) for encoding in encodings]
    rows = [encoding.ids[:length] for encoding in encodings]
    width = max([1, *map(len, rows)]) if length is None else length
    ids = np.full((len(rows), width), padding_id(tokenizer) or 0, np.int32)
    for into, row in zip(ids, rows, strict=True):
        into[: len(row)] = row
    counts = np.array([len(row) for row in rows], np.int64)
    return ids, np.arange(width) < counts[:, None]


def encode_present(
    tokenizer: Tokenizer, texts: Sequence[str], length: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """As `encode_with_mask`, but a text without a word has no token, special ones included: it is
    absent."""
    ids, mask = encode_with_mask(tokenizer, texts, length)
    return ids, mask & (mask.sum(1) > tokenizer.num_special_tokens_to_add(False))[:, None]


def _encodings(tokenizer: Tokenizer, texts: list[str]) -> list[Encoding]:
    """Without special tokens; of a tokenizer that pads, one by one: a batch would be padded."""
    try:
        if tokenizer.padding:
            return [tokenizer.encode(text, add_special_tokens=False) for text in texts]
        return tokenizer.encode_batch(texts, add_special_tokens=False)
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"tokenizer.json: cannot take apart a text: {reason}") from error


def decode(tokenizer: Tokenizer, ids: np.ndarray) -> list[str]:
    """The texts of `[N, length]` ids, without padding and special tokens."""
    padding = padding_id(tokenizer)
    rows = [[id for id in row if id != padding] for row in np.asarray(ids).tolist()]
    return tokenizer.decode_batch(rows, skip_special_tokens=True)


def as_text(tokenizer: Any, ids: np.ndarray) -> str:
    """The text of one row's ids; the ids themselves where there is no tokenizer."""
    if tokenizer is None:
        return "ids " + " ".join(map(str, np.asarray(ids).tolist()))
    return decode(tokenizer, np.asarray(ids)[None])[0]


def words_of(tokenizer: Tokenizer, ids: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """`[N]` the number of the word that each token belongs to, -1 for padding and special tokens,
    and the words as written. Where the vocabulary marks neither beginnings nor continuations, each
    token is a word of its own."""
    vocabulary = tokenizer.get_vocab()
    begins = any(token.startswith("\u2581") for token in vocabulary)
    continues = any(token.startswith("##") for token in vocabulary)
    unknown = unknown_id(tokenizer)
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    special = (special | {padding_id(tokenizer)}) - {unknown}
    numbers, words = np.full(len(ids), -1, np.int32), []
    for place, token in enumerate(np.asarray(ids).tolist()):
        if token in special:
            continue
        piece = piece_of(tokenizer, token)
        goes_on = piece.startswith("##") if continues else begins and not piece.startswith("\u2581")
        if not (goes_on and words and numbers[place - 1] >= 0):
            words.append("")
        words[-1] += piece.removeprefix("##").replace("\u2581", "")
        numbers[place] = len(words) - 1
    return numbers, words


def piece_of(tokenizer: Tokenizer | None, token: int) -> str:
    """A token as the vocabulary writes it; its id where there is none, or no tokenizer."""
    return (tokenizer and tokenizer.id_to_token(token)) or str(token)


def unknown_id(tokenizer: Tokenizer) -> int:
    """The id of a word that the tokenizer does not know; that of padding, or 0, without one."""
    found = (tokenizer.token_to_id(token) for token in ("[UNK]", "<unk>", "<UNK>"))
    return next((id for id in found if id is not None), padding_id(tokenizer) or 0)
