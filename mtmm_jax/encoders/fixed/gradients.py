"""Pictures and clips -> histograms of gradients, thumbnails and colours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax.batch import Modality
from mtmm_jax.encoders.fixed.fixed import FixedEncoder, standardising
from mtmm_jax.ranges import Several

_CELL, _ANGLES, _THUMBNAIL, _COLOURS, _LEVELS = 6, 9, 8, 4, 8


class ImageGradients(FixedEncoder):
    """[histograms of oriented gradients; a thumbnail; a histogram of colours], each scaled.

    Gradients: 9 unsigned orientations in cells of 6 x 6 pixels of the picture resized to `cells`
    cells a side, in blocks of 2 x 2 cells normalised to length 1, cut at .2 and normalised again;
    of the channel with the largest gradient. Thumbnail: 8 x 8 with its channels. Colours: of three
    channels 4 x 4 x 4 bins, of any other number 8 levels each.

    Paper: Dalal and Triggs 2005. Costs three passes over `[B, 6 cells, 6 cells, C]`. Use it: for a
    few thousand pictures of objects on plain ground. Not: where a network pretrained on pictures is
    at hand.

    Attributes:
        cells: of a side.
    """

    cells: Several = 8

    @staticmethod
    def accepts(modality: Modality) -> bool:
        return modality.is_a("image") and len(modality.shape) == 3 and None not in modality.shape

    @property
    def channels(self) -> int:
        return int(self.shape[-1] or 1)

    @property
    def groups(self) -> tuple[int, ...]:
        """The number of features of each group."""
        blocks = (self.cells - 1) ** 2 * 4 * _ANGLES
        bins = _COLOURS**3 if self.channels == 3 else _LEVELS * self.channels
        return blocks, _THUMBNAIL**2 * self.channels, bins

    @property
    def size(self) -> int:
        return sum(self.groups)

    def raw(self, entry: Mapping[str, Any]) -> jax.Array:
        return self.picture(jnp.nan_to_num(entry["x"].astype(jnp.float32)).clip(-1, 1))

    def picture(self, x: jax.Array) -> jax.Array:
        """`[B, size]` of `[B, H, W, C]` in -1..1."""
        rows, channels, side = x.shape[0], self.channels, self.cells * _CELL
        small = jax.image.resize(x, (rows, side, side, channels), "linear")
        thumbnail = jax.image.resize(x, (rows, _THUMBNAIL, _THUMBNAIL, channels), "linear")
        parts = (self._gradients(small), thumbnail, self._colours(small))
        return jnp.concatenate([part.reshape(rows, -1) for part in parts], axis=1)

    def _gradients(self, x: jax.Array) -> jax.Array:
        rows = x.shape[0]
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        dy = padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
        dx = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
        best = (jnp.square(dy) + jnp.square(dx)).argmax(-1, keepdims=True)
        dy, dx = (jnp.take_along_axis(d, best, -1)[..., 0] for d in (dy, dx))
        squared = jnp.square(dy) + jnp.square(dx)
        some = squared > 0  # the root has no slope at 0
        strength = jnp.where(some, jnp.sqrt(jnp.where(some, squared, 1.0)), 0.0)
        # Each gradient is divided between the two orientations next to it.
        place = jnp.mod(jnp.arctan2(dy, dx + 1e-12), np.float32(np.pi))
        place = place * np.float32(_ANGLES / np.pi)
        angles = jnp.arange(_ANGLES, dtype=jnp.float32)
        away = jnp.abs(place[..., None] - angles)
        near = jax.nn.relu(1 - jnp.minimum(away, _ANGLES - away)) * strength[..., None]
        cells = near.reshape(rows, self.cells, _CELL, self.cells, _CELL, _ANGLES).sum((2, 4))
        n = self.cells - 1
        corners = [cells[:, i : i + n, j : j + n] for i in (0, 1) for j in (0, 1)]
        blocks = jnp.concatenate(corners, axis=-1)
        blocks = jnp.minimum(_unit(blocks), 0.2)
        return _unit(blocks)

    def _colours(self, x: jax.Array) -> jax.Array:
        """The share of the pixels in each bin; the square root, so that rare colours count."""
        rows, channels = x.shape[0], self.channels
        bins = _COLOURS if channels == 3 else _LEVELS
        level = ((x + 1) * (bins / 2)).astype(jnp.int32).clip(0, bins - 1)
        level = level.reshape(rows, -1, channels)
        if channels == 3:
            weights = np.array([bins * bins, bins, 1], np.int32)
            level, count = (level * weights).sum(-1), bins**3
        else:
            level = (level + bins * np.arange(channels, dtype=np.int32)).reshape(rows, -1)
            count = bins * channels
        found = jnp.zeros((rows, count), jnp.float32)
        found = found.at[jnp.arange(rows)[:, None], level].add(1.0 / level.shape[1])
        return jnp.sqrt(found)

    def fit(self, raw: np.ndarray) -> dict[str, np.ndarray]:
        """Each group by itself, so that a long one does not outweigh the others."""
        ends = np.cumsum(self.groups)[:-1]
        parts = [standardising(part) for part in np.split(np.asarray(raw), ends, axis=1)]
        share = 1 / np.sqrt(len(parts))
        return {
            "center": np.concatenate([part["center"] for part in parts]),
            "scale": np.concatenate([share * part["scale"] for part in parts]).astype(np.float32),
        }


class VideoGradients(ImageGradients):
    """The features of `ImageGradients` of a clip's mean frame, and where it moves: the mean
    absolute difference of neighbouring frames as a thumbnail of 8 x 8, with its channels.

    Paper: Dalal and Triggs 2005. Costs as `image_gradients`, and one pass over the clip. Use it:
    for a few hundred clips of objects on plain ground. Not: where the kind of motion decides.
    """

    @staticmethod
    def accepts(modality: Modality) -> bool:
        return modality.is_a("video") and None not in modality.shape[1:]

    @property
    def groups(self) -> tuple[int, ...]:
        return (*super().groups, _THUMBNAIL**2 * self.channels)

    def raw(self, entry: Mapping[str, Any]) -> jax.Array:
        x = jnp.nan_to_num(entry["x"].astype(jnp.float32)).clip(-1, 1)
        mask = entry.get("mask", jnp.broadcast_to(entry["present"][:, None], x.shape[:2]))
        keep = mask[..., None, None, None].astype(jnp.float32)
        mean = (x * keep).sum(1) / jnp.maximum(keep.sum(1), 1)
        pairs = keep[:, 1:] * keep[:, :-1]
        moved = (jnp.abs(x[:, 1:] - x[:, :-1]) * pairs).sum(1) / jnp.maximum(pairs.sum(1), 1)
        size = (x.shape[0], _THUMBNAIL, _THUMBNAIL, self.channels)
        moved = jax.image.resize(moved, size, "linear").reshape(x.shape[0], -1)
        return jnp.concatenate([self.picture(mean), moved], axis=1)


def _unit(values: jax.Array) -> jax.Array:
    return values / jnp.sqrt(jnp.square(values).sum(-1, keepdims=True) + 1e-4)
