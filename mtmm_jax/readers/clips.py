"""A folder of frames or an animation -> the frames that a model sees."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import ImageFile

from mtmm_jax.readers import video
from mtmm_jax.readers.limits import Limits, Unreadable, guard
from mtmm_jax.readers.pictures import decode_image, frame, open_image, stack_images

WHOLE_BYTES = 2**26  # of the frames of a clip that is kept whole
CLIPS = "a folder of numbered frames, a GIF or an animated WebP"


@dataclasses.dataclass(frozen=True)
class View:
    """Frame rate, frames and size at which a clip is read.

    Attributes:
        frames, size: how many, and their side in pixels.
        how: of `video.SAMPLINGS`.
        rate: frames a second that the model sees; for all samplings but "uniform".
        folder_rate: frames a second of folders of frames; animations say it themselves.
    """

    frames: int
    size: int
    how: str = "uniform"
    rate: float = video.RATE
    folder_rate: float = video.RATE

    def indices(self, count: int, rate: float, chance: float | None) -> np.ndarray:
        step = max(rate / self.rate, 1e-3)
        return video.sample(count, self.frames, self.how, step, chance)


def decode_folder(
    names: Iterable[str],
    read: Callable[[str], bytes],
    view: View,
    limits: Limits,
    chance: float | None = None,
) -> list[np.ndarray]:
    """At most `view.frames` pictures; only those that are seen are read."""
    names = guard(video.numbered, names)
    limits.check("frames", len(names), "frames")
    seen, pictures = {}, []
    for index in view.indices(len(names), view.folder_rate, chance).tolist():
        if index not in seen:
            try:
                seen[index] = decode_image(read(names[index]), view.size, limits).pixels
            except Unreadable as error:
                raise Unreadable(f"frame {names[index]!r}: {error}") from error
        pictures.append(seen[index])
    return pictures


def decode_animation(
    data: bytes, view: View, limits: Limits, chance: float | None = None
) -> list[np.ndarray]:
    """At most `view.frames` pictures; a picture that does not move is a clip of one frame."""
    return guard(_animation, data, view, limits, chance)


def _animation(data: bytes, view: View, limits: Limits, chance: float | None) -> list[np.ndarray]:
    image, count, rate = _opened(data, limits)
    return video.animation(image, view.indices(count, rate, chance), _see(view, limits))


def _opened(data: bytes, limits: Limits) -> tuple[ImageFile.ImageFile, int, float]:
    """An animation, how many frames it has and how many of them a second, decoding none."""
    image = open_image(data, limits)
    seconds = [video.RATE]
    if image.format in ("GIF", "WEBP"):
        seconds = video.durations(data, limits.frames) or seconds
    limits.check("frames", len(seconds), "frames")
    limits.check("clip_pixels", len(seconds) * image.width * image.height, "pixels in its frames")
    return image, len(seconds), len(seconds) / sum(seconds)


def _see(view: View, limits: Limits) -> Callable[[ImageFile.ImageFile], np.ndarray]:
    def see(image: ImageFile.ImageFile) -> np.ndarray:
        limits.check("pixels", image.width * image.height, "pixels in a frame")
        image.load()
        return frame(image, view.size)

    return see


class Clip(NamedTuple):
    """All frames of a clip, from which each epoch draws some.

    Attributes:
        frames: `[T, S, S, 3]` uint8.
        rate: frames a second.
    """

    frames: np.ndarray
    rate: float

    def seen(self, view: View, chance: float | None) -> list[np.ndarray]:
        """The result of `decode_folder` and `decode_animation` under this view."""
        return [self.frames[i] for i in view.indices(len(self.frames), self.rate, chance)]


def whole_folder(
    names: Iterable[str], read: Callable[[str], bytes], view: View, limits: Limits
) -> Clip | None:
    """All frames; None where they are over `WHOLE_BYTES`, or one of them cannot be decoded."""
    names = guard(video.numbered, names)
    limits.check("frames", len(names), "frames")
    if _bytes(len(names), view) > WHOLE_BYTES:
        return None
    try:
        frames = [decode_image(read(name), view.size, limits).pixels for name in names]
    except Unreadable:  # which does not matter in the epochs that do not see it
        return None
    return Clip(np.stack(frames), view.folder_rate)


def whole_animation(data: bytes, view: View, limits: Limits) -> Clip | None:
    """All frames; None where they are over `WHOLE_BYTES`, or one of them cannot be decoded."""
    image, count, rate = guard(_opened, data, limits)
    if _bytes(count, view) > WHOLE_BYTES:
        return None
    try:
        frames = guard(video.animation, image, np.arange(count), _see(view, limits))
    except Unreadable:
        return None
    return Clip(np.stack(frames), rate)


def _bytes(count: int, view: View) -> int:
    return count * view.size**2 * 3


def stack_clips(
    clips: Sequence[Sequence[np.ndarray] | None], frames: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """`[B, frames, size, size, 3]` float32 in -1..1 and the mask of the frames that there are."""
    slots: list[np.ndarray | None] = []
    mask = np.zeros((len(clips), frames), bool)
    for row, clip in zip(mask, clips, strict=True):
        clip = clip or ()
        slots += [*clip, *[None] * (frames - len(clip))]
        row[: len(clip)] = True
    return stack_images(slots, size).reshape(len(clips), frames, size, size, 3), mask
