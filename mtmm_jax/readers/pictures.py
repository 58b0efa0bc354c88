"""Bytes of a picture -> the square that models see, on white; whole lists of them -> a batch.

A picture that is opaque and has the wanted size already is taken as it is.
"""

from __future__ import annotations

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
_LARGEST = 8192  # pixels a side: one pixel by 32 million would need a square of them
# The triangle that packaged data and augmentation are resized with (`images.resize_matrix`): what a
# file shows in prediction is what training saw. It has no overshoot at edges, unlike Lanczos.
_FILTER = Image.Resampling.BILINEAR
_GAP = 3.0  # a box filter first, where a picture shrinks by more than this
_SCANS = 100  # of a progressive JPEG; each is a pass over all of its pixels
_TURNED = {"exif", "xmp", "Raw profile type exif"}  # where an orientation may be noted


class Picture(NamedTuple):
    """A decoded picture.

    Attributes:
        pixels: `[S, S, 3]` uint8.
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
    turned = upright(image)
    if (turned.width < turned.height) != (image.width < image.height):
        width, height = height, width
    return Picture(frame(turned, size), height, width)


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


def upright(image: Image.Image) -> Image.Image:
    if image.format != "TIFF" and not _TURNED & image.info.keys():
        return image
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a broken note about the picture does not make the picture bad
        return image


def frame(image: Image.Image, size: int) -> np.ndarray:
    """A loaded image -> uint8 `[size, size, 3]`, centred on a white square."""
    if image.mode.startswith("I"):  # 16 bits of grey, which `convert` would clip at 8
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        # Premultiplied: what is transparent has no colour that could bleed into its neighbours.
        square = _square(image.convert("RGBA").convert("RGBa"), size, (0, 0, 0, 0))
        seen = _pixels(square)
        white = 255 - seen[..., 3:]
        return np.minimum(seen[..., :3] + white.astype(np.uint16), 255).astype(np.uint8)
    return _pixels(_square(image.convert("RGB"), size, (255, 255, 255)))


def _pixels(image: Image.Image) -> np.ndarray:
    # Not np.asarray: Pillow's array interface costs a small picture half as much again.
    return np.frombuffer(image.tobytes(), np.uint8).reshape(*image.size[::-1], -1)


def _square(image: Image.Image, size: int, margin: tuple[int, ...]) -> Image.Image:
    """The picture resized on its square as Pillow does, without making that square.

    Resizing is separable: the longer axis first, then the margins, then the other axis.
    """
    if max(image.size) > _LARGEST:
        image.thumbnail((_LARGEST, _LARGEST), _FILTER)
    width, height = image.size
    side = max(width, height)
    if width == height:
        return _resized(image, (size, size))
    wide = width > height
    image = _resized(image, (size, height) if wide else (width, size))
    square = Image.new(image.mode, (size, side) if wide else (side, size), margin)
    square.paste(image, (0, (side - height) // 2) if wide else ((side - width) // 2, 0))
    return _resized(square, (size, size))


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if image.size == size else image.resize(size, _FILTER, reducing_gap=_GAP)


def stack_images(pictures: Sequence[np.ndarray | None], size: int) -> np.ndarray:
    """`[B, size, size, 3]` float32 in -1..1, zero where there is none."""
    x = np.empty((len(pictures), size, size, 3), np.float32)
    for row, pixels in zip(x, pictures, strict=True):
        row[:] = 127.5 if pixels is None else pixels
    x *= np.float32(1 / 127.5)
    x -= np.float32(1)
    return x
