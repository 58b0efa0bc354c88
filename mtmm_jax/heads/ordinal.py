"""One number against learned thresholds in order: how far up a scale."""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax.batch import Tokens
from mtmm_jax.heads.vector import Vector
from mtmm_jax.ranges import Decay, Size, SizeOrZero

_LEAST = 1e-2  # between two thresholds: each class keeps a chance


class Cumulative(nn.Module):
    """`[B, size - 1]`: the log odds f - b_k of being above class k, b_1 < b_2 < ...

    Paper: McCullagh 1980. Costs one matrix, width x 1, and size - 1 thresholds. Use it: for classes
    in order. Not: for classes without one.

    Attributes:
        size: the number of classes.
        start: where the thresholds are at first; evenly spaced by default. Given by the task.
        hidden, pool, dropout: of the `Vector` that gives f.
    """

    size: Size
    start: tuple[float, ...] = ()
    hidden: SizeOrZero = 0
    pool: str = "mean"
    dropout: Decay = 0.0

    @nn.compact
    def __call__(
        self, tokens: Mapping[str, Tokens], *, train: bool = False, axis_name: str | None = None
    ) -> jax.Array:
        score = Vector(1, self.hidden, self.pool, self.dropout, name="score")
        f = score(tokens, train=train, axis_name=axis_name)
        start = self.start or np.linspace(-2.0, 2.0, self.size - 1)
        steps = np.maximum(np.diff(start), 2 * _LEAST) - _LEAST
        first = self.param("first", lambda _: jnp.full((1,), start[0], jnp.float32))
        gaps = self.param("gaps", lambda _: jnp.asarray(np.log(np.expm1(steps)), jnp.float32))
        rest = first + jnp.cumsum(jax.nn.softplus(gaps) + _LEAST)
        return f - jnp.concatenate([first, rest]).astype(f.dtype)
