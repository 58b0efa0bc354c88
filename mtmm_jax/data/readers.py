"""One file or one text -> the inputs of a batch of one, prepared just as the source prepares them.

inputs = {"image": READERS["image"](path, spec.modalities["image"])}
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image, ImageOps, UnidentifiedImageError

from mtmm_jax.batch import Modality
from mtmm_jax.data import audio, images
from mtmm_jax.data.text import PADDING, encode, read_tokenizer
from mtmm_jax.registry import ConfigError

IMAGES = "PNG, JPEG, WebP, GIF, BMP or TIFF"
SOUNDS = "WAV, FLAC, OGG (Vorbis or Opus) or MP3"
_LARGEST = 512  # pixels a side before the exact resize, whose cost grows with the area


def read_image(path: str | os.PathLike[str], modality: Modality) -> dict[str, Any]:
    """`x` is `[1, S, S, 3]` float32 in -1..1: centred on a white square, upright as EXIF has it."""
    where = _file(path, "image", IMAGES)
    try:
        with Image.open(where) as image:
            picture = ImageOps.exif_transpose(image).convert("RGBA")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise _refuse("image", where, error, IMAGES) from error
    except Image.DecompressionBombError as error:
        raise _refuse("image", where, error, "at most 178 million pixels") from error
    if max(picture.size) > _LARGEST:
        picture.thumbnail((_LARGEST, _LARGEST))
    planes = images.to_planes(np.asarray(images.pad_square(picture)))[None]
    return _entry(images.plain(planes, modality.shape[0]))


def read_audio(path: str | os.PathLike[str], modality: Modality) -> dict[str, Any]:
    """`x` is `[1, samples]` float32: mono, at the modality's rate, silence before it dropped."""
    where = _file(path, "audio", SOUNDS)
    try:
        wave, rate = soundfile.read(where, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError, ValueError) as error:
        raise _refuse("audio", where, error, SOUNDS) from error
    mono = wave.mean(axis=1)
    if not len(mono) or not np.isfinite(mono).all():
        raise _refuse("audio", where, "has no samples, or not-a-number among them", SOUNDS)
    wanted = int(modality.rate)
    mono = audio.trim(audio.resample(mono, rate, wanted), wanted)
    return _entry(audio.fit([mono], modality.shape[0]))


def encode_text(text: str, modality: Modality, tokenizer_json: str | bytes) -> dict[str, Any]:
    """`x` is `[1, tokens]` int32 with its `mask`; `tokenizer_json` is the source's asset."""
    ids = encode(read_tokenizer(tokenizer_json), [text], modality.shape[0])
    if not (ids != PADDING).any():
        raise ConfigError(f"text: {text!r} has no word in it; wanted a name or a description")
    return {**_entry(ids), "mask": ids != PADDING}


READERS = {"image": read_image, "audio": read_audio, "text": encode_text}


def _entry(x: np.ndarray) -> dict[str, Any]:
    return {"x": x, "present": np.ones(1, bool)}


def _file(path: str | os.PathLike[str], what: str, accepted: str) -> Path:
    where = Path(path).expanduser()
    if not where.is_file():
        found = "is a folder" if where.is_dir() else "does not exist"
        raise _refuse(what, where, found, accepted)
    return where


def _refuse(what: str, path: Path, why: object, accepted: str) -> ConfigError:
    reason = " ".join(str(why).split()) or type(why).__name__
    return ConfigError(f"{what}: cannot read {path}: {reason}; accepted: {accepted}")
