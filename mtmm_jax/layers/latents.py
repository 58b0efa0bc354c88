"""Learned vectors, and the block in which they (or one modality's tokens) read other tokens."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtmm_jax.layers.attention import Attention
from mtmm_jax.layers.positionwise import Dropout, FeedForward, LayerNorm


class Latents(nn.Module):
    """`[B, count, width]`: learned vectors, the same in every row, drawn from N(0, .02)."""

    count: int
    width: int

    @nn.compact
    def __call__(self, batch: int) -> jax.Array:
        values = self.param("values", nn.initializers.normal(0.02), (self.count, self.width))
        return jnp.broadcast_to(values, (batch, *values.shape))


class CrossBlock(nn.Module):
    """z + Attention(LN z over LN x), then z + FeedForward(LN z).

    The cost is the product of the two lengths, not the square of their sum.

    Attributes:
        heads, expansion: of the attention, and of the feed-forward network's hidden layer.
        dropout: rate on what is added to z, and inside the feed-forward network.
        dtype: of the matrix products and of z; statistics and the softmax are in float32.
    """

    heads: int = 4
    expansion: int = 4
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        z: jax.Array,
        x: jax.Array,
        mask: jax.Array,
        *,
        train: bool = False,
        axis_name: str | None = None,
    ) -> jax.Array:
        """`z[B, N, D]` reads `x[B, M, E]` where `mask[B, M]`."""
        noise = {"train": train, "axis_name": axis_name}
        z = z.astype(self.dtype)
        h = LayerNorm(name="query_norm")(z)
        x = LayerNorm(name="input_norm")(x)
        h = Attention(self.heads, self.dtype, name="attention")(h, x, mask)
        z = z + Dropout(self.dropout)(h, **noise)
        h = LayerNorm(name="feed_forward_norm")(z)
        hidden = self.expansion * z.shape[-1]
        h = FeedForward(hidden, self.dropout, self.dtype, name="feed_forward")(h, **noise)
        return z + Dropout(self.dropout)(h, **noise)
