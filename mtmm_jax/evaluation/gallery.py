"""What a retrieval task has seen: names and vectors to look a new picture or text up in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from mtmm_jax.model import Model

Gallery = dict[str, np.ndarray]


def build(
    model: Model, states: Iterable[Mapping[str, Any]], describe: Callable[[int], str]
) -> Gallery:
    """`{"<task>/<modality>": [N, D], "<task>/names": [N]}` from the states of some splits.

    The first row of each id stands for it.
    """
    states = list(states)
    gallery: Gallery = {}
    for name, task in model.tasks.items():
        if task.kind != "retrieval":
            continue
        for key in task.metrics:
            state = {
                part: np.concatenate([s[name][key][part] for s in states])
                for part in ("candidate", "id")
            }
            ids, rows = np.unique(state["id"], return_index=True)
            rows = rows[ids >= 0]
            gallery[f"{name}/{key.split('_to_')[1]}"] = state["candidate"][rows]
            gallery[f"{name}/names"] = np.array([describe(int(i)) for i in state["id"][rows]])
    return gallery


def nearest(vector: np.ndarray, gallery: Gallery, task: str, modality: str, k: int = 5):
    """The names whose vectors of one modality are closest, with their cosines."""
    scores = gallery[f"{task}/{modality}"] @ vector
    best = np.argsort(-scores)[:k]
    return {str(gallery[f"{task}/names"][i]): float(scores[i]) for i in best}
