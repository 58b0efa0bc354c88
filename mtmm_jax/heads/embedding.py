"""Unit vectors in one space for each modality that a retrieval task reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mtmm_jax.batch import Tokens
from mtmm_jax.heads.vector import Pool
from mtmm_jax.layers import Dropout
from mtmm_jax.ranges import Decay, Real, Size
from mtmm_jax.registry import ConfigError, choose


class Embedding(nn.Module):
    """z_m = W_m pool(x_m) / ||.||, and the logarithm of the temperature that losses scale with.

    A locked modality has nothing to learn here, z_m = pool(x_m) / ||.||: the others come to where a
    pretrained encoder has put it.

    Paper: Radford et al. 2021, arXiv:2103.00020; Zhai et al. 2022, arXiv:2111.07991. Costs one
    matrix a modality, and the batch squared in the loss. Use it: for retrieval and for classes by
    their names. Not: with batches of a few rows.

    Attributes:
        size: of the common space.
        pool: mean or attention.
        dropout: on the pooled features.
        log_scale: where the logit scale starts, ln(1 / .07) as in CLIP; clamped to ln 100.
        locked: modalities, as wide as `size`.
    """

    size: Size = 64
    pool: str = "mean"
    dropout: Decay = 0.0
    log_scale: Real = 2.6592600
    locked: tuple[str, ...] = ()

    @nn.compact
    def __call__(
        self, tokens: Mapping[str, Tokens], *, train: bool = False, axis_name: str | None = None
    ) -> dict[str, Any]:
        for name in self.locked:
            part = tokens[choose(name, tokens, "head.locked", "modality")]
            if (width := part.values.shape[-1]) != self.size:
                raise ConfigError(f"head.size: {self.size}; locked {name!r} is {width} wide")
        scale = self.param("log_scale", nn.initializers.constant(self.log_scale), ())
        vectors = {}
        for name, part in tokens.items():
            x = Pool(self.pool, name=f"pool_{name}")(part)
            if name not in self.locked:
                x = nn.LayerNorm(name=f"norm_{name}")(x)
                x = Dropout(self.dropout)(x, train=train, axis_name=axis_name)
                x = nn.Dense(self.size, name=f"out_{name}")(x)
            norm = jnp.sqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-12)
            vectors[name] = x / norm
        return {"vectors": vectors, "scale": jnp.exp(jnp.minimum(scale, jnp.log(100.0)))}
