"""One class out of several: softmax cross-entropy."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax.batch import Spec
from mtmm_jax.ranges import Decay
from mtmm_jax.tasks.metrics import monoids as metrics
from mtmm_jax.tasks.metrics.calibration import class_calibration
from mtmm_jax.tasks.task import Labels, Task, find_target, masked
from mtmm_jax.tasks.traits import Traits, class_labelling, confusion_drawing
from mtmm_jax.tasks.traits.distilled import distilled_class
from mtmm_jax.tasks.traits.explained import explained_class
from mtmm_jax.tasks.traits.linear import linear_class

Build = Any  # (spec, **context) -> head module, given by model.py


def classification(
    name: str,
    spec: Spec,
    *,
    make_head: Build,
    where: str,
    reads: str | Iterable[str] = "fused",
    target: str | None = None,
    head: str | Mapping[str, Any] = "vector",
    label_smoothing: Decay = 0.0,
) -> Task:
    """-sum_c q_c log softmax(z)_c, q the label smoothed towards the uniform distribution.

    A label is a class, or a probability per class (as mixup makes them); metrics see the likeliest.

    Paper: Szegedy et al. 2016, arXiv:1512.00567. Costs C numbers a row. Use it: for one of C
    classes. Not: where several may hold (`multilabel`) or classes are in order (`ordinal`).

    Args:
        name, spec, make_head, where: given by the model.
        reads: what the head reads.
        target: the label's name; the task's own name by default.
        head: an entry of `heads.HEADS`.
        label_smoothing: the share of q that is uniform.
    """
    target, label = find_target(name, target, "class", spec, where)
    classes = label.classes

    def loss(logits: jax.Array, labels: Labels, axis_name: str | None):
        del axis_name
        log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
        if labels.y is None:
            return masked(log_p[:, 0], labels.weight)
        if labels.y.ndim == 2:
            q = jnp.where(labels.weight[:, None] > 0, labels.y, 0).astype(jnp.float32)
            own = (q * log_p).sum(-1)
        else:
            y = jnp.clip(labels.y, 0, len(classes) - 1)
            own = jnp.take_along_axis(log_p, y[:, None], axis=-1)[:, 0]
        smooth = (1.0 - label_smoothing) * own + label_smoothing * log_p.mean(-1)
        return masked(-smooth, labels.weight)

    def decode(logits: np.ndarray) -> dict[str, Any]:
        p = np.exp(logits - logits.max())
        p = p / p.sum()
        best = np.argsort(-p)[:5]
        return {
            "prediction": classes[best[0]],
            "probability": float(p[best[0]]),
            "best": {classes[i]: float(p[i]) for i in best},
        }

    task_metrics = {"confusion": _hard(metrics.confusion(len(classes)))}
    if len(classes) > 20:
        task_metrics["top"] = _hard(metrics.top(5))
    task_metrics["calibration"] = class_calibration()
    # Logarithms, so that the trivial predictor's probabilities are the frequencies.
    frequencies = np.log(np.maximum(label.frequencies or (1.0,) * len(classes), 1e-9))
    return Task(
        name=name,
        kind="classification",
        reads=reads,
        target=target,
        head=make_head(head, where=f"{where}.head", size=len(classes)),
        loss=loss,
        metrics=task_metrics,
        headline="accuracy",
        decode=decode,
        trivial=np.asarray(frequencies, np.float32),
        smaller=("ece", "brier"),
        outputs=lambda logits: {"probability": jax.nn.softmax(logits)},
        restore=lambda outputs: np.log(np.maximum(outputs["probability"], 1e-30)),
        explained=explained_class(classes),
        labelling=class_labelling(classes),
        distilled=distilled_class(),
        linear=linear_class(len(classes)),
        drawing=confusion_drawing,
        traits=Traits(class_logits=True, averages=True),
    )


def _hard(metric: metrics.Metric) -> metrics.Metric:
    """A metric of class labels that also takes a probability per class."""

    def update(prediction: Any, labels: Labels) -> Any:
        if labels.y is not None and labels.y.ndim == 2:
            labels = dataclasses.replace(labels, y=labels.y.argmax(-1).astype(jnp.int32))
        return metric.update(prediction, labels)

    return metric._replace(update=update)
