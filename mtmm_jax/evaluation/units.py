"""Inputs taken apart into units that a person can name, and put together without some of them.

A picture falls into patches, a text into words, sound into moments, a series into stretches of
time, a table into columns. What is taken away becomes neutral: the colour of the picture's border,
an unknown word, silence, the series' mean, a table's zero (the mean, where columns are
standardised).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax.batch import Modality
from mtmm_jax.registry import ConfigError

SIDE = 8  # patches along a picture's side
VIDEO_SIDE = 4
SECONDS = 0.1  # of a moment of sound
STRETCHES = 16  # of a series


class Parts(NamedTuple):
    """How one modality's inputs are taken apart.

    Attributes:
        units: `[B, *places]`: the unit that each place belongs to; -1: to none.
        neutral: an `x` in which nothing is said.
        there: `[B, count]` bool: the units that a sample has.
    """

    units: np.ndarray
    neutral: np.ndarray
    there: np.ndarray

    @property
    def count(self) -> int:
        """How many units a sample has at most."""
        return self.there.shape[1]


def parts_of(
    modality: Modality,
    entry: Mapping[str, Any],
    words: np.ndarray | None = None,
    unknown: int = 1,
) -> Parts:
    """Takes a batch of one modality apart.

    Args:
        modality: of the spec.
        entry: of a batch's inputs, as NumPy.
        words: of a text: `[B, N]`, the number of the word that a token belongs to, -1: none.
        unknown: of a text: the id of an unknown word.
    """
    x = np.asarray(entry["x"])
    rows, present = len(x), np.asarray(entry["present"])
    if modality.kind == "text":
        if words is None:
            raise ConfigError("parts_of.words: is missing; a text's units are its words")
        units, neutral = words, np.where(words >= 0, np.asarray(unknown, x.dtype), x)
    else:
        places = x.shape[1:-1] if modality.kind in ("image", "video", "series") else x.shape[1:]
        units = np.broadcast_to(_places(modality, places), (rows, *places)).astype(np.int32)
        if "mask" in entry and modality.kind in ("video", "series"):
            mask = np.asarray(entry["mask"])
            units = np.where(mask.reshape(*mask.shape, *(1,) * (units.ndim - 2)), units, -1)
        neutral = _neutral(modality, x, entry)
    count = max(int(units.max(initial=-1)) + 1, 1)
    there = np.zeros((rows, count), bool)
    row = np.broadcast_to(np.arange(rows).reshape(-1, *(1,) * (units.ndim - 1)), units.shape)
    there[row[units >= 0], units[units >= 0]] = True
    return Parts(units, neutral, there & present[:, None])


def _places(modality: Modality, shape: tuple[int, ...]) -> np.ndarray:
    """The unit of each place of one sample."""
    bins = [np.arange(size) * min(most, size) // size for size, most in _grid(modality, shape)]
    units = np.zeros((), np.int64)
    for along in bins:
        units = units[..., None] * (along.max() + 1) + along
    return units


def _grid(modality: Modality, shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """(size, most bins) of each axis."""
    if modality.kind == "image":
        return [(size, SIDE) for size in shape]
    if modality.kind == "video":
        return [(shape[0], shape[0]), *((size, VIDEO_SIDE) for size in shape[1:])]
    if modality.kind == "audio":
        seconds = shape[0] / modality.rate if modality.rate else 0.0
        return [(shape[0], max(1, round(seconds / SECONDS)))]
    return [(shape[0], STRETCHES if modality.kind == "series" else shape[0])]


def unit_names(modality: Modality, count: int) -> list[str]:
    """What a person calls the units of anything but a text."""
    if modality.kind == "table" and len(modality.names) == count:
        return list(modality.names)
    if modality.kind == "image":
        side = round(count**0.5)
        across, down = (
            _thirds(side, ("left", "centre", "right")),
            _thirds(side, ("top", "middle", "bottom")),
        )
        return [
            f"row {i // side + 1}, column {i % side + 1} ({down[i // side]} {across[i % side]})"
            for i in range(count)
        ]
    if modality.kind == "audio":
        return [f"{i * SECONDS:.1f} to {(i + 1) * SECONDS:.1f} s" for i in range(count)]
    if modality.kind == "video":
        patches = VIDEO_SIDE**2
        return [f"frame {i // patches + 1}, part {i % patches + 1}" for i in range(count)]
    return [f"part {i + 1} of {count}" for i in range(count)]


def _thirds(count: int, words: tuple[str, ...]) -> list[str]:
    return [words[3 * i // count] for i in range(count)]


def _neutral(modality: Modality, x: np.ndarray, entry: Mapping[str, Any]) -> np.ndarray:
    if modality.kind in ("image", "video"):
        top, left = x[..., 0, :, :], x[..., :, 0, :]
        border = np.concatenate([top, left, x[..., -1, :, :], x[..., :, -1, :]], axis=-2)
        return np.broadcast_to(np.median(border, axis=-2)[..., None, None, :], x.shape)
    if modality.kind == "series":
        mask = np.asarray(entry.get("mask", np.ones(x.shape[:2], bool)))[..., None]
        mean = np.where(mask, x, 0).sum(1, keepdims=True) / np.maximum(
            mask.sum(1, keepdims=True), 1
        )
        return np.broadcast_to(mean, x.shape).astype(x.dtype)
    return np.zeros_like(x)


def without(entry: Mapping[str, Any], parts: Parts, keep: jax.Array) -> dict[str, Any]:
    """The entry with only the units of `keep` `[B, count]`, the others neutral."""
    kept = jnp.pad(keep, ((0, 0), (0, 1)), constant_values=True)  # what is no unit's stays
    flat = parts.units.reshape(len(parts.units), -1)
    here = jnp.take_along_axis(kept, jnp.where(flat < 0, parts.count, flat), axis=1)
    x = entry["x"]
    here = here.reshape(*parts.units.shape, *(1,) * (x.ndim - parts.units.ndim))
    return {**entry, "x": jnp.where(here, x, parts.neutral)}
