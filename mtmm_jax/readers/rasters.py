"""Pictures of any number of channels and bits: 16-bit PNG, TIFF of one or several bands, `.npy`.

Values keep their dtype, `[S, S, channels]`: what is between the pixels of a file is rounded to it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from mtmm_jax.readers.arrays import npy_header
from mtmm_jax.readers.limits import Limits, Unreadable, guard
from mtmm_jax.readers.pictures import open_image, upright
from mtmm_jax.readers.tiff import is_tiff, read_tiff

RASTERS = "PNG, JPEG, WebP, GIF, BMP, TIFF or .npy"
MOST_CHANNELS = 512
RANGES = {"uint8": (0.0, 255.0), "uint16": (0.0, 65535.0), "bool": (0.0, 1.0)}
"""What is -1 and 1, by dtype; any other needs a `range`."""
_NUMPY = b"\x93NUMPY"


class Raster(NamedTuple):
    """A decoded picture.

    Attributes:
        pixels: `[S, S, channels]` uint8, uint16 or float32.
        height, width: of the whole picture in the file, upright.
    """

    pixels: np.ndarray
    height: int
    width: int


def decode_raster(
    data: bytes, size: int, channels: int, limits: Limits, ranged: bool = False
) -> Raster:
    """Centred on a square of `size` pixels, the margins 0.

    Args:
        data: of the file.
        size: of the square's sides.
        channels: of the picture; one channel of a file with colours is their luminance.
        limits: under which it is decoded.
        ranged: whether the range of values is known, so that any numbers will do.
    """
    return guard(_decode, data, size, channels, limits, ranged)


def _decode(data: bytes, size: int, channels: int, limits: Limits, ranged: bool) -> Raster:
    whole = _bands(data, channels, limits)
    if whole.ndim != 3 or not whole.size:
        raise Unreadable(f"is an array of shape {list(whole.shape)}, no picture")
    if whole.shape[2] != channels:
        raise Unreadable(f"has {whole.shape[2]} channels, not {channels}")
    whole = whole.astype(whole.dtype.newbyteorder("="), copy=False)
    if whole.dtype == bool:
        whole = whole.astype(np.uint8) * 255
    if whole.dtype.name not in RANGES and not ranged:
        raise Unreadable(f"holds {whole.dtype.name}, for which the column needs a `range`")
    kept = whole.dtype if whole.dtype.name in RANGES else np.dtype(np.float32)
    floats = whole.astype(np.float32)
    if not np.isfinite(floats).all():
        raise Unreadable("has not-a-number or infinity among its numbers")
    square = np.stack([_square(floats[..., i], size) for i in range(channels)], axis=-1)
    if kept.kind == "u":
        square = np.clip(np.round(square), 0, np.iinfo(kept).max)
    return Raster(square.astype(kept), *whole.shape[:2])


def _bands(data: bytes, channels: int, limits: Limits) -> np.ndarray:
    """`[H, W, channels]` in the dtype of the file."""
    if data.startswith(_NUMPY):
        return _array(data, limits)
    if is_tiff(data):
        found = read_tiff(data, lambda height, width: _fits(height, width, limits), MOST_CHANNELS)
        if found is not None and found.shape[2] == channels:
            return found
    image = _loaded(data, limits)
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)[..., None]
    if image.mode in ("I", "F"):  # Pillow reads 16-bit grey PNG so, too
        values = np.asarray(image)
        small = image.format == "PNG" and values.dtype.kind == "i"
        return (values.astype(np.uint16) if small else values)[..., None]
    if channels == 1:
        if image.has_transparency_data:
            white = Image.new("RGBA", image.size, (255, 255, 255, 255))
            image = Image.alpha_composite(white, image.convert("RGBA"))
        return np.asarray(image.convert("L"))[..., None]
    bands = {2: "LA", 3: "RGB", 4: "RGBA"}.get(channels)
    return np.atleast_3d(np.asarray(image.convert(bands) if bands else image))


def look(data: bytes, limits: Limits) -> tuple[int, str, float, float]:
    """`(channels, dtype, least, most)` of a picture's values as they are in the file."""
    found = None
    if is_tiff(data):
        found = read_tiff(data, lambda height, width: _fits(height, width, limits), MOST_CHANNELS)
    if found is None and data.startswith(_NUMPY):
        found = _array(data, limits)
    if found is None:
        image = _loaded(data, limits)
        wide = image.mode.startswith("I") or image.mode == "F"
        found = _bands(data, 1, limits) if wide else np.atleast_3d(np.asarray(image))
    return found.shape[2], found.dtype.name, float(found.min()), float(found.max())


def _loaded(data: bytes, limits: Limits) -> Image.Image:
    try:
        image = open_image(data, limits)
        image.load()
    except SyntaxError as error:  # Pillow's, for a TIFF that it does not know
        if not is_tiff(data):
            raise
        reason = "is a TIFF of a sort that is not read; save it uncompressed or deflated"
        raise Unreadable(reason) from error
    return upright(image)


def _array(data: bytes, limits: Limits) -> np.ndarray:
    """`[H, W]` or `[H, W, channels]`; checked by the header before anything is read."""
    shape, dtype = npy_header(data)
    if dtype.kind not in "biuf":
        raise Unreadable(f"holds {dtype}, no numbers")
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] > MOST_CHANNELS):
        raise Unreadable(f"is an array of shape {list(shape)}; wanted [H, W] or [H, W, channels]")
    _fits(shape[0], shape[1], limits)
    return np.atleast_3d(np.load(io.BytesIO(data), allow_pickle=False))


def _fits(height: int, width: int, limits: Limits) -> None:
    limits.check("pixels", height * width, f"pixels ({width} x {height})")


def _square(band: np.ndarray, size: int) -> np.ndarray:
    """One band on a square, by the same triangle as pictures."""
    height, width = band.shape
    side = max(height, width)
    if (height, width) == (size, size):
        return band
    tall, wide = (max(round(size * n / side), 1) for n in (height, width))
    seen = Image.fromarray(band).resize((wide, tall), Image.Resampling.BILINEAR)
    out = np.zeros((size, size), np.float32)
    top, left = (size - tall) // 2, (size - wide) // 2
    out[top : top + tall, left : left + wide] = np.asarray(seen)
    return out


def stack_rasters(
    pictures: Sequence[np.ndarray | None],
    shape: tuple[int, ...],
    span: Sequence[float] | None = None,
) -> np.ndarray:
    """`[B, S, S, channels]` float32 in -1..1, zero where there is none.

    Args:
        pictures: of `decode_raster`.
        shape: of each.
        span: the values that become -1 and 1, what lies outside is clipped; by dtype if None.
    """
    x = np.zeros((len(pictures), *shape), np.float32)
    for row, pixels in zip(x, pictures, strict=True):
        if pixels is not None:
            low, high = span or RANGES[pixels.dtype.name]
            scaled = (pixels.astype(np.float64) - low) * (2.0 / (high - low)) - 1.0
            row[:] = np.clip(scaled, -1.0, 1.0)
    return x
