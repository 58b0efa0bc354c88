"""Inputs taken apart into units that a person can name, and put together without some of them.

A picture falls into patches, a text into words, sound into moments, a series into stretches of
time, a table into columns. What is taken away becomes neutral: the colour of the picture's border,
an unknown word, silence, the series' mean, a table's zero (the mean, where columns are
standardised).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax.modalities.modality import Modality
from mtmm_jax.registry import ConfigError
from mtmm_jax.text import read_tokenizer, unknown_id, words_of

STRETCHES = 16  # of the first axis


class Parts(NamedTuple):
    """The partition of one modality's inputs into units.

    Attributes:
        units: `[B, *places]`: the unit that each place belongs to; -1: to none.
        neutral: an `x` without information.
        there: `[B, count]` bool: the units that a sample has.
    """

    units: np.ndarray
    neutral: np.ndarray
    there: np.ndarray

    @property
    def count(self) -> int:
        """The largest number of units of a sample."""
        return self.there.shape[1]


class OverPicture(NamedTuple):
    """Units drawn as colours over a grey picture.

    Attributes:
        values: `[rows, columns]` of the units.
        picture: `[H, W]` in 0..1.
        caption: below it; empty for none.
    """

    values: np.ndarray
    picture: np.ndarray
    caption: str = ""


class OverLine(NamedTuple):
    """Units drawn as colours behind a line over time.

    Attributes:
        values: `[units]`.
        line: `[N]`.
        seconds: that the line lasts.
    """

    values: np.ndarray
    line: np.ndarray
    seconds: float


def first_axis(modality: Modality, shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Up to `STRETCHES` stretches of the first axis."""
    del modality
    return [(shape[0], STRETCHES)]


def mean_of_steps(x: np.ndarray, entry: Mapping[str, Any]) -> np.ndarray:
    """The mean over the first axis, of what is not masked."""
    mask = np.asarray(entry.get("mask", np.ones(x.shape[:2], bool)))
    mask = mask.reshape(*mask.shape, *(1,) * (x.ndim - 2))
    mean = np.where(mask, x, 0).sum(1, keepdims=True) / np.maximum(mask.sum(1, keepdims=True), 1)
    return np.broadcast_to(mean, x.shape).astype(x.dtype)


def zeros(x: np.ndarray, entry: Mapping[str, Any]) -> np.ndarray:
    del entry
    return np.zeros_like(x)


def numbered(modality: Modality, count: int) -> list[str]:
    del modality
    return [f"part {i + 1} of {count}" for i in range(count)]


def as_bars(values: np.ndarray, x: np.ndarray, modality: Modality) -> None:
    """No picture of its own: a bar for each named unit."""
    del values, x, modality


@dataclasses.dataclass(frozen=True)
class Units:
    """The partition of one kind of modality into units for explanations.

    Attributes:
        grid: `(modality, shape of one x) -> (size, most bins)` of each axis that has places; the
            axes after them belong to their places.
        neutral: `(x, entry) -> x` without information.
        names: `(modality, count) -> ` what a person calls the units.
        draw: `(values [units], x of one example, modality)` -> `OverPicture`, `OverLine` or None
            for bars.
        path: None where attributions follow a path between values. Otherwise the path leads between
            the tokens of the encoder's stem, and this is `(parts, positions [B, N, P] of the
            tokens, x, modality) -> [B, N]`, the unit of each token.
        masked: whether masked places belong to no unit.
        words: whether units are words, which a tokenizer finds, instead of a grid.
    """

    grid: Callable[[Modality, tuple[int, ...]], Sequence[tuple[int, int]]] = first_axis
    neutral: Callable[[np.ndarray, Mapping[str, Any]], np.ndarray] = mean_of_steps
    names: Callable[[Modality, int], list[str]] = numbered
    draw: Callable[[np.ndarray, np.ndarray, Modality], OverPicture | OverLine | None] = as_bars
    path: Callable[[Parts, Any, Any, Modality], Any] | None = None
    masked: bool = True
    words: bool = False

    def parts(
        self,
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
        if self.words:
            if words is None:
                raise ConfigError("parts.words: is missing; a text's units are its words")
            units, neutral = words, np.where(words >= 0, np.asarray(unknown, x.dtype), x)
        else:
            places = _places(self.grid(modality, x.shape[1:]))
            units = np.broadcast_to(places, (rows, *places.shape)).astype(np.int32)
            if "mask" in entry and self.masked:
                mask = np.asarray(entry["mask"])
                units = np.where(mask.reshape(*mask.shape, *(1,) * (units.ndim - 2)), units, -1)
            neutral = self.neutral(x, entry)
        count = max(int(units.max(initial=-1)) + 1, 1)
        there = np.zeros((rows, count), bool)
        row = np.broadcast_to(np.arange(rows).reshape(-1, *(1,) * (units.ndim - 1)), units.shape)
        there[row[units >= 0], units[units >= 0]] = True
        return Parts(units, neutral, there & present[:, None])

    def named_parts(
        self, modality: Modality, entry: Mapping[str, Any], tokenizer: Callable[[], str | bytes]
    ) -> tuple[Parts, list[list[str]]]:
        """`parts`, and what each row's units are called.

        Args:
            tokenizer: gives the `tokenizer.json` of a text.
        """
        if not self.words:
            parts = self.parts(modality, entry)
            return parts, [self.names(modality, parts.count)] * len(entry["x"])
        read = read_tokenizer(tokenizer())
        found = [words_of(read, ids) for ids in np.asarray(entry["x"])]
        numbers = np.stack([number for number, _ in found])
        if "mask" in entry:
            numbers = np.where(entry["mask"], numbers, -1)
        parts = self.parts(modality, entry, numbers, unknown_id(read))
        return parts, [words for _, words in found]


def _places(grid: Sequence[tuple[int, int]]) -> np.ndarray:
    """The unit of each place of one sample."""
    bins = [np.arange(size) * min(most, size) // size for size, most in grid]
    units = np.zeros((), np.int64)
    for along in bins:
        units = units[..., None] * (along.max() + 1) + along
    return units


def without(entry: Mapping[str, Any], parts: Parts, keep: jax.Array) -> dict[str, Any]:
    """The entry with only the units of `keep` `[B, count]`, the others neutral."""
    kept = jnp.pad(keep, ((0, 0), (0, 1)), constant_values=True)  # what is no unit's stays
    flat = parts.units.reshape(len(parts.units), -1)
    here = jnp.take_along_axis(kept, jnp.where(flat < 0, parts.count, flat), axis=1)
    x = entry["x"]
    here = here.reshape(*parts.units.shape, *(1,) * (x.ndim - parts.units.ndim))
    return {**entry, "x": jnp.where(here, x, parts.neutral)}
