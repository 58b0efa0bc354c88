"""Doubtful properties of a table beyond single cells: gaps, tails, splits, copies."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtmm_jax.data.inspect.columns import TAIL, ColumnLook
from mtmm_jax.data.pipeline.source import Source
from mtmm_jax.data.sources.manifest.bad import BadRows, Problem
from mtmm_jax.data.sources.manifest.rows import Rows
from mtmm_jax.modalities import MODALITIES

GAPS = 0.05  # share of empty cells from which they are worth a word
_NOTHING = ("na", "n/a", "nan", "null", "none", "-", "?")
_DECIMAL_COMMA = re.compile(r"^-?\d+,\d+$")
_SHOWN = 3


def note_doubts(
    rows: Rows, looks: Sequence[ColumnLook], source: Source, id: str, bad: BadRows
) -> None:
    """Reports what a person should know of a table; none of it makes a row unusable."""
    of_row = {row: split for split, found in source.rows.items() for row in found.tolist()}
    for look in looks:
        _cells(rows, look, bad)
        if look.role == "target":
            _target(look, bad)
        if look.role == "group":
            _straddling(rows, look, of_row, bad, "group")
        if look.role == "modality" and not look.options.get("from"):
            _same_texts(rows, look, of_row, bad)
    repeated_ids(rows, id, bad)
    for split in ("validation", "test"):
        if not len(source.rows.get(split, ())):
            bad.note(None, "", None, f"has no row in {split}", "empty split")


def doubts_of(looks: Sequence[ColumnLook], rows: int, path: Path) -> list[Problem]:
    """Doubts that follow from counts alone: empty columns and cells, rare classes, one value."""
    bad = BadRows.collecting(path, ())
    for look in looks:
        _gaps(rows, look, bad)
        if look.role == "target":
            _target(look, bad)
    return [*bad.problems, *bad.doubts]


def repeated_ids(rows: Rows, column: str, bad: BadRows) -> None:
    """Each row whose id a row before it has."""
    first: dict[str, int] = {}
    for row, cells in enumerate(rows.values):
        id = cells.get(column)
        if id is not None and first.setdefault(str(id), row) != row:
            line = rows.lines[first[str(id)]]
            bad.note(row, column, id, f"is the id of line {line} too", "repeated id", doubt=False)


def _gaps(rows: int, look: ColumnLook, bad: BadRows) -> None:
    if not look.present:
        bad.note(None, look.name, None, "has no value in any row", "empty column", doubt=False)
        return
    share = look.missing / max(rows, 1)
    if look.missing and share >= GAPS and look.role != "modality":
        reason = f"{look.missing} of {rows} cells are empty ({share:.0%})"
        bad.note(None, look.name, None, reason, "empty cells")


def _cells(rows: Rows, look: ColumnLook, bad: BadRows) -> None:
    _gaps(len(rows), look, bad)
    if not look.present:
        return
    texts = [row[look.name] for row in rows.values if isinstance(row.get(look.name), str)]
    blank = [text for text in texts if text.strip().lower() in (*_NOTHING, "")]
    if blank and look.role in ("target", "table"):
        reason = f"{len(blank)} cells hold {blank[0]!r}, which is read as a value; leave them empty"
        bad.note(None, look.name, None, reason, "value for nothing")
    commas = sum(bool(_DECIMAL_COMMA.match(text)) for text in texts)
    if commas > len(rows) / 2:
        reason = "has numbers with a decimal comma, which are read as texts; write a point"
        bad.note(None, look.name, None, reason, "decimal comma")


def _target(look: ColumnLook, bad: BadRows) -> None:
    if look.distinct == 1:
        bad.note(None, look.name, None, "has one value: there is nothing to learn", "one value")
    if look.tail:
        few = sorted(look.classes, key=lambda name: (look.classes[name], name))[:_SHOWN]
        shown = ", ".join(f"{name!r} ({look.classes[name]})" for name in few)
        reason = (
            f"{look.tail} of {len(look.classes)} classes have fewer than {TAIL} rows, such as "
            f"{shown}; `rare` can merge or drop them"
        )
        bad.note(None, look.name, None, reason, "rare classes")


def _straddling(
    rows: Rows, look: ColumnLook, of_row: dict[int, str], bad: BadRows, what: str
) -> None:
    where: dict[Any, set[str]] = collections.defaultdict(set)
    for row, split in of_row.items():
        value = rows.values[row].get(look.name)
        if value is not None:
            where[value].add(split)
    several = [value for value, splits in where.items() if len(splits) > 1]
    if several:
        shown = ", ".join(map(repr, several[:_SHOWN]))
        reason = (
            f"{len(several)} of {len(where)} {what}s are in several splits, such as {shown}; "
            f'"group": {look.name!r} in `split` keeps them together'
        )
        bad.note(None, look.name, None, reason, f"{what} in several splits")


def _same_texts(rows: Rows, look: ColumnLook, of_row: dict[int, str], bad: BadRows) -> None:
    """Texts of evaluation that training has too. Files are compared by their content elsewhere."""
    if MODALITIES[look.kind].files:
        return
    texts = {row: _folded(rows.values[row].get(look.name)) for row in of_row}
    train = {texts[row] for row, split in of_row.items() if split == "train"}
    same = [
        row
        for row in _ordered(of_row)
        if of_row[row] != "train" and texts[row] and texts[row] in train
    ]
    if same:
        reason = (
            f"{len(same)} texts of validation and test are in train too, such as "
            f"{str(rows.values[same[0]].get(look.name))[:60]!r} (line {rows.lines[same[0]]})"
        )
        bad.note(None, look.name, None, reason, "text in two splits")


def _folded(value: Any) -> str:
    return " ".join(value.lower().split()) if isinstance(value, str) else ""


def _ordered(rows: Iterable[int]) -> list[int]:
    return np.sort(np.fromiter(rows, np.int64)).tolist()
