"""Is a probability of 80% right four times out of five? Binned counts that add up.

Confidence of classifiers (Guo et al. 2017), Brier's score, intervals of regressors.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

from mtmm_jax.tasks.metrics.intervals import Interval, of_mean, wilson
from mtmm_jax.tasks.metrics.monoids import Metric, add

BINS = 15
_SHARES = 10  # parts of a predicted distribution that should all be hit equally often


def class_calibration(bins: int = BINS) -> Metric:
    """ece = sum_b n_b / n |accuracy_b - confidence_b| and brier = mean_i sum_c (p_ic - q_ic)^2.

    Bins divide confidences, the probability of the class that is said, evenly over 0..1; q is one
    at the label, or the label itself where it is a probability per class.
    """

    def update(logits: jax.Array, labels: Any) -> dict[str, jax.Array]:
        p = jax.nn.softmax(logits.astype(jnp.float32))
        q = _distribution(labels, p)
        hit = jnp.where(q.argmax(-1) == p.argmax(-1), 1.0, 0.0)
        squared = jnp.square(p - q).sum(-1)
        weight = labels.weight.astype(jnp.float32)
        fourth = (weight * squared * squared).sum()
        return {**_binned(p.max(-1), hit, squared, weight, bins), "fourth": fourth}

    return Metric(update, add, _figures, _class_intervals)


def label_calibration(bins: int = BINS) -> Metric:
    """ece and brier = mean (p - y)^2 over all labels `[B, C]` of 0 and 1, each by itself."""

    def update(logits: jax.Array, labels: Any) -> dict[str, jax.Array]:
        p = jax.nn.sigmoid(logits.astype(jnp.float32))
        y = jnp.zeros_like(p) if labels.y is None else labels.y.astype(jnp.float32)
        y = jnp.where(labels.weight[:, None] > 0, y, 0.0)
        weight = jnp.broadcast_to(labels.weight[:, None], p.shape)
        flat = (x.reshape(-1) for x in (p, y, jnp.square(p - y), weight))
        return _binned(*flat, bins)

    return Metric(update, add, _figures)


def _distribution(labels: Any, like: jax.Array) -> jax.Array:
    """The label as a probability per class; of rows that do not count, anything finite."""
    if labels.y is None:
        return jnp.zeros_like(like)
    if labels.y.ndim == 2:
        return jnp.where(labels.weight[:, None] > 0, labels.y, 0.0).astype(jnp.float32)
    return jax.nn.one_hot(jnp.clip(labels.y, 0, like.shape[-1] - 1), like.shape[-1])


def _binned(
    confidence: jax.Array, hit: jax.Array, squared: jax.Array, weight: jax.Array, bins: int
) -> dict[str, jax.Array]:
    place = jnp.clip(jnp.floor(confidence * bins), 0, bins - 1).astype(jnp.int32)
    weight = weight.astype(jnp.float32)
    empty = jnp.zeros(bins, jnp.float32)
    sums = {"count": weight, "confidence": weight * confidence, "hits": weight * hit}
    return {
        **{key: empty.at[place].add(value) for key, value in sums.items()},
        "squared": (weight * squared).sum(),
    }


def _figures(state: dict[str, Any]) -> dict[str, float]:
    s = {key: np.asarray(value, np.float64) for key, value in state.items()}
    total = s["count"].sum()
    if not total > 0:
        return {"ece": float("nan"), "brier": float("nan")}
    gap = np.abs(s["hits"] - s["confidence"]).sum()
    return {"ece": float(gap / total), "brier": float(s["squared"] / total)}


def _class_intervals(state: dict[str, Any]) -> dict[str, Interval | str]:
    squares = (float(state[key]) for key in ("squared", "fourth"))
    brier = of_mean(*squares, float(np.sum(state["count"])), low=0.0, high=2.0)
    return {"ece": "gaps of bins are above zero by chance alone", "brier": brier}


def interval_calibration(mean: float, std: float) -> Metric:
    """Of a normal distribution for each row, its mean and log variance (standardised): `[B, 2]`.

    nll: the mean of -log N(y; m, s), in the label's own unit. inside_90: the share of labels in the
    central 90% of their distribution, .9 if it is honest. interval_error: how far the shares of
    labels in the distribution's ten tenths are from one tenth each, 0 to .9 (half the sum of gaps).

    Args:
        mean, std: of the label.
    """

    def update(prediction: jax.Array, labels: Any) -> dict[str, jax.Array]:
        z, log_variance = prediction[:, 0], prediction[:, 1]
        kept = labels.weight > 0
        y = z if labels.y is None else jnp.where(kept, (labels.y - mean) / std, z)
        score = (y - z) * jnp.exp(-0.5 * log_variance)
        nll = 0.5 * (jnp.square(score) + log_variance + math.log(2 * math.pi)) + math.log(std)
        weight = labels.weight.astype(jnp.float32)
        tenth = jnp.clip(jnp.floor(norm.cdf(score) * _SHARES), 0, _SHARES - 1).astype(jnp.int32)
        inside = jnp.where(jnp.abs(score) <= 1.6448536, weight, 0.0)
        return {
            "count": weight.sum(),
            "nll": (weight * nll).sum(),
            "nll_squared": (weight * nll * nll).sum(),
            "inside": inside.sum(),
            "tenths": jnp.zeros(_SHARES, jnp.float32).at[tenth].add(weight),
        }

    def compute(state: dict[str, Any]) -> dict[str, float]:
        s = {key: np.asarray(value, np.float64) for key, value in state.items()}
        count = s["count"] if s["count"] > 0 else np.nan
        gap = np.abs(s["tenths"] / count - 1 / _SHARES).sum() / 2
        return {
            "nll": float(s["nll"] / count),
            "inside_90": float(s["inside"] / count),
            "interval_error": float(gap),
        }

    def intervals(state: dict[str, Any]) -> dict[str, Interval | str]:
        keys = ("count", "nll", "nll_squared", "inside")
        count, nll, squares, inside = (float(state[key]) for key in keys)
        return {
            "nll": of_mean(nll, squares, count),
            "inside_90": wilson(inside, count),
            "interval_error": "gaps of tenths are above zero by chance alone",
        }

    return Metric(update, add, compute, intervals)
