"""One pass over a split: metric states on the device, merged on the host, divided once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax.batch import Batch
from mtmm_jax.devices import parallel
from mtmm_jax.evaluation import extremes
from mtmm_jax.model import Model
from mtmm_jax.tasks.task import Labels

Results = dict[str, dict[str, float]]
EXAMPLES = "(examples)"  # in states next to the tasks: how many rows counted for each
EXTREMES = "(extremes)"  # the rows that each task does best and worst, of tasks that show them


class Evaluator:
    """Compiles the evaluation of a model once, for any number of passes.

    Args:
        model: the model.
        devices: that share a batch. Of several processes each reads all batches, runs its rows,
            and gets all states.
    """

    def __init__(self, model: Model, devices: parallel.Devices = 1) -> None:
        self.model, self.devices = model, devices

        def step(variables: Any, batch: Batch, *, axis_name: str | None) -> Any:
            del axis_name  # rows are independent; states are merged on the host
            predictions, _ = model(variables, batch["inputs"])
            return metric_states(model, predictions, batch) | {
                EXTREMES: _extremes(model, predictions, batch)
            }

        self._step = parallel.wrap(step, devices, donate=False)

    def states(
        self, variables: Any, batches: Iterable[Batch], only: Iterable[str] | None = None
    ) -> dict[str, dict[str, Any]]:
        """`{task: {metric: state}}` over all batches, with only some modalities present; under
        `EXAMPLES`, how many rows each task counted; under `EXTREMES`, its best and worst rows."""
        merged: dict[str, dict[str, Any]] | None = None
        for batch in batches:
            seen = batch if only is None else restrict(batch, only)
            outputs = self._step(variables, parallel.share(seen, self.devices))
            for part in parallel.parts(outputs, self.devices):
                merged = part if merged is None else merge(self.model, merged, part)
        if merged is None:
            raise ValueError("a split without a single batch cannot be evaluated")
        return merged

    def results(
        self, variables: Any, batches: Iterable[Batch], only: Iterable[str] | None = None
    ) -> Results:
        """`{task: {metric: value}}`; a metric that nothing counted for is NaN."""
        return compute(self.model, self.states(variables, batches, only))


def merge(model: Model, a: Any, b: Any) -> Any:
    """The metric states of two batches as those of one."""
    rest = {EXAMPLES: jax.tree.map(np.add, a[EXAMPLES], b[EXAMPLES])} if EXAMPLES in a else {}
    if EXTREMES in a:
        ends = {name: extremes.merge(a[EXTREMES][name], b[EXTREMES][name]) for name in a[EXTREMES]}
        rest[EXTREMES] = ends
    return rest | {
        name: {
            key: metric.merge(a[name][key], b[name][key]) for key, metric in task.metrics.items()
        }
        for name, task in model.tasks.items()
    }


def metric_states(model: Model, predictions: Mapping[str, Any], batch: Batch) -> dict[str, Any]:
    """The metric states of one batch. Pure; runs under jit."""
    labels = _labels(model, batch)
    states = {
        name: {
            key: metric.update(predictions[name], labels[name])
            for key, metric in task.metrics.items()
        }
        for name, task in model.tasks.items()
    }
    return states | {EXAMPLES: {n: (own.weight > 0).sum() for n, own in labels.items()}}


def _labels(model: Model, batch: Batch) -> dict[str, Labels]:
    present = model.present(batch)
    return {name: task.labels(batch, present) for name, task in model.tasks.items()}


def _extremes(model: Model, predictions: Mapping[str, Any], batch: Batch) -> dict[str, Any]:
    found = {}
    for name, labels in _labels(model, batch).items():
        task = model.tasks[name]
        if not extremes.shows(task):
            continue
        if labels.y is None:  # a batch of a source without this label
            blank = model.spec.targets[task.target].blank(len(labels.weight))
            labels = dataclasses.replace(labels, y=jax.tree.map(jnp.asarray, blank))
        found[name] = extremes.extremes(task, predictions[name], labels)
    return found


def compute(model: Model, states: Mapping[str, Mapping[str, Any]]) -> Results:
    """`{task: {metric: value}}` from merged states."""
    return {
        name: {
            measure: value
            for key, metric in task.metrics.items()
            for measure, value in metric.compute(states[name][key]).items()
        }
        for name, task in model.tasks.items()
    }


def trivial_results(model: Model, batches: Iterable[Batch]) -> Results:
    """The same metrics for predictions that look at nothing: majority class, mean, one vector."""
    return compute(model, trivial_states(model, batches))


def trivial_states(model: Model, batches: Iterable[Batch]) -> dict[str, Any]:
    """The metric states of predictions that look at nothing."""

    @jax.jit
    def step(batch: Batch) -> Any:
        rows = next(iter(batch["inputs"].values()))["present"].shape[0]
        constant = {
            name: jax.tree.map(lambda x: jnp.broadcast_to(x, (rows, *np.shape(x))), task.trivial)
            for name, task in model.tasks.items()
        }
        return metric_states(model, constant, batch)

    states = [jax.device_get(step(batch)) for batch in batches]
    return reduce(partial(merge, model), states)


def restrict(batch: Batch, only: Iterable[str]) -> Batch:
    """The batch as it looks when only these modalities are there."""
    only = tuple(only)
    inputs = {
        name: entry
        if name in only
        else {**entry, "present": np.zeros_like(np.asarray(entry["present"]))}
        for name, entry in batch["inputs"].items()
    }
    return {**batch, "inputs": inputs}


def headlines(model: Model, results: Results) -> dict[str, float]:
    """Each task's headline metric, turned so that larger is better."""
    return {
        name: (-1.0 if task.smaller_is_better else 1.0) * results[name][task.headline]
        for name, task in model.tasks.items()
    }
