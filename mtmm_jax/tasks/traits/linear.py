"""`Linear`: how a linear model of a task is fitted, and how several predictions become one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from threadpoolctl import threadpool_limits

from mtmm_jax.tasks.traits.linear_solver import (
    Features,
    Loss,
    Rotated,
    sigmoid_loss,
    softmax_loss,
    solve_all,
    squared_loss,
)

STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
"""Inverse penalties that are tried: scikit-learn's C, for features of length 1."""
COMPARED = 2000  # rows on which they are
NEVER = -20.0  # the logit of a class without a row
_TINY = 1e-9


class Fit(NamedTuple):
    """A linear model: `scores = features @ kernel + bias`.

    Attributes:
        kernel: `[D, P]` float32.
        bias: `[P]` float32.
        strength: the inverse penalty that was best on validation.
    """

    kernel: np.ndarray
    bias: np.ndarray
    strength: float


class Linear(NamedTuple):
    """Linear models of a task, in the space of its predictions `[B, P]`.

    Attributes:
        size: P.
        fit: `(features of N rows, labels [N, ...], those of validation) -> Fit`; validation may be
            empty, then the strength is 1.
        mix: `(predictions [B, E, P], weights [B, E] that sum to 1) -> [B, P]`.
        nats: what a loss is multiplied by to be a negative log-likelihood, from the mean loss of
            the best model: 1 for a cross-entropy, 1 / variance for a squared error.
    """

    size: int
    fit: Callable[[Features, np.ndarray, Features, np.ndarray], Fit]
    mix: Callable[[jax.Array, jax.Array], jax.Array]
    nats: Callable[[float], float] = lambda loss: 1.0


def fit_best(loss: Loss, x: Features, y: np.ndarray, seen: Features, truth: np.ndarray) -> Fit:
    """The penalised linear model whose loss on validation is least, of `STRENGTHS`.

    Strengths are compared on at most `COMPARED` rows, from the strongest penalty on, until two are
    no better; the best is then fitted on all rows. BLAS gets one thread: its threads wait for each
    other at every small product, for minutes where the cores are busy.
    """
    with threadpool_limits(1, user_api="blas"):
        return _fit_best(loss, x, y, seen, truth)


def _fit_best(loss: Loss, x: Features, y: np.ndarray, seen: Features, truth: np.ndarray) -> Fit:
    rows = x.rows
    some = np.arange(rows)
    if rows > COMPARED:
        some = np.sort(np.random.default_rng(0).choice(rows, COMPARED, replace=False))
    turned = Rotated.of(x.take(some))
    best, worse, warm = None, 0, None
    for strength in STRENGTHS if len(truth) else (1.0,):
        warm = turned.solve(loss, y[some], strength, warm)
        kernel, bias = turned.back(*warm)
        value = loss.mean(seen @ kernel + bias, truth) if len(truth) else 0.0
        if best is None or value < best[0]:
            best, worse = (value, kernel, bias, strength), 0
        elif (worse := worse + 1) == 2:
            break
    _, kernel, bias, strength = best
    if rows > COMPARED:
        kernel, bias = solve_all(loss, x, y, strength, kernel, bias)
    return Fit(kernel.astype(np.float32), bias.astype(np.float32), strength)


def linear_class(count: int) -> Linear:
    """Multinomial logistic regression; mixed as probabilities."""

    def fit(x: Features, y: np.ndarray, seen: Features, truth: np.ndarray) -> Fit:
        y, truth = (a.argmax(-1) if a.ndim == 2 else a for a in (y, truth))
        known, inside = np.unique(y), np.isin(truth, np.unique(y))
        place = np.searchsorted(known, y)
        found = fit_best(
            softmax_loss(),
            x,
            np.eye(len(known), dtype=np.float32)[place],
            seen.take(np.flatnonzero(inside)),  # other classes these rows cannot teach
            np.eye(len(known), dtype=np.float32)[np.searchsorted(known, truth[inside])],
        )
        kernel = np.zeros((x.width, count), np.float32)
        bias = np.full(count, NEVER + found.bias.min(), np.float32)
        kernel[:, known], bias[known] = found.kernel, found.bias
        return Fit(kernel, bias, found.strength)

    def mix(predictions: jax.Array, weights: jax.Array) -> jax.Array:
        p = jax.nn.softmax(predictions.astype(jnp.float32), axis=-1)
        return jnp.log(jnp.maximum((p * weights[..., None]).sum(1), _TINY))

    return Linear(count, fit, mix)


def linear_labels(count: int) -> Linear:
    """A logistic regression for each label; mixed as probabilities."""

    def fit(x: Features, y: np.ndarray, seen: Features, truth: np.ndarray) -> Fit:
        hard, other = ((a > 0.5).astype(np.float32) for a in (y, truth))
        return fit_best(sigmoid_loss(), x, hard, seen, other)

    def mix(predictions: jax.Array, weights: jax.Array) -> jax.Array:
        p = jax.nn.sigmoid(predictions.astype(jnp.float32))
        p = jnp.clip((p * weights[..., None]).sum(1), _TINY, 1 - 1e-6)
        return jnp.log(p) - jnp.log1p(-p)

    return Linear(count, fit, mix)


def linear_number(
    standardise: Callable[[np.ndarray], np.ndarray],
    size: int,
    refine: Callable[[jax.Array], jax.Array],
    coarsen: Callable[[jax.Array], jax.Array],
) -> Linear:
    """Ridge regression of the standardised number; mixed as a mean.

    Args:
        standardise: from the label's units.
        size: of a prediction: the number, or the number and its log variance. That of the linear
            model is the same for all rows; a mixture's has the spread of its means in it.
        refine, coarsen: a prediction `[B, size]` read as those, and back.
    """

    def fit(x: Features, y: np.ndarray, seen: Features, truth: np.ndarray) -> Fit:
        own, other = (standardise(a.astype(np.float32))[:, None] for a in (y, truth))
        found = fit_best(squared_loss(), x, own, seen, other)
        if size == 1:
            return found
        against, labels = (seen, other) if len(truth) else (x, own)
        error = np.square(against @ found.kernel + found.bias - labels).mean()
        bias = np.array([[found.bias[0], np.log(max(error, 1e-4))]], np.float32)
        kernel = np.concatenate([found.kernel, np.zeros_like(found.kernel)], axis=1)
        return Fit(kernel, np.asarray(coarsen(jnp.asarray(bias)))[0], found.strength)

    def mix(predictions: jax.Array, weights: jax.Array) -> jax.Array:
        z = jax.vmap(refine, 1, 1)(predictions.astype(jnp.float32))
        mean = (z[..., 0] * weights).sum(1)
        if size == 1:
            return mean[:, None]
        spread = jnp.exp(z[..., 1]) + jnp.square(z[..., 0] - mean[:, None])
        variance = jnp.maximum((spread * weights).sum(1), _TINY)
        return coarsen(jnp.stack([mean, jnp.log(variance)], axis=1))

    # 1/2 (z - t)^2 has half of the variance as its mean; with two numbers the loss is in nats.
    nats = (lambda loss: 0.5 / max(loss, 1e-6)) if size == 1 else (lambda loss: 1.0)
    return Linear(size, fit, mix, nats)


def stacked(predictions: Sequence[jax.Array]) -> jax.Array:
    """`[B, E, P]` of E predictions `[B, P]`."""
    return jnp.stack([p.astype(jnp.float32) for p in predictions], axis=1)
