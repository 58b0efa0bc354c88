"""A folder of frames or an animation -> the frames that a model sees."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from PIL import ImageFile

from mtmm_jax.readers import video
from mtmm_jax.readers.limits import Limits, Unreadable, guard
from mtmm_jax.readers.pictures import decode_image, frame, open_image, stack_images

CLIPS = "a folder of numbered frames, a GIF or an animated WebP"


@dataclasses.dataclass(frozen=True)
class View:
    """How a clip is seen.

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
    image = open_image(data, limits)
    seconds = [video.RATE]
    if image.format in ("GIF", "WEBP"):
        seconds = video.durations(data, limits.frames) or seconds
    limits.check("frames", len(seconds), "frames")
    limits.check("clip_pixels", len(seconds) * image.width * image.height, "pixels in its frames")

    def see(image: ImageFile.ImageFile) -> np.ndarray:
        limits.check("pixels", image.width * image.height, "pixels in a frame")
        image.load()
        return frame(image, view.size)

    indices = view.indices(len(seconds), len(seconds) / sum(seconds), chance)
    return video.animation(image, indices, see)


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
