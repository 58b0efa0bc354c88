"""Rows of a manifest -> a batch: files decoded, bad ones reported and weighed nothing."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mtmm_jax.batch import Batch
from mtmm_jax.data.sources.manifest.bad import BadRows
from mtmm_jax.modalities import Input, kind_of
from mtmm_jax.readers.limits import Unreadable
from mtmm_jax.targets.column import Label


@dataclasses.dataclass(frozen=True, eq=False)  # an identity: `labels.look` remembers by it
class Compose:
    """Rows of the manifest -> a batch. What `Source.compose` is.

    Attributes:
        inputs, labels: by name.
        columns: of the labels, for reports.
        bad: the rows that were found bad.
    """

    inputs: Mapping[str, Input]
    labels: Mapping[str, Label]
    columns: Mapping[str, str]
    bad: BadRows

    def __call__(self, rows: np.ndarray, chance: np.ndarray | None) -> Batch:
        failed = np.zeros(len(rows), bool)
        attempt = functools.partial(_attempt, self.bad, rows, failed)
        inputs, pictures, at = {}, {}, 0
        for name, one in self.inputs.items():
            u = None if chance is None else chance[:, at : at + one.draws]
            inputs[name], pictures[name] = one.batch(rows, u, attempt)
            at += one.draws
        targets = {name: self._target(name, rows, pictures, failed) for name in self.labels}
        batch = {"inputs": inputs, "targets": targets, "id": np.asarray(rows, np.int32)}
        if failed.any():
            batch["weight"] = (~failed).astype(np.float32)
        return batch

    def _target(
        self, name: str, rows: np.ndarray, pictures: Mapping[str, Sequence[Any]], failed: np.ndarray
    ) -> dict[str, Any]:
        label = self.labels[name]
        known = label.known[rows]
        y = jax.tree.map(lambda leaf: leaf[rows], label.y)
        if label.place is None:
            return {"y": y, "present": known}
        y, reasons = label.place(y, pictures[label.of])
        known &= np.array([one is not None for one in pictures[label.of]], bool)
        for i, reason in enumerate(reasons):
            if reason and known[i]:
                self.bad.row(int(rows[i]), self.columns[name], None, reason)
                failed[i] = True
                known[i] = False
        return {"y": y, "present": known}


def _attempt(
    bad: BadRows,
    rows: np.ndarray,
    failed: np.ndarray,
    column: str,
    cells: Sequence[Any],
    decode: Callable[[Any, int], Any],
) -> list[Any]:
    out = []
    for i, row in enumerate(rows.tolist()):
        value = cells[row]
        try:
            out.append(None if value is None else decode(value, i))
        except Unreadable as error:
            bad.row(row, column, value, error)
            failed[i] = True
            out.append(None)
    return out


def picture_of(compose: Compose) -> Callable[[int], np.ndarray] | None:
    """A picture of an example: its first image, or the middle frame of its first clip."""
    frames = {name: kind_of(one.modality).frames for name, one in compose.inputs.items()}
    seen = [name for name, see in frames.items() if see]
    if not seen:
        return None

    def picture(id: int) -> np.ndarray:
        rows = np.array([id])
        attempt = functools.partial(_attempt, compose.bad, rows, np.zeros(1, bool))
        entry, _ = compose.inputs[seen[0]].batch(rows, None, attempt)
        shown = frames[seen[0]](entry["x"][0])
        return shown[int(entry["mask"][0].sum()) // 2 if "mask" in entry else 0]

    return picture
