"""The packed vowels: all utterances end to end in one `.npz`. `pack.py` writes it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

FOLDER = Path(__file__).parent / "assets"
SPEAKERS = tuple("123456789")
CHANNELS = 12
RATE = 156.25  # steps per second: one every 6.4 ms


class Utterance(NamedTuple):
    """`series` is `[T, 12]` float32."""

    series: np.ndarray
    speaker: str
    split: str


def write(folder: Path, utterances: list[Utterance]) -> None:
    np.savez_compressed(
        folder / "vowels.npz",
        steps=np.concatenate([one.series for one in utterances]).astype(np.float32),
        lengths=np.array([len(one.series) for one in utterances], np.int16),
        speaker=np.array([one.speaker for one in utterances]),
        split=np.array([one.split for one in utterances]),
    )


def read(folder: Path = FOLDER) -> list[Utterance]:
    with np.load(folder / "vowels.npz") as packed:
        series = np.split(packed["steps"], np.cumsum(packed["lengths"], dtype=int)[:-1])
        labels = zip(packed["speaker"].tolist(), packed["split"].tolist(), strict=True)
    return [Utterance(one, *label) for one, label in zip(series, labels, strict=True)]
