"""One class, or any number of classes."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtmm_jax.markup import escape
from mtmm_jax.readers.cells import Setting, by_size, category, class_name
from mtmm_jax.readers.limits import Unreadable
from mtmm_jax.registry import ConfigError
from mtmm_jax.targets.column import (
    Classes,
    Column,
    Label,
    check_classes,
    few,
    frequencies,
    index,
    is_date,
    most,
)
from mtmm_jax.targets.kind import Count, TargetKind, Words, blank
from mtmm_jax.targets.rare import RareOptions, report_rare, settle_classes, usable_cells
from mtmm_jax.targets.target import Target


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassColumn(Column):
    """One of the classes: those of the rows, or `classes` (names, or how many).

    Args:
        classes: the only ones that may be.
        rare: `{"below": n, "to": "keep", "other" or "drop"}`: see `rare.RareOptions`.
    """

    classes: Classes = None
    rare: Mapping[str, Any] | None = None

    def parse(self, setting: Setting) -> list[str | None]:
        return setting.cells(self.at, self.where, category)

    def fit(self, cells: list[str | None], setting: Setting, train: np.ndarray) -> Label:
        classes, rare = check_classes(self.classes, self.where), self._rare
        if not classes:
            cells, classes = settle_classes(cells, rare, setting, train, self.at)
        found = setting.some(self.at, cells, train)
        known = np.array([cell is not None for cell in cells], bool)
        y = np.zeros(len(cells), np.int32)
        at = {name: i for i, name in enumerate(classes)}
        for row in np.flatnonzero(known):
            y[row] = index(at, cells[row], setting, int(row), self.at)
        share = frequencies(collections.Counter(found), classes, len(found))
        return Label(Target(self.kind, classes, share, made_from=tuple(self.made_from)), y, known)

    @property
    def _rare(self) -> RareOptions:
        if self.rare is not None and self.classes is not None:
            raise ConfigError(f"{self.where}.rare: not with classes, which says what there is")
        return RareOptions.of(self.rare, f"{self.where}.rare")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelsColumn(Column):
    """Any number of classes: a list, or one text with `separator` between them."""

    classes: Classes = None
    separator: str = "|"

    def parse(self, setting: Setting) -> list[list[str] | None]:
        return setting.cells(self.at, self.where, self._names)

    def _names(self, value: Any) -> list[str]:
        if isinstance(value, str):
            value = [part.strip() for part in value.split(self.separator) if part.strip()]
        if not isinstance(value, list):
            raise Unreadable("is neither a list of classes nor a text of several")
        return [class_name(name) for name in value]

    def fit(self, cells: list[list[str] | None], setting: Setting, train: np.ndarray) -> Label:
        found = setting.some(self.at, cells, train)
        counts = collections.Counter(name for names in found for name in set(names))
        classes = check_classes(self.classes, self.where)
        if not classes:
            present = collections.Counter(
                name for names in usable_cells(cells, setting) for name in set(names)
            )
            few = [name for name in by_size(set(present)) if not counts[name]]
            report_rare(few, counts, present, RareOptions(), setting, self.at)
            classes = by_size(set(present))
        if not classes:
            setting.bad.structure(
                None, self.at, None, "has no class in the train split", "empty column"
            )
        at = {name: i for i, name in enumerate(classes)}
        y = np.zeros((len(cells), len(classes)), np.float32)
        for row, names in enumerate(cells):
            for name in names if names and (self.classes or row not in setting.bad) else ():
                i = index(at, name, setting, row, self.at)
                if i < len(classes):
                    y[row, i] = 1
        share = frequencies(counts, classes, len(found))
        known = np.array([cell is not None for cell in cells], bool)
        return Label(Target(self.kind, classes, share, made_from=tuple(self.made_from)), y, known)


def per_class(target: Target, y: np.ndarray) -> np.ndarray:
    """`[n, C]`: a 1 for the class of each index; probabilities and sets of classes as they are."""
    return np.eye(len(target.classes), dtype=np.float32)[y] if y.ndim == 1 else y


def describe(target: Target, y: np.ndarray) -> Target:
    """With the frequencies of the classes."""
    shares = per_class(target, y).mean(0, dtype=np.float64)
    return dataclasses.replace(target, frequencies=tuple(shares.tolist()))


def class_of(y: np.ndarray) -> np.ndarray:
    """`[n]`: the index, or the most probable class."""
    y = np.asarray(y)
    return y.argmax(-1) if y.ndim == 2 else y


def probabilities(target: Target, y: Any) -> Any:
    """`[n, C]` float32, of NumPy or of JAX."""
    if y.ndim == 2:
        return y
    xp = y.__array_namespace__()
    return (y[:, None] == xp.arange(len(target.classes))).astype(xp.float32)


def html_class(target: Target, y: np.ndarray, words: Words) -> str:
    if np.ndim(y):  # a probability per class
        best = [c for c in np.argsort(-y)[:3] if y[c] > 0]
        return escape(", ".join(f"{target.classes[c]} {y[c]:.0%}" for c in best))
    return escape(target.classes[int(y)])


def html_labels(target: Target, y: np.ndarray, words: Words) -> str:
    chips = [f"<span class=chip>{escape(target.classes[c])}</span>" for c in np.flatnonzero(y)]
    return "".join(chips) or "none of them"


def guess_labels(values: Sequence[Any]) -> dict[str, Any] | None:
    """Lists, or texts with the separator."""
    several = most(values, lambda v: isinstance(v, list) or (isinstance(v, str) and "|" in v))
    return {} if several else None


CLASS = TargetKind(
    blank=blank(np.int32, lambda target: ()),
    shapes=lambda target: ((len(target.classes),),),
    count=Count(per_class, classes=True),
    describe=describe,
    value=class_of,
    discrete=True,
    mixable=probabilities,
    column=ClassColumn,
    guess=lambda values: {} if few(values) and not most(values, is_date) else None,
    task="classification",
    html=html_class,
)

LABELS = TargetKind(
    blank=blank(np.float32, lambda target: (len(target.classes),)),
    count=Count(per_class, classes=True),
    describe=describe,
    mixable=lambda target, y: y,
    column=LabelsColumn,
    guess=guess_labels,
    task="multilabel",
    html=html_labels,
    wide=True,
)
