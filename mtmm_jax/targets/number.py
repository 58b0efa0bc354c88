"""A number."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from mtmm_jax.readers.cells import SMALLEST_STD, Setting, is_number, number
from mtmm_jax.targets.column import Column, Label, few, most
from mtmm_jax.targets.kind import Count, TargetKind, blank
from mtmm_jax.targets.target import Target


@dataclasses.dataclass(frozen=True, kw_only=True)
class NumberColumn(Column):
    """A number; its mean and standard deviation are the train split's."""

    def parse(self, setting: Setting) -> list[float | None]:
        return setting.cells(self.at, self.where, number)

    def fit(self, cells: list[float | None], setting: Setting, train: np.ndarray) -> Label:
        found = np.array(setting.some(self.at, cells, train) or [0.0])
        std = float(found.std())
        target = Target(
            self.kind,
            mean=float(found.mean()),
            std=std if std > SMALLEST_STD else 1.0,
            made_from=tuple(self.made_from),
        )
        known = np.array([cell is not None for cell in cells], bool)
        return Label(target, np.array([cell or 0.0 for cell in cells], np.float32), known)


def guess(values: Sequence[Any]) -> dict[str, Any] | None:
    """Numbers that are not the indices of a few classes."""
    return {} if most(values, is_number) and not few(values) else None


def describe(target: Target, y: Any) -> Target:
    """The `Target` with mean and deviation; a deviation of 0 is not taken over."""
    return dataclasses.replace(target, mean=float(y.mean()), std=float(y.std()) or target.std)


def standardise(target: Target, y: Any) -> Any:
    """(y - mean) / std."""
    return (y - target.mean) / target.std


def undo(target: Target, z: Any) -> Any:
    """z std + mean."""
    return z * target.std + target.mean


NUMBER = TargetKind(
    blank=blank(np.float32, lambda target: ()),
    count=Count(lambda target, y: y),
    describe=describe,
    value=np.asarray,
    mixable=lambda target, y: y,
    standardise=standardise,
    undo=undo,
    column=NumberColumn,
    guess=guess,
    task="regression",
)
