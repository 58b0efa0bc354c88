"""The number of examples behind each metric and its 95 % interval, from the states of one pass.

    {"n": 120, "low": 0.71, "high": 0.86, "method": "wilson"}
    {"n": 120, "low": None, "high": None, "why": "pixels of one picture are not independent"}

`n` counts the examples of the split that have the task's label and something that it reads. The
interval itself is the metric's (`Metric.intervals`); `method` is "wilson", "normal" or "bootstrap".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtmm_jax.evaluation.split import EXAMPLES
from mtmm_jax.model import Model
from mtmm_jax.tasks.metrics.monoids import Metric

Certainty = dict[str, dict[str, dict[str, Any]]]
NO_VALUES = "it is no mean over examples"


def certainty(model: Model, states: Mapping[str, Any]) -> Certainty:
    """`{task: {metric: {"n", "low", "high", "method" or "why"}}}` from merged states."""
    return {
        name: {
            metric: entry
            for key, family in task.metrics.items()
            for metric, entry in _of_family(
                family, states[name][key], int(states[EXAMPLES][name])
            ).items()
        }
        for name, task in model.tasks.items()
    }


def _of_family(family: Metric, state: Any, count: int) -> dict[str, dict[str, Any]]:
    known = family.intervals(state) if family.intervals is not None and count > 0 else {}
    found = {}
    for metric in family.compute(state):
        interval = known.get(metric, NO_VALUES) if count > 0 else "no example"
        if isinstance(interval, str):
            found[metric] = {"n": count, "low": None, "high": None, "why": interval}
        else:
            found[metric] = {"n": count, **interval._asdict()}
    return found
