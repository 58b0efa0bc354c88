"""Decision fusion: every modality predicts alone, and y = f(y_1, .., y_M).

A rule is a Linen module called as `rule(values [B, M, P], present [B, M], ...) -> [B, P]`, where P
is all that a head predicts, flattened: logits for a classifier. Modalities stand in the order of
`modalities`. Absent ones do not vote.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtmm_jax.fusion.shares import check_shares, present_shares
from mtmm_jax.layers import gelu


class MeanDecision(nn.Module):
    """y = the mean of the present y_m: of logits, so a geometric mean of probabilities."""

    modalities: tuple[str, ...]
    of_classes: ClassVar[bool] = False

    @nn.compact
    def __call__(
        self, values: jax.Array, present: jax.Array, *, train: bool = False, axis_name=None
    ) -> jax.Array:
        del train, axis_name
        return _weighted(values, present_shares(jnp.zeros(values.shape[:2]), present))


class WeightedDecision(nn.Module):
    """y = sum_m a_m y_m over the present m; a learned by softmax, or fixed.

    Attributes:
        modalities: their order.
        weights: fixed a, renormalised over the present ones; None: learned.
    """

    modalities: tuple[str, ...]
    weights: Mapping[str, float] | None = None
    of_classes: ClassVar[bool] = False

    @nn.compact
    def __call__(
        self, values: jax.Array, present: jax.Array, *, train: bool = False, axis_name=None
    ) -> jax.Array:
        del train, axis_name
        if self.weights is None:
            logits = self.param("scores", nn.initializers.zeros, (len(self.modalities),))
        else:
            shares = check_shares(self.weights, self.modalities, "model.fusion.weights")
            logits = jnp.log(jnp.asarray(shares, jnp.float32))
        a = present_shares(jnp.broadcast_to(logits, values.shape[:2]), present)
        self.sow("intermediates", "modality_weights", a)
        return _weighted(values, a)


class ProductDecision(nn.Module):
    """p(c) ~ prod_m p_m(c) over the present m: the sum of log-probabilities. For classes only."""

    modalities: tuple[str, ...]
    of_classes: ClassVar[bool] = True

    @nn.compact
    def __call__(
        self, values: jax.Array, present: jax.Array, *, train: bool = False, axis_name=None
    ) -> jax.Array:
        del train, axis_name
        return jnp.where(present[..., None], jax.nn.log_softmax(values), 0).sum(1)


class MaxDecision(nn.Module):
    """y = max over the present m of log p_m(c): the surest vote for each class. Classes only."""

    modalities: tuple[str, ...]
    of_classes: ClassVar[bool] = True

    @nn.compact
    def __call__(
        self, values: jax.Array, present: jax.Array, *, train: bool = False, axis_name=None
    ) -> jax.Array:
        del train, axis_name
        least = jnp.finfo(values.dtype).min
        best = jnp.where(present[..., None], jax.nn.log_softmax(values), least).max(1)
        return jnp.where(present.any(1)[:, None], best, jnp.zeros((), values.dtype))


class LearnedDecision(nn.Module):
    """y = W_2 gelu(W_1 [y_1; 1_1; ..; y_M; 1_M]), 1_m whether m is present (then y_m is 0)."""

    modalities: tuple[str, ...]
    hidden: int = 64
    of_classes: ClassVar[bool] = False

    @nn.compact
    def __call__(
        self, values: jax.Array, present: jax.Array, *, train: bool = False, axis_name=None
    ) -> jax.Array:
        del train, axis_name
        here = present[..., None]
        x = jnp.concatenate([jnp.where(here, values, 0), here.astype(values.dtype)], axis=-1)
        x = x.reshape(x.shape[0], x.shape[1] * x.shape[2])
        x = gelu(nn.Dense(self.hidden, name="hidden")(x))
        return nn.Dense(values.shape[-1], name="out")(x)


def _weighted(values: jax.Array, shares: jax.Array) -> jax.Array:
    kept = jnp.where(shares[..., None] > 0, values, 0)
    return (shares.astype(values.dtype)[..., None] * kept).sum(1)


DECISIONS = {
    "mean": MeanDecision,
    "weighted": WeightedDecision,
    "product": ProductDecision,
    "max": MaxDecision,
    "learned": LearnedDecision,
}
