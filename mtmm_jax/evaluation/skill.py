"""Skill: how far a model is on the way from the trivial predictor to a perfect one.

    skill = (metric - trivial) / (best - trivial), clipped to [-1, 1]

`metric` is a task's headline, `trivial` the same metric of the task's trivial predictor on the same
rows, and `best` the best value there is: 0 for a metric that is better when smaller (an error), 1
for any other (an accuracy, an R2, a recall). 0 is as good as looking at nothing, 1 is perfect, and
unlike accuracies and R2s the skills of several tasks may be averaged.
"""

from __future__ import annotations

import math

import numpy as np

from mtmm_jax.evaluation.split import Results
from mtmm_jax.model import Model
from mtmm_jax.tasks.task import Task


def skill(task: Task, metric: float, trivial: float) -> float:
    """The skill of one task; NaN where there is none to have.

    That is where the trivial predictor has no metric (no label in the split) or is perfect already
    (all labels alike). A model without a finite metric where the trivial predictor has one is at
    the bottom, -1.
    """
    best = 0.0 if task.smaller_is_better else 1.0
    room = (trivial - best) if task.smaller_is_better else (best - trivial)
    if not (math.isfinite(trivial) and room > 0):
        return math.nan
    if not math.isfinite(metric):
        return -1.0
    gained = (trivial - metric) if task.smaller_is_better else (metric - trivial)
    return min(max(gained / room, -1.0), 1.0)


def skills(model: Model, results: Results, trivial: Results) -> dict[str, float]:
    """`{task: skill}` of every task's headline.

    Args:
        model: whose tasks they are.
        results: of the model on a split.
        trivial: of `trivial_results` on the same split.
    """
    return {
        name: skill(task, results[name][task.headline], trivial[name][task.headline])
        for name, task in model.tasks.items()
    }


def mean_skill(model: Model, results: Results, trivial: Results) -> float:
    """The mean skill over the tasks that have one; NaN where none has."""
    values = np.array(list(skills(model, results, trivial).values()))
    return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan
