"""A manifest's column as a label: the options that all kinds have, and a column of numbers."""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mtmm_jax.ranges import Size
from mtmm_jax.readers.cells import Setting, is_number, number
from mtmm_jax.readers.limits import Unreadable
from mtmm_jax.registry import ConfigError
from mtmm_jax.targets.target import Target

Classes = Sequence[str] | Size | None
"""Names, or how many."""
_SHOWN = 20
_FEW = 1000  # classes at most, each of which two rows have on average
_FEW_NUMBERS = 20  # of them where they are numbers
_SENTENCE, _PHRASES = 2.5, 10  # spaces from which texts are sentences, unless there are that few


@dataclasses.dataclass(frozen=True)
class Label:
    """A target of every row of a manifest.

    Attributes:
        target: for the spec.
        y: a pytree of `[N, ...]`.
        known: `[N]` bool.
        of: the picture that `place` needs, for boxes.
        place: `(y, pictures)` of a batch -> y, and for each example why it is bad, or None.
        assets: files that prediction needs.
    """

    target: Target
    y: Any
    known: np.ndarray
    of: str | None = None
    place: Callable[[Any, Sequence[Any]], tuple[Any, list[str | None]]] | None = None
    assets: Mapping[str, bytes] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """Options that all have; `made_from` names modalities that the label can be read off.

    An entry also has `parse(setting) -> cells`, None where a row has no label, and
    `fit(cells, setting, train) -> Label`.
    """

    kind: str = dataclasses.field(kw_only=False)
    own: str
    where: str
    column: str | None = None
    made_from: Sequence[str] = ()

    @property
    def at(self) -> str:
        return self.column or self.own

    def with_pictures(self, pictures: Sequence[str]) -> Column:
        """The column once the modalities that are pictures are known."""
        return self


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlainColumn(Column):
    """A number, or a JSON list of the shape that a label of the kind has.

    Args:
        shape: of one label; that of the first in the train split by default.
        length: `Target.length`, of kinds that have one.
        classes: `Target.classes`, of kinds that have them: names, or how many.
    """

    shape: Sequence[Size] | None = None
    length: Size | None = None
    classes: Classes = None

    def parse(self, setting: Setting) -> list[np.ndarray | None]:
        return setting.cells(self.at, self.where, _numbers)

    def fit(self, cells: list[np.ndarray | None], setting: Setting, train: np.ndarray) -> Label:
        found = setting.some(self.at, cells, train)
        shape = self.shape if self.shape is not None else np.shape(found[0]) if found else ()
        target = Target(
            self.kind,
            classes=check_classes(self.classes, self.where),
            made_from=tuple(self.made_from),
            length=self.length or 0,
            shape=tuple(shape),
        )
        y = target.blank(len(cells))
        if not isinstance(y, np.ndarray):
            raise ConfigError(
                f"{self.where}.kind: a {self.kind} label is several arrays, which no column holds; "
                "give its entry of TARGETS a `column`"
            )
        known = np.array([cell is not None for cell in cells], bool)
        for row in np.flatnonzero(known).tolist():
            if reason := _misfit(cells[row], y):
                setting.bad.row(row, self.at, cells[row].tolist(), reason)
                known[row] = False
            else:
                y[row] = cells[row]
        return Label(target, y, known)


def _misfit(cell: np.ndarray, y: np.ndarray) -> str | None:
    """The reason why a cell is no row of `y`; None where it is one."""
    if cell.shape != y.shape[1:]:
        return f"has numbers of shape {list(cell.shape)}, not {list(y.shape[1:])}"
    if not np.issubdtype(y.dtype, np.floating) and (cell != cell.astype(y.dtype)).any():
        return "has a number that is not whole"
    return None


def _numbers(value: Any) -> np.ndarray:
    """Nested lists of numbers of one length each, from JSON or from a text that is JSON."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise Unreadable("is no list of numbers") from error

    def read(part: Any, depth: int) -> Any:
        if not isinstance(part, list):
            return number(part)
        if depth > 8:
            raise Unreadable("is a list in too many lists")
        return [read(one, depth + 1) for one in part]

    try:
        return np.array(read(value, 0), np.float64)
    except Unreadable:
        raise
    except ValueError as error:  # lists of different lengths
        raise Unreadable("has lists of different lengths") from error


def check_classes(classes: Classes, where: str) -> tuple[str, ...]:
    """The classes that the options name; `n` are called 0 to n - 1; none if none are named."""
    if classes is None:
        return ()
    names = tuple(map(str, range(classes) if isinstance(classes, int) else classes))
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"{where}.classes: {classes!r} are no different names, nor their number")
    return names


def index(at: Mapping[str, int], name: str, setting: Setting, row: int, column: str) -> int:
    """The index of a class; an unknown one is an error under every `on_bad`."""
    if name in at:
        return at[name]
    close = difflib.get_close_matches(name, at, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    more = f" and {len(at) - _SHOWN} more" if len(at) > _SHOWN else ""
    shown = ", ".join(list(at)[:_SHOWN]) or "none"
    setting.bad.structure(
        row, column, name, f"is an unknown class{hint}; choices: {shown}{more}", "unknown class"
    )
    return 0


def frequencies(counts: Mapping[str, int], classes: Sequence[str], total: int) -> tuple[float, ...]:
    return tuple(counts.get(name, 0) / max(total, 1) for name in classes)


# What a column's cells look like.


def most(values: Sequence[Any], test: Callable[[Any], bool]) -> bool:
    """Whether more than half of the values pass."""
    return sum(1 for value in values if test(value)) > len(values) / 2


def few(values: Sequence[Any]) -> bool:
    """Whether the values look like classes: few different ones for their number, no sentences.

    Whole numbers do if they count from 0 or 1 without a gap, or are only two; other numbers never.
    """
    names = {str(value) for value in values}
    if most(values, is_number):
        counted = {int(float(name)) for name in names if is_number(name)}
        whole = not any(isinstance(value, float) or "." in str(value) for value in values)
        gapless = min(counted) in (0, 1) and max(counted) - min(counted) < len(counted)
        few_numbers = len(counted) <= min(_FEW_NUMBERS, max(len(values) // 2, 1))
        return whole and few_numbers and (gapless or len(counted) <= 2)
    if len(names) > min(_FEW, max(len(values) // 2, 1)):
        return False
    spaces = sum(str(value).strip().count(" ") for value in values) / len(values)
    return spaces < _SENTENCE or len(names) <= min(_PHRASES, len(values) // 4)


def is_date(value: Any) -> bool:
    """Whether a text is an ISO date or time."""
    if not isinstance(value, str) or len(value) < 8 or "-" not in value:
        return False
    try:
        datetime.datetime.fromisoformat(value)
    except ValueError:
        return False
    return True
