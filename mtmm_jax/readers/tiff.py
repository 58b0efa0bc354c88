"""TIFF with bands that Pillow does not read: any number, of 8, 16, 32 or 64 bits, or floats.

Strips and tiles, bands together or apart, plain or deflated, with differences of neighbours undone.
Anything else is left to Pillow.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from mtmm_jax.readers.limits import Unreadable

_TYPES = {1: "B", 3: "H", 4: "I"}  # of the entries that are read: byte, short, long
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _COLOURS = 256, 257, 258, 259, 262
_STRIPS, _BANDS, _ROWS, _STRIP_SIZES, _APART = 273, 277, 278, 279, 284
_PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_SIZES, _FORMAT = 317, 322, 323, 324, 325, 339
_PLAIN, _DEFLATED = 1, (8, 32946)
_DTYPES = {1: "u", 2: "i", 3: "f"}
_MIN_IS_BLACK, _RGB = 1, 2


class _Layout(NamedTuple):
    height: int
    width: int
    bands: int
    dtype: np.dtype
    apart: bool
    differences: bool
    deflated: bool
    block: tuple[int, int]
    tiled: bool


def is_tiff(data: bytes) -> bool:
    return data[:4] in (b"II*\0", b"MM\0*")


def read_tiff(data: bytes, fits: Callable[[int, int], None], most: int) -> np.ndarray | None:
    """`[H, W, bands]` of the first picture in the file's dtype; None for what only Pillow reads.

    Args:
        data: of the file.
        fits: `(height, width)`, raises where they are over a limit.
        most: bands that are read.
    """
    order = "<" if data[:2] == b"II" else ">"
    tags = _tags(data, order)
    layout = _layout(tags, order)
    if layout is None:
        return None
    fits(layout.height, layout.width)
    if layout.bands > most:
        raise Unreadable(f"has {layout.bands} bands, more than {most}")
    offsets = tags[_TILES if layout.tiled else _STRIPS]
    sizes = tags[_TILE_SIZES if layout.tiled else _STRIP_SIZES]
    tall, wide = layout.block
    down, across = math.ceil(layout.height / tall), math.ceil(layout.width / wide)
    planes = layout.bands if layout.apart else 1
    if len(offsets) != len(sizes) or len(offsets) != planes * down * across:
        raise Unreadable("has another number of strips than its size needs")
    out = np.zeros((layout.height, layout.width, layout.bands), layout.dtype.newbyteorder("="))
    for i, (offset, size) in enumerate(zip(offsets, sizes, strict=True)):
        plane, place = divmod(i, down * across)
        top, left = place // across * tall, place % across * wide
        rows = tall if layout.tiled else min(tall, layout.height - top)
        block = _block(data[offset : offset + size], (rows, wide), layout)
        seen = block[: layout.height - top, : layout.width - left]
        chosen = slice(plane, plane + 1) if layout.apart else slice(None)
        out[top : top + len(seen), left : left + seen.shape[1], chosen] = seen
    return out


def _tags(data: bytes, order: str) -> dict[int, tuple[int, ...]]:
    (at,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, at)
    found = {}
    for i in range(count):
        tag, kind, number = struct.unpack_from(f"{order}HHI", data, at + 2 + 12 * i)
        if kind not in _TYPES or number * struct.calcsize(_TYPES[kind]) > len(data):
            continue
        start = at + 10 + 12 * i
        if number * struct.calcsize(_TYPES[kind]) > 4:
            (start,) = struct.unpack_from(f"{order}I", data, start)
        found[tag] = struct.unpack_from(f"{order}{number}{_TYPES[kind]}", data, start)
    return found


def _layout(tags: dict[int, Any], order: str) -> _Layout | None:
    first = lambda tag, default=0: (tags.get(tag) or (default,))[0]  # noqa: E731
    height, width, bands = first(_HEIGHT), first(_WIDTH), first(_BANDS, 1)
    bits, kind = set(tags.get(_BITS) or (1,)), first(_FORMAT, 1)
    compression = first(_COMPRESSION, 1)
    tiled = _TILES in tags
    block = (first(_TILE_HEIGHT), first(_TILE_WIDTH)) if tiled else (first(_ROWS, height), width)
    known = (
        len(bits) == 1
        and bits <= {8, 16, 32, 64}
        and kind in _DTYPES
        and (compression == _PLAIN or compression in _DEFLATED)
        and first(_PREDICTOR, 1) in (1, 2)
        and first(_COLOURS, _MIN_IS_BLACK) in (_MIN_IS_BLACK, _RGB)
        and (tiled or _STRIPS in tags)
    )
    if not known or (kind == 3 and bits == {8}):
        return None
    if min(height, width, bands, *block) < 1 or (tiled and max(block) > 2**14):
        raise Unreadable("has a size of 0 pixels, or tiles without bound")
    dtype = np.dtype(f"{order}{_DTYPES[kind]}{bits.pop() // 8}")
    block = block if tiled else (min(block[0], height), width)
    apart = first(_APART, 1) == 2
    deflated = compression in _DEFLATED
    return _Layout(
        height, width, bands, dtype, apart, first(_PREDICTOR, 1) == 2, deflated, block, tiled
    )


def _block(raw: bytes, shape: tuple[int, int], layout: _Layout) -> np.ndarray:
    bands = 1 if layout.apart else layout.bands
    wanted = shape[0] * shape[1] * bands * layout.dtype.itemsize
    if layout.deflated:
        raw = zlib.decompressobj().decompress(raw, wanted)
    if len(raw) < wanted:
        raise Unreadable("is cut short")
    block = np.frombuffer(raw[:wanted], layout.dtype).reshape(*shape, bands)
    if not layout.differences:
        return block
    native = block.astype(layout.dtype.newbyteorder("="))
    return np.cumsum(native, axis=1, dtype=native.dtype)
