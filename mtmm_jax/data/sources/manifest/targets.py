"""`TARGETS`: what a manifest's columns can be labels of."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from mtmm_jax.batch import Target
from mtmm_jax.data.sources.manifest.boxes import BoxesTarget
from mtmm_jax.data.sources.manifest.labels import Label, check_classes, frequencies, index
from mtmm_jax.readers.cells import (
    SMALLEST_STD,
    Setting,
    by_size,
    class_name,
    number,
    whole,
    words,
)
from mtmm_jax.readers.limits import Unreadable
from mtmm_jax.text import encode_with_mask, read_tokenizer, train_characters, train_tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Column:
    """Options that all have; `made_from` names modalities that the label can be read off."""

    own: str
    where: str
    column: str | None = None
    made_from: Sequence[str] = ()

    @property
    def at(self) -> str:
        return self.column or self.own


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassTarget(_Column):
    """One of the classes: those of the train split, or `classes` (names, or how many)."""

    classes: Sequence[str] | int | None = None

    def parse(self, setting: Setting) -> list[str | None]:
        return setting.cells(self.at, self.where, class_name)

    def fit(self, cells: list[str | None], setting: Setting, train: np.ndarray) -> Label:
        found = setting.some(self.at, cells, train)
        classes = check_classes(self.classes, self.where) or by_size(set(found))
        known = np.array([cell is not None for cell in cells], bool)
        y = np.zeros(len(cells), np.int32)
        at = {name: i for i, name in enumerate(classes)}
        for row in np.flatnonzero(known):
            y[row] = index(at, cells[row], setting, int(row), self.at)
        share = frequencies(collections.Counter(found), classes, len(found))
        return Label(Target("class", classes, share, made_from=tuple(self.made_from)), y, known)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NumberTarget(_Column):
    """A number; its mean and standard deviation are the train split's."""

    def parse(self, setting: Setting) -> list[float | None]:
        return setting.cells(self.at, self.where, number)

    def fit(self, cells: list[float | None], setting: Setting, train: np.ndarray) -> Label:
        found = np.array(setting.some(self.at, cells, train) or [0.0])
        std = float(found.std())
        target = Target(
            "number",
            mean=float(found.mean()),
            std=std if std > SMALLEST_STD else 1.0,
            made_from=tuple(self.made_from),
        )
        known = np.array([cell is not None for cell in cells], bool)
        return Label(target, np.array([cell or 0.0 for cell in cells], np.float32), known)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelsTarget(_Column):
    """Any number of classes: a list, or one text with `separator` between them."""

    classes: Sequence[str] | int | None = None
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
        classes = check_classes(self.classes, self.where) or by_size(set(counts))
        if not classes:
            setting.bad.structure(
                None, self.at, None, "has no class in the train split", "empty column"
            )
        at = {name: i for i, name in enumerate(classes)}
        y = np.zeros((len(cells), len(classes)), np.float32)
        for row, names in enumerate(cells):
            for name in names or ():
                i = index(at, name, setting, row, self.at)
                if i < len(classes):
                    y[row, i] = 1
        share = frequencies(counts, classes, len(found))
        known = np.array([cell is not None for cell in cells], bool)
        return Label(Target("labels", classes, share, made_from=tuple(self.made_from)), y, known)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokensTarget(_Column):
    """A text to write down, as characters, or as pieces where `vocabulary` says how many.

    The names of the tokens are the target's classes; 0 is the end, and CTC's blank. Characters are
    taken as they are. `length` is by default the longest text's; one that is longer is a bad row,
    as a label must not be cut.
    """

    length: int | None = None
    vocabulary: int | None = None

    def __post_init__(self) -> None:
        given = {"length": self.length, "vocabulary": self.vocabulary}
        whole(self.where, **{name: value for name, value in given.items() if value is not None})

    def parse(self, setting: Setting) -> list[str | None]:
        return setting.cells(self.at, self.where, words(setting.limits))

    def fit(self, cells: list[str | None], setting: Setting, train: np.ndarray) -> Label:
        found = setting.some(self.at, cells, train) or ["-"]
        if self.vocabulary is None:
            kept = train_characters(found if any(found) else ["-"])
        else:
            kept = train_tokenizer(found, self.vocabulary)
        tokenizer = read_tokenizer(kept)
        y, mask = encode_with_mask(tokenizer, [text or "" for text in cells], None)
        lengths = mask.sum(1)
        if self.length is not None:
            for row in np.flatnonzero(lengths > self.length).tolist():
                reason = f"has {lengths[row]} tokens; there is room for {self.length}"
                setting.bad.row(row, self.at, cells[row], reason)
            y = np.pad(y[:, : self.length], ((0, 0), (0, max(0, self.length - y.shape[1]))))
        size = tokenizer.get_vocab_size()
        target = Target(
            "tokens",
            classes=tuple(tokenizer.id_to_token(i) for i in range(size)),
            made_from=tuple(self.made_from),
            length=y.shape[1],
        )
        known = np.array([cell is not None for cell in cells], bool)
        assets = {f"{self.own}_tokenizer.json": kept.encode()}
        return Label(target, y, known, assets=assets)


TARGETS = {
    "class": ClassTarget,
    "number": NumberTarget,
    "labels": LabelsTarget,
    "tokens": TokensTarget,
    "boxes": BoxesTarget,
}
