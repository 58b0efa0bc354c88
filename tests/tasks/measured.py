"""A task's loss, gradient and metric states of some rows, as one program per task and shape."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from mtmm_jax.tasks.task import Labels


def _parts(given: Labels) -> tuple[Any, ...]:
    """Labels are no pytree: a program takes their parts."""
    return given.y, given.weight, given.id


@functools.cache
def _program(loss: Any, updates: tuple[tuple[str, Any], ...]) -> Any:
    def measure(prediction: Any, *parts: Any) -> Any:
        given = Labels(*parts)
        value_and_grad = jax.value_and_grad(lambda p: loss(p, given, None), has_aux=True)
        states = {name: update(prediction, given) for name, update in updates}
        return *value_and_grad(prediction), states

    return jax.jit(measure)


def measure(task: Any, prediction: Any, given: Labels) -> Any:
    """`(total, count), gradient of the total, {metric: state}`."""
    updates = tuple((name, metric.update) for name, metric in task.metrics.items())
    return jax.device_get(_program(task.loss, updates)(prediction, *_parts(given)))


def cost(task: Any, prediction: Any, given: Labels) -> Any:
    """`(total, count)`."""
    return measure(task, prediction, given)[0]


def metric_values(task: Any, prediction: Any, given: Labels) -> dict[str, float]:
    """All metrics of a task by name."""
    states = measure(task, prediction, given)[2]
    found = {}
    for name, metric in task.metrics.items():
        found |= metric.compute(states[name])
    return found


def labels_of(model: Any, batch: Any) -> dict[str, Labels]:
    """What every task of a model reads off a batch, by one program."""

    @jax.jit
    def read(batch: Any) -> Any:
        present = model.present(batch)
        return {name: _parts(task.labels(batch, present)) for name, task in model.tasks.items()}

    return {name: Labels(*parts) for name, parts in jax.device_get(read(batch)).items()}


@functools.cache
def _cost_program(loss: Any) -> Any:
    return jax.jit(lambda prediction, weight: loss(prediction, Labels(None, weight), None))


@functools.cache
def _loss_program(loss: Any) -> Any:
    return jax.jit(
        jax.value_and_grad(lambda p, *parts: loss(p, Labels(*parts), None), has_aux=True)
    )


def loss_and_gradient(task: Any, prediction: Any, given: Labels) -> Any:
    """`(total, count), gradient of the total`, without the metrics."""
    return jax.device_get(_loss_program(task.loss)(prediction, *_parts(given)))


def cost_without_labels(task: Any, prediction: Any, rows: int) -> Any:
    """`(total, count)` where the batch has no such label at all."""
    return _cost_program(task.loss)(prediction, np.zeros(rows, np.float32))


@functools.cache
def _state_program(update: Any) -> Any:
    return jax.jit(lambda prediction, *parts: update(prediction, Labels(*parts)))


def state(metric: Any, prediction: Any, given: Labels) -> Any:
    """The state of one metric alone."""
    return jax.device_get(_state_program(metric.update)(prediction, *_parts(given)))


def rows_of(tree: Any, rows: Any) -> Any:
    """Some rows of all leaves; numbers stay."""
    return jax.tree.map(lambda x: np.asarray(x)[rows] if np.ndim(x) else x, tree)
