"""Masked attention and the pre-norm Transformer block."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtmm_jax.layers.dropout import Dropout
from mtmm_jax.layers.feed_forward import FeedForward


class Attention(nn.Module):
    """Multi-head attention of `queries[B, N, D]` over `keys[B, M, E]` where `mask[B, M]`.

    softmax(Q K^T / sqrt(d)) V, in [B, H, N, d] order, which is the fast one on CPUs. A row whose
    keys are all masked attends to nothing and gives zero before the output projection, not NaN.
    """

    heads: int = 4

    @nn.compact
    def __call__(self, queries: jax.Array, keys: jax.Array, mask: jax.Array) -> jax.Array:
        width = queries.shape[-1]
        if width % self.heads:
            raise ValueError(f"width {width} does not divide over {self.heads} attention heads")

        def heads_of(x: jax.Array, name: str) -> jax.Array:
            y = nn.Dense(width, name=name)(x)
            return y.reshape(*x.shape[:2], self.heads, -1).transpose(0, 2, 1, 3)

        query, key, value = (
            heads_of(queries, "query"),
            heads_of(keys, "key"),
            heads_of(keys, "value"),
        )
        logits = jnp.einsum("bhnd,bhmd->bhnm", query, key) * (width // self.heads) ** -0.5
        logits = logits.astype(jnp.float32)
        allowed = mask[:, None, None, :]
        logits = jnp.where(allowed, logits, jnp.finfo(jnp.float32).min)
        weights = jnp.where(allowed, jax.nn.softmax(logits), 0.0).astype(value.dtype)
        self.sow("intermediates", "weights", weights)
        mixed = jnp.einsum("bhnm,bhmd->bhnd", weights, value)
        mixed = mixed.transpose(0, 2, 1, 3).reshape(queries.shape)
        return nn.Dense(width, name="out")(mixed)


class TransformerBlock(nn.Module):
    """x + Attention(LN x), then x + FeedForward(LN x)."""

    heads: int = 4
    expansion: int = 4
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array,
        *,
        train: bool = False,
        axis_name: str | None = None,
    ) -> jax.Array:
        """`x[B, N, D]`, `mask[B, N]`."""
        noise = {"train": train, "axis_name": axis_name}
        h = nn.LayerNorm(name="attention_norm")(x)
        h = Attention(self.heads, name="attention")(h, h, mask)
        x = x + Dropout(self.dropout)(h, **noise)
        h = nn.LayerNorm(name="feed_forward_norm")(x)
        h = FeedForward(self.expansion * x.shape[-1], self.dropout, name="feed_forward")(h, **noise)
        return x + Dropout(self.dropout)(h, **noise)
