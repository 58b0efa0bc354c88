"""Kinds of inputs: everything that depends on the kind of a modality.

`MODALITIES` has a row for each; adding a kind is a file with one `ModalityKind` and its row here.
Other rooms call what `kind_of(modality)` holds, or `Modality.is_a`; none compares a kind.

    POINTS = ModalityKind("points", dimensions=2)                  # arrays [N, 3], and nothing more
    DEPTH = ModalityKind("depth", 3, like=("image",), units=IMAGE.units)   # for encoders of images

Both are read from a manifest (`.npy` files or lists), checked, shown, trained on, damaged,
explained and exported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mtmm_jax.modalities.audio import AUDIO
from mtmm_jax.modalities.columns import Input, Kept
from mtmm_jax.modalities.image import IMAGE
from mtmm_jax.modalities.kind import ModalityKind
from mtmm_jax.modalities.modality import Modality
from mtmm_jax.modalities.series import SERIES
from mtmm_jax.modalities.table import TABLE
from mtmm_jax.modalities.text import TEXT
from mtmm_jax.modalities.video import VIDEO
from mtmm_jax.registry import build, choose

MODALITIES: dict[str, ModalityKind] = {
    row.name: row for row in (IMAGE, TEXT, AUDIO, VIDEO, TABLE, SERIES)
}


def kind_of(modality: Modality) -> ModalityKind:
    """The row of a modality's kind."""
    return MODALITIES[choose(modality.kind, MODALITIES, "modality.kind", "kind of modality")]


def is_like(name: str, kinds: Iterable[str]) -> bool:
    """Whether a kind is one of `kinds`, or like one of them by its row."""
    kinds = tuple(kinds)
    if name in kinds or name not in MODALITIES:
        return name in kinds
    return any(is_like(other, kinds) for other in MODALITIES[name].like)


def column_of(spec: Any, own: str, where: str) -> Any:
    """The options of a modality in a manifest's config: its `kind` and those of its column.

    Args:
        spec: the name of a kind, or a mapping with `kind` and options.
        own: name of the modality.
        where: the place in the config.
    """
    name = spec.get("kind") if isinstance(spec, Mapping) else spec
    context = MODALITIES[name].context if isinstance(name, str) and name in MODALITIES else {}
    table = {row.name: row.column for row in MODALITIES.values()}
    return build(table, spec, where=where, own=own, **context)


__all__ = [
    "MODALITIES",
    "Input",
    "Kept",
    "Modality",
    "ModalityKind",
    "column_of",
    "is_like",
    "kind_of",
]
