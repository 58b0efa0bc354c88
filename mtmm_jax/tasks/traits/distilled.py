"""Distillation of a task's predictions: soft labels, and the distance from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class Distilled(NamedTuple):
    """Soft labels of a task's predictions, and the distance from them.

    Attributes:
        target: the kind of target that soft labels are, as in `batch.TARGET_KINDS`; a teacher's and
            a student's must be the same.
        soft_label: `(prediction, temperature) -> y`, `[B]` or `[B, C]`.
        gap: `(prediction, y, temperature, measure) -> [B]`, the measure "kl" or "squared".
        confident: `(y, threshold) -> (hard label, [B] bool)`, of soft labels what is at least that
            probable, and the rows in which that is something; None if y has no probabilities.
    """

    target: str
    soft_label: Callable[[Any, float], Array]
    gap: Callable[[Any, Array, float, str], Array]
    confident: Callable[[Array, float], tuple[Array, Array]] | None = None


def distilled_class(log_p: Callable[[Array], Array] = lambda z: z) -> Distilled:
    """Of classes of which one is true: q = softmax(log p / T).

    kl: T^2 sum_c q_c (log q_c - log p_c); squared: sum_c (q_c - p_c)^2.

    Args:
        log_p: prediction -> logits of the classes.
    """

    def tempered(prediction: Array, temperature: float) -> Array:
        return jax.nn.log_softmax(log_p(prediction.astype(jnp.float32)) / temperature)

    def soft_label(prediction: Array, temperature: float) -> Array:
        return jnp.exp(tempered(prediction, temperature))

    def gap(prediction: Array, y: Array, temperature: float, measure: str) -> Array:
        own = tempered(prediction, temperature)
        if measure == "squared":
            return jnp.square(y - jnp.exp(own)).sum(-1)
        return temperature**2 * (_self(y) - y * own).sum(-1)

    def confident(y: Array, threshold: float) -> tuple[Array, Array]:
        hard = jax.nn.one_hot(y.argmax(-1), y.shape[-1], dtype=jnp.float32)
        return hard, y.max(-1) >= threshold

    return Distilled("class", soft_label, gap, confident)


def distilled_labels() -> Distilled:
    """Of classes that are true or not: the mean over classes of the divergence of two coins. A
    probability below 0 stands for an unknown one; such a class counts as one without gap."""

    def soft_label(prediction: Array, temperature: float) -> Array:
        return jax.nn.sigmoid(prediction.astype(jnp.float32) / temperature)

    def gap(prediction: Array, y: Array, temperature: float, measure: str) -> Array:
        z, known = prediction.astype(jnp.float32) / temperature, y >= 0
        q = jnp.where(known, y, 0.5)
        if measure == "squared":
            each = jnp.square(q - jax.nn.sigmoid(z))
        else:
            cross = q * jax.nn.log_sigmoid(z) + (1 - q) * jax.nn.log_sigmoid(-z)
            each = temperature**2 * (_self(q) + _self(1 - q) - cross)
        return jnp.where(known, each, 0.0).mean(-1)

    def confident(y: Array, threshold: float) -> tuple[Array, Array]:
        sure = jnp.maximum(y, 1.0 - y) >= threshold
        return jnp.where(sure, (y > 0.5).astype(jnp.float32), -1.0), sure.any(-1)

    return Distilled("labels", soft_label, gap, confident)


def distilled_number(mean: float, std: float) -> Distilled:
    """Of a number: 1/2 ((z - t)^2), t standardised; there is no temperature."""

    def soft_label(prediction: Array, temperature: float) -> Array:
        del temperature
        return prediction[:, 0].astype(jnp.float32) * std + mean

    def gap(prediction: Array, y: Array, temperature: float, measure: str) -> Array:
        del temperature, measure
        z = prediction[:, 0].astype(jnp.float32)
        return 0.5 * jnp.square(z - (y - mean) / std)

    return Distilled("number", soft_label, gap)


def _self(q: Array) -> Array:
    """q log q, and 0 at 0."""
    return jax.scipy.special.xlogy(q, q)
