"""Building blocks of the scenarios: chance by row, coloured objects, words of dots, tones."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mtmm_jax.chance import uniform

RATE = 4000  # of the sounds, samples a second
COLOURS = np.array([[0.9, 0.2, 0.2], [0.2, 0.8, 0.3], [0.3, 0.4, 0.95], [0.95, 0.85, 0.2]])
# Letters of 3 x 5 dots: a number for each line, its bits from left to right.
_LETTERS = {
    "a": (2, 5, 7, 5, 5),
    "e": (7, 4, 6, 4, 7),
    "f": (7, 4, 6, 4, 4),
    "h": (5, 5, 7, 5, 5),
    "i": (7, 2, 2, 2, 7),
    "l": (4, 4, 4, 4, 7),
    "n": (7, 5, 5, 5, 5),
    "o": (7, 5, 5, 5, 7),
    "p": (7, 5, 7, 4, 4),
    "r": (6, 5, 6, 5, 5),
    "s": (7, 4, 7, 1, 7),
    "t": (7, 2, 2, 2, 2),
    "u": (5, 5, 5, 5, 7),
    "x": (5, 5, 2, 5, 5),
}
LETTERS = tuple(_LETTERS)


class Lot:
    """Chance for some rows. What a call gives depends on the row and on which call it is."""

    def __init__(self, seed: int, rows: np.ndarray, noise: float) -> None:
        self._seed, self._rows, self._noise, self._calls = seed, rows, noise, 0

    @property
    def rows(self) -> int:
        return len(self._rows)

    def number(self, *shape: int, low: float = 0.0, high: float = 1.0) -> np.ndarray:
        """`[B, *shape]`, even over low to high."""
        self._calls += 1
        drawn = uniform(math.prod(shape), self._seed, self._calls, self._rows)
        return low + (high - low) * drawn.reshape(self.rows, *shape).astype(np.float64)

    def pick(self, count: int, *shape: int) -> np.ndarray:
        """`[B, *shape]` int32 below `count`."""
        return (self.number(*shape) * count).astype(np.int32)

    def noisy(self, x: np.ndarray, scale: float = 1.0) -> np.ndarray:
        """`[B, ...]` float32 with noise of about the set deviation times `scale`."""
        # The sum of three even numbers has the variance 1/4.
        around = 2 * (self.number(3, *x.shape[1:]).sum(1) - 1.5)
        return (x + scale * self._noise * around).astype(np.float32)


def things(
    lot: Lot,
    size: int,
    where: np.ndarray,
    kinds: np.ndarray,
    shown: np.ndarray | None = None,
) -> np.ndarray:
    """`[B, size, size, 3]` in -1..1: things on grey. Kind k has colour k % 4, and is round from 4.

    Args:
        lot: the noise of the pixels.
        size: of the picture.
        where: `[B, N, 4]` boxes y0, x0, y1, x1 in 0..1.
        kinds: `[B, N]`, 0 to 7.
        shown: `[B, N]` bool.
    """
    at = (np.arange(size) + 0.5) / size
    picture = np.full((lot.rows, size, size, 3), 0.45)
    for i in range(where.shape[1]):
        y0, x0, y1, x1 = (where[:, i, edge, None] for edge in range(4))
        v = 2 * (at - y0) / (y1 - y0) - 1
        u = 2 * (at - x0) / (x1 - x0) - 1
        square = (np.abs(v)[:, :, None] < 1) & (np.abs(u)[:, None] < 1)
        disc = v[:, :, None] ** 2 + u[:, None] ** 2 < 1
        inside = np.where((kinds[:, i] >= 4)[:, None, None], disc, square)
        if shown is not None:
            inside &= shown[:, i, None, None]
        colour = COLOURS[kinds[:, i] % 4][:, None, None]
        picture = np.where(inside[..., None], colour, picture)
    return np.clip(lot.noisy(2 * picture - 1, 0.3), -1, 1)


def squares(lot: Lot, count: int, low: float, high: float) -> np.ndarray:
    """`[B, count, 4]` boxes of sides `low` to `high`, each in a column of its own."""
    side = lot.number(count, low=low, high=high)
    y = side / 2 + lot.number(count) * (1 - side)
    x = (np.arange(count) + 0.5) / count + (lot.number(count) - 0.5) * (1 / count - side)
    return np.stack([y - side / 2, x - side / 2, y + side / 2, x + side / 2], -1)


def write_on(picture: np.ndarray, words: Sequence[str], which: np.ndarray, y: int) -> np.ndarray:
    """The pictures with a word each in white dots of 2 x 2 pixels, on a black band from line y."""
    width = picture.shape[2]
    signs = np.full((len(words), 14, width), -1.0)
    for sign, word in zip(signs, words, strict=True):
        dots = np.array(
            [[[line >> b & 1 for b in (2, 1, 0)] for line in _LETTERS[c]] for c in word]
        )
        spaced = np.pad(dots, ((0, 0), (0, 0), (0, 1))).transpose(1, 0, 2).reshape(5, -1)[:, :-1]
        large = spaced.repeat(2, 0).repeat(2, 1)
        left = (width - large.shape[1]) // 2
        sign[2:12, left : left + large.shape[1]] = 2 * large - 1
    out = picture.copy()
    out[:, y : y + 14] = signs[which][..., None]
    return out


def tones(lot: Lot, pitch: np.ndarray, seconds: float) -> np.ndarray:
    """`[B, samples]` in -1..1: N tones of so many Hz `[B, N]` in turn, each with its octave."""
    samples = round(seconds * RATE)
    at = np.arange(samples) / RATE
    phase = 2 * np.pi * pitch[..., None] * at
    sound = (0.3 * np.sin(phase) + 0.15 * np.sin(2 * phase)) * np.sin(np.pi * at / seconds)
    return np.clip(lot.noisy(sound.reshape(lot.rows, -1), 0.1), -1, 1)
