"""Unit vectors in one space for each modality that a retrieval task reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mtmm_jax.batch import Tokens
from mtmm_jax.heads.vector import Pool
from mtmm_jax.layers import Dropout


class Embedding(nn.Module):
    """z_m = W_m pool(x_m) / ||.||, and the logarithm of the temperature that losses scale with.

    Attributes:
        size: of the common space.
        pool: mean or attention.
        dropout: on the pooled features.
        log_scale: where the logit scale starts, ln(1 / .07) as in CLIP; clamped to ln 100.
    """

    size: int = 64
    pool: str = "mean"
    dropout: float = 0.0
    log_scale: float = 2.6592600

    @nn.compact
    def __call__(
        self, tokens: Mapping[str, Tokens], *, train: bool = False, axis_name: str | None = None
    ) -> dict[str, Any]:
        scale = self.param("log_scale", nn.initializers.constant(self.log_scale), ())
        vectors = {}
        for name, part in tokens.items():
            x = nn.LayerNorm(name=f"norm_{name}")(Pool(self.pool, name=f"pool_{name}")(part))
            x = Dropout(self.dropout)(x, train=train, axis_name=axis_name)
            x = nn.Dense(self.size, name=f"out_{name}")(x)
            norm = jnp.sqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-12)
            vectors[name] = x / norm
        return {"vectors": vectors, "scale": jnp.exp(jnp.minimum(scale, jnp.log(100.0)))}
