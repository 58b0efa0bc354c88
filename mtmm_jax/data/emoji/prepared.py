"""From the packed asset to arrays in memory, by way of a TFDS data set prepared once in a cache."""

from __future__ import annotations

import dataclasses
import io
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from mtmm_jax.data import packed
from mtmm_jax.data.emoji import asset
from mtmm_jax.data.images import to_planes


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
    drawings: dict[str, np.ndarray]
    speech: np.ndarray
    spans: np.ndarray
    voice: np.ndarray


def load(data_dir: str | os.PathLike[str] | None = None) -> Emoji:
    """Prepares if need be and reads everything."""
    import tensorflow_datasets as tfds  # half a second to import, only when data are wanted

    skip = {"images": {style: tfds.decode.SkipDecoding() for style in asset.STYLES}}
    examples = packed.load("emoji", data_dir, skip)
    return _assemble(examples.features, examples.rows, examples.split)


def _assemble(features: Any, rows: list[dict[str, Any]], split: np.ndarray) -> Emoji:
    at = ("first", "second")
    waves = [row["speech"][which] for row in rows for which in at]
    stops = np.cumsum([len(wave) for wave in waves])
    spans = np.stack([stops - [len(wave) for wave in waves], stops], 1).reshape(-1, 2, 2)
    drawings = {style: _decode([row["images"][style] for row in rows]) for style in asset.STYLES}
    return Emoji(
        names=tuple(row["name"].decode() for row in rows),
        keywords=tuple(tuple(row["keywords"].decode().split("\n")) for row in rows),
        split=split,
        labels={
            key: np.array([row[key] for row in rows], np.int32)
            for key in ("category", "subcategory", "year")
        },
        classes={
            "category": tuple(features["category"].names),
            "subcategory": tuple(features["subcategory"].names),
            "voice": tuple(features["voices"]["first"].names),
        },
        drawings=drawings,
        speech=np.concatenate(waves),
        spans=spans,
        voice=np.array([[row["voices"][which] for which in at] for row in rows], np.int32),
    )


def _decode(pngs: list[bytes], chunk: int = 64) -> np.ndarray:
    """All drawings of a style; in threads, as both Pillow and NumPy let go of the interpreter."""

    def decode(start: int) -> np.ndarray:
        tiles = [Image.open(io.BytesIO(png)) for png in pngs[start : start + chunk]]
        return to_planes(np.stack([np.asarray(tile) for tile in tiles]))

    with ThreadPoolExecutor() as pool:
        return np.concatenate(list(pool.map(decode, range(0, len(pngs), chunk))))
