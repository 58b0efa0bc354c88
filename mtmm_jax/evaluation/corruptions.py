"""Graded damage to one modality's inputs, by kind: host NumPy, the same for a row in any batch.

    CORRUPTIONS["image"]["blur"](entry, place, severity)

Numbers are drawn by a row's id, not by its place, and are the same at every severity: what is
lost at severity 2 is lost at severity 3 too, so that curves fall for the damage and not for luck.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage

from mtmm_jax.batch import Modality
from mtmm_jax.data.pipeline.chance import uniform
from mtmm_jax.data.transforms import augment
from mtmm_jax.registry import ConfigError

SEVERITIES = (0, 1, 2, 3, 4, 5)
_FIRST_WORD = 2  # ids below are padding and the unknown word

Entry = dict[str, Any]


class Place(NamedTuple):
    """What a corruption may know besides the rows themselves.

    Attributes:
        id: `[B]`, whose numbers these are.
        modality: what the spec says of it.
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
        return augment.stretches(self.uniform(name, 1)[:, 0], shape)


class Corruption(NamedTuple):
    """Damage in five grades; grade 0 changes nothing.

    Attributes:
        levels: how much, for severities 1 to 5.
        unit: of the levels, for people.
        apply: `(entry, place, level) -> entry`.
    """

    levels: tuple[float, ...]
    unit: str
    apply: Callable[[Entry, Place, float], Entry]

    def __call__(self, entry: Mapping[str, Any], place: Place, severity: int) -> Entry:
        if severity not in SEVERITIES:
            raise ConfigError(f"severity: {severity!r}; choices: {SEVERITIES}")
        if severity == 0:
            return dict(entry)
        changed = self.apply(dict(entry), place, self.levels[severity - 1])
        return {k: np.asarray(v, np.asarray(entry[k]).dtype) if k in entry else v
                for k, v in changed.items()}  # fmt: skip


def _values(change: Callable[[np.ndarray, Place, float], np.ndarray]) -> Any:
    """A corruption of `x` alone, computed in float32; absent rows, filler, go through unread."""

    def apply(entry: Entry, place: Place, level: float) -> Entry:
        x = np.asarray(entry["x"])
        keep = np.asarray(entry["present"]).reshape(-1, *(1,) * (x.ndim - 1))
        return {**entry, "x": change(np.where(keep, x, 0).astype(np.float32), place, level)}

    return apply


def _pixel_noise(x: np.ndarray, place: Place, level: float) -> np.ndarray:
    return np.clip(x + level * place.normal("noise", *x.shape[1:]), -1, 1)


def _blur(x: np.ndarray, place: Place, level: float) -> np.ndarray:
    del place
    sigma = level * min(x.shape[-3:-1])
    return ndimage.gaussian_filter(x, (0,) * (x.ndim - 3) + (sigma, sigma, 0), mode="nearest")


def _occlusion(x: np.ndarray, place: Place, level: float) -> np.ndarray:
    """A grey block about a fixed point of the row's own, `level` of the picture's area."""
    height, width = x.shape[1:3]
    at = place.uniform("occlusion", 2)
    holes = []
    for axis, size in enumerate((height, width)):
        side = round(level**0.5 * size)
        # Where its middle is does not depend on its size, so that larger holes hold smaller ones.
        first = np.round(at[:, axis] * (size - side)).astype(np.int32)
        holes.append(augment.inside(size, first, first + side))
    hole = holes[0][:, :, None] & holes[1][:, None]
    return np.where(hole[..., None], np.float32(0), x)


def _sound_noise(x: np.ndarray, place: Place, level: float) -> np.ndarray:
    """White noise, `level` decibels below the row's own mean power."""
    power = np.square(x).mean(1, keepdims=True)
    amplitude = np.sqrt(power * 10 ** (-level / 10))
    return x + amplitude * place.normal("noise", *x.shape[1:])


def _clipping(x: np.ndarray, place: Place, level: float) -> np.ndarray:
    del place
    limit = level * np.abs(x).max(1, keepdims=True)
    return np.clip(x, -limit, limit)


def _gaps(x: np.ndarray, place: Place, level: float) -> np.ndarray:
    """Silence for `level` of the time, in twenty slots."""
    slots = 20
    lost = _lost(place.uniform("gaps", slots), level)
    slot = np.arange(x.shape[1]) * slots // max(x.shape[1], 1)
    return np.where(lost[:, slot], np.float32(0), x)


