"""One class out of several: softmax cross-entropy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax.batch import Spec
from mtmm_jax.registry import ConfigError
from mtmm_jax.tasks import metrics
from mtmm_jax.tasks.task import Labels, Task, find_target, masked

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
    label_smoothing: float = 0.0,
) -> Task:
    """-sum_c q_c log softmax(z)_c, q the label smoothed towards the uniform distribution.

    Args:
        name, spec, make_head, where: given by the model.
        reads: what the head reads.
        target: the label's name; the task's own name by default.
        head: an entry of `heads.HEADS`.
        label_smoothing: the share of q that is uniform.
    """
    target, label = find_target(name, target, "class", spec, where)
    classes = label.classes
    if not 0.0 <= label_smoothing < 1.0:
        raise ConfigError(f"{where}.label_smoothing: {label_smoothing} is not in [0, 1)")

    def loss(logits: jax.Array, labels: Labels, axis_name: str | None):
        del axis_name
        log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
        if labels.y is None:
            return masked(log_p[:, 0], labels.weight)
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

    figures = {"confusion": metrics.confusion(len(classes))}
    if len(classes) > 20:
        figures["top"] = metrics.top(5)
    frequencies = label.frequencies or (0.0,) * len(classes)
    return Task(
        name=name,
        kind="classification",
        reads=reads,
        target=target,
        head=make_head(head, where=f"{where}.head", size=len(classes)),
        loss=loss,
        metrics=figures,
        headline="accuracy",
        decode=decode,
        trivial=np.asarray(frequencies, np.float32),
    )
