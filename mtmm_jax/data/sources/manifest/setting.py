"""What the modalities and targets of a manifest are built from, and one value of a cell."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from mtmm_jax.batch import Modality
from mtmm_jax.data.readers.limits import Limits, Unreadable
from mtmm_jax.data.sources.manifest.bad import BadRows
from mtmm_jax.data.sources.manifest.files import Folder
from mtmm_jax.data.sources.manifest.rows import Rows
from mtmm_jax.registry import ConfigError

SMALLEST_STD = 1e-8
_LARGEST = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True)
class Setting:
    """A manifest that is being turned into a source."""

    rows: Rows
    folder: Folder
    limits: Limits
    bad: BadRows

    def cells(self, column: str, where: str, parse: Callable[[Any], Any]) -> list[Any]:
        """A column, each value parsed; `None` where it is absent or its row is bad."""
        out = []
        for row, value in enumerate(self.raw(column, where)):
            try:
                out.append(None if value is None else parse(value))
            except Unreadable as error:
                self.bad.row(row, column, value, error)
                out.append(None)
        return out

    def raw(self, column: str, where: str) -> list[Any]:
        """A column as it stands in the manifest."""
        try:
            return self.rows.column(column, where)
        except ConfigError as error:
            if self.bad.on_bad != "collect":
                raise
            self.bad.structure(None, column, None, error, "no such column")
            return [None] * len(self.rows)

    def some(self, column: str, cells: Sequence[Any], train: np.ndarray) -> list[Any]:
        """The values of the train split, of which there must be one."""
        values = [cells[row] for row in train if cells[row] is not None]
        if not values:
            self.bad.structure(
                None, column, None, "has no value in the train split", "empty column"
            )
        return values


class Attempt(Protocol):
    """Decodes the cells of a batch; a failure is reported and leaves `None`."""

    def __call__(
        self, column: str, cells: Sequence[Any], decode: Callable[[Any, int], Any]
    ) -> list[Any]: ...


@dataclasses.dataclass(frozen=True)
class Input:
    """A modality that is ready to be read.

    Attributes:
        modality: for the spec.
        batch: `(rows, chance [B, draws] or None, attempt)` -> its entry in the batch, and what was
            decoded (of pictures, for the boxes in them).
        draws: how many random numbers an example takes.
        assets: files that prediction needs.
    """

    modality: Modality
    batch: Callable[[np.ndarray, np.ndarray | None, Attempt], tuple[dict[str, Any], list[Any]]]
    draws: int = 0
    assets: Mapping[str, bytes] = dataclasses.field(default_factory=dict)


def number(value: Any) -> float:
    """A finite number that float32 can hold, from JSON or from CSV."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise Unreadable("is not a number")
    try:
        found = float(value)
    except (ValueError, OverflowError) as error:
        raise Unreadable("is not a number") from error
    if not math.isfinite(found) or abs(found) > _LARGEST:
        raise Unreadable("is not a finite number of 32 bits")
    return found


def class_name(value: Any) -> str:
    """The name of a class: a word or a whole number."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise Unreadable("is not the name of a class")
    name = str(value)
    if not name.strip() or len(name) > 200:
        raise Unreadable("is no name of a class: empty, or over 200 characters")
    return name


def words(limits: Limits) -> Callable[[Any], str]:
    """Parses a text that stands in the manifest."""

    def parse(value: Any) -> str:
        if not isinstance(value, str):
            raise Unreadable("is not a text")
        limits.check("text_bytes", len(value.encode()), "bytes")
        return value

    return parse


def by_size(names: set[str]) -> tuple[str, ...]:
    """In the order of numbers if all are, otherwise of letters."""
    if all(name.isascii() and name.isdigit() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name[-18:]), name)))
    return tuple(sorted(names))


def positive(where: str, **values: Any) -> None:
    for name, value in values.items():
        whole = isinstance(value, int | float) and not isinstance(value, bool)
        if not whole or not 0 < value < math.inf:
            raise ConfigError(f"{where}.{name}: {value!r} is not a positive number")


def whole(where: str, **values: Any) -> None:
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{where}.{name}: {value!r} is not a positive whole number")
