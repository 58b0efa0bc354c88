"""A path: one point after another, each a step from the last."""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtmm_jax.batch import Tokens
from mtmm_jax.heads.vector import Vector
from mtmm_jax.layers import GRU
from mtmm_jax.ranges import Decay, Size


class Path(nn.Module):
    """`[B, points, coordinates]`: x_n = x_{n-1} + W h_n, h a GRU over the steps that always hears
    the same pooled features.

    Paper: Prakash et al. 2021, arXiv:2104.09224. Costs 3 D^2 a point, one after the other. Use it:
    for waypoints. Not: for values without an order in time.

    Attributes:
        shape: (points, coordinates).
        width: of the recurrence.
        pool, dropout: as in `Vector`.
    """

    shape: tuple[int, int]
    width: Size = 64
    pool: str = "mean"
    dropout: Decay = 0.0

    @nn.compact
    def __call__(
        self, tokens: Mapping[str, Tokens], *, train: bool = False, axis_name: str | None = None
    ) -> jax.Array:
        points, coordinates = self.shape
        seen = Vector(self.width, 0, self.pool, self.dropout, name="seen")
        x = seen(tokens, train=train, axis_name=axis_name)
        turn = self.param("turn", nn.initializers.normal(1.0), (points, self.width))
        x = jax.nn.tanh(x[:, None] + turn.astype(x.dtype))
        h = GRU(self.width, name="steps")(x, jnp.ones(x.shape[:2], bool))
        return jnp.cumsum(nn.Dense(coordinates, name="step")(h), axis=1)
