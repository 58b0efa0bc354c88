"""Random changes to whole batches, each decided by uniform numbers that the caller hands in.

`chance` arrays hold numbers in 0..1, one row an example: the functions are pure, and a part of a
batch comes out the same as the whole. Costs are those of a few NumPy passes over the batch.
`image`, `text` and `audio` are whole recipes; the single steps below them are shared by the pipes
of `pipes.py` and, inside jit, by `augment_jit.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mtmm_jax.chance import below, inside
from mtmm_jax.readers.images import composite, normalise, resize_matrix, view
from mtmm_jax.text import PADDING, UNKNOWN

IMAGE_DRAWS, AUDIO_DRAWS = 20, 4


def between(chance: Any, low: float, high: float) -> Any:
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
    picture = composite(view(planes, rows, columns), background(size, chance[:, 5:14]))
    contrast = between(chance[:, 14], 0.75, 1.25)
    offset = 0.5 - 0.5 * contrast + between(chance[:, 15], -0.15, 0.15)
    picture *= contrast[:, None, None, None]
    picture += offset[:, None, None, None]
    np.clip(picture, 0, 1, out=picture)
    _cut_out(picture, size, chance[:, 16:20])
    return normalise(picture)


def background(size: int, chance: np.ndarray) -> np.ndarray:
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


def text(
    ids: np.ndarray,
    chance: np.ndarray,
    share: float = 0.1,
    unknown: int = UNKNOWN,
    padding: int = PADDING,
) -> np.ndarray:
    """Replaces a share of the tokens by the unknown one, which is so learned to be tolerated."""
    return token_dropout(ids, chance, share, unknown, padding)


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


# What follows takes NumPy arrays on the host and JAX arrays inside jit: the arithmetic is written
# once, over whichever of the two its input comes from. `u` is `[B, draws]`, uniform in 0..1.


def per_row(values: Any, like: Any) -> Any:
    """`[B]` -> `[B, 1, ...]`, to meet an array of `like`'s rank."""
    return values.reshape((-1,) + (1,) * (like.ndim - 1))


def span(u: Any, start: Any, size: int, longest: Any, shortest: float = 0.0) -> tuple[Any, Any]:
    """Start and length of random stretches of an axis, from `start` and `u`.

    Args:
        u, start: uniform numbers of any shape.
        size: of the axis.
        longest, shortest: fractions of the axis.
    """
    xp = u.__array_namespace__()
    length = xp.floor(between(u, shortest, longest) * size).astype(xp.int32)
    first = below(start, size - length + 1)
    return first, first + length


def flip(x: Any, u: Any, share: float = 0.5) -> Any:
    """Mirrors pictures `[B, H, W, C]` left to right."""
    xp = x.__array_namespace__()
    return xp.where(per_row(u[:, 0] < share, x), x[:, :, ::-1], x)


def window(x: Any, top: Any, left: Any, height: int, width: int, fill: float = 0.0) -> Any:
    """`[B, height, width, C]` out of pictures, from `top`, `left` (`[B]`, may be negative) on."""
    xp = x.__array_namespace__()
    rows = top[:, None] + xp.arange(height, dtype=xp.int32)
    columns = left[:, None] + xp.arange(width, dtype=xp.int32)
    batch = xp.arange(x.shape[0], dtype=xp.int32)[:, None]
    seen = x[batch, xp.clip(rows, 0, x.shape[1] - 1)]
    seen = seen[
        batch[:, None], xp.arange(height)[:, None], xp.clip(columns, 0, x.shape[2] - 1)[:, None]
    ]
    real = ((rows >= 0) & (rows < x.shape[1]))[:, :, None]
    real = real & ((columns >= 0) & (columns < x.shape[2]))[:, None]
    return xp.where(real[..., None], seen, xp.asarray(fill, dtype=x.dtype))


