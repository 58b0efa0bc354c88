"""Classes with few training rows, or none: kept, merged or left out, counted and named."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from mtmm_jax.ranges import Count
from mtmm_jax.readers.cells import Setting, by_size
from mtmm_jax.registry import section_of

OTHER = "other"
_SHOWN = 8


@dataclasses.dataclass(frozen=True)
class RareOptions:
    """The treatment of classes with fewer than `below` training rows.

    Attributes:
        below: training rows that a class needs in order not to be rare.
        to: "keep" them as they are, merge them into the class "other", or "drop" their labels:
            those rows have none.
    """

    below: Count = 1
    to: Literal["keep", "other", "drop"] = "keep"

    @classmethod
    def of(cls, section: Any, where: str) -> RareOptions:
        """The options of a config's section, checked."""
        if section is None:
            return cls()
        return cls(**section_of(section, cls, where, '{"below": 3, "to": "other"}'))


def settle_classes(
    cells: Sequence[str | None],
    rare: RareOptions,
    setting: Setting,
    train: np.ndarray,
    column: str,
) -> tuple[list[str | None], tuple[str, ...]]:
    """The label of each row and the classes there are.

    A class that no training row has is rare whatever `below` is. Kept, it has a frequency of 0.
    """
    counts = collections.Counter(cells[row] for row in train if cells[row] is not None)
    present = collections.Counter(usable_cells(cells, setting))
    few = [name for name in by_size(set(present)) if counts[name] < max(rare.below, 1)]
    report_rare(few, counts, present, rare, setting, column)
    if rare.to != "keep" and few:
        becomes = dict.fromkeys(few, OTHER if rare.to == "other" else None)
        cells = [becomes.get(cell, cell) if cell is not None else None for cell in cells]
    known = set(usable_cells(cells, setting))
    # Labels of rows that are left out of their split for another reason.
    kept = [cell if cell in known else None for cell in cells]
    return kept, by_size(known)


def usable_cells(cells: Sequence[Any], setting: Setting) -> list[Any]:
    """The values of the rows that can be used."""
    return [c for row, c in enumerate(cells) if c is not None and row not in setting.bad]


def report_rare(
    few: Sequence[str],
    counts: collections.Counter[Any],
    present: collections.Counter[Any],
    rare: RareOptions,
    setting: Setting,
    column: str,
) -> None:
    """Names the classes that were changed, and those that training does not have."""
    becomes = {"keep": "kept", "other": f"merged into {OTHER!r}", "drop": "left without a label"}
    named = few if rare.to != "keep" else [name for name in few if not counts[name]]
    if not named:
        return
    rows = sum(present[name] for name in named)
    shown = ", ".join(f"{name!r} ({present[name]})" for name in named[:_SHOWN])
    more = f" and {len(named) - _SHOWN} more" if len(named) > _SHOWN else ""
    least = "no row in train" if rare.to == "keep" else f"under {rare.below} rows in train"
    classes = "class has" if len(named) == 1 else "classes have"
    reason = (
        f"{len(named)} {classes} {least}, {rows} rows in all, {becomes[rare.to]}: {shown}{more}"
    )
    setting.bad.note(None, column, None, reason, "rare class")
