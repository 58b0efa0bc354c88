"""Clips, `[T, H, W, 3]` in -1..1."""

from __future__ import annotations

import dataclasses
import functools
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image

from mtmm_jax.markup import data_uri, escape, png, to_pixels
from mtmm_jax.modalities.columns import Column, Input, one_present, present
from mtmm_jax.modalities.corruption import ABSENT, fewer
from mtmm_jax.modalities.image import PIXEL_NOISE, border, grey
from mtmm_jax.modalities.kind import ModalityKind
from mtmm_jax.modalities.modality import Modality
from mtmm_jax.modalities.shown import Example
from mtmm_jax.modalities.units import OverPicture, Units
from mtmm_jax.ranges import Positive, Side, Size
from mtmm_jax.readers import video
from mtmm_jax.readers.cells import Attempt, Setting
from mtmm_jax.readers.clips import (
    CLIPS,
    Clip,
    View,
    decode_animation,
    decode_folder,
    stack_clips,
    whole_animation,
    whole_folder,
)
from mtmm_jax.readers.decoder import Decoder
from mtmm_jax.readers.files import Folder
from mtmm_jax.readers.limits import Limits
from mtmm_jax.readers.own import OWN, own_bytes, read_own
from mtmm_jax.registry import ConfigError, choose

SIDE = 4  # units along a frame's side


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoColumn(Column):
    """A folder of numbered frames, a GIF or an animated WebP, seen as `frames` pictures.

    Args:
        sample: "uniform" (spread over the clip), "centre" (about its middle) or "rate" (from a
            random start in training, about the middle in evaluation).
        rate: frames a second that are seen by "centre" and "rate"; the clip's usual 25 by default.
        folder_rate: frames a second in folders of frames.
    """

    frames: Size = 8
    size: Side = 32
    sample: str = "uniform"
    rate: Positive | None = None
    folder_rate: Positive = video.RATE

    def __post_init__(self) -> None:
        choose(self.sample, video.SAMPLINGS, f"{self.where}.sample", "sampling")
        if self.rate is not None and self.sample == "uniform":
            raise ConfigError(f"{self.where}.rate: uniform sampling has no rate of its own")

    def fit(self, cells: list[str | None], setting: Setting, *_: Any) -> Input:
        folder, limits = setting.folder, setting.limits
        rate = None if self.sample == "uniform" else float(self.rate or video.RATE)
        view = View(self.frames, self.size, self.sample, rate or video.RATE, self.folder_rate)
        stored = setting.once(
            self.at,
            cells,
            Decoder(
                "video",
                {"size": view.size, "folder_rate": view.folder_rate, "pillow": PIL.__version__},
                decode=lambda name: whole_clip(name, folder, view, limits),
                pack=lambda clip: ({"rate": clip.rate}, clip.frames),
                unpack=lambda meta, frames: Clip(frames, **meta),
                otherwise=lambda name: None,
            ),
        )

        def batch(rows: np.ndarray, chance: np.ndarray | None, attempt: Attempt) -> Any:
            def decode(name: str, i: int) -> list[np.ndarray]:
                jitter = None if chance is None or not chance.shape[1] else float(chance[i, 0])
                clip = stored(name)
                if clip is not None:
                    return clip.seen(view, jitter)
                return read_clip(name, folder, view, limits, jitter)

            found = attempt(self.at, cells, decode)
            x, mask = stack_clips(found, self.frames, self.size)
            return {"x": x, "mask": mask, "present": present(found)}, found

        shape = (self.frames, self.size, self.size, 3)
        modality = Modality("video", shape, "float32", rate=rate)
        return Input(modality, batch, draws=int(self.sample != "centre"))


def read_clip(
    name: str, folder: Folder, view: View, limits: Limits, chance: float | None
) -> list[np.ndarray]:
    """The frames that are seen of a clip in a folder of frames or in a file."""
    if not folder.is_folder(name):
        return decode_animation(folder.read(name), view, limits, chance)
    read = functools.partial(_frame, folder, name.rstrip("/"))
    return decode_folder(folder.names(name), read, view, limits, chance)


