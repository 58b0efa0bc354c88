"""One file or one text -> the inputs of a batch of one, prepared just as the sources prepare them.

inputs = {"image": READERS["image"](path, spec.modalities["image"])}

The decoders take bytes, so that a manifest's files and a user's own go through the same code.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mtmm_jax.batch import Modality
from mtmm_jax.data.readers import audio
from mtmm_jax.data.readers.clips import CLIPS, View, decode_animation, decode_folder, stack_clips
from mtmm_jax.data.readers.pictures import IMAGES, decode_image, stack_images
from mtmm_jax.data.readers.sounds import SOUNDS, decode_audio
from mtmm_jax.readers.limits import LIMITS, Limits, Unreadable
from mtmm_jax.registry import ConfigError
from mtmm_jax.text import encode_with_mask, read_tokenizer

_OWN = Limits(file_bytes=2**30, pixels=178_000_000, seconds=7200.0)  # a file named by its user
_T = TypeVar("_T")


def read_image(path: str | os.PathLike[str], modality: Modality) -> dict[str, Any]:
    """`x` is `[1, S, S, 3]` float32 in -1..1: centred on a white square, upright as EXIF has it."""
    size = modality.shape[0]
    decode = lambda where: decode_image(_bytes(where), size, _OWN)  # noqa: E731
    return _entry(stack_images([_read(path, "image", IMAGES, decode).pixels], size))


def read_audio(path: str | os.PathLike[str], modality: Modality) -> dict[str, Any]:
    """`x` is `[1, samples]` float32: mono, at the modality's rate, silence before it dropped."""
    decode = lambda where: decode_audio(_bytes(where), int(modality.rate), _OWN)  # noqa: E731
    return _entry(audio.fit([_read(path, "audio", SOUNDS, decode)], modality.shape[0]))


def read_video(path: str | os.PathLike[str], modality: Modality) -> dict[str, Any]:
    """`x` is `[1, T, S, S, 3]` float32 in -1..1, with the `mask` of the frames that there are.

    The frames are spread over the whole clip, or, where the modality has a rate, about its middle.
    """
    frames, size = modality.shape[:2]
    view = (
        View(frames, size) if modality.rate is None else View(frames, size, "rate", modality.rate)
    )
    clip = _read(path, "video", CLIPS, lambda where: _clip(where, view), folder=True)
    x, mask = stack_clips([clip], frames, size)
    return {**_entry(x), "mask": mask}


def encode_text(text: str, modality: Modality, tokenizer_json: str | bytes) -> dict[str, Any]:
    """`x` is `[1, tokens]` int32 with its `mask`; `tokenizer_json` is the source's asset."""
    ids, mask = encode_with_mask(read_tokenizer(tokenizer_json), [text], modality.shape[0])
    if not mask.any():
        raise ConfigError(f"text: {text!r} has no word in it; wanted a name or a description")
    return {**_entry(ids), "mask": mask}


READERS = {"image": read_image, "audio": read_audio, "video": read_video, "text": encode_text}


def decode_text(data: bytes, limits: Limits = LIMITS) -> str:
    """UTF-8, with or without a byte order mark."""
    limits.check("text_bytes", len(data), "bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(f"is not UTF-8 at byte {error.start}") from error


def _entry(x: np.ndarray) -> dict[str, Any]:
    return {"x": x, "present": np.ones(1, bool)}


def _bytes(where: Path) -> bytes:
    _OWN.check("file_bytes", where.stat().st_size, "bytes")
    return where.read_bytes()


def _clip(where: Path, view: View) -> list[np.ndarray]:
    if where.is_file():
        return decode_animation(_bytes(where), view, _OWN)
    names = [entry.name for entry in where.iterdir()]
    return decode_folder(names, lambda name: _bytes(where / name), view, _OWN)


def _read(
    path: str | os.PathLike[str],
    what: str,
    accepted: str,
    decode: Callable[[Path], _T],
    folder: bool = False,
) -> _T:
    """A file that its user named, decoded; a `ConfigError` that names it where that fails."""
    where = Path(path).expanduser()
    try:
        if not where.exists():
            raise Unreadable("does not exist")
        if where.is_dir() and not folder:
            raise Unreadable("is a folder")
        return decode(where)
    except (Unreadable, OSError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{what}: cannot read {where}: {reason}; accepted: {accepted}") from error
