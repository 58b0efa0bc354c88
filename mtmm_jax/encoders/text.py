"""Token ids -> tokens: a Transformer and a GRU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mtmm_jax.batch import Modality, Tokens
from mtmm_jax.layers import GRU, Dropout, TransformerBlock, sinusoid
from mtmm_jax.registry import choose

# preset -> layers, width, heads
TRANSFORMERS = {"tiny": (2, 128, 4), "small": (4, 256, 4), "base": (12, 768, 12)}
GRUS = {"tiny": (1, 96), "small": (1, 256)}


def _accepts(modality: Modality) -> bool:
    return modality.kind == "text" and modality.vocabulary is not None


def _embed(entry: Mapping[str, Any], table: nn.Embed, name: str) -> Tokens:
    ids = entry["x"]
    mask = entry.get("mask", jnp.broadcast_to(entry["present"][:, None], ids.shape))
    order = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.float32)[:, None], (*ids.shape, 1))
    return Tokens.of(table(ids), mask, name, positions=order)


class TransformerText(nn.Module):
    """Embeddings + sinusoidal positions -> pre-norm Transformer (Vaswani et al. 2017).

    Attributes:
        width: of the tokens it gives.
        modality: the name that its tokens carry.
        vocabulary: the number of token ids.
        preset: size: tiny, small or base.
        dropout: rate inside the blocks; `word_dropout` zeroes whole token embeddings.
        cut: how many layers belong to the first half of the body.
    """

    width: int
    vocabulary: int
    modality: str = "text"
    preset: str = "tiny"
    dropout: float = 0.1
    word_dropout: float = 0.0
    cut: int = 1

    accepts = staticmethod(_accepts)

    def setup(self) -> None:
        choose(self.preset, TRANSFORMERS, "text_transformer.preset", "preset")
        layers, inner, heads = TRANSFORMERS[self.preset]
        self.embedding = nn.Embed(
            self.vocabulary, inner, embedding_init=nn.initializers.normal(0.02 * inner**0.5)
        )
        self.blocks = [
            TransformerBlock(heads, dropout=self.dropout, name=f"block{i + 1}")
            for i in range(layers)
        ]
        self.norm = nn.LayerNorm()
        self.project = nn.Dense(self.width)
        self.forget = Dropout(self.word_dropout)

    def stem(self, entry: Mapping[str, Any], **mode: Any) -> Tokens:
        tokens = _embed(entry, self.embedding, self.modality)
        kept = self.forget(jnp.ones((*tokens.mask.shape, 1), tokens.values.dtype), **mode)
        positions = sinusoid(tokens.positions, tokens.values.shape[-1])
        return tokens.replace_values(tokens.values * kept + positions)

    def first(self, tokens: Tokens, **mode: Any) -> Tokens:
        return self._run(self.blocks[: self.cut], tokens, mode)

    def second(self, tokens: Tokens, **mode: Any) -> Tokens:
        tokens = self._run(self.blocks[self.cut :], tokens, mode)
        return tokens.replace_values(self.project(self.norm(tokens.values)))

    def __call__(
        self, entry: Mapping[str, Any], *, train: bool = False, axis_name: str | None = None
    ) -> Tokens:
        mode = {"train": train, "axis_name": axis_name}
        return self.second(self.first(self.stem(entry, **mode), **mode), **mode)

    def _run(self, blocks: list[Any], tokens: Tokens, mode: dict[str, Any]) -> Tokens:
        x = tokens.values
        for block in blocks:
            x = block(x, tokens.mask, **mode)
        return tokens.replace_values(x)


class GRUText(nn.Module):
    """Embeddings -> GRU, in both directions by default (Cho et al. 2014).

    The first half of the body is the forward recurrence, the second the backward one.

    Attributes:
        width: of the tokens it gives.
        modality: the name that its tokens carry.
        vocabulary: the number of token ids.
        preset: size: tiny or small.
        bidirectional: whether a second recurrence reads from the end.
        word_dropout: zeroes whole token embeddings in training.
    """

    width: int
    vocabulary: int
    modality: str = "text"
    preset: str = "tiny"
    bidirectional: bool = True
    word_dropout: float = 0.0

    accepts = staticmethod(_accepts)

    def setup(self) -> None:
        choose(self.preset, GRUS, "text_gru.preset", "preset")
        _, inner = GRUS[self.preset]
        self.embedding = nn.Embed(self.vocabulary, inner)
        self.forward = GRU(inner)
        if self.bidirectional:
            self.backward = GRU(inner, reverse=True)
        self.project = nn.Dense(self.width)
        self.forget = Dropout(self.word_dropout)

    def stem(self, entry: Mapping[str, Any], **mode: Any) -> Tokens:
        tokens = _embed(entry, self.embedding, self.modality)
        kept = self.forget(jnp.ones((*tokens.mask.shape, 1), tokens.values.dtype), **mode)
        return tokens.replace_values(tokens.values * kept)

    def first(self, tokens: Tokens, **mode: Any) -> Tokens:
        del mode
        return tokens.replace_values(self.forward(tokens.values, tokens.mask))

    def second(self, tokens: Tokens, **mode: Any) -> Tokens:
        del mode
        x = tokens.values
        if self.bidirectional:
            x = jnp.concatenate([x, self.backward(x, tokens.mask)], axis=-1)
        return tokens.replace_values(self.project(x))

    def __call__(
        self, entry: Mapping[str, Any], *, train: bool = False, axis_name: str | None = None
    ) -> Tokens:
        mode = {"train": train, "axis_name": axis_name}
        return self.second(self.first(self.stem(entry, **mode)))
