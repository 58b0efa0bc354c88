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


def stretches(wave: np.ndarray, count: int, length: int, place: float | None = None) -> np.ndarray:
    """`count` stretches of `length` samples, one of each of so many equal parts of a wave, joined.

    Args:
        wave: one that is no longer than they are together is returned whole.
        count: of stretches.
        length: of each.
        place: where in its part each lies, from 0 to 1; by default in the middle, and of a single
            part at its beginning.
    """
    if len(wave) <= count * length:
        return wave
    part = len(wave) / count
    place = (0.0 if count == 1 else 0.5) if place is None else place
    starts = (np.arange(count) * part + place * (part - length)).astype(int)
    return np.concatenate([wave[start : start + length] for start in starts])


def fit(waves: Sequence[np.ndarray], length: int) -> np.ndarray:
    """`[B, length]` float32 in -1..1: the first samples of each, zeros after its end."""
    out = np.zeros((len(waves), length), np.float32)
    for row, wave in zip(out, waves, strict=True):
        kept = row[: len(wave)]
        kept[:] = wave[:length]
        if wave.dtype == np.int16:
            kept *= np.float32(1 / 32768)
    return out
