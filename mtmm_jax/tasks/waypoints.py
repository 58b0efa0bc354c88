"""A path as a sequence of points: where it goes, and where it ends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax.batch import Spec, Target
from mtmm_jax.tasks.metrics import monoids as metrics
from mtmm_jax.tasks.metrics.intervals import of_mean
from mtmm_jax.tasks.task import Labels, Task, find_target, masked
from mtmm_jax.tasks.traits import Traits


def waypoints(
    name: str,
    spec: Spec,
    *,
    make_head: Any,
    where: str,
    reads: str | Iterable[str] = "fused",
    target: str | None = None,
    head: str | Mapping[str, Any] = "path",
) -> Task:
    """1/2 mean_n |x_n - t_n|^2 over a path's valid points, t standardised; ade and fde.

    A path without a valid point does not count.

    Paper: Prakash et al. 2021, arXiv:2104.09224. Costs two numbers a point. Use it: for paths of
    moving things. Not: for values without an order in time.

    Args:
        name, spec, make_head, where: given by the model.
        reads: what the head reads.
        target: the label's name; the task's own name by default.
        head: an entry of `heads.HEADS` that gives as many numbers as the path has: "path", a
            recurrence, or "vector".
    """
    target, label = find_target(name, target, "path", spec, where)
    size = int(np.prod(label.shape))
    module = make_head(head, where=f"{where}.head", size=size, shape=label.shape)

    def loss(prediction: jax.Array, labels: Labels, axis_name: str | None):
        del axis_name
        points = _points(prediction, label)
        if labels.y is None:
            return masked(points[:, 0, 0], labels.weight)
        valid, weight = _valid(labels)
        truth = jnp.where(valid[..., None], label.standardise(labels.y)["points"], 0.0)
        squared = 0.5 * jnp.square(points - truth).sum(-1)
        mean = jnp.where(valid, squared, 0.0).sum(1) / _count(valid)
        return masked(mean, weight)

    def decode(prediction: np.ndarray) -> dict[str, Any]:
        points = np.asarray(prediction).reshape(label.shape)
        return {"path": label.undo({"points": points})["points"].round(4).tolist()}

    def outputs(z: jax.Array) -> dict[str, jax.Array]:
        return label.undo({"points": z.reshape(z.shape[0], *label.shape)})

    return Task(
        name=name,
        kind="waypoints",
        reads=reads,
        target=target,
        head=module,
        loss=loss,
        metrics={"displacement": displacement(label)},
        headline="ade",
        decode=decode,
        trivial=np.zeros(label.shape, np.float32),
        smaller=("ade", "fde"),
        outputs=outputs,
        decode_outputs=lambda found: {"path": np.asarray(found["points"]).round(4).tolist()},
        explained=None,
        traits=Traits(averages=True),
    )


def displacement(label: Target) -> metrics.Metric:
    """ade, the mean distance over a path's points, and fde, that of its last; means over paths.

    In the label's own unit.
    """

    def update(prediction: jax.Array, labels: Any) -> dict[str, jax.Array]:
        points = _points(prediction, label)
        if labels.y is None:
            keys = ("average", "average_squared", "final", "final_squared", "count")
            return dict.fromkeys(keys, jnp.zeros(()))
        valid, weight = _valid(labels)
        gap = label.undo({"points": points})["points"] - labels.y["points"]
        distance = jnp.sqrt(jnp.square(jnp.where(valid[..., None], gap, 0.0)).sum(-1))
        last = jnp.where(valid, jnp.arange(valid.shape[1]), -1)
        final = jnp.take_along_axis(distance, last.argmax(1)[:, None], axis=1)[:, 0]
        average = distance.sum(1) / _count(valid)
        return {
            "average": (weight * average).sum(),
            "average_squared": (weight * average**2).sum(),
            "final": (weight * final).sum(),
            "final_squared": (weight * final**2).sum(),
            "count": weight.sum(),
        }

    def compute(state: dict[str, Any]) -> dict[str, float]:
        count = float(state["count"]) or float("nan")
        return {"ade": float(state["average"]) / count, "fde": float(state["final"]) / count}

    def intervals(state: dict[str, Any]) -> dict[str, Any]:
        s = {key: float(value) for key, value in state.items()}
        return {
            name: of_mean(s[key], s[f"{key}_squared"], s["count"], low=0.0)
            for name, key in (("ade", "average"), ("fde", "final"))
        }

    return metrics.Metric(update, metrics.add, compute, intervals)


def _points(prediction: jax.Array, label: Target) -> jax.Array:
    return prediction.astype(jnp.float32).reshape(prediction.shape[0], *label.shape)


def _count(valid: jax.Array) -> jax.Array:
    return jnp.maximum(valid.sum(1), 1).astype(jnp.float32)


def _valid(labels: Labels) -> tuple[jax.Array, jax.Array]:
    """`[B, N]`, and the rows' weights: 0 where no point is valid."""
    valid = labels.y["valid"] & (labels.weight > 0)[:, None]
    return valid, jnp.where(valid.any(1), labels.weight, 0.0)
