"""From the packed asset to arrays in memory, by way of a TFDS data set prepared once in a cache."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from mtmm_jax.data.sources import packed
from mtmm_jax.data.sources.emoji import asset
from mtmm_jax.readers.images import to_planes


@dataclasses.dataclass(frozen=True)
class Emoji:
    """All concepts, in the order of their ids.

    Attributes:
        split: `[N]` names of splits.
        labels: target -> `[N]` class indices, or years.
        classes: target -> class names.
        drawings: style -> `[N, 4, 64, 64]` uint8, premultiplied alpha.
        speech: all utterances end to end, int16.
        spans: `[N, 2, 2]` where each concept's two utterances start and stop in `speech`.
        voice: `[N, 2]` who speaks them.
    """

    names: tuple[str, ...]
    keywords: tuple[tuple[str, ...], ...]
    split: np.ndarray
    labels: dict[str, np.ndarray]
    classes: dict[str, tuple[str, ...]]
    drawings: Mapping[str, np.ndarray]
    speech: np.ndarray
    spans: np.ndarray
    voice: np.ndarray


def load(data_dir: str | os.PathLike[str] | None = None) -> Emoji:
    """Prepares if need be and reads everything."""
    return packed.load("emoji", data_dir, _made, lambda tree: Emoji(**tree))


def _made(examples: packed.Examples) -> dict[str, Any]:
    """The fields of `Emoji`."""
    rows, split, classes = examples
    at = asset.UTTERANCES
    waves = [row["speech"][which] for row in rows for which in at]
    stops = np.cumsum([len(wave) for wave in waves])
    spans = np.stack([stops - [len(wave) for wave in waves], stops], 1).reshape(-1, 2, 2)
    styles = {
        style: [np.asarray(Image.open(io.BytesIO(row["images"][style]))) for row in rows]
        for style in asset.STYLES
    }
    return {
        "names": tuple(row["name"].decode() for row in rows),
        "keywords": tuple(tuple(row["keywords"].decode().split("\n")) for row in rows),
        "split": split,
        "labels": {
            key: np.array([row[key] for row in rows], np.int32)
            for key in ("category", "subcategory", "year")
        },
        "classes": {
            "category": classes["category"],
            "subcategory": classes["subcategory"],
            "voice": classes["voices/first"],
        },
        "drawings": {style: to_planes(np.stack(drawn)) for style, drawn in styles.items()},
        "speech": np.concatenate(waves),
        "spans": spans,
        "voice": np.array([[row["voices"][which] for which in at] for row in rows], np.int32),
    }
