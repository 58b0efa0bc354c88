"""One value of a manifest's cell, and what a kind of input or label reads its columns with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from mtmm_jax.readers.decoder import Decoder
from mtmm_jax.readers.files import Folder
from mtmm_jax.readers.limits import Limits, Unreadable

SMALLEST_STD = 1e-8
_LARGEST = float(np.finfo(np.float32).max)


class Setting(Protocol):
    """The rows whose columns are read.

    Attributes:
        rows: of the manifest: `len(rows)` and `rows.columns`.
        folder: in which the files lie that rows name.
        limits: what is refused for its size.
        bad: where rows that cannot be used are reported: `bad.row` and `bad.structure`.
    """

    rows: Any
    folder: Folder
    limits: Limits
    bad: Any

    def cells(self, column: str, where: str, parse: Callable[[Any], Any]) -> list[Any]:
        """A column, each value parsed; `None` where it is absent or its row is bad."""

    def once(self, column: str, cells: Sequence[Any], decoder: Decoder) -> Callable[[str], Any]:
        """name of a file -> its value, which may have been decoded before."""

    def some(self, column: str, cells: Sequence[Any], train: np.ndarray) -> list[Any]:
        """The values of the train split, of which there must be one."""


class Attempt(Protocol):
    """Decodes the cells of a batch; a failure is reported and leaves `None`."""

    def __call__(
        self, column: str, cells: Sequence[Any], decode: Callable[[Any, int], Any]
    ) -> list[Any]: ...


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


def is_number(value: Any) -> bool:
    try:
        number(value)
    except Unreadable:
        return False
    return True


def class_name(value: Any) -> str:
    """The name of a class: a word or a whole number."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise Unreadable("is not the name of a class")
    name = str(value)
    if not name.strip() or len(name) > 200:
        raise Unreadable("is no name of a class: empty, or over 200 characters")
    return name


def category(value: Any) -> str:
    """The name of a class, or true or false."""
    return str(value).lower() if isinstance(value, bool) else class_name(value)


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
