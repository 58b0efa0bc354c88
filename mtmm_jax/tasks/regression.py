"""A number: squared or Huber error of the standardised label, or a normal distribution for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtmm_jax import registry
from mtmm_jax.batch import Spec
from mtmm_jax.ranges import Positive
from mtmm_jax.tasks.metrics import monoids as metrics
from mtmm_jax.tasks.metrics.calibration import interval_calibration
from mtmm_jax.tasks.task import Labels, Task, find_target, masked
from mtmm_jax.tasks.traits import Traits, number_labelling, points_drawing
from mtmm_jax.tasks.traits.distilled import distilled_number
from mtmm_jax.tasks.traits.explained import explained_number
from mtmm_jax.tasks.traits.linear import linear_number


class Error(NamedTuple):
    """A loss: how many numbers the head gives, and `(prediction [B, size], y [B]) -> [B]`.

    The first number is the label's standardised value; `refine` reads the head's output first, and
    `coarsen` undoes that.
    """

    size: int
    values: Callable[[jax.Array, jax.Array], jax.Array]
    refine: Callable[[jax.Array], jax.Array] = lambda prediction: prediction
    coarsen: Callable[[jax.Array], jax.Array] = lambda refined: refined


def _mse() -> Error:
    return Error(1, lambda z, y: 0.5 * jnp.square(z[:, 0] - y))


def _huber(*, delta: Positive = 1.0) -> Error:
    return Error(1, lambda z, y: optax.losses.huber_loss(z[:, 0], y, delta=delta))


def _gaussian(*, limit: Positive = 8.0) -> Error:
    def refine(z: jax.Array) -> jax.Array:
        # A soft clip: a variance that runs away can come back.
        return jnp.stack([z[:, 0], limit * jnp.tanh(z[:, 1] / limit)], axis=1)

    def values(z: jax.Array, y: jax.Array) -> jax.Array:
        return 0.5 * (jnp.square(z[:, 0] - y) * jnp.exp(-z[:, 1]) + z[:, 1])

    def coarsen(z: jax.Array) -> jax.Array:
        inside = jnp.clip(z[:, 1] / limit, -1 + 1e-6, 1 - 1e-6)
        return jnp.stack([z[:, 0], limit * jnp.arctanh(inside)], axis=1)

    return Error(2, values, refine, coarsen)


LOSSES = {"mse": _mse, "huber": _huber, "gaussian": _gaussian}


def regression(
    name: str,
    spec: Spec,
    *,
    make_head: Any,
    where: str,
    reads: str | Iterable[str] = "fused",
    target: str | None = None,
    head: str | Mapping[str, Any] = "vector",
    loss: str | Mapping[str, Any] = "mse",
) -> Task:
    """1/2 (z - t)^2, t = (y - mean) / std; or Huber's form, linear beyond delta; or Gaussian.

    Gaussian: the head also says a log variance s, and the loss is 1/2 ((z - t)^2 exp(-s) + s), the
    negative log likelihood but for a constant: where the model errs it says so, and nll, inside_90
    and interval_error tell whether it is honest.

    Paper: Huber 1964; Nix and Weigend 1994. Costs one number a value, two if Gaussian. Use it: for
    numbers; Huber's form against outliers, Gaussian where it matters how sure the model is. Not:
    for counts of a few values (`ordinal`).

    Args:
        name, spec, make_head, where: given by the model.
        reads: what the head reads.
        target: the label's name; the task's own name by default.
        head: an entry of `heads.HEADS`.
        loss: mse, huber (with delta, in standard deviations) or gaussian (with limit, the largest
            |s|).
    """
    target, label = find_target(name, target, "number", spec, where)
    error = registry.build(LOSSES, loss, where=f"{where}.loss")

    def value(prediction: jax.Array, labels: Labels, axis_name: str | None):
        del axis_name
        z = error.refine(prediction.astype(jnp.float32))
        if labels.y is None:
            return masked(z[:, 0], labels.weight)
        y = jnp.where(labels.weight > 0, label.standardise(labels.y), 0.0)
        return masked(error.values(z, y), labels.weight)

    errors = metrics.regression_errors(label.mean, label.std)
    drawn = metrics.points(label.mean, label.std)
    task_metrics = {
        "errors": errors._replace(update=lambda z, labels: errors.update(z[:, 0], labels)),
        "points": drawn._replace(update=lambda z, labels: drawn.update(z[:, 0], labels)),
    }
    if error.size == 2:
        honest = interval_calibration(label.mean, label.std)
        task_metrics["intervals"] = honest._replace(
            update=lambda z, labels: honest.update(error.refine(z.astype(jnp.float32)), labels)
        )

    def decode(z: np.ndarray) -> dict[str, float]:
        answer = {"prediction": label.undo(float(z[0]))}
        if error.size == 2:
            log_variance = float(error.refine(jnp.asarray(z, jnp.float32)[None])[0, 1])
            answer["std"] = label.std * float(np.exp(0.5 * log_variance))
        return answer

    def outputs(z: jax.Array) -> dict[str, jax.Array]:
        """With a Gaussian loss also one standard deviation."""
        z = error.refine(z)
        found = {"value": label.undo(z[:, 0])}
        if error.size == 2:
            found["std"] = label.std * jnp.exp(0.5 * z[:, 1])
        return found

    def restore(outputs: Mapping[str, Any]) -> np.ndarray:
        columns = [label.standardise(outputs["value"])]
        if "std" in outputs:
            columns.append(2 * np.log(outputs["std"] / label.std))
        return error.coarsen(np.stack(columns, 1))

    return Task(
        name=name,
        kind="regression",
        reads=reads,
        target=target,
        head=make_head(head, where=f"{where}.head", size=error.size),
        loss=value,
        metrics=task_metrics,
        headline="r2",
        decode=decode,
        trivial=np.zeros(error.size, np.float32),
        smaller=("mae", "rmse", *(("nll", "interval_error") if error.size == 2 else ())),
        outputs=outputs,
        restore=restore,
        explained=explained_number(label.mean, label.std),
        labelling=number_labelling(),
        drawing=points_drawing,
        distilled=distilled_number(label.mean, label.std),
        linear=linear_number(label.standardise, error.size, error.refine, error.coarsen),
        traits=Traits(averages=True),
    )
