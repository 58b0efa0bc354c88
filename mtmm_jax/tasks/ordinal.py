"""A class on a scale: how far up, by a cumulative link (McCullagh 1980)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax.batch import Spec
from mtmm_jax.heads.ordinal import Cumulative
from mtmm_jax.registry import ConfigError
from mtmm_jax.tasks.metrics import monoids as metrics
from mtmm_jax.tasks.metrics.intervals import of_counts, of_mean, only, wilson
from mtmm_jax.tasks.task import Labels, Task, find_target, masked
from mtmm_jax.tasks.traits import Traits, class_labelling, confusion_drawing
from mtmm_jax.tasks.traits.distilled import distilled_class


def ordinal(
    name: str,
    spec: Spec,
    *,
    make_head: Any,
    where: str,
    reads: str | Iterable[str] = "fused",
    target: str | None = None,
    head: str | Mapping[str, Any] = "cumulative",
) -> Task:
    """-log P(y), P(y > k) = s(f - b_k), s the logistic function and b_1 < b_2 < ... learned.

    For a class label whose classes are in order. The thresholds start where the classes'
    frequencies are met with f = 0. The prediction is the median of the distribution.

    Paper: McCullagh 1980. Costs one number a row. Use it: for grades, ages in bins, counts of a few
    values. Not: for classes without an order.

    Args:
        name, spec, make_head, where: given by the model.
        reads: what the head reads.
        target: the label's name; the task's own name by default.
        head: "cumulative", an entry of `heads.HEADS`, whose outputs are in order.
    """
    target, label = find_target(name, target, "class", spec, where)
    classes = label.classes
    if len(classes) < 2:
        raise ConfigError(f"{where}.target: {target!r} has {len(classes)} class; a scale has two")
    thresholds = _thresholds(label.frequencies or (1.0 / len(classes),) * len(classes))
    module = make_head(
        head, where=f"{where}.head", size=len(classes), start=tuple(thresholds.tolist())
    )
    if not isinstance(module, Cumulative):
        raise ConfigError(
            f"{where}.head: {type(module).__name__} gives numbers in no order; choices: cumulative"
        )

    def loss(above: jax.Array, labels: Labels, axis_name: str | None):
        del axis_name
        log_p = log_probabilities(above.astype(jnp.float32))
        if labels.y is None:
            return masked(log_p[:, 0], labels.weight)
        if labels.y.ndim == 2:
            q = jnp.where(labels.weight[:, None] > 0, labels.y, 0.0).astype(jnp.float32)
            return masked(-(q * log_p).sum(-1), labels.weight)
        y = jnp.clip(labels.y, 0, len(classes) - 1)
        own = jnp.take_along_axis(log_p, y[:, None], axis=-1)[:, 0]
        return masked(-own, labels.weight)

    def decode(above: np.ndarray) -> dict[str, Any]:
        p = np.exp(np.asarray(log_probabilities(jnp.asarray(above, jnp.float32)), np.float64))
        best = np.argsort(-p, kind="stable")[:5]
        return {
            "prediction": classes[int((above > 0).sum())],
            "best": {classes[i]: float(p[i]) for i in best},
        }

    def outputs(above: jax.Array) -> dict[str, jax.Array]:
        level = (above > 0).sum(-1).astype(jnp.int32)
        return {"probability": jnp.exp(log_probabilities(above)), "level": level}

    return Task(
        name=name,
        kind="ordinal",
        reads=reads,
        target=target,
        head=module,
        loss=loss,
        metrics={"confusion": ordinal_errors(len(classes))},
        headline="mae",
        decode=decode,
        trivial=-thresholds.astype(np.float32),
        smaller=("mae",),
        outputs=outputs,
        restore=lambda outputs: _log_odds(outputs["probability"]),
        explained=None,
        labelling=class_labelling(classes, lambda outputs: int(outputs["level"])),
        distilled=distilled_class(log_probabilities),
        drawing=confusion_drawing,
        traits=Traits(averages=True, ordered=True),
    )


def log_probabilities(above: jax.Array) -> jax.Array:
    """`[..., K]` from the falling log odds of being above each class but the last `[..., K - 1]`.

    With a > b around a class, log(s(a) - s(b)) = log s(a) + log s(-b) + log(1 - e^(b - a)).
    """
    between = jnp.log(-jnp.expm1(above[..., 1:] - above[..., :-1]))
    higher, lower = jax.nn.log_sigmoid(above), jax.nn.log_sigmoid(-above)
    middle = higher[..., :-1] + lower[..., 1:] + between
    return jnp.concatenate([lower[..., :1], middle, higher[..., -1:]], axis=-1)


def _log_odds(p: np.ndarray) -> np.ndarray:
    """`[..., K - 1]` of being above each class but the last, from `[..., K]` probabilities."""
    p = np.maximum(np.asarray(p, np.float64), 1e-30)
    above = np.cumsum(p[..., ::-1], -1)[..., ::-1][..., 1:]
    return (np.log(above) - np.log(np.cumsum(p, -1)[..., :-1])).astype(np.float32)


def ordinal_errors(classes: int) -> metrics.Metric:
    """mae (in classes), accuracy and quadratic kappa of the median, from counts `[true,
    predicted]`.

    kappa = 1 - sum (i - j)^2 n_ij / sum (i - j)^2 e_ij, e what chance would give with the same
    totals (Cohen 1968).
    """

    def update(above: jax.Array, labels: Any) -> jax.Array:
        guess = (above > 0).sum(-1)
        y = jnp.zeros_like(guess) if labels.y is None else labels.y
        y = y.argmax(-1) if y.ndim == 2 else jnp.clip(y, 0, classes - 1)
        return jnp.zeros((classes, classes), jnp.float32).at[y, guess].add(labels.weight)

    def compute(counts: np.ndarray) -> dict[str, float]:
        counts = np.asarray(counts, np.float64)
        total = counts.sum() or np.nan
        gap = np.abs(np.subtract.outer(np.arange(classes), np.arange(classes)))
        chance = np.outer(counts.sum(1), counts.sum(0)) / total
        spread = (gap**2 * chance).sum() or np.nan
        return {
            "mae": float((gap * counts).sum() / total),
            "accuracy": float(np.trace(counts) / total),
            "kappa": float(1 - (gap**2 * counts).sum() / spread),
        }

    def intervals(counts: np.ndarray) -> dict[str, Any]:
        counts = np.asarray(counts, np.float64)
        gap = np.abs(np.subtract.outer(np.arange(classes), np.arange(classes)))
        sums = ((gap * counts).sum(), (gap**2 * counts).sum(), counts.sum())
        return {
            "mae": of_mean(*sums, low=0.0),
            "accuracy": wilson(np.trace(counts), counts.sum()),
            **only(of_counts(compute, counts), "kappa"),
        }

    return metrics.Metric(update, metrics.add, compute, intervals)


def _thresholds(frequencies: Iterable[float]) -> np.ndarray:
    """`[K - 1]` log odds of being at most each class, in strictly rising order."""
    shares = np.maximum(np.asarray(tuple(frequencies), np.float64), 1e-3)
    below = np.cumsum(shares / shares.sum())[:-1]
    return np.log(below) - np.log1p(-below)
