"""The gallery of a task with a common space: names and vectors to look a new input up in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from mtmm_jax.model import Model

Gallery = dict[str, np.ndarray]


def build(
    model: Model, states: Iterable[Mapping[str, Any]], describe: Callable[[int], str]
) -> Gallery:
    """`{"<task>/<modality>": [N, D], "<task>/names": [N]}` from the states of some splits."""
    states = list(states)
    gallery: Gallery = {}
    for name, task in model.tasks.items():
        if task.space is None:
            continue
        for read, (vectors, ids) in task.space.gallery([state[name] for state in states]).items():
            gallery[f"{name}/{read}"] = vectors
            gallery[f"{name}/names"] = np.array([describe(int(i)) for i in ids])
    return gallery


def nearest(vector: np.ndarray, gallery: Gallery, task: str, modality: str, k: int = 5):
    """The names whose vectors of one modality are closest, with their cosines."""
    scores = gallery[f"{task}/{modality}"] @ vector
    best = np.argsort(-scores)[:k]
    return {str(gallery[f"{task}/names"][i]): float(scores[i]) for i in best}
