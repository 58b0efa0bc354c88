"""Masked attention and the Transformer block."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtmm_jax.layers.positionwise import Dense, Dropout, FeedForward, LayerNorm
from mtmm_jax.registry import ConfigError


def masked_softmax(logits: jax.Array, allowed: jax.Array) -> jax.Array:
    """The softmax over the last axis where `allowed`; zeros, not NaN, where nothing is."""
    logits = jnp.where(allowed, logits.astype(jnp.float32), jnp.finfo(jnp.float32).min)
    return jnp.where(allowed, jax.nn.softmax(logits), 0.0)


class Attention(nn.Module):
    """Multi-head attention of `queries[B, N, D]` over `keys[B, M, E]` where `mask[B, M]`.

    softmax(Q K^T / sqrt(d)) V, in [B, H, N, d] order, which is the fast one on CPUs. A row whose
    keys are all masked attends to nothing and gives zero before the output projection, not NaN.

    Attributes:
        heads: how many parts the width is split into.
        dtype: of the matrix products; the softmax is in float32.
    """

    heads: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, queries: jax.Array, keys: jax.Array, mask: jax.Array) -> jax.Array:
        width = queries.shape[-1]
        if width % self.heads:
            choices = ", ".join(str(n) for n in range(1, min(width, 64) + 1) if width % n == 0)
            raise ConfigError(
                f"heads: a width of {width} does not divide over {self.heads} attention heads; "
                f"choices of heads: {choices}"
            )

        def heads_of(x: jax.Array, name: str) -> jax.Array:
            y = Dense(width, dtype=self.dtype, name=name)(x)
            return y.reshape(*x.shape[:2], self.heads, -1).transpose(0, 2, 1, 3)

        query, key, value = (
            heads_of(queries, "query"),
            heads_of(keys, "key"),
            heads_of(keys, "value"),
        )
        logits = jnp.einsum("bhnd,bhmd->bhnm", query, key, preferred_element_type=jnp.float32)
        logits = logits * (width // self.heads) ** -0.5
        weights = masked_softmax(logits, mask[:, None, None, :]).astype(value.dtype)
        self.sow("intermediates", "weights", weights)
        mixed = jnp.einsum("bhnm,bhmd->bhnd", weights, value)
        mixed = mixed.transpose(0, 2, 1, 3).reshape(queries.shape)
        return Dense(width, dtype=self.dtype, name="out")(mixed)


class TransformerBlock(nn.Module):
    """x + Attention(LN x), then x + FeedForward(LN x).

    Attributes:
        heads, expansion: of the attention, and of the feed-forward network's hidden layer.
        dropout: rate on what is added to x, and inside the feed-forward network.
        post_norm: LN(x + Attention(x)), then LN(x + FeedForward(x)), as at first (BERT).
        epsilon: of the norms.
        dtype: of the matrix products and of x; statistics and the softmax are in float32.
        hidden: width of the feed-forward network's hidden layer instead of `expansion`.
    """

    heads: int = 4
    expansion: int = 4
    dropout: float = 0.0
    post_norm: bool = False
    epsilon: float = 1e-6
    dtype: Any = jnp.float32
    hidden: int | None = None

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
        attention = Attention(self.heads, self.dtype, name="attention")
        hidden = self.hidden or self.expansion * x.shape[-1]
        feed_forward = FeedForward(hidden, self.dropout, self.dtype, name="feed_forward")
        norm, again = (
            LayerNorm(self.epsilon, name=name) for name in ("attention_norm", "feed_forward_norm")
        )
        x = x.astype(self.dtype)
        if self.post_norm:
            x = norm(x + Dropout(self.dropout)(attention(x, x, mask), **noise))
            return again(x + Dropout(self.dropout)(feed_forward(x, **noise), **noise))
        h = norm(x)
        x = x + Dropout(self.dropout)(attention(h, h, mask), **noise)
        h = feed_forward(again(x), **noise)
        return x + Dropout(self.dropout)(h, **noise)
