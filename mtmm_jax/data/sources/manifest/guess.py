"""What a manifest probably means, from the endings of its files and the look of its values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mtmm_jax.data.sources.manifest.rows import Rows
from mtmm_jax.modalities import MODALITIES
from mtmm_jax.readers.files import Folder
from mtmm_jax.readers.limits import Unreadable
from mtmm_jax.targets import TARGETS
from mtmm_jax.targets.column import most

_ONE = {"modalities": "modality", "targets": "target"}
_LOOKED_AT = 200


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
        where, spec = _column(values[:_LOOKED_AT], folder)
        found[where][column] = spec
        options = "".join(f", {key} {spec[key]}" for key in spec if key != "kind")
        said.append(f"{column!r}: {spec['kind']}{options}, as a {_ONE[where]}")
    return found, said


def _column(values: Sequence[Any], folder: Folder) -> tuple[str, dict[str, Any]]:
    for kind, row in MODALITIES.items():
        ends = row.endings
        if most(values, lambda v, ends=ends: isinstance(v, str) and v.lower().endswith(ends)):
            return "modalities", {"kind": kind, **row.guessed}
    if most(values, lambda v: isinstance(v, str) and _is_folder(v, folder)):
        return "modalities", {"kind": "video"}
    for kind, row in reversed(TARGETS.items()):
        options = None if row.guess is None or row.column is None else row.guess(values)
        if options is not None:
            return "targets", {"kind": kind, **options}
    return "modalities", {"kind": "text"}


def _is_folder(value: str, folder: Folder) -> bool:
    try:
        return folder.is_folder(value)
    except (Unreadable, ValueError):
        return False
