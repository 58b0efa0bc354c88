"""Bytes of a picture -> the square that models see, on white; whole lists of them -> a batch.

A picture that is opaque and has the wanted size already is taken as it is.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from mtmm_jax.readers import images
from mtmm_jax.readers.limits import Limits, Unreadable, guard

IMAGES = "PNG, JPEG, WebP, GIF, BMP or TIFF"
# The formats by their first bytes: no plugin is tried that is not named here.
_FORMATS = (
    (b"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    (b"\xff\xd8\xff", JpegImagePlugin.JpegImageFile),
    (b"RIFF", WebPImagePlugin.WebPImageFile),
    (b"GIF8", GifImagePlugin.GifImageFile),
    (b"BM", BmpImagePlugin.BmpImageFile),
    (b"II*\0", TiffImagePlugin.TiffImageFile),
    (b"MM\0*", TiffImagePlugin.TiffImageFile),
)
_LARGEST = 512  # pixels a side before the exact resize, whose cost grows with the area
_SCANS = 100  # of a progressive JPEG; each is a pass over all of its pixels
_TURNED = {"exif", "xmp", "Raw profile type exif"}  # where an orientation may be noted


class Picture(NamedTuple):
    """A decoded picture.

    Attributes:
        pixels: `[S, S, 3]` in 0..255: uint8 as in the file, or float32 after resizing.
        height, width: of the whole picture in the file, upright.
    """

    pixels: np.ndarray
    height: int
    width: int


def decode_image(data: bytes, size: int, limits: Limits) -> Picture:
    """Centred on a white square of `size` pixels, upright as EXIF has it."""
    return guard(_decode, data, size, limits)


def _decode(data: bytes, size: int, limits: Limits) -> Picture:
    image = open_image(data, limits)
    width, height = image.size
    if image.format == "JPEG" and max(image.size) > 4 * size:
        image.draft(None, (2 * size, 2 * size))  # decodes an eighth, a quarter or half of it
    image.load()
    upright = _upright(image)
    if (upright.width < upright.height) != (image.width < image.height):
        width, height = height, width
    return Picture(frame(upright, size), height, width)


def open_image(data: bytes, limits: Limits) -> ImageFile.ImageFile:
    """A picture whose header is read and within the limits, its pixels not decoded yet."""
    kind = next((kind for start, kind in _FORMATS if data.startswith(start)), None)
    if kind is None:
        raise Unreadable("is empty" if not data else "is no picture by its first bytes")
    if kind is WebPImagePlugin.WebPImageFile:  # its constructor makes room for two canvases
        _fits(_webp_size(data), limits)
    if kind is JpegImagePlugin.JpegImageFile and data.count(b"\xff\xda") > _SCANS:
        raise Unreadable(f"has more than {_SCANS} scans")
    image = kind(io.BytesIO(data))
    _fits(image.size, limits)
    return image


def _fits(size: tuple[int, int], limits: Limits) -> None:
    limits.check("pixels", size[0] * size[1], f"pixels ({size[0]} x {size[1]})")


def _webp_size(data: bytes) -> tuple[int, int]:
    head = data[:30]
    if len(head) < 30 or head[8:12] != b"WEBP":
        raise Unreadable("is cut short, or RIFF but no WebP")
    if head[12:16] == b"VP8X":
        return tuple(int.from_bytes(head[at : at + 3], "little") + 1 for at in (24, 27))
    if head[12:16] == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return tuple(int.from_bytes(head[at : at + 2], "little") & 0x3FFF for at in (26, 28))


def _upright(image: Image.Image) -> Image.Image:
    if image.format != "TIFF" and not _TURNED & image.info.keys():
        return image
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a broken note about the picture does not make the picture bad
        return image


def frame(image: Image.Image, size: int) -> np.ndarray:
    """A loaded image -> `[size, size, 3]` in 0..255, centred on a white square."""
    if image.mode.startswith("I"):  # 16 bits of grey, which `convert` would clip at 8
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.mode != "RGB":
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    largest = max(_LARGEST, 2 * size)
    if max(image.size) > largest:
        image.thumbnail((largest, largest))
    # Not np.asarray: Pillow's array interface costs a small picture half as much again.
    pixels = np.frombuffer(image.tobytes(), np.uint8).reshape(*image.size[::-1], -1)
    if image.mode == "RGBA" and pixels[..., 3].min() == 255:
        pixels = pixels[..., :3]
    if pixels.shape[2] == 4:
        planes = images.to_planes(np.asarray(images.pad_square(image)))[None]
        return (images.plain(planes, size)[0] + 1) * np.float32(127.5)
    return pixels if image.size == (size, size) else _resize(pixels, size)


@functools.lru_cache(maxsize=64)
def _lens(source: int, size: int) -> np.ndarray:
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    return images.resize_matrix(source, size, one, zero)[0]


def _resize(pixels: np.ndarray, size: int) -> np.ndarray:
    """What `images.plain` makes of an opaque picture on its square, without the square's margins.

    The share of white in a result pixel is separable, so that no alpha is needed.
    """
    height, width = pixels.shape[:2]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    rows = _lens(side, size)[:, top : top + height]
    columns = _lens(side, size)[:, left : left + width]
    seen = rows @ pixels.reshape(height, -1).astype(np.float32)
    seen = np.tensordot(seen.reshape(size, width, 3), columns, axes=(1, 1)).swapaxes(1, 2)
    seen += 255 * (1 - np.outer(rows.sum(1), columns.sum(1)))[..., None]
    return np.clip(seen, 0, 255)


def stack_images(pictures: Sequence[np.ndarray | None], size: int) -> np.ndarray:
    """`[B, size, size, 3]` float32 in -1..1, zero where there is none."""
    x = np.empty((len(pictures), size, size, 3), np.float32)
    for row, pixels in zip(x, pictures, strict=True):
        row[:] = 127.5 if pixels is None else pixels
    x *= np.float32(1 / 127.5)
    x -= np.float32(1)
    return x