def crop(x: Any, u: Any, pad: int = 4, height: int = 0, width: int = 0, fill: float = 0.0) -> Any:
    """A random window, by default of the size of the pictures, which `pad` pixels surround."""
    height, width = height or x.shape[1], width or x.shape[2]

    def first(u: Any, have: int, want: int) -> Any:
        room = have - want + 2 * pad  # negative where the picture is too small: then its middle
        return below(u, room + 1) - pad if room >= 0 else below(u, 1) + (have - want) // 2

    top, left = first(u[:, 0], x.shape[1], height), first(u[:, 1], x.shape[2], width)
    return window(x, top, left, height, width, fill)


def color(
    x: Any,
    u: Any,
    brightness: float = 0.2,
    contrast: float = 0.2,
    saturation: float = 0.2,
    low: float = -1.0,
    high: float = 1.0,
) -> Any:
    """Shifts brightness, stretches contrast about the middle and colours about grey.

    Brightness is a share of the range `low`..`high`, which the result stays in.
    """
    xp = x.__array_namespace__()
    shift = per_row(between(u[:, 0], -brightness, brightness), x) * (high - low)
    stretch = per_row(between(u[:, 1], 1 - contrast, 1 + contrast), x)
    vivid = per_row(between(u[:, 2], 1 - saturation, 1 + saturation), x)
    grey = luminance(x)
    middle = (low + high) / 2
    out = (grey + vivid * (x - grey) - middle) * stretch + (middle + shift)
    return xp.clip(out, low, high).astype(x.dtype)


def luminance(x: Any) -> Any:
    """`[..., 3]` -> `[..., 1]`: how bright each pixel looks (ITU-R BT.601)."""
    return 0.299 * x[..., :1] + 0.587 * x[..., 1:2] + 0.114 * x[..., 2:]


def cut_out(x: Any, u: Any, largest: float = 0.4, share: float = 0.5, fill: float = 0.0) -> Any:
    """Fills a square of up to `largest` of the shorter side, in a `share` of the pictures."""
    xp = x.__array_namespace__()
    height, width = x.shape[1:3]
    side = xp.floor(between(u[:, 1], largest * 3 / 8, largest) * min(height, width))
    side = side.astype(xp.int32)
    top, left = below(u[:, 2], height - side + 1), below(u[:, 3], width - side + 1)
    hole = inside(height, top, top + side)[:, :, None] & inside(width, left, left + side)[:, None]
    hole = hole & per_row(u[:, 0] < share, hole)
    return xp.where(hole[..., None], xp.asarray(fill, dtype=x.dtype), x)


def noise(x: Any, u: Any, white: Any, level: float = 0.01) -> Any:
    """Adds `white` noise of up to `level` (standard deviation) to half of the examples."""
    xp = x.__array_namespace__()
    return x + per_row(xp.maximum(between(u[:, 0], -level, level), 0), x) * white


def gain(x: Any, u: Any, low: float = 0.5, high: float = 1.5) -> Any:
    """Louder or softer by a factor in `low`..`high`."""
    return x * per_row(between(u[:, 0], low, high), x)


def spec_augment(
    x: Any,
    u: Any,
    time: float = 0.2,
    frequency: float = 0.2,
    masks: int = 2,
    fill: float = 0.0,
) -> Any:
    """Fills `masks` stretches of time and as many of frequency (or channels) in `[B, T, F]`.

    Each is up to `time` and `frequency` of its axis long. `u` is `[B, 4 * masks]`.

    Paper: Park et al., SpecAugment, Interspeech 2019, without its time warping.
    """
    xp = x.__array_namespace__()
    long_t, at_t, long_f, at_f = (u[:, i * masks : (i + 1) * masks] for i in range(4))
    steps, bands = x.shape[1:]
    silent = inside(steps, *span(long_t, at_t, steps, time)).any(1)[:, :, None]
    silent = silent | inside(bands, *span(long_f, at_f, bands, frequency)).any(1)[:, None]
    return xp.where(silent, xp.asarray(fill, dtype=x.dtype), x)


def token_dropout(
    x: Any, u: Any, share: float = 0.1, unknown: int = UNKNOWN, padding: int = PADDING
) -> Any:
    """Replaces a share of the tokens `[B, N]` by the unknown one; padding stays."""
    xp = x.__array_namespace__()
    return xp.where((u < share) & (x != padding), xp.asarray(unknown, dtype=x.dtype), x)
