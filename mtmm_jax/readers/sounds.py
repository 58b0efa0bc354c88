"""Bytes of a recording -> a mono wave at the wanted rate, without the silence around it."""

from __future__ import annotations

import io
import struct

import numpy as np
import soundfile
import soxr

from mtmm_jax.readers import audio
from mtmm_jax.readers.limits import Limits, Unreadable, guard

SOUNDS = "WAV, FLAC, OGG (Vorbis or Opus) or MP3"
VERSIONS = {"libsndfile": soundfile.__libsndfile_version__, "soxr": soxr.__version__}
RATES = (1_000, 384_000)
_CHANNELS = 32
_FLOOR, _MARGIN = 0.02, 0.02  # of `audio.trim`


def decode_audio(data: bytes, rate: int, limits: Limits) -> np.ndarray:
    """`[samples]`: int16 as in the file where it fits already, otherwise float32 in -1..1."""
    return guard(_decode, data, rate, limits)


def seconds_of(data: bytes, limits: Limits) -> float:
    """The length of a recording by its header."""
    with soundfile.SoundFile(io.BytesIO(data)) as sound:
        _check(sound.frames, sound.samplerate, sound.channels, limits)
        return sound.frames / sound.samplerate


def _decode(data: bytes, wanted: int, limits: Limits) -> np.ndarray:
    wave, rate = _plain_wav(data, limits) or _any_sound(data, limits)
    if not len(wave):
        raise Unreadable("has no samples")
    if wave.dtype == np.int16 and (wave.shape[1] > 1 or rate != wanted):
        wave = wave * np.float32(1 / 32768)
    mono = wave[:, 0] if wave.shape[1] == 1 else wave.mean(axis=1)
    if mono.dtype != np.int16 and not np.isfinite(mono).all():
        raise Unreadable("has not-a-number or infinity among its samples")
    return _trim(audio.resample(mono, rate, wanted), wanted)


def _plain_wav(data: bytes, limits: Limits) -> tuple[np.ndarray, int] | None:
    """16-bit PCM straight from the bytes; None for any other file, broken ones too."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return None
    at, form = 12, None
    while at + 8 <= len(data):
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8
        if name == b"fmt " and size >= 16 and at + 16 <= len(data):
            form = struct.unpack_from("<HHIIHH", data, at)
        if name == b"data":
            break
        at += size + size % 2
    if form is None or at + 8 > len(data) + 8 or data[at - 8 : at - 4] != b"data":
        return None
    code, channels, rate, _, block, bits = form
    whole = at + size <= len(data) and block == 2 * channels and size % max(block, 1) == 0
    if code != 1 or bits != 16 or not whole:
        return None
    _check(size // max(block, 1), rate, channels, limits)
    return np.frombuffer(data, "<i2", size // 2, at).reshape(-1, channels), rate


def _any_sound(data: bytes, limits: Limits) -> tuple[np.ndarray, int]:
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as sound:
            _check(sound.frames, sound.samplerate, sound.channels, limits)
            return sound.read(dtype="float32", always_2d=True), sound.samplerate
    except soundfile.LibsndfileError as error:  # as text it has the address of the bytes
        raise Unreadable(f"is no sound: {error.error_string}") from error


def _check(frames: int, rate: int, channels: int, limits: Limits) -> None:
    """Checks of the header, before anything is decoded."""
    if not 1 <= channels <= _CHANNELS:
        raise Unreadable(f"has {channels} channels; accepted: 1 to {_CHANNELS}")
    if not RATES[0] <= rate <= RATES[1]:
        raise Unreadable(f"has {rate:,} samples a second; accepted: {RATES[0]:,} to {RATES[1]:,}")
    limits.check("seconds", round(frames / rate, 2), "seconds")


def _trim(wave: np.ndarray, rate: int) -> np.ndarray:
    """`audio.trim`, or nothing at once where sound reaches both ends."""
    floor = _FLOOR * max(float(wave.max()), -float(wave.min()))
    reach = round(_MARGIN * rate) + 1
    if all(max(end.max(), -float(end.min())) > floor for end in (wave[:reach], wave[-reach:])):
        return wave
    level = wave if wave.dtype != np.int16 else wave * np.float32(1 / 32768)
    return audio.trim(level, rate, _FLOOR, _MARGIN)
