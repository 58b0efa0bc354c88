"""Clips: which frames of a folder, a GIF or an animated WebP are seen, and in which order.

A clip has any number of frames and a model sees a fixed one: `sample` chooses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np
from PIL import ImageFile

from mtmm_jax.registry import choose

SAMPLINGS = ("uniform", "centre", "rate")
FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
RATE = 25.0  # frames a second of a folder of frames, which does not say
_SLOWEST, _USUAL = 0.01, 0.1  # seconds: players show a GIF's shorter frames for `_USUAL`
_T = TypeVar("_T")


def sample(
    count: int, frames: int, how: str, step: float = 1.0, chance: float | None = None
) -> np.ndarray:
    """The indices of a clip's `count` frames that are read: at most `frames`, in order.

    Args:
        count: frames of the clip.
        frames: that the model sees.
        how: "uniform" (one from each of `frames` equal parts of the clip: its middle, or with
            `chance` the same random place in each; a short clip repeats frames), "centre" (one
            every `step` about the middle of the clip; a short clip gives fewer), or "rate" (the
            same, from a random start with `chance`).
        step: frames of the clip for each one that is seen: 1 for all, 2 for every other.
        chance: in 0..1, or `None` for no randomness.
    """
    choose(how, SAMPLINGS, "sample", "sampling")
    if how == "uniform":
        at = np.arange(frames) + (0.5 if chance is None else chance)
        return np.minimum((at * count / frames).astype(int), count - 1)
    taken = min(frames, int((count - 1) / step) + 1)
    room = count - 1 - (taken - 1) * step
    start = room * (0.5 if chance is None or how == "centre" else chance)
    return np.minimum((start + np.arange(taken) * step + 0.5).astype(int), count - 1)


def numbered(names: Iterable[str]) -> list[str]:
    """File names of frames in the order of the last number in each: 2.jpg before 10.jpg."""
    found = [name for name in names if name.lower().endswith(FRAME_SUFFIXES)]
    if not found:
        raise ValueError(f"has no frames ({', '.join(FRAME_SUFFIXES)})")
    numbers = [re.findall(r"[0-9]+", name.rpartition(".")[0])[-1:] for name in found]
    if not all(numbers):
        raise ValueError(f"has a frame without a number: {found[numbers.index([])]!r}")
    order = sorted(zip((int(number[0][-18:]) for number in numbers), found, strict=True))
    if len({number for number, _ in order}) < len(order):
        raise ValueError("has two frames of the same number")
    return [name for _, name in order]


def durations(data: bytes, most: int) -> list[float]:
    """Seconds for which each frame of a GIF or an animated WebP is shown, decoding none.

    At most `most + 1` of them; empty for a picture that does not move.
    """
    found = []
    for seconds in _gif(data) if data.startswith(b"GIF8") else _webp(data):
        found.append(seconds if seconds > _SLOWEST else _USUAL)
        if len(found) > most:
            break
    return found


def _gif(data: bytes) -> Iterator[float]:
    at = 13 + _colours(data[10])
    delay = 0.0
    while at + 1 < len(data) and data[at] in (0x21, 0x2C):
        if data[at] == 0x21:  # an extension; 0xF9 tells how long the next frame is shown
            if data[at + 1] == 0xF9:
                delay = int.from_bytes(data[at + 4 : at + 6], "little") / 100
            at += 2
        else:
            yield delay
            at += 10 + _colours(data[at + 9]) + 1
        while at < len(data) and data[at]:
            at += data[at] + 1
        at += 1


def _colours(flags: int) -> int:
    """Bytes of a GIF's colour table."""
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


def _webp(data: bytes) -> Iterator[float]:
    at = 12
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] == b"ANMF":
            yield int.from_bytes(data[at + 20 : at + 23], "little") / 1000
        at += 8 + size + size % 2


def animation(
    image: ImageFile.ImageFile, indices: np.ndarray, see: Callable[[ImageFile.ImageFile], _T]
) -> list[_T]:
    """The results of `see` for the frames of an animation, one for each of the ascending
    `indices`."""
    seen = {}
    wanted = set(indices.tolist())
    for index in range(max(wanted) + 1):
        image.seek(index)
        if index in wanted:
            seen[index] = see(image)
    return [seen[index] for index in indices.tolist()]
