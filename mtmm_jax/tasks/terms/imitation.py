"""Terms that pull a task's prediction towards another's: a teacher's, its own average's, another
head's.

What is to be imitated stands in the batch next to the labels, as a target
`{"y", "present", "weight"?}`: `y` in the label's own units, so that a teacher who standardises
otherwise can be followed, and `weight` where a row is to count less than whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mtmm_jax.registry import choose
from mtmm_jax.tasks.task import Task
from mtmm_jax.tasks.terms.term import Regulariser, View
from mtmm_jax.tasks.traits.distilled import Distilled

Array = jax.Array
MEASURES = ("kl", "squared")


def imitation(
    name: str, form: Distilled, target: str, *, temperature: float = 1.0, measure: str = "kl"
) -> Regulariser:
    """sum_i w_i gap(z_i, y_i) / n over the n rows that have something to imitate.

    With "kl" and temperature T it is T^2 KL(q || softmax(z / T)), whose gradient keeps its size
    when T grows (Hinton et al. 2015). A row without `present`, or where the task has nothing to
    read, adds nothing, whatever stands in `y`.

    Args:
        name: of the task that learns.
        form: of its predictions.
        target: where the batch has what is to be imitated.
        temperature: T.
        measure: "kl", or "squared", the distance of the probabilities (Tarvainen, Valpola 2017).
    """
    choose(measure, MEASURES, "imitation.measure", "measure")

    def term(view: View) -> tuple[Array, Array]:
        prediction = view.predictions[name]
        entry = view.targets.get(target)
        if entry is None:
            return jnp.float32(0), jnp.float32(0)
        rows = entry["present"] & view.present[name]
        gaps = form.gap(prediction, _known(entry["y"], rows), temperature, measure)
        weight = entry.get("weight", rows).astype(jnp.float32)
        return _counted(gaps, rows, jnp.where(rows, weight, 0.0))

    return Regulariser(term, tasks=(name,), targets=(target,))


def agreement_of_heads(name: str, form: Distilled, head: str) -> Regulariser:
    """KL(stop(p_task) || p_head) over the rows that both can read: what a modality alone says
    follows what all say together; the task itself is not moved.

    Args:
        name: of the task that is followed.
        form: of the predictions of both.
        head: of the task that follows.
    """

    def term(view: View) -> tuple[Array, Array]:
        rows = view.present[name] & view.present[head]
        y = jax.lax.stop_gradient(form.soft_label(view.predictions[name], 1.0))
        gaps = form.gap(view.predictions[head], _known(y, rows), 1.0, "kl")
        return _counted(gaps, rows, rows.astype(jnp.float32))

    return Regulariser(term, tasks=(name, head))


def likeness(read: str, target: str, kernel: str | None = None) -> Regulariser:
    """1 - cos(x, t) of the pooled tokens of a read and a teacher's, over the rows that have both.

    Args:
        read: whose tokens.
        target: where the batch has the teacher's.
        kernel: the path of a matrix in the parameters, for x W in place of x where widths differ
            (Romero et al. 2015); None for none.
    """

    def term(view: View) -> tuple[Array, Array]:
        tokens, entry = view.tokens[read], view.targets.get(target)
        if entry is None:
            return jnp.float32(0), jnp.float32(0)
        x = tokens.mean().astype(jnp.float32)
        if kernel is not None:
            x = x @ _at(view.params, kernel)
        rows = entry["present"] & tokens.present
        t = _known(entry["y"], rows)
        norms = (jnp.square(f).sum(-1) + 1e-12 for f in (x, t))
        cosines = (x * t).sum(-1) * jax.lax.rsqrt(next(norms)) * jax.lax.rsqrt(next(norms))
        return _counted(1.0 - cosines, rows, rows.astype(jnp.float32))

    paths = () if kernel is None else (kernel,)
    return Regulariser(term, reads=(read,), targets=(target,), paths=paths)


def share_of(target: str) -> Regulariser:
    """The share of a target's rows that have a weight: reported with the losses, moves nothing.
    Of labels that are weighted one by one (`[B, C]`), the share of those."""

    def term(view: View) -> tuple[Array, Array]:
        entry = view.targets.get(target)
        if entry is None:
            return jnp.float32(0), jnp.float32(0)
        used = (entry["weight"] > 0).astype(jnp.float32)
        if entry["y"].ndim > 1:
            used = used * (entry["y"] >= 0).mean(-1, dtype=jnp.float32)
        rows = entry["present"]
        return jnp.where(rows, used, 0.0).sum(), rows.sum().astype(jnp.float32)

    return Regulariser(term, targets=(target,))


def scaled_loss(task: Task, scale: float) -> Callable[..., tuple[Array, Array]]:
    """The task's loss times a number; of 0 the task has no rows, and so is absent."""

    def loss(prediction: Any, labels: Any, axis_name: str | None) -> tuple[Array, Array]:
        total, count = task.loss(prediction, labels, axis_name)
        if scale == 0:
            return jnp.zeros_like(total), jnp.zeros_like(count)
        return scale * total, count

    return loss


def _known(y: Array, rows: Array) -> Array:
    """Zeros where there is nothing to imitate, before anything is computed of it."""
    return jnp.where(rows.reshape(-1, *[1] * (y.ndim - 1)), y, 0.0).astype(jnp.float32)


def _counted(gaps: Array, rows: Array, weight: Array) -> tuple[Array, Array]:
    gaps = jnp.where(rows, gaps, 0.0)
    return (weight * gaps).sum(), rows.sum().astype(jnp.float32)


def _at(params: Mapping[str, Any], path: str) -> Array:
    for key in path.split("/"):
        params = params[key]
    return params
