"""Graded damage to one modality's inputs: host NumPy, the same for a row in any batch.

    MODALITIES["image"].corruptions["blur"](entry, place, severity)

Numbers are drawn by a row's id, not by its place, and are the same at every severity: what is
lost at severity 2 is lost at severity 3 too, so that curves fall for the damage and not for luck.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from mtmm_jax.chance import stretches, uniform
from mtmm_jax.modalities.modality import Modality
from mtmm_jax.registry import ConfigError

SEVERITIES = (0, 1, 2, 3, 4, 5)

Entry = dict[str, Any]


class Place(NamedTuple):
    """Context of a corruption: everything it may read besides the rows.

    Attributes:
        id: `[B]`, whose numbers these are.
        modality: of the spec.
        spread: the standard deviation of each column or channel, over the split.
        seed: of all draws.
    """

    id: np.ndarray
    modality: Modality
    spread: np.ndarray | float = 1.0
    seed: int = 0

    def uniform(self, name: str, *shape: int) -> np.ndarray:
        """`[B, *shape]` in [0, 1), by row and purpose."""
        drawn = uniform(int(np.prod(shape)), self.seed, zlib.crc32(name.encode()), self.id)
        return drawn.reshape(len(self.id), *shape)

    def normal(self, name: str, *shape: int) -> np.ndarray:
        """`[B, *shape]` of white noise."""
        return stretches(self.uniform(name, 1)[:, 0], shape)


class Corruption(NamedTuple):
    """Damage in five grades; grade 0 changes nothing.

    Attributes:
        levels: how much, for severities 1 to 5.
        unit: of the levels, for people.
        apply: `(entry, place, level) -> entry`.
        relative: whether the levels are shares of the spread of the values, over the split.
    """

    levels: tuple[float, ...]
    unit: str
    apply: Callable[[Entry, Place, float], Entry]
    relative: bool = False

    def __call__(self, entry: Mapping[str, Any], place: Place, severity: int) -> Entry:
        if severity not in SEVERITIES:
            raise ConfigError(f"severity: {severity!r}; choices: {SEVERITIES}")
        if severity == 0:
            return dict(entry)
        changed = self.apply(dict(entry), place, self.levels[severity - 1])
        return {k: np.asarray(v, np.asarray(entry[k]).dtype) if k in entry else v
                for k, v in changed.items()}  # fmt: skip


def of_values(change: Callable[[np.ndarray, Place, float], np.ndarray]) -> Any:
    """A corruption of `x` alone, computed in float32; absent rows, filler, go through unread."""

    def apply(entry: Entry, place: Place, level: float) -> Entry:
        x = np.asarray(entry["x"])
        keep = np.asarray(entry["present"]).reshape(-1, *(1,) * (x.ndim - 1))
        changed = change(np.where(keep, x, 0).astype(np.float32), place, level)
        return {**entry, "x": np.where(keep, changed, x)}

    return apply


def _spread_noise(x: np.ndarray, place: Place, level: float) -> np.ndarray:
    return x + level * np.asarray(place.spread, np.float32) * place.normal("noise", *x.shape[1:])


def lost(u: np.ndarray, share: float) -> np.ndarray:
    """The `share` of the places in each row whose numbers are smallest."""
    ranks = np.argsort(np.argsort(u, axis=1), axis=1)
    return ranks < round(share * u.shape[1])


def mask_of(entry: Entry) -> np.ndarray:
    shape = np.shape(entry["x"])[:2]
    return np.asarray(entry["mask"]) if "mask" in entry else np.ones(shape, bool)


def kept(entry: Entry, place: Place, share: float, name: str) -> np.ndarray:
    """The mask without a share of its places; each row keeps the one that would go last."""
    mask = mask_of(entry)
    u = np.where(mask, place.uniform(name, mask.shape[1]), -1.0)
    return mask & ((u >= share) | (u == u.max(1, keepdims=True)))


def _fewer(entry: Entry, place: Place, level: float) -> Entry:
    """Steps, frames or values that are not there."""
    return {**entry, "mask": kept(entry, place, level, "fewer")}


def _absent(entry: Entry, place: Place, level: float) -> Entry:
    """The whole modality, in a share of the rows: an input that comes and goes."""
    gone = place.uniform("absent", 1)[:, 0] < level
    return {**entry, "present": np.asarray(entry["present"]) & ~gone}


SHARES = (0.1, 0.2, 0.35, 0.5, 0.7)
_SPREADS = (0.1, 0.25, 0.5, 1.0, 2.0)

NOISE = Corruption(_SPREADS, "standard deviations", of_values(_spread_noise), relative=True)
ABSENT = Corruption((0.2, 0.4, 0.6, 0.8, 1.0), "share of the samples", _absent)


def fewer(of: str) -> Corruption:
    """A share of the places along the first axis masked."""
    return Corruption(SHARES, f"share of the {of}", _fewer)
