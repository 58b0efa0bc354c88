"""Waveforms: trimmed, resampled and fitted to a length, by packing, source and readers alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import soxr


def trim(wave: np.ndarray, rate: float, floor: float = 0.02, margin: float = 0.02) -> np.ndarray:
    """Drops what is quieter than `floor` of the peak before and after, but for `margin` seconds."""
    level = np.abs(wave)
    loud = level > floor * level.max(initial=0)
    first = int(loud.argmax()) if len(loud) else 0
    if not len(loud) or not loud[first]:
        return wave
    last, keep = len(loud) - 1 - int(loud[::-1].argmax()), round(margin * rate)
    return wave[max(first - keep, 0) : last + 1 + keep]


def resample(wave: np.ndarray, rate: float, wanted: float) -> np.ndarray:
    """To another number of samples per second, band-limited."""
    if rate == wanted:
        return wave
    return soxr.resample(wave, rate, wanted)


def fit(waves: Sequence[np.ndarray], length: int) -> np.ndarray:
    """`[B, length]` float32 in -1..1: the first samples of each, zeros after its end."""
    out = np.zeros((len(waves), length), np.float32)
    for row, wave in zip(out, waves, strict=True):
        kept = row[: len(wave)]
        kept[:] = wave[:length]
        if wave.dtype == np.int16:
            kept *= np.float32(1 / 32768)
    return out
