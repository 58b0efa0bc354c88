"""What a manifest probably means, from the endings of its files and the look of its values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mtmm_jax.data.sources.manifest.rows import Rows
from mtmm_jax.modalities import MODALITIES
from mtmm_jax.readers.cells import number
from mtmm_jax.readers.files import Folder
from mtmm_jax.readers.limits import Unreadable

_ONE = {"modalities": "modality", "targets": "target"}
_LOOKED_AT = 200
_FEW = 50  # classes at most, each of which two rows have on average


def guess(rows: Rows, folder: Folder) -> tuple[dict[str, Any], list[str]]:
    """The description of a manifest, and in words how each column is taken."""
    found: dict[str, Any] = {"modalities": {}, "targets": {}}
    said = []
    if "split" not in rows.columns:
        found["split"] = {"train": 0.8, "validation": 0.1, "test": 0.1}
        said.append("no column 'split': 8 to 1 to 1, by the hash of the id")
    for column in sorted(rows.columns - {"id", "split"}):
        values = [row[column] for row in rows.values if row.get(column) not in (None, "")]
        if not values:
            said.append(f"{column!r}: empty, left out")
            continue
        where, spec = _column(values[:_LOOKED_AT], len(values), folder)
        found[where][column] = spec
        options = "".join(f", {key} {spec[key]}" for key in spec if key != "kind")
        said.append(f"{column!r}: {spec['kind']}{options}, as a {_ONE[where]}")
    return found, said


def _column(values: Sequence[Any], count: int, folder: Folder) -> tuple[str, dict[str, Any]]:
    for kind, row in MODALITIES.items():
        ends = row.endings
        if _most(values, lambda v, ends=ends: isinstance(v, str) and v.lower().endswith(ends)):
            return "modalities", {"kind": kind, **row.guessed}
    if _most(values, lambda v: isinstance(v, str) and _is_folder(v, folder)):
        return "modalities", {"kind": "video"}
    if _most(values, _is_boxes):
        units = "fractions" if all(_small(v) for v in values) else "pixels"
        return "targets", {"kind": "boxes", "units": units}
    if _most(values, lambda v: isinstance(v, list) or (isinstance(v, str) and "|" in v)):
        return "targets", {"kind": "labels"}
    different = len({str(value) for value in values})
    few = different <= min(_FEW, max(len(values) // 2, 1))
    if _most(values, _is_number):
        words = not any(isinstance(value, float) for value in values)
        whole = words and all("." not in str(value) for value in values)
        return "targets", {"kind": "class" if whole and few else "number"}
    return ("targets", {"kind": "class"}) if few else ("modalities", {"kind": "text"})


def _most(values: Sequence[Any], test: Any) -> bool:
    return sum(1 for value in values if test(value)) > len(values) / 2


def _is_folder(value: str, folder: Folder) -> bool:
    try:
        return folder.is_folder(value)
    except (Unreadable, ValueError):
        return False


def _is_number(value: Any) -> bool:
    try:
        number(value)
    except Unreadable:
        return False
    return True


def _is_boxes(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(v, dict) and "box" in v for v in value)


def _small(value: Any) -> bool:
    boxes = [v["box"] for v in value if isinstance(v, dict) and "box" in v] if value else []
    sides = [side for box in boxes if isinstance(box, list) for side in box]
    return all(isinstance(side, int | float) and 0 <= side <= 1 for side in sides)
