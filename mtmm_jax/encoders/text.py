"""Token ids -> tokens: a Transformer, a GRU and a bag of embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mtmm_jax.batch import Modality, Tokens
from mtmm_jax.encoders.encoder import Encoder
from mtmm_jax.encoders.sequence import GRUEncoder, TransformerEncoder, mask_of
from mtmm_jax.layers import Dropout, sinusoid
from mtmm_jax.registry import choose

BAGS = {"tiny": 128, "small": 512}


def _accepts(modality: Modality) -> bool:
    return modality.kind == "text" and modality.vocabulary is not None


def _embed(
    entry: Mapping[str, Any], table: nn.Embed, forget: Dropout, name: str, mode: dict[str, Any]
) -> Tokens:
    """Embeddings of the ids, some forgotten whole; positions are their places in the text."""
    ids, mask = entry["x"], mask_of(entry)
    order = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.float32)[:, None], (*ids.shape, 1))
    values = table(ids)
    kept = forget(jnp.ones((*ids.shape, 1), values.dtype), **mode)
    return Tokens.of(values * kept, mask, name, positions=order)


class TransformerText(TransformerEncoder):
    """Embeddings + sinusoidal positions -> pre-norm Transformer.

    Attributes:
        vocabulary: the number of token ids.
        modality: the name that its tokens carry.
        word_dropout: zeroes whole token embeddings in training.
    """

    vocabulary: int = 0
    modality: str = "text"
    word_dropout: float = 0.0

    accepts = staticmethod(_accepts)

    def setup(self) -> None:
        super().setup()
        inner = self.size[1]
        self.embedding = nn.Embed(
            self.vocabulary, inner, embedding_init=nn.initializers.normal(0.02 * inner**0.5)
        )
        self.forget = Dropout(self.word_dropout)

    def stem(self, entry: Mapping[str, Any], **mode: Any) -> Tokens:
        tokens = _embed(entry, self.embedding, self.forget, self.modality, mode)
        positions = sinusoid(tokens.positions, tokens.values.shape[-1])
        return tokens.replace_values(tokens.values + positions)


class GRUText(GRUEncoder):
    """Embeddings -> GRU.

    Attributes:
        vocabulary: the number of token ids.
        modality: the name that its tokens carry.
        word_dropout: zeroes whole token embeddings in training.
    """

    vocabulary: int = 0
    modality: str = "text"
    word_dropout: float = 0.0

    accepts = staticmethod(_accepts)

    def setup(self) -> None:
        super().setup()
        self.embedding = nn.Embed(self.vocabulary, self.size)
        self.forget = Dropout(self.word_dropout)

    def stem(self, entry: Mapping[str, Any], **mode: Any) -> Tokens:
        return _embed(entry, self.embedding, self.forget, self.modality, mode)


class BagText(Encoder):
    """The mean of the words' embeddings, then a hidden layer: one token, whatever their order.

    The cheapest text encoder, and on long texts with few labels hard to beat.

    Attributes:
        vocabulary: the number of token ids.
        modality: the name that its tokens carry.
        preset: size: tiny or small.
        word_dropout: forgets whole words in training.
        dropout: rate on the mean.
    """

    vocabulary: int = 0
    modality: str = "text"
    preset: str = "tiny"
    word_dropout: float = 0.0
    dropout: float = 0.1

    accepts = staticmethod(_accepts)

    def setup(self) -> None:
        inner = BAGS[choose(self.preset, BAGS, "bag_text.preset", "preset")]
        self.embedding = nn.Embed(self.vocabulary, inner)
        self.forget = Dropout(self.word_dropout)
        self.hidden = nn.Dense(inner)
        self.drop = Dropout(self.dropout)
        self.project = nn.Dense(self.width)

    def stem(self, entry: Mapping[str, Any], **mode: Any) -> Tokens:
        return _embed(entry, self.embedding, self.forget, self.modality, mode)

    def first(self, tokens: Tokens, **mode: Any) -> Tokens:
        mean = self.drop(tokens.mean(), **mode)
        return Tokens.of(mean[:, None], tokens.present[:, None], self.modality)

    def second(self, tokens: Tokens, **mode: Any) -> Tokens:
        del mode
        return tokens.replace_values(self.project(nn.relu(self.hidden(tokens.values))))
