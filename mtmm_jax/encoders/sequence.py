"""Bodies for sequences of any modality: a Transformer and a GRU; others add the stems."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtmm_jax.batch import Tokens
from mtmm_jax.encoders.encoder import Encoder
from mtmm_jax.layers import GRU, TransformerBlock
from mtmm_jax.registry import choose

# preset -> layers, width, heads
TRANSFORMERS = {"tiny": (2, 128, 4), "small": (4, 256, 4), "base": (12, 768, 12)}
# preset -> width
GRUS = {"tiny": 96, "small": 256}


def mask_of(entry: Mapping[str, Any]) -> jax.Array:
    """The entry's mask, or all of a present row: `[B, N]` of an `x` that is `[B, N, ...]`."""
    shape = entry["x"].shape[:2]
    return entry.get("mask", jnp.broadcast_to(entry["present"][:, None], shape))


class TransformerEncoder(Encoder):
    """Pre-norm Transformer (Vaswani et al. 2017).

    Attributes:
        preset: size: tiny, small or base.
        dropout: rate inside the blocks.
        cut: how many layers belong to the first half of the body.
    """

    preset: str = "tiny"
    dropout: float = 0.1
    cut: int = 1

    def setup(self) -> None:
        layers, _, heads = self.size
        self.blocks = [
            TransformerBlock(heads, dropout=self.dropout, name=f"block{i + 1}")
            for i in range(layers)
        ]
        self.norm = nn.LayerNorm()
        self.project = nn.Dense(self.width)

    @property
    def size(self) -> tuple[int, int, int]:
        """Layers, inner width, heads."""
        return TRANSFORMERS[choose(self.preset, TRANSFORMERS, "encoder.preset", "preset")]

    def first(self, tokens: Tokens, **mode: Any) -> Tokens:
        return self._run(self.blocks[: self.cut], tokens, mode)

    def second(self, tokens: Tokens, **mode: Any) -> Tokens:
        tokens = self._run(self.blocks[self.cut :], tokens, mode)
        return tokens.replace_values(self.project(self.norm(tokens.values)))

    def _run(self, blocks: list[Any], tokens: Tokens, mode: dict[str, Any]) -> Tokens:
        x = tokens.values
        for block in blocks:
            x = block(x, tokens.mask, **mode)
        return tokens.replace_values(x)


class GRUEncoder(Encoder):
    """A GRU, in both directions by default (Cho et al. 2014).

    The first half of the body is the forward recurrence, the second the backward one.

    Attributes:
        preset: size: tiny or small.
        bidirectional: whether a second recurrence reads from the end.
    """

    preset: str = "tiny"
    bidirectional: bool = True

    def setup(self) -> None:
        self.forward = GRU(self.size)
        if self.bidirectional:
            self.backward = GRU(self.size, reverse=True)
        self.project = nn.Dense(self.width)

    @property
    def size(self) -> int:
        """Inner width."""
        return GRUS[choose(self.preset, GRUS, "encoder.preset", "preset")]

    def first(self, tokens: Tokens, **mode: Any) -> Tokens:
        del mode
        return tokens.replace_values(self.forward(tokens.values, tokens.mask))

    def second(self, tokens: Tokens, **mode: Any) -> Tokens:
        del mode
        x = tokens.values
        if self.bidirectional:
            x = jnp.concatenate([x, self.backward(x, tokens.mask)], axis=-1)
        return tokens.replace_values(self.project(x))
