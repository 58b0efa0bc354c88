"""Any number of classes at once: a sigmoid cross-entropy for each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax.batch import Spec, Target
from mtmm_jax.ranges import Between, Positive
from mtmm_jax.registry import ConfigError
from mtmm_jax.tasks.metrics import monoids as metrics
from mtmm_jax.tasks.metrics.intervals import of_mean, wilson
from mtmm_jax.tasks.task import Labels, Task, find_target, masked
from mtmm_jax.tasks.traits import Traits, labels_labelling
from mtmm_jax.tasks.traits.distilled import distilled_labels
from mtmm_jax.tasks.traits.explained import explained_label
from mtmm_jax.tasks.traits.linear import linear_labels

_EDGE = 1e-4  # frequencies this near to 0 or 1 are taken to be there: their log odds are finite


def multilabel(
    name: str,
    spec: Spec,
    *,
    make_head: Any,
    where: str,
    reads: str | Iterable[str] = "fused",
    target: str | None = None,
    head: str | Mapping[str, Any] = "vector",
    pos_weight: Literal["balanced"] | Positive | Sequence[Positive] = 1.0,
    prior_bias: bool = False,
    threshold: Literal["prior"] | Between = 0.5,
) -> Task:
    """-mean_c [w_c y_c log s(z_c) + (1 - y_c) log(1 - s(z_c))], s the logistic function.

    Costs C numbers a row. Use it: where any number of C labels may hold. Not: for exactly one of
    them (`classification`).

    Args:
        name, spec, make_head, where: given by the model.
        reads: what the head reads.
        target: the label's name; the task's own name by default.
        head: an entry of `heads.HEADS`.
        pos_weight: w, one for all classes or one for each: more than 1 finds more of what is rare,
            and says it in vain more often. "balanced" is (1 - f) / f, f the class's frequency.
        prior_bias: adds to the head's output the constant that fits the frequencies best, so that
            training begins from there (Lin et al. 2017, section 3.3) rather than from one half.
        threshold: the probability above which a label is said, in F1 and in words; "prior" is each
            class's own frequency.
    """
    target, label = find_target(name, target, "labels", spec, where)
    classes = label.classes
    odds = _log_odds(label)
    weights = _pos_weights(pos_weight, label, odds, f"{where}.pos_weight")
    thresholds = _thresholds(threshold, label, odds, f"{where}.threshold")
    module = make_head(head, where=f"{where}.head", size=len(classes))
    if prior_bias:
        _needs_frequencies(label, f"{where}.prior_bias", prior_bias)
        module = Biased(module, tuple((odds + np.log(weights)).tolist()))

    def loss(logits: jax.Array, labels: Labels, axis_name: str | None):
        del axis_name
        z = logits.astype(jnp.float32)
        if labels.y is None:
            return masked(z[:, 0], labels.weight)
        y = jnp.where(labels.weight[:, None] > 0, labels.y, 0.0)
        found, missed = jax.nn.log_sigmoid(z), jax.nn.log_sigmoid(-z)
        each = weights.astype(np.float32) * y * found + (1.0 - y) * missed
        return masked(-each.mean(-1), labels.weight)

    def decode(logits: np.ndarray) -> dict[str, Any]:
        p = _probability(np.asarray(logits, np.float64))
        order = np.argsort(-p, kind="stable")
        predicted = [i for i in order if p[i] > thresholds[i]]
        shown = predicted if len(predicted) > 5 else order[:5]
        return {
            "prediction": [classes[i] for i in predicted],
            "best": {classes[i]: float(p[i]) for i in shown},
        }

    return Task(
        name=name,
        kind="multilabel",
        reads=reads,
        target=target,
        head=module,
        loss=loss,
        metrics={
            "average_precision": metrics.average_precision(),
            "f1": metrics.label_f1(thresholds),
            "accuracy": label_accuracy(thresholds),
        },
        headline="average_precision",
        decode=decode,
        trivial=odds.astype(np.float32),
        secondary=("exact_match",),
        outputs=lambda logits: {"probability": jax.nn.sigmoid(logits)},
        restore=lambda outputs: _logits(outputs["probability"]),
        explained=explained_label(classes),
        labelling=labels_labelling(classes),
        distilled=distilled_labels(),
        linear=linear_labels(len(classes)),
        traits=Traits(averages=True),
    )


def label_accuracy(thresholds: np.ndarray) -> metrics.Metric:
    """exact_match, the share of rows of which every label is right, and label_accuracy, that of
    the labels: where few of many hold, saying none has a high one.

    Args:
        thresholds: `[C]` probabilities in (0, 1), above which a label is said.
    """
    cut = (np.log(thresholds) - np.log1p(-thresholds)).astype(np.float32)

    def update(logits: jax.Array, labels: Labels) -> dict[str, jax.Array]:
        weight = labels.weight.astype(jnp.float32)
        truth = jnp.zeros_like(logits) if labels.y is None else labels.y
        right = (logits.astype(jnp.float32) > cut) == (truth > 0.5)
        shares = {"rows": right.all(-1).astype(jnp.float32), "labels": right.mean(-1)}
        shares["squares"] = jnp.square(shares["labels"])
        sums = {key: jnp.where(weight > 0, weight * x, 0.0).sum() for key, x in shares.items()}
        return {**sums, "count": weight.sum()}

    def compute(state: dict[str, Any]) -> dict[str, float]:
        rows, right, count = (float(state[key]) for key in ("rows", "labels", "count"))
        if count <= 0:
            return dict.fromkeys(("exact_match", "label_accuracy"), float("nan"))
        return {"exact_match": rows / count, "label_accuracy": right / count}

    def intervals(state: dict[str, Any]) -> dict[str, Any]:
        keys = ("rows", "labels", "squares", "count")
        rows, right, squares, count = (float(state[key]) for key in keys)
        return {
            "exact_match": wilson(rows, count),
            "label_accuracy": of_mean(right, squares, count, low=0.0, high=1.0),
        }

    return metrics.Metric(update, metrics.add, compute, intervals)


class Biased(nn.Module):
    """A head, plus a constant; its parameters are the head's own, at the head's own paths."""

    head: nn.Module
    bias: tuple[float, ...]

    def setup(self) -> None:
        nn.share_scope(self, self.head)

    def __call__(self, tokens: Any, **mode: Any) -> jax.Array:
        z = self.head(tokens, **mode)
        return z + jnp.asarray(self.bias, z.dtype)


def _log_odds(label: Target) -> np.ndarray:
    """`[C]` of the frequencies; those of one half where they are not known."""
    frequencies = np.asarray(label.frequencies or (0.5,) * len(label.classes), np.float64)
    frequencies = np.clip(frequencies, _EDGE, 1 - _EDGE)
    return np.log(frequencies) - np.log1p(-frequencies)


def _probability(logits: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * logits))


def _logits(p: np.ndarray) -> np.ndarray:
    p = np.clip(np.asarray(p, np.float64), 1e-30, 1 - 2.0**-24)
    return np.log(p) - np.log1p(-p)


def _needs_frequencies(label: Target, where: str, value: Any) -> None:
    if not label.frequencies:
        raise ConfigError(f"{where}: {value!r} needs the classes' frequencies; the data has none")


def _pos_weights(value: Any, label: Target, odds: np.ndarray, where: str) -> np.ndarray:
    if value == "balanced":
        _needs_frequencies(label, where, value)
        return np.exp(-odds)
    given, count = np.asarray(value, np.float64), len(label.classes)
    if given.shape not in ((), (count,)):
        raise ConfigError(f"{where}: {value!r} are {len(given)} weights for {count} classes")
    return np.broadcast_to(given, (count,))


def _thresholds(value: Any, label: Target, odds: np.ndarray, where: str) -> np.ndarray:
    if value == "prior":
        _needs_frequencies(label, where, value)
        return _probability(odds)
    return np.full(len(label.classes), float(value))
