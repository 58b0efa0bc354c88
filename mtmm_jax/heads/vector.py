"""Pool -> hidden layer or none -> a vector: a classifier's logits, a regressor's value."""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtmm_jax.batch import Tokens
from mtmm_jax.layers import Dropout, gelu, masked_softmax
from mtmm_jax.ranges import Decay, Size, SizeOrZero
from mtmm_jax.registry import choose


class Pool(nn.Module):
    """`Tokens -> [B, D]`: the masked mean, or an average weighted by a learned score per token."""

    kind: str = "mean"

    @nn.compact
    def __call__(self, tokens: Tokens) -> jax.Array:
        choose(self.kind, ("mean", "attention"), "head.pool", "pool")
        if self.kind == "mean":
            return tokens.mean()
        scores = nn.Dense(1, name="score")(tokens.values)[..., 0]
        weights = masked_softmax(scores, tokens.mask)
        self.sow("intermediates", "weights", weights)
        return jnp.einsum("bn,bnd->bd", weights, tokens.values)


class Vector(nn.Module):
    """`[B, size]` from the pooled tokens of everything that the task reads.

    Costs one matrix, width x size. Use it: for classes, labels, numbers. Not: where the answer has
    places or an order.

    Attributes:
        size: of the vector.
        hidden: of a hidden layer; 0 for none.
        pool: mean or attention.
        dropout: on the pooled features and the hidden layer.
    """

    size: Size
    hidden: SizeOrZero = 0
    pool: str = "mean"
    dropout: Decay = 0.0

    @nn.compact
    def __call__(
        self, tokens: Mapping[str, Tokens], *, train: bool = False, axis_name: str | None = None
    ) -> jax.Array:
        drop = Dropout(self.dropout)
        pooled = [Pool(self.pool, name=f"pool_{i}")(t) for i, t in enumerate(tokens.values())]
        x = nn.LayerNorm(name="norm")(jnp.concatenate(pooled, axis=-1))
        x = drop(x, train=train, axis_name=axis_name)
        if self.hidden:
            x = gelu(nn.Dense(self.hidden, name="hidden")(x))
            x = drop(x, train=train, axis_name=axis_name)
        return nn.Dense(self.size, name="out")(x)
