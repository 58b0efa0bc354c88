"""Means and deviations by which a run's data were standardised."""

from __future__ import annotations

import numpy as np

from mtmm_jax.modalities.columns import Kept


def scale_of(kept: Kept) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each column or channel, as the source kept them; 0 and 1 if it did not.

    Sources keep them as `<modality>.json` or `<kind>.json`, or for several tables `tables.json`.
    """
    name, modality = kept.name, kept.modality
    size = modality.shape[-1]
    mean, std = np.zeros(size), np.ones(size)
    for file in (f"{name}.json", f"{modality.kind}.json", f"{modality.kind}s.json"):
        found = kept.asset(file)
        if not isinstance(found, dict):
            continue
        found = found.get(name, found)
        if "mean" in found:
            return np.asarray(found["mean"], np.float64), np.asarray(found["std"], np.float64)
        for column, about in found.get("scale", {}).items():
            at = modality.names.index(column)
            mean[at], std[at] = about["mean"], about["std"]
        return mean, std
    return mean, std
