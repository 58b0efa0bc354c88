"""Kinds of labels. `TARGETS` has everything that depends on the kind; all other rooms read it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from mtmm_jax.targets.boxes import BOXES
from mtmm_jax.targets.classes import CLASS, LABELS
from mtmm_jax.targets.dense import MASK, PATH, WAVE
from mtmm_jax.targets.kind import Count, TargetKind
from mtmm_jax.targets.number import NUMBER
from mtmm_jax.targets.target import Target
from mtmm_jax.targets.tokens import TOKENS

TARGETS = {
    "class": CLASS,  # an index, or a probability per class
    "number": NUMBER,  # a float
    "labels": LABELS,  # 0 or 1 per class, any number of them 1
    "tokens": TOKENS,  # `length` ids, 0 after the end
    "boxes": BOXES,  # `length` slots: "boxes" [N, 4] y0, x0, y1, x1 in 0..1, "classes", "valid" [N]
    "wave": WAVE,  # `length` samples in -1..1, silence after the end
    "mask": MASK,  # an index for each pixel of `shape`, below 0 where it is not known
    "path": PATH,  # "points" of `shape` and "valid" [N]
}


def columns() -> dict[str, Callable[..., Any]]:
    """Kind -> the constructor of its column, of the kinds that a manifest can hold."""
    return {
        name: functools.partial(row.column, name)
        for name, row in TARGETS.items()
        if row.column is not None
    }


__all__ = ["TARGETS", "Count", "Target", "TargetKind", "columns"]
