"""Pictures: from any size to a model's square, by one pair of small matrices per picture.

Resizing, shifting, scaling and flipping are separable and linear, so an affine view of a picture is
`rows @ picture @ columns.T`. Evaluation, prediction and augmentation all go through `view`.
Pictures are RGBA with premultiplied alpha until `composite` puts them on a background, and planar
(`[4, h, w]`, several times faster for the matrices) until `normalise` makes them `[h, w, 3]`.
"""

from __future__ import annotations

import numpy as np
from PIL import Image


def pad_square(image: Image.Image) -> Image.Image:
    """Centres an RGBA picture on a transparent square."""
    side = max(image.size)
    if image.size == (side, side):
        return image
    square = Image.new("RGBA", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def to_planes(pixels: np.ndarray) -> np.ndarray:
    """Straight RGBA uint8 `[..., h, w, 4]` -> premultiplied uint8 `[..., 4, h, w]`."""
    planes = np.moveaxis(pixels, -1, -3).astype(np.uint16)
    planes[..., :3, :, :] *= planes[..., 3:, :, :]
    planes[..., :3, :, :] += 127
    planes[..., :3, :, :] //= 255
    return planes.astype(np.uint8)


def resize_matrix(
    source: int,
    size: int,
    scale: np.ndarray,
    shift: np.ndarray,
    flip: np.ndarray | None = None,
) -> np.ndarray:
    """`[B, size, source]`: weights by which an axis of `source` pixels is seen through `size`.

    Args:
        source, size: pixels before and after.
        scale: `[B]` magnification about the centre; 1 fits the picture to the frame exactly.
        shift: `[B]` in fractions of the frame.
        flip: `[B]` bool, mirrored where true.

    A triangle filter as wide as an output pixel where it shrinks: no aliasing. What lies outside
    the picture weighs zero and is transparent.
    """
    scale, shift = scale.astype(np.float32)[:, None], shift.astype(np.float32)[:, None]
    at = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    centre = ((at - shift) / scale + 0.5) * source - 0.5
    if flip is not None:
        centre = np.where(flip[:, None], source - 1 - centre, centre)
    narrow = np.minimum(size * scale / source, 1)[..., None]
    # In place: these are the largest arrays of a batch's augmentation after the pictures.
    weight = np.arange(source, dtype=np.float32) - centre[..., None]
    np.abs(weight, out=weight)
    weight *= -narrow
    weight += 1
    np.maximum(weight, 0, out=weight)
    # Near an edge part of the filter hangs over: dividing by its whole mass lets the picture fade
    # there, dividing by what is inside keeps opaque pictures opaque up to their edge.
    inside = (centre > -0.5) & (centre < source - 0.5)
    weight *= (inside / np.maximum(weight.sum(-1), 1e-6))[..., None]
    return weight


def view(planes: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Premultiplied uint8 `[B, 4, h, w]` through two matrices -> float32 `[B, 4, S, S]` in 0..1."""
    seen = (rows * np.float32(1 / 255))[:, None] @ planes.astype(np.float32)
    return seen @ columns.swapaxes(1, 2)[:, None]


def composite(planes: np.ndarray, background: np.ndarray | float) -> np.ndarray:
    """Premultiplied RGBA planes over RGB planes, both in 0..1."""
    return planes[:, :3] + (1 - planes[:, 3:]) * background


def normalise(planes: np.ndarray) -> np.ndarray:
    """RGB planes in 0..1 -> `[B, S, S, 3]` in -1..1, what models see.

    Zero, the filler of an absent picture, is middle grey.
    """
    return np.ascontiguousarray(np.moveaxis(planes, 1, -1)) * np.float32(2) - np.float32(1)


def plain(planes: np.ndarray, size: int) -> np.ndarray:
    """Premultiplied uint8 planes -> what models see without augmentation: the whole, on white."""
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    rows = resize_matrix(planes.shape[2], size, one, zero)
    columns = resize_matrix(planes.shape[3], size, one, zero)
    return normalise(np.clip(composite(view(planes, rows, columns), 1.0), 0, 1))
