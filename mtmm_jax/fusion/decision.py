"""Decision fusion: every modality predicts alone, and y = f(y_1, .., y_M).

A rule is a Linen module called as `rule(values [B, M, P], present [B, M], ...) -> [B, P]`, where P
is all that a head predicts, flattened: logits for a classifier. Modalities stand in the order of
`modalities`. Absent ones do not vote.

Each rule hands over `modality_weights[B, M]`, in the order of the names as fusions do: what each
modality counted for in a sample's fused prediction. Those of a sample sum to one, or are all zero
where nothing speaks for the prediction. `mean` and `weighted` tell the a_m that they use; the
others have none, and say what they tell instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax.fusion.pooled import check_shares, present_shares
from mtmm_jax.layers import gelu
from mtmm_jax.ranges import Positive, Size


class MeanDecision(nn.Module):
    """y = the mean of the present y_m: of logits, so a geometric mean of probabilities."""

    modalities: tuple[str, ...]
    of_classes: ClassVar[bool] = False

    @nn.compact
    def __call__(
        self, values: jax.Array, present: jax.Array, *, train: bool = False, axis_name=None
    ) -> jax.Array:
        del train, axis_name
        a = present_shares(jnp.zeros(values.shape[:2]), present)
        _tell(self, a)
        return _weighted(values, a)


class WeightedDecision(nn.Module):
    """y = sum_m a_m y_m over the present m; a learned by softmax, or fixed.

    Attributes:
        modalities: their order.
        weights: fixed a, renormalised over the present ones; None: learned.
    """

    modalities: tuple[str, ...]
    weights: Mapping[str, Positive] | None = None
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
        _tell(self, a)
        return _weighted(values, a)


class ProductDecision(nn.Module):
    """p(c) ~ prod_m p_m(c) over the present m: the sum of log-probabilities. For classes only.

    Reported are the shares of m in what speaks for the chosen class c: max(e_m, 0) over their sum,
    e_m = log p_m(c) - mean_k log p_m(k). Who speaks against c has none.
    """

    modalities: tuple[str, ...]
    of_classes: ClassVar[bool] = True

    @nn.compact
    def __call__(
        self, values: jax.Array, present: jax.Array, *, train: bool = False, axis_name=None
    ) -> jax.Array:
        del train, axis_name
        votes = jnp.where(present[..., None], jax.nn.log_softmax(values), 0)
        fused = votes.sum(1)
        lifts = _at(votes, fused.argmax(-1)) - votes.mean(-1)
        _tell(self, _shares(jnp.maximum(lifts, 0)))
        return fused


class MaxDecision(nn.Module):
    """y = max over the present m of log p_m(c): the surest vote for each class. Classes only.

    Reported is who won: 1 for the modality that is the surest of the chosen class, 0 for the
    others.
    """

    modalities: tuple[str, ...]
    of_classes: ClassVar[bool] = True

    @nn.compact
    def __call__(
        self, values: jax.Array, present: jax.Array, *, train: bool = False, axis_name=None
    ) -> jax.Array:
        del train, axis_name
        least = jnp.finfo(values.dtype).min
        votes = jnp.where(present[..., None], jax.nn.log_softmax(values), least)
        best = votes.max(1)
        winner = _at(votes, best.argmax(-1)).argmax(1)
        _tell(self, jnp.where(present, jax.nn.one_hot(winner, values.shape[1]), 0))
        return jnp.where(present.any(1)[:, None], best, jnp.zeros((), values.dtype))


class LearnedDecision(nn.Module):
    """y = W_2 gelu(W_1 [y_1; 1_1; ..; y_M; 1_M]), 1_m whether m is present; if not, y_m is 0.

    Reported are the shares of m in what moves the prediction: |y - y without m|_1 over the sum of
    that over all m. It costs M more passes of this small network, where somebody reads it.
    """

    modalities: tuple[str, ...]
    hidden: Size = 64
    of_classes: ClassVar[bool] = False

    @nn.compact
    def __call__(
        self, values: jax.Array, present: jax.Array, *, train: bool = False, axis_name=None
    ) -> jax.Array:
        del train, axis_name
        dtype = values.dtype
        hidden = nn.Dense(self.hidden, dtype=dtype, name="hidden")
        out = nn.Dense(values.shape[-1], dtype=dtype, name="out")

        def fused(present: jax.Array) -> jax.Array:
            here = present[..., None]
            x = jnp.concatenate([jnp.where(here, values, 0), here.astype(dtype)], axis=-1)
            return out(gelu(hidden(x.reshape(x.shape[0], x.shape[1] * x.shape[2]))))

        y = fused(present)
        others = ~np.eye(len(self.modalities), dtype=bool)
        moves = [jnp.abs(y - fused(present & without)).sum(-1) for without in others]
        _tell(self, _shares(jnp.stack(moves, axis=1)))
        return y


def _tell(rule: nn.Module, weights: jax.Array) -> None:
    order = np.argsort(rule.modalities)
    rule.sow("intermediates", "modality_weights", weights[:, order].astype(jnp.float32))


def _at(votes: jax.Array, chosen: jax.Array) -> jax.Array:
    """`[B, M]` of `[B, M, P]`: each modality's score of the chosen class."""
    return jnp.take_along_axis(votes, chosen[:, None, None], axis=-1)[..., 0]


def _shares(parts: jax.Array) -> jax.Array:
    """`[B, M]`, not negative, over their sums; 0 where that is 0."""
    return parts / jnp.maximum(parts.sum(1, keepdims=True), 1e-9)


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
