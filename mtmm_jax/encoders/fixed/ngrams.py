"""Token ids -> hashed n-grams of tokens and of their letters, weighted by TF-IDF."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax.batch import Modality
from mtmm_jax.encoders.encoder import mask_of
from mtmm_jax.encoders.fixed.fixed import FixedEncoder
from mtmm_jax.ranges import Size, SizeOrZero
from mtmm_jax.text import read_tokenizer

_LETTERS = 48  # n-grams of letters that a token has at most
_ORDERS = range(2, 6)  # letters of an n-gram
_MULTIPLIER = np.uint32(2654435761)  # Knuth's, of multiplicative hashing


class TextNgrams(FixedEncoder):
    """(1 + log tf) idf over hashed n-grams, each half of length 1.

    One half counts tokens and pairs of neighbours, the other n-grams of 2 to 5 letters inside
    tokens, with their edges, so that forms of a word have features in common; idf = 1 + log((1 +
    N) / (1 + df)) over the train split. What scikit-learn's TfidfVectorizer does with `word` and
    `char_wb`, over the tokens that the source gives: what a tokenizer splits is counted in parts.

    Cost: B T (1 + 48) additions into `[B, 2 buckets]`. For texts of some words up to a few hundred;
    not where the order of words decides.

    Attributes:
        vocabulary: the number of token ids.
        buckets: features of each half.
    """

    vocabulary: SizeOrZero = 0
    buckets: Size = 4096

    @staticmethod
    def accepts(modality: Modality) -> bool:
        return modality.is_a("text") and modality.vocabulary is not None

    @property
    def size(self) -> int:
        return 2 * self.buckets

    def statistics(self) -> dict[str, tuple[tuple[int, ...], Any, float]]:
        return {
            "idf": ((self.size,), jnp.float32, 1.0),
            # The buckets of each token's letters; -1 where it has no more.
            "letters": ((self.vocabulary, _LETTERS), jnp.int32, -1),
        }

    def raw(self, entry: Mapping[str, Any]) -> jax.Array:
        """`[B, size]`: how often each bucket was counted."""
        mask = mask_of(entry) & entry["present"][:, None]
        ids = jnp.clip(entry["x"], 0, max(self.vocabulary - 1, 0))
        one = ids.astype(jnp.uint32) * _MULTIPLIER
        two = (one[:, :-1] ^ (one[:, 1:] >> 7)) * _MULTIPLIER + jnp.uint32(1)
        tokens = jnp.concatenate([one, two], axis=1)
        tokens = ((tokens >> 8) % jnp.uint32(self.buckets)).astype(jnp.int32)
        there = jnp.concatenate([mask, mask[:, :-1] & mask[:, 1:]], axis=1)
        letters = self.stat("letters")[ids]
        rows = ids.shape[0]
        known = mask[..., None] & (letters >= 0)
        places = jnp.concatenate([tokens, self.buckets + letters.reshape(rows, -1)], axis=1)
        weights = jnp.concatenate([there, known.reshape(rows, -1)], axis=1)
        places = jnp.where(weights, places, 0)
        counts = jnp.zeros((rows, self.size), jnp.float32)
        return counts.at[jnp.arange(rows)[:, None], places].add(weights.astype(jnp.float32))

    def scaled(self, raw: jax.Array) -> jax.Array:
        weights = jnp.where(raw > 0, 1 + jnp.log(jnp.maximum(raw, 1)), 0) * self.stat("idf")
        halves = weights.reshape(weights.shape[0], 2, self.buckets)
        length = jnp.sqrt(jnp.square(halves).sum(-1, keepdims=True))
        # Both halves together have length 1.
        halves = halves / jnp.maximum(length, 1e-6) / np.float32(np.sqrt(2))
        return halves.reshape(weights.shape)

    def prepare(self, tokenizer: bytes | None) -> dict[str, np.ndarray]:
        found = np.full((self.vocabulary, _LETTERS), -1, np.int32)
        if tokenizer is None:
            return {"letters": found}
        for token, id in read_tokenizer(tokenizer).get_vocab().items():
            if id < self.vocabulary and not (token[:1] in "[<" and token[-1:] in "]>"):
                own = letters_of(token, self.buckets)[:_LETTERS]
                found[id, : len(own)] = own
        return {"letters": found}

    def fit(self, raw: np.ndarray) -> dict[str, np.ndarray]:
        seen = (np.asarray(raw) > 0).sum(0) if len(raw) else np.zeros(self.size)
        idf = 1 + np.log((1 + len(raw)) / (1 + seen))
        return {"idf": idf.astype(np.float32)}


def letters_of(token: str, buckets: int) -> list[int]:
    """The buckets of a token's n-grams of letters.

    Marks of a word's begin ("▁", "Ġ") are its edge; "##" says that it goes on.
    """
    inner = token.startswith("##")
    word = token.removeprefix("##").replace("▁", " ").replace("Ġ", " ").lower()
    if not word.strip():
        return []
    word = word if inner or word.startswith(" ") else f" {word}"
    grams = [word[i : i + n] for n in _ORDERS for i in range(len(word) - n + 1)]
    return [zlib.crc32(gram.encode()) % buckets for gram in grams]
