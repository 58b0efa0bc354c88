"""Several columns of numbers and categories as one table."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from mtmm_jax.modalities.columns import Input
from mtmm_jax.modalities.modality import Modality
from mtmm_jax.readers.cells import (
    SMALLEST_STD,
    Attempt,
    Setting,
    by_size,
    category,
    is_number,
    number,
)
from mtmm_jax.readers.limits import Unreadable
from mtmm_jax.registry import ConfigError, choose

_PARSERS = {"number": number, "category": category}
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
            choose(given.get("kind", "number"), _PARSERS, f"{self.where}.columns", "kind of column")
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
            setting.cells(name, self.where, _PARSERS.get(_kind(column), _cell))
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
        """A description of the column, its part of the table and its mask."""
        found, kind = setting.some(name, cells, train), _kind(column)
        if kind is None:
            kind = "number" if sum(map(is_number, found)) > len(found) / 2 else "category"
            cells = setting.cells(name, self.where, _PARSERS[kind])
        if kind == "number":
            about: dict[str, Any] = _scale(cells, train)
        else:
            about = {"categories": self._categories(name, cells, setting, train)}
        return about, *spread(cells, about)

    def _categories(
        self, name: str, cells: list[str | None], setting: Setting, train: np.ndarray
    ) -> list[str]:
        categories = by_size({cells[row] for row in train if cells[row] is not None})
        if len(categories) > _MOST:
            reason = f'has {len(categories)} categories, over {_MOST}; is it of kind "number"?'
            setting.bad.structure(None, name, None, reason, "bad value")
        return list(categories[:_MOST]) or [""]


def _kind(column: str | Mapping[str, str]) -> str | None:
    return None if isinstance(column, str) else column.get("kind")


def _scale(cells: list[float | None], train: np.ndarray) -> dict[str, float]:
    seen = np.array([cells[row] for row in train if cells[row] is not None], np.float64)
    mean, std = (float(seen.mean()), float(seen.std())) if len(seen) else (0.0, 1.0)
    return {"mean": mean, "std": std if std > SMALLEST_STD else 1.0}


def spread(cells: list[Any], about: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """A column's part of the table and its mask; a category that `about` does not have is masked.

    Args:
        cells: numbers or categories; None where there is none.
        about: the description of the column: `mean` and `std`, or `categories`.
    """
    if "mean" in about:
        values = np.array([np.nan if cell is None else cell for cell in cells], np.float64)[:, None]
        known = ~np.isnan(values)
        x = np.where(known, (values - about["mean"]) / about["std"], 0)
        return x.astype(np.float32), known
    at = {name: i for i, name in enumerate(about["categories"])}
    x = np.zeros((len(cells), len(at)), np.float32)
    mask = np.zeros(x.shape, bool)
    for row, value in enumerate(cells):
        if value in at:
            x[row, at[value]], mask[row] = 1, True
    return x, mask


def _cell(value: Any) -> Any:
    """A number or a category, not yet known which."""
    if isinstance(value, float):
        return number(value)
    try:
        category(value)
    except Unreadable as error:
        raise Unreadable("is neither a number nor a category") from error
    return value
