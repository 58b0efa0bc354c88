"""Token ids -> the text's letters again -> hashed n-grams of words and letters, by TF-IDF."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax.batch import Modality
from mtmm_jax.encoders.encoder import mask_of
from mtmm_jax.encoders.fixed.fixed import FixedEncoder
from mtmm_jax.ranges import Size, SizeOrZero
from mtmm_jax.text import read_tokenizer

_LETTERS = 16  # of a token at most
_ORDERS = range(2, 6)  # letters of an n-gram
_SPACE = ord(" ")
_STEP = np.uint32(2654435761)  # odd, near 2^32 over the golden ratio: multiplicative hashing


class TextNgrams(FixedEncoder):
    """(1 + log tf) idf over hashed n-grams, each half of length 1.

    One half counts words and pairs of neighbouring words, the other n-grams of 2 to 5 letters
    inside words, with their edges; idf = 1 + log((1 + N) / (1 + df)) over the train split. It is
    what scikit-learn's TfidfVectorizer does with `word` and `char_wb` (but for its second count of
    words shorter than an n-gram): tokens are spelled out again, so that the tokenizer's pieces do
    not matter.

    Costs about 70 T additions into `[B, 2 buckets]`. Use it: for texts of some words up to a few
    hundred. Not: where the order of words decides.

    Attributes:
        vocabulary: the number of token ids.
        buckets: features of each half.
    """

    vocabulary: SizeOrZero = 0
    buckets: Size = 4096

    sparse: ClassVar[bool] = True
    linear_options: ClassVar[Mapping[str, Any]] = {"buckets": 16_384}

    @staticmethod
    def accepts(modality: Modality) -> bool:
        return modality.is_a("text") and modality.vocabulary is not None

    @property
    def size(self) -> int:
        return 2 * self.buckets

    def statistics(self) -> dict[str, tuple[tuple[int, ...], Any, float]]:
        return {
            "idf": ((self.size,), jnp.float32, 1.0),
            # The letters of each token, a space where it begins a word; 0 where it has no more.
            # Floats, as all statistics are: code points are exact in them.
            "letters": ((self.vocabulary, _LETTERS), jnp.float32, 0.0),
        }

    def raw(self, entry: Mapping[str, Any]) -> jax.Array:
        """`[B, size]`: how often each bucket was counted."""
        mask = mask_of(entry) & entry["present"][:, None]
        ids = jnp.clip(entry["x"], 0, max(self.vocabulary - 1, 0))
        letters = self.stat("letters").astype(jnp.int32)
        tokens = jnp.where(mask[..., None], letters[ids], 0)
        letters = spelled(tokens, _LETTERS * ids.shape[1] + 1)
        words, there = word_hashes(letters, ids.shape[1])
        pairs = _mixed(words[:, :-1] * _STEP + words[:, 1:])
        found = [(_mixed(words), there), (pairs, there[:, :-1] & there[:, 1:])]
        places = [hashed % np.uint32(self.buckets) for hashed, _ in found]
        known = [one for _, one in found]
        for order in _ORDERS:
            hashed, fine = letter_hashes(letters, order)
            places.append(hashed % np.uint32(self.buckets) + np.uint32(self.buckets))
            known.append(fine)
        at, weights = jnp.concatenate(places, axis=1), jnp.concatenate(known, axis=1)
        counts = jnp.zeros((ids.shape[0], self.size), jnp.float32)
        rows = jnp.arange(ids.shape[0])[:, None]
        return counts.at[rows, at.astype(jnp.int32)].add(weights.astype(jnp.float32))

    def scaled(self, raw: jax.Array) -> jax.Array:
        weights = jnp.where(raw > 0, 1 + jnp.log(jnp.maximum(raw, 1)), 0) * self.stat("idf")
        halves = weights.reshape(weights.shape[0], 2, self.buckets)
        length = jnp.sqrt(jnp.square(halves).sum(-1, keepdims=True))
        # Both halves together have length 1.
        halves = halves / jnp.maximum(length, 1e-6) / np.float32(np.sqrt(2))
        return halves.reshape(weights.shape)

    def prepare(self, tokenizer: bytes | None) -> dict[str, np.ndarray]:
        found = np.zeros((self.vocabulary, _LETTERS), np.float32)
        names = {} if tokenizer is None else read_tokenizer(tokenizer).get_vocab()
        for token, id in names.items():
            if id < self.vocabulary:
                own = [ord(letter) for letter in spelling(token, names)[:_LETTERS]]
                found[id, : len(own)] = own
        return {"letters": found}

    def fit(self, raw: Any) -> dict[str, np.ndarray]:
        seen = np.asarray((raw > 0).sum(0)).reshape(self.size)
        idf = 1 + np.log((1 + raw.shape[0]) / (1 + seen))
        return {"idf": idf.astype(np.float32)}


def spelling(token: str, names: Mapping[str, int]) -> str:
    """A token in lower-case letters, after a space if a word begins with it; "" of special ones.

    Words begin with "▁" or "Ġ" where the vocabulary `names` has such tokens, with anything but "##"
    where it has those, and with every token where it has neither.
    """
    if len(token) > 2 and (token[0] + token[-1]) in ("[]", "<>"):
        return ""
    if token[0] in "▁Ġ":
        return f" {token[1:].lower()}"
    if token.startswith("##"):
        return token[2:].lower()
    marked = "▁" in names or "Ġ" in names or any(name[0] in "▁Ġ" for name in names)
    return token.lower() if marked else f" {token.lower()}"


def spelled(tokens: jax.Array, most: int) -> jax.Array:
    """`[B, most]`: the letters of tokens `[B, T, L]` one after the other, a space behind the last;
    0 after that."""
    there = tokens > 0
    length = there.sum(-1)
    start = jnp.cumsum(length, axis=1) - length
    place = jnp.where(there, start[..., None] + jnp.arange(tokens.shape[-1]), most)
    rows = jnp.arange(tokens.shape[0])[:, None, None]
    empty = jnp.zeros((tokens.shape[0], most), jnp.int32)
    letters = empty.at[rows, place].set(tokens, mode="drop")
    total = length.sum(1)
    end = jnp.where(total > 0, jnp.minimum(total, most - 1), most)
    return letters.at[rows[:, 0, 0], end].set(_SPACE, mode="drop")


def word_hashes(letters: jax.Array, most: int) -> tuple[jax.Array, jax.Array]:
    """`[B, most]` uint32 of the words between spaces, and which there are."""
    space, rows = letters == _SPACE, jnp.arange(letters.shape[0])[:, None]
    place = jnp.arange(letters.shape[1])
    begin = jax.lax.cummax(jnp.where(space, place, 0), axis=1)
    powers = np.cumprod(np.full(letters.shape[1], _STEP, np.uint32), dtype=np.uint32)
    real = (letters > 0) & ~space
    value = jnp.where(real, letters.astype(jnp.uint32) * jnp.asarray(powers)[place - begin], 0)
    word = jnp.cumsum(space, axis=1) - 1
    word = jnp.where(real & (word >= 0), word, most)
    empty = jnp.zeros((letters.shape[0], most), jnp.uint32)
    hashed = empty.at[rows, word].add(value.astype(jnp.uint32), mode="drop")
    count = empty.at[rows, word].add(real.astype(jnp.uint32), mode="drop")
    return hashed, count > 0


def letter_hashes(letters: jax.Array, order: int) -> tuple[jax.Array, jax.Array]:
    """`[B, windows]` uint32 of n-grams of letters, and which lie in one word with its edges."""
    width = letters.shape[1] - order + 1
    parts = [letters[:, i : i + width] for i in range(order)]
    hashed = jnp.full(parts[0].shape, order, jnp.uint32)
    for part in parts:
        hashed = hashed * _STEP + part.astype(jnp.uint32)
    fine = jnp.stack([part > 0 for part in parts]).all(0)
    inner = [part != _SPACE for part in parts[1:-1]]
    some = (parts[0] != _SPACE) | (parts[1] != _SPACE)
    return _mixed(hashed), jnp.stack([fine, some, *inner]).all(0)


def _mixed(hashed: jax.Array) -> jax.Array:
    """The bits of uint32 numbers, spread (Murmur3's finalizer)."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        hashed = (hashed ^ (hashed >> np.uint32(shift))) * np.uint32(factor)
    return hashed ^ (hashed >> np.uint32(16))
