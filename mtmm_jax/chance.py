"""Random numbers by place, not by turn: what an example gets depends on who it is, not on when.

A counter-based generator (SplitMix64 over the coordinates): the same numbers on every host, with
any number of workers, after any resumption.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

_RECORD = 2**20  # samples of white noise
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def bits(*coordinates: int | np.ndarray) -> np.ndarray:
    """64 random bits for each combination of the (broadcast) integer coordinates."""
    state = np.zeros(np.broadcast_shapes(*(np.shape(c) for c in coordinates)), np.uint64)
    with np.errstate(over="ignore"):
        for coordinate in coordinates:
            state = _mix((state ^ np.asarray(coordinate).astype(np.uint64)) + _GOLDEN)
    return state


def uniform(draws: int, *coordinates: int | np.ndarray) -> np.ndarray:
    """`[..., draws]` float32 in [0, 1): `draws` numbers for each combination of coordinates."""
    wide = [np.asarray(c)[..., None] for c in coordinates]
    whole = bits(*wide, np.arange(draws))
    return (whole >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


class Order:
    """`size` things, in a new random order in each epoch, at any position of the endless line."""

    def __init__(self, size: int, *coordinates: int) -> None:
        self.size, self._coordinates = size, coordinates
        self._epoch = functools.lru_cache(maxsize=2)(self._shuffled)

    def _shuffled(self, epoch: int) -> np.ndarray:
        return np.argsort(bits(*self._coordinates, epoch, np.arange(self.size)), kind="stable")

    def __call__(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`(epoch, place)` of each position."""
        epochs, turns = np.divmod(positions, self.size)
        places = np.empty_like(turns)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            places[here] = self._epoch(int(epoch))[turns[here]]
        return epochs, places


def below(u: Any, count: Any) -> Any:
    """Uniform numbers -> int32 in 0..count-1."""
    xp = u.__array_namespace__()
    count = xp.asarray(count, dtype=xp.int32)
    return xp.minimum(xp.floor(u * count.astype(u.dtype)).astype(xp.int32), count - 1)


def inside(size: int, first: Any, last: Any) -> Any:
    """`[..., size]` bool: whether each place of an axis is in `first`..`last` - 1."""
    at = first.__array_namespace__().arange(size)
    return (at >= first[..., None]) & (at < last[..., None])


@functools.cache
def white_noise(length: int) -> np.ndarray:
    """At least `length` samples: drawing them anew for each batch would be slow."""
    return np.random.default_rng(0).standard_normal(2 ** (length - 1).bit_length(), np.float32)


def stretches(u: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """`[B, *shape]` of white noise, each example's beginning somewhere in a long fixed record."""
    length = math.prod(shape)
    record = white_noise(max(4 * length, _RECORD))
    first = below(u, len(record) - length + 1)
    return np.stack([record[i : i + length] for i in first]).reshape(-1, *shape)
