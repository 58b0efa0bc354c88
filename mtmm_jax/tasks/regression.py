"""A number: squared or Huber error of the standardised label."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtmm_jax.batch import Spec
from mtmm_jax.registry import choose
from mtmm_jax.tasks import metrics
from mtmm_jax.tasks.task import Labels, Task, find_target, masked

_LOSSES = {"mse": lambda error: 0.5 * jnp.square(error), "huber": optax.losses.huber_loss}


def regression(
    name: str,
    spec: Spec,
    *,
    make_head: Any,
    where: str,
    reads: str | Iterable[str] = "fused",
    target: str | None = None,
    head: str | Mapping[str, Any] = "vector",
    loss: str = "mse",
) -> Task:
    """1/2 (z - (y - mean) / std)^2, or its Huber form, linear beyond one standard deviation.

    Args:
        name, spec, make_head, where: given by the model.
        reads: what the head reads.
        target: the label's name; the task's own name by default.
        head: an entry of `heads.HEADS`.
        loss: mse or huber.
    """
    target, label = find_target(name, target, "number", spec, where)
    error_of = _LOSSES[choose(loss, _LOSSES, f"{where}.loss", "loss")]

    def value(prediction: jax.Array, labels: Labels, axis_name: str | None):
        del axis_name
        z = prediction[:, 0].astype(jnp.float32)
        if labels.y is None:
            return masked(z, labels.weight)
        y = jnp.where(labels.weight > 0, (labels.y - label.mean) / label.std, 0.0)
        return masked(error_of(z - y), labels.weight)

    errors = metrics.regression_errors(label.mean, label.std)
    return Task(
        name=name,
        kind="regression",
        reads=reads,
        target=target,
        head=make_head(head, where=f"{where}.head", size=1),
        loss=value,
        metrics={
            "errors": errors._replace(update=lambda z, labels: errors.update(z[:, 0], labels))
        },
        headline="r2",
        decode=lambda z: {"prediction": float(z[0]) * label.std + label.mean},
        trivial=np.zeros(1, np.float32),
    )
