"""Several columns of numbers and categories as one table."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from mtmm_jax.modalities.columns import Input
from mtmm_jax.modalities.modality import Modality
from mtmm_jax.readers.cells import SMALLEST_STD, Attempt, Setting, by_size, class_name, number
from mtmm_jax.readers.limits import Unreadable
from mtmm_jax.registry import ConfigError, choose

_KINDS = ("number", "category")
_MOST = 256  # categories of a column


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableColumn:
    """Numbers, standardised by the train split, and categories, one 0/1 column for each.

    What is missing is masked, and so is a category that the train split does not have.

    Args:
        columns: names, or `{"column": name, "kind": "number" or "category"}`. Without a kind a
            column is of numbers if most of its values in the train split are.
    """

    own: str
    where: str
    columns: Sequence[str | Mapping[str, str]]

    pictured: ClassVar[bool] = False
    tokenized: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.columns:
            raise ConfigError(f"{self.where}.columns: {self.columns!r} is not a list of columns")
        for column in self.columns:
            given = {"column": column} if isinstance(column, str) else column
            if "column" not in given:
                raise ConfigError(f"{self.where}.columns: {column!r} names no column")
            for key in given:
                choose(key, ("column", "kind"), f"{self.where}.columns", "key")
            choose(given.get("kind", _KINDS[0]), _KINDS, f"{self.where}.columns", "kind of column")
        if len(set(self.names)) < len(self.names):
            raise ConfigError(f"{self.where}.columns: {self.names} has a column twice")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(c if isinstance(c, str) else c["column"] for c in self.columns)

    @property
    def at(self) -> str:
        return ", ".join(self.names)

    def describe(self, cell: Any) -> str:
        del cell
        return ""

    def parse(self, setting: Setting) -> list[list[Any]]:
        return [
            setting.cells(
                name,
                self.where,
                number if not isinstance(column, str) and column.get("kind") == "number" else _cell,
            )
            for name, column in zip(self.names, self.columns, strict=True)
        ]

    def fit(self, cells: list[list[Any]], setting: Setting, train: np.ndarray, _: Any) -> Input:
        parts = [
            self._column(name, column, values, setting, train)
            for name, column, values in zip(self.names, self.columns, cells, strict=True)
        ]
        x = np.concatenate([x for _, x, _ in parts], axis=1)
        mask = np.concatenate([mask for _, _, mask in parts], axis=1)
        described = [about for about, _, _ in parts]
        names = tuple(
            name if "mean" in about else f"{name}={value}"
            for name, about in zip(self.names, described, strict=True)
            for value in about.get("categories", (None,))
        )

        def batch(rows: np.ndarray, chance: Any, attempt: Attempt) -> Any:
            known = mask[rows]
            return {"x": x[rows], "mask": known, "present": known.any(1)}, []

        kept = json.dumps(dict(zip(self.names, described, strict=True)), indent=1)
        modality = Modality("table", (x.shape[1],), "float32", names=names)
        return Input(modality, batch, assets={f"{self.own}_columns.json": kept.encode()})

    def _column(
        self, name: str, column: Any, cells: list[Any], setting: Setting, train: np.ndarray
    ) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
        """What was learnt of a column, its part of the table and its mask."""
        found = setting.some(name, cells, train)
        kind = None if isinstance(column, str) else column.get("kind")
        if kind is None:
            kind = "number" if sum(map(_is_number, found)) > len(found) / 2 else "category"
        if kind == "number":
            return _numbers(setting.cells(name, self.where, number), train)
        categories = by_size({class_name(value) for value in found})
        if len(categories) > _MOST:
            reason = f'has {len(categories)} categories, over {_MOST}; is it of kind "number"?'
            setting.bad.structure(None, name, None, reason, "bad value")
        at = {category: i for i, category in enumerate(categories[:_MOST])}
        x = np.zeros((len(cells), max(len(at), 1)), np.float32)
        mask = np.zeros(x.shape, bool)
        for row, value in enumerate(cells):
            place = None if value is None else at.get(class_name(value))
            if place is not None:
                x[row, place], mask[row] = 1, True
        return {"categories": list(at) or [""]}, x, mask


def _numbers(
    cells: list[float | None], train: np.ndarray
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    values = np.array([np.nan if cell is None else cell for cell in cells])
    known = ~np.isnan(values)
    seen = values[train][known[train]]
    mean, std = (float(seen.mean()), float(seen.std())) if len(seen) else (0.0, 1.0)
    std = std if std > SMALLEST_STD else 1.0
    x = np.where(known, (values - mean) / std, 0).astype(np.float32)
    return {"mean": mean, "std": std}, x[:, None], known[:, None]


def _cell(value: Any) -> Any:
    """A number or a category, not yet known which."""
    if isinstance(value, float):
        return number(value)
    if isinstance(value, bool):
        return str(value).lower()
    try:
        class_name(value)
    except Unreadable as error:
        raise Unreadable("is neither a number nor a category") from error
    return value


def _is_number(value: Any) -> bool:
    try:
        number(value)
    except Unreadable:
        return False
    return True
