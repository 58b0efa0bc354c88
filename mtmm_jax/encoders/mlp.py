"""The body of every encoder that reads vectors: hidden layers with a residual between them."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtmm_jax.batch import Tokens
from mtmm_jax.encoders.encoder import Encoder
from mtmm_jax.layers import Dropout, gelu
from mtmm_jax.registry import choose

# preset -> hidden width
MLPS = {"tiny": 128, "small": 512}


class MLPEncoder(Encoder):
    """h = GELU(W x), then h + GELU(W' h), then a linear map; stems give it h by `_read`.

    Attributes:
        preset: size: tiny or small.
        dropout: rate on the hidden layers.
    """

    preset: str = "tiny"
    dropout: float = 0.1

    def setup(self) -> None:
        inner = MLPS[choose(self.preset, MLPS, "mlp.preset", "preset")]
        self.read = nn.Dense(inner, dtype=self.precision)
        self.hidden = nn.Dense(inner, dtype=self.precision)
        self.project = nn.Dense(self.width, dtype=jnp.float32)
        self.drop = Dropout(self.dropout)
        self.drop_again = Dropout(self.dropout)

    def first(self, tokens: Tokens, **mode: Any) -> Tokens:
        h = self.drop_again(gelu(self.hidden(tokens.values)), **mode)
        return tokens.replace_values(tokens.values + h.astype(jnp.float32))

    def second(self, tokens: Tokens, **mode: Any) -> Tokens:
        del mode
        return tokens.replace_values(self.project(tokens.values))

    def _read(self, x: jax.Array, mode: dict[str, Any]) -> jax.Array:
        return self.drop(gelu(self.read(x)), **mode).astype(jnp.float32)
