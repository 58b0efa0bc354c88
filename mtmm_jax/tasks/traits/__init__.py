"""Traits of tasks for the rooms that export, label, look up, fuse and listen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

DIGITS = 6  # of a number that becomes a label


class Traits(NamedTuple):
    """Facts about a kind of task; none holds by default.

    Attributes:
        compares_rows: the loss of one row looks at others, so that no row has its own gradient.
        class_logits: a prediction is `[B, C]` logits of classes of which one is true.
        averages: a prediction's numbers mean the same in every model of the task, so that a mean of
            several models' predictions is a prediction.
        ordered: a prediction's numbers are in order, which a mean keeps and weights do not.
        transcribes: `decode` gives a text as "prediction", and `metrics["errors"]` its errors.
        vocabulary_of: the modality whose tokens the keys of decode's "best" are ids of, or None.
    """

    compares_rows: bool = False
    class_logits: bool = False
    averages: bool = False
    ordered: bool = False
    transcribes: bool = False
    vocabulary_of: str | None = None


NO_TRAITS = Traits()


class Labelling(NamedTuple):
    """Conversion of predictions to labels of a manifest.

    Attributes:
        label: outputs of one row -> `(label, confidence)`; the confidence is a probability, or None
            if there is none to give.
        distributions: outputs of N rows -> `[N, Q, C]`, the probabilities of C answers to each of Q
            questions; a row's uncertainty is the mean over them. None if there are none.
        likely: outputs of one row -> `{label: probability}`; None if there are none.
    """

    label: Callable[[Mapping[str, Any]], tuple[Any, float | None]]
    distributions: Callable[[Mapping[str, Any]], np.ndarray] | None = None
    likely: Callable[[Mapping[str, Any]], dict[str, float]] | None = None


class Space(NamedTuple):
    """A common space of what a task reads.

    Attributes:
        vectors: prediction -> `{read: [..., D]}`, of length 1.
        gallery: states of the task's metrics, of several splits -> `{read: (vectors [N, D], ids
            [N])}`, each id once.
    """

    vectors: Callable[[Any], Mapping[str, Any]]
    gallery: Callable[[Sequence[Mapping[str, Any]]], dict[str, tuple[np.ndarray, np.ndarray]]]


class Speech(NamedTuple):
    """The functions of a task that synthesises speech.

    Attributes:
        heard: labels -> the frames of the recordings, how many of each before the silence at its
            end, and who speaks.
        say: prediction, `[B]` speakers -> the frames that these say, and how many `[B]`.
        listen: frames of one sample, and how many -> a wave; on the host.
    """

    heard: Callable[[Any], tuple[jax.Array, jax.Array, jax.Array]]
    say: Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]]
    listen: Callable[[np.ndarray, int], np.ndarray]


def arrays_of(prediction: Any, name: str | None = None) -> dict[str, Any]:
    """`{name: [B, ...]}`: an array as "value", the arrays of a mapping by their paths.

    Scalars, which belong to no row, and what is no array are left out.
    """
    if isinstance(prediction, Mapping):
        prefix = "" if name is None else f"{name}/"
        return {
            path: x
            for key, part in prediction.items()
            for path, x in arrays_of(part, f"{prefix}{key}").items()
        }
    array = hasattr(prediction, "dtype") and np.ndim(prediction)
    return {name or "value": prediction} if array else {}


def no_drawing(states: Mapping[str, Any], examples: int) -> dict[str, np.ndarray]:
    """Of a task that the report draws nothing of."""
    del states, examples
    return {}


def confusion_drawing(states: Mapping[str, Any], examples: int) -> dict[str, np.ndarray]:
    """The counts `[true, predicted]` of the metric "confusion", and the bins of "calibration" where
    there is one."""
    del examples
    drawn = {"confusion": np.asarray(states["confusion"])}
    if "calibration" in states:
        bins = [states["calibration"][key] for key in ("count", "confidence", "hits")]
        drawn["calibration"] = np.stack(bins, 1)
    return drawn


def points_drawing(states: Mapping[str, Any], examples: int) -> dict[str, np.ndarray]:
    """Labels and predictions `[rows, 2]` of the metric "points"."""
    del examples
    pairs = np.stack([states["points"][key] for key in ("true", "predicted")], 1)
    return {"points": pairs[np.isfinite(pairs).all(1)]}


def class_labelling(
    classes: Sequence[str], best: Callable[[Mapping[str, Any]], int] | None = None
) -> Labelling:
    """Of one class, from the output "probability"; the confidence is the probability of the class.

    Args:
        classes: their names.
        best: outputs of one row -> the class; the likeliest by default.
    """

    def label(outputs: Mapping[str, Any]) -> tuple[str, float]:
        p = np.asarray(outputs["probability"], np.float64)
        chosen = int(p.argmax()) if best is None else best(outputs)
        return classes[chosen], float(p[chosen])

    return Labelling(label, lambda outputs: outputs["probability"][:, None], _by_name(classes))


def labels_labelling(classes: Sequence[str]) -> Labelling:
    """Of any number of classes; the confidence is that of the least sure one."""

    def label(outputs: Mapping[str, Any]) -> tuple[list[str], float]:
        p = np.asarray(outputs["probability"], np.float64)
        return [classes[i] for i in np.flatnonzero(p > 0.5)], float(np.maximum(p, 1 - p).min())

    def distributions(outputs: Mapping[str, Any]) -> np.ndarray:
        p = outputs["probability"]
        return np.stack([p, 1 - p], axis=-1)

    return Labelling(label, distributions, _by_name(classes))


def number_labelling() -> Labelling:
    """Of a number, from the output "value", without a confidence."""
    return Labelling(lambda outputs: (round(float(outputs["value"]), DIGITS), None))


def _by_name(classes: Sequence[str]) -> Callable[[Mapping[str, Any]], dict[str, float]]:
    def likely(outputs: Mapping[str, Any]) -> dict[str, float]:
        p = outputs["probability"]
        best = np.argsort(-p, kind="stable")[:3]
        return {classes[c]: round(float(p[c]), DIGITS) for c in best}

    return likely
