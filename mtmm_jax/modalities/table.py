"""Tables, `[columns]` of numbers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from mtmm_jax.modalities.columns import Input, Kept
from mtmm_jax.modalities.corruption import ABSENT, NOISE, fewer
from mtmm_jax.modalities.kind import ModalityKind
from mtmm_jax.modalities.modality import Modality
from mtmm_jax.modalities.scale import scale_of
from mtmm_jax.modalities.shown import Example, named_numbers, names_of
from mtmm_jax.modalities.table_column import TableColumn, spread
from mtmm_jax.modalities.units import Units, numbered, zeros
from mtmm_jax.readers.cells import Attempt, Setting, category, number
from mtmm_jax.readers.limits import Unreadable


def kept_table(kept: Kept, setting: Setting) -> Input | None:
    """Standardised and spread over columns as in training; None where no row has any of it."""
    name, modality = kept.name, kept.modality
    where, rows = f"--manifest: {name}", setting.rows
    kept_columns = kept.asset(f"{name}_columns.json")
    if kept_columns is None and name in rows.columns:
        listed = setting.cells(name, where, lambda value: _vector(value, modality))
        nothing = [None] * len(modality.names or range(modality.shape[0]))
        cells = dict(enumerate(zip(*(nothing if v is None else v for v in listed), strict=True)))
    else:
        columns = dict.fromkeys(kept_columns or modality.names)
        if not columns.keys() & rows.columns:
            return None
        cells = {}
        for column in columns:
            parse = category if kept_columns and "categories" in kept_columns[column] else number
            here = column in rows.columns
            cells[column] = setting.cells(column, where, parse) if here else [None] * len(rows)
    if kept_columns is not None:
        parts = [spread(cells[column], about) for column, about in kept_columns.items()]
        x, mask = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
    else:
        x, mask = _plain(list(cells.values()), kept)

    def batch(chosen: np.ndarray, chance: Any, attempt: Attempt) -> Any:
        known = mask[chosen]
        return {"x": x[chosen], "mask": known, "present": known.any(1)}, []

    return Input(modality, batch)


def _plain(cells: list[Any], kept: Kept) -> tuple[np.ndarray, np.ndarray]:
    """Numbers by column, in the units that the source had them in."""
    values = np.array([[np.nan if v is None else v for v in column] for column in cells]).T
    names = list(kept.modality.names)
    for i, column in enumerate(names):
        unknown = f"{column}_missing"  # a source with a column for what is not known
        if unknown in names and np.isnan(values[:, names.index(unknown)]).all():
            gap = np.isnan(values[:, i])
            values[:, names.index(unknown)] = gap
            mean, _ = scale_of(kept)
            values[gap, i] = mean[i]
    known = ~np.isnan(values)
    if kept.pipe is None:
        mean, std = scale_of(kept)
        return np.where(known, (values - mean) / std, 0).astype(np.float32), known
    found = kept.pipe([np.nan_to_num(v).astype(np.float32) for v in values])
    return np.where(known, found["x"], 0).astype(np.float32), known


def _vector(value: Any, modality: Modality) -> list[float | None]:
    size = modality.shape[0]
    if not isinstance(value, list) or len(value) != size:
        raise Unreadable(f"is no list of {size} numbers")
    return [None if v is None else number(v) for v in value]


def _row(value: str, kept: Kept) -> dict[str, Any]:
    """`{"column": value}`, or a list."""
    found = json.loads(value)
    return found if isinstance(found, dict) else {kept.name: found}


def one_each(modality: Modality, shape: tuple[int, ...]) -> list[tuple[int, int]]:
    del modality
    return [(shape[0], shape[0])]


def column_names(modality: Modality, count: int) -> list[str]:
    return list(modality.names) if len(modality.names) == count else numbered(modality, count)


def show(example: Example) -> str:
    x, mask = example.x, example.mask
    known = np.isfinite(x) if mask is None else np.isfinite(x) & mask
    return named_numbers(names_of(example.modality, len(x)), x, known)


TABLE = ModalityKind(
    "table",
    dimensions=1,
    mask="maybe",
    column=TableColumn,
    kept=kept_table,
    row=_row,
    files=False,
    encoder="table_mlp",
    fixed="table_columns",
    units=Units(one_each, zeros, column_names, masked=False),
    corruptions={"noise": NOISE, "missing values": fewer("values"), "absent": ABSENT},
    show=show,
    wide=True,
)