def whole_clip(name: str, folder: Folder, view: View, limits: Limits) -> Clip | None:
    """All frames, unless the clip is better decoded in every epoch."""
    if not folder.is_folder(name):
        return whole_animation(folder.read(name), view, limits)
    read = functools.partial(_frame, folder, name.rstrip("/"))
    return whole_folder(folder.names(name), read, view, limits)


def _frame(folder: Folder, name: str, frame: str) -> bytes:
    return folder.read(f"{name}/{frame}")


def _options(modality: Modality, given: Mapping[str, Any]) -> dict[str, Any]:
    options = {"frames": modality.shape[0], "size": modality.shape[1]}
    if modality.rate is not None:
        options |= {"sample": given.get("sample", "rate"), "rate": modality.rate}
    return options


def read_video(path: str | os.PathLike[str], modality: Modality) -> dict[str, Any]:
    """`x` is `[1, T, S, S, 3]` float32 in -1..1, with the `mask` of the frames that there are.

    The frames are spread over the whole clip, or, where the modality has a rate, about its middle.
    """
    frames, size = modality.shape[:2]
    view = (
        View(frames, size) if modality.rate is None else View(frames, size, "rate", modality.rate)
    )
    clip = read_own(path, "video", CLIPS, lambda where: _clip(where, view), folder=True)
    x, mask = stack_clips([clip], frames, size)
    return {**one_present(x), "mask": mask}


def _clip(where: Path, view: View) -> list[np.ndarray]:
    if where.is_file():
        return decode_animation(own_bytes(where), view, OWN)
    names = [entry.name for entry in where.iterdir()]
    return decode_folder(names, lambda name: own_bytes(where / name), view, OWN)


def frame_patches(modality: Modality, shape: tuple[int, ...]) -> list[tuple[int, int]]:
    del modality
    return [(shape[0], shape[0]), *((size, SIDE) for size in shape[1:3])]


def patch_names(modality: Modality, count: int) -> list[str]:
    del modality
    patches = SIDE**2
    return [f"frame {i // patches + 1}, part {i % patches + 1}" for i in range(count)]


def over_frame(values: np.ndarray, x: np.ndarray, modality: Modality) -> OverPicture:
    """The frame whose units add up to most."""
    best = int(np.abs(values.reshape(len(x), -1).sum(1)).argmax())
    side = min(SIDE, x.shape[1]), min(SIDE, x.shape[2])
    caption = f"frame {best + 1} of {len(x)}, which counted most"
    return OverPicture(values.reshape(len(x), *side)[best], grey(x[best]), caption)


def show(example: Example) -> str:
    frames = to_pixels(example.real)
    if not len(frames):
        return "<div class=absent>no frames</div>"
    rate = example.modality.rate or 4.0
    first, *others = (Image.fromarray(frame) for frame in frames)
    out = io.BytesIO()
    first.save(
        out,
        "WEBP",
        save_all=True,
        append_images=others,
        duration=round(1000 / rate),
        loop=0,
        lossless=max(first.size) <= 64,
        quality=85,
    )
    some = frames[np.unique(np.linspace(0, len(frames) - 1, min(8, len(frames))).astype(int))]
    strip = np.concatenate(some, axis=1)
    clip = data_uri(out.getvalue(), "image/webp")
    return (
        f"<div class=seen><img alt='{escape(example.name)}' src='{clip}'></div>"
        f"<div class='seen strip'><img alt='frames' src='{png(strip)}'></div>"
    )


VIDEO = ModalityKind(
    "video",
    dimensions=4,
    mask="maybe",
    column=VideoColumn,
    options=_options,
    read=lambda value, kept: read_video(value, kept.modality),
    endings=(".gif",),
    magic=rb"GIF8",
    encoder="video_frames",
    fixed="video_gradients",
    units=Units(frame_patches, border, patch_names, over_frame),
    corruptions={"noise": PIXEL_NOISE, "missing frames": fewer("frames"), "absent": ABSENT},
    show=show,
    wide=True,
    frames=to_pixels,
)
