"""Random changes to whole batches, each decided by uniform numbers that the caller hands in.

`chance` arrays hold numbers in 0..1, one row an example: the functions are pure, and a part of a
batch comes out the same as the whole. Costs are those of a few NumPy passes over the batch.
"""

from __future__ import annotations

import numpy as np

from mtmm_jax.data.images import composite, normalise, resize_matrix, view
from mtmm_jax.data.text import PADDING, UNKNOWN

IMAGE_DRAWS, AUDIO_DRAWS = 20, 4


def between(chance: np.ndarray, low: float, high: float) -> np.ndarray:
    return low + (high - low) * chance


def image(planes: np.ndarray, size: int, chance: np.ndarray, flippable: np.ndarray) -> np.ndarray:
    """Premultiplied uint8 `[B, 4, s, s]` -> `[B, size, size, 3]` in -1..1.

    Scaled, shifted, mirrored (where `flippable`), put on a plain or graded background of random
    colours, brightened or darkened, a square cut out.
    """
    source = planes.shape[2]
    scale = between(chance[:, 0], 0.75, 1.2)
    stretch = between(chance[:, 1], 0.92, 1.08)
    flip = flippable & (chance[:, 2] < 0.5)
    rows = resize_matrix(source, size, scale * stretch, between(chance[:, 3], -0.1, 0.1))
    columns = resize_matrix(source, size, scale / stretch, between(chance[:, 4], -0.1, 0.1), flip)
    picture = composite(view(planes, rows, columns), _background(size, chance[:, 5:14]))
    contrast = between(chance[:, 14], 0.75, 1.25)
    offset = 0.5 - 0.5 * contrast + between(chance[:, 15], -0.15, 0.15)
    picture *= contrast[:, None, None, None]
    picture += offset[:, None, None, None]
    np.clip(picture, 0, 1, out=picture)
    _cut_out(picture, size, chance[:, 16:20])
    return normalise(picture)


def _background(size: int, chance: np.ndarray) -> np.ndarray:
    """`[B, 3, S, S]`: a third white as in evaluation, a third plain, a third graded."""
    first, second, kind = chance[:, :3], chance[:, 3:6], chance[:, 6, None]
    first = np.where(kind < 1 / 3, np.float32(1), first)
    second = np.where(kind < 2 / 3, first, second)
    turn = chance[:, 7, None] * np.float32(2 * np.pi)
    half = np.float32(0.5**0.5)  # so that the corners reach, and do not pass, the two colours
    at = np.linspace(-half, half, size, dtype=np.float32)
    change = (second - first)[..., None]
    down = (first + second)[..., None] / 2 + change * (np.sin(turn) * at / 2)[:, None]
    across = change * (np.cos(turn) * at / 2)[:, None]
    return down[..., :, None] + across[..., None, :]


def _cut_out(planes: np.ndarray, size: int, chance: np.ndarray) -> None:
    """Greys out a square of up to 0.4 of the side in half of the pictures, in place."""
    side = (between(chance[:, 1], 0.15, 0.4) * size).astype(int)
    top = (chance[:, 2] * (size - side + 1)).astype(int)
    left = (chance[:, 3] * (size - side + 1)).astype(int)
    for i in np.flatnonzero(chance[:, 0] < 0.5):
        planes[i, :, top[i] : top[i] + side[i], left[i] : left[i] + side[i]] = 0.5


def text(ids: np.ndarray, chance: np.ndarray, share: float = 0.1) -> np.ndarray:
    """Replaces a share of the tokens by the unknown one, which is so learnt to be tolerated."""
    return np.where((chance < share) & (ids != PADDING), np.int32(UNKNOWN), ids)


def audio(
    speech: np.ndarray,
    spans: np.ndarray,
    length: int,
    chance: np.ndarray,
    noise: np.ndarray,
    latest: int,
) -> np.ndarray:
    """Cuts utterances out of int16 `speech` -> `[B, length]` float32, peak about 1.

    Each starts up to `latest` samples late if there is room (one that is too long loses a random
    part of its ends instead), louder or softer, half of them over a stretch of `noise`.
    """
    out = np.zeros((len(spans), length), np.float32)
    gain = between(chance[:, 0], 0.5, 1.5) / 32768
    level = np.maximum(between(chance[:, 1], -0.02, 0.02), 0)
    scratch = np.empty(length, np.float32)
    for i, (start, stop) in enumerate(spans):
        room = length - (stop - start)
        late = int(chance[i, 2] * (min(room, latest) + 1)) if room >= 0 else 0
        skip = 0 if room >= 0 else int(chance[i, 2] * (1 - room))
        wave = speech[start + skip : min(stop, start + skip + length)]
        heard = out[i, late : late + len(wave)]
        heard[:] = wave
        heard *= gain[i]
        if level[i] > 0:
            at = int(chance[i, 3] * (len(noise) - length))
            np.multiply(noise[at : at + length], level[i], out=scratch)
            out[i] += scratch
    return out
