"""Problems of a run that did not stop it, as sentences for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtmm_jax.batch import Spec


def incidents(
    records: Sequence[Mapping[str, Any]],
    results: Mapping[str, Any],
    spec: Spec,
    tasks: Mapping[str, Any],
    present: Mapping[str, Mapping[str, float]] | None = None,
) -> list[str]:
    """Sentences on incidents: steps that were not finite or skipped, tasks without labels, metrics
    that are not known, classes that no row of the train split has, and modalities that none of a
    sample of its rows has.

    Args:
        records: of the journal.
        results: of the run.
        spec: of its data.
        tasks: of its model.
        present: split -> modality -> the share of a sample of rows that have it, from `run.json`.
    """
    train = [record for record in records if record["split"] == "train"]
    found = []
    if skipped := sum(int(r.get("skipped") or 0) for r in train):
        found.append(f"{skipped} updates were not finite and were skipped")
    for name, task in tasks.items():
        bad = sum(int((r.get("diverged") or {}).get(name, 0)) for r in train)
        if bad:
            found.append(f"{name}: loss or gradient was not finite in {bad} steps")
        losses = [(r.get("loss") or {}).get(name) for r in train]
        if train and not bad and not any(x is not None and np.isfinite(x) for x in losses):
            found.append(f"{name}: no step had a label")
        unknown = [k for k, v in (results["test"].get(name) or {}).items() if v is None]
        if unknown:
            found.append(f"{name}: not known on the test split: {', '.join(unknown)}")
        target = spec.targets.get(task.target)
        shares = zip(target.classes, target.frequencies or (), strict=False) if target else ()
        empty = [str(label) for label, share in shares if share == 0]
        if empty:
            more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
            found.append(f"{name}: no row to train on has {', '.join(empty[:5])}{more}")
    shares = present or {}
    for name, share in shares.get("train", {}).items():
        later = shares.get("test", {}).get(name, 0.0)
        if share == 0 and later > 0:
            found.append(
                f"{name}: none of the training rows looked at has it, {later:.0%} of the test rows "
                "do; the model has hardly learned to read it"
            )
    return found
