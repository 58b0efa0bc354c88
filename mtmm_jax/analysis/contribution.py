"""Contribution of each modality to each task: Shapley values of the metric and of the loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mtmm_jax.evaluation.subsets import Scores, shapley
from mtmm_jax.model import Model

SubsetScores = Mapping[frozenset[str], Scores]


def contributions(model: Model, scores: SubsetScores) -> dict[str, dict[str, Any]]:
    """`{task: {"name": headline, "metric": {modality: phi}, "loss": {modality: phi}}}`.

    A positive value helps: the metric's sign is turned where smaller is better, and the loss counts
    as what the modality takes off it. The values of a task add up to the metric with everything
    minus that of the trivial predictor, and likewise for the loss against its loss (the mean's, the
    frequencies'). None where a value of the game is not known.
    """
    shares: dict[str, dict[str, Any]] = {}
    for name, task in model.tasks.items():
        signs = {"metric": -1.0 if task.smaller_is_better else 1.0, "loss": -1.0}
        shares[name] = {"name": task.headline}
        for key, sign in signs.items():
            game = {subset: sign * found[name][key] for subset, found in scores.items()}
            known = not any(math.isnan(value) for value in game.values())
            shares[name][key] = shapley(game) if known else None
    return shares


def missing_modalities(model: Model, scores: SubsetScores) -> dict[str, Any]:
    """`{"tasks": {task: headline}, "subsets": [{"modalities", "metric", "loss"}]}`.

    One entry a subset, the empty one (the trivial predictor) first, by size.
    """
    rows = [
        {
            "modalities": sorted(subset),
            "metric": {name: found[name]["metric"] for name in model.tasks},
            "loss": {name: found[name]["loss"] for name in model.tasks},
        }
        for subset, found in scores.items()
    ]
    tasks = {name: task.headline for name, task in model.tasks.items()}
    better = {name: not task.smaller_is_better for name, task in model.tasks.items()}
    return {"tasks": tasks, "larger_is_better": better, "subsets": rows}