def _spread_noise(x: np.ndarray, place: Place, level: float) -> np.ndarray:
    return x + level * np.asarray(place.spread, np.float32) * place.normal("noise", *x.shape[1:])


def _lost(u: np.ndarray, share: float) -> np.ndarray:
    """The `share` of the places in each row whose numbers are smallest."""
    ranks = np.argsort(np.argsort(u, axis=1), axis=1)
    return ranks < round(share * u.shape[1])


def _mask(entry: Entry) -> np.ndarray:
    shape = np.shape(entry["x"])[:2]
    return np.asarray(entry["mask"]) if "mask" in entry else np.ones(shape, bool)


def _kept(entry: Entry, place: Place, share: float, name: str) -> np.ndarray:
    """The mask without a share of its places; each row keeps the one that would go last."""
    mask = _mask(entry)
    u = np.where(mask, place.uniform(name, mask.shape[1]), -1.0)
    return mask & ((u >= share) | (u == u.max(1, keepdims=True)))


def _fewer(entry: Entry, place: Place, level: float) -> Entry:
    """Steps, frames or values that are not there."""
    return {**entry, "mask": _kept(entry, place, level, "fewer")}


def _fewer_words(entry: Entry, place: Place, level: float) -> Entry:
    """Words left out; the others move up."""
    kept = _kept(entry, place, level, "fewer")
    order = np.argsort(~kept, axis=1, kind="stable")
    mask = np.take_along_axis(kept, order, 1)
    return {**entry, "x": np.take_along_axis(np.asarray(entry["x"]), order, 1) * mask, "mask": mask}


def _other_words(entry: Entry, place: Place, level: float) -> Entry:
    """Words replaced by any of the vocabulary."""
    mask, x = _mask(entry), np.asarray(entry["x"])
    first = min(_FIRST_WORD, place.modality.vocabulary - 1)
    drawn = first + augment.below(
        place.uniform("words", x.shape[1]), place.modality.vocabulary - first
    )
    return {**entry, "x": np.where(mask & (place.uniform("other", x.shape[1]) < level), drawn, x)}


def _absent(entry: Entry, place: Place, level: float) -> Entry:
    """The whole modality, in a share of the rows: an input that comes and goes."""
    gone = place.uniform("absent", 1)[:, 0] < level
    return {**entry, "present": np.asarray(entry["present"]) & ~gone}


_SHARES = (0.1, 0.2, 0.35, 0.5, 0.7)
_SPREADS = (0.1, 0.25, 0.5, 1.0, 2.0)
_PIXELS = Corruption((0.1, 0.2, 0.4, 0.6, 1.0), "standard deviation", _values(_pixel_noise))
_VALUES = Corruption(_SPREADS, "standard deviations", _values(_spread_noise))
_ABSENT = Corruption((0.2, 0.4, 0.6, 0.8, 1.0), "share of the samples", _absent)

CORRUPTIONS: dict[str, dict[str, Corruption]] = {
    "image": {
        "noise": _PIXELS,
        "blur": Corruption((0.01, 0.02, 0.04, 0.07, 0.12), "sides", _values(_blur)),
        "occlusion": Corruption(_SHARES, "share of the area", _values(_occlusion)),
        "absent": _ABSENT,
    },
    "audio": {
        "noise": Corruption((20.0, 10.0, 5.0, 0.0, -5.0), "dB above it", _values(_sound_noise)),
        "clipping": Corruption((0.5, 0.25, 0.1, 0.05, 0.02), "of the peak", _values(_clipping)),
        "gaps": Corruption(_SHARES, "share of the time", _values(_gaps)),
        "absent": _ABSENT,
    },
    "text": {
        "missing words": Corruption(_SHARES, "share of the words", _fewer_words),
        "other words": Corruption(_SHARES, "share of the words", _other_words),
        "absent": _ABSENT,
    },
    "table": {
        "noise": _VALUES,
        "missing values": Corruption(_SHARES, "share of the values", _fewer),
        "absent": _ABSENT,
    },
    "series": {
        "noise": _VALUES,
        "missing steps": Corruption(_SHARES, "share of the steps", _fewer),
        "absent": _ABSENT,
    },
    "video": {
        "noise": _PIXELS,
        "missing frames": Corruption(_SHARES, "share of the frames", _fewer),
        "absent": _ABSENT,
    },
}
