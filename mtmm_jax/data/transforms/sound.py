"""Transforms of sound: float32 samples in -1..1, mono."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import soundfile

from mtmm_jax.chance import below
from mtmm_jax.data.transforms import augment
from mtmm_jax.data.transforms.stage import Form, Stage, each
from mtmm_jax.ranges import NonNegative, Positive, Rate, Seconds, Share
from mtmm_jax.readers import audio
from mtmm_jax.registry import ConfigError, check


def samples(data: bytes, where: str) -> tuple[np.ndarray, int]:
    """An encoded sound -> its channels' mean, and its rate."""
    try:
        wave, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError, ValueError) as error:
        raise ConfigError(f"{where}: cannot decode a sound: {error}") from error
    return wave.mean(axis=1), rate


def decode_audio(form: Form, where: str) -> Stage:
    return Stage(Form("sound"), each(lambda data: samples(data, where)), each=True)


def resample(form: Form, where: str, rate: Rate) -> Stage:
    """To `rate` samples per second, band-limited."""
    out = Form("audio", (None,), "float32", rate=float(rate))
    if form.stage == "sound":
        return Stage(out, each(lambda sound: audio.resample(*sound, rate)), each=True)
    if form.rate == rate:
        return Stage(form, lambda x, u: x)
    own = round(form.rate)
    return Stage(out, each(lambda wave: audio.resample(wave, own, rate)), each=True)


def trim(form: Form, where: str, floor: Share = 0.02) -> Stage:
    """Drops what is quieter than `floor` of the peak before and after."""
    out = dataclasses.replace(form, shape=(None,))
    return Stage(out, each(lambda wave: audio.trim(wave, form.rate, floor)), each=True)


def fit(form: Form, where: str, seconds: Seconds, late: NonNegative = 0.0) -> Stage:
    """Cut or padded with silence to `seconds`.

    With `late`, training examples start up to so many seconds late where there is room, and those
    that are too long lose a random part of their ends instead of the last.
    """
    check(seconds, Seconds, f"{where}: length")
    length, latest = round(seconds * form.rate), round(late * form.rate)
    if not length:
        raise ConfigError(f"{where}: {seconds} seconds are no sample at {form.rate:g} Hz")

    def plain(wave: np.ndarray, u: None) -> np.ndarray:
        return audio.fit([wave], length)[0]

    def apply(wave: np.ndarray, u: np.ndarray) -> np.ndarray:
        room = length - len(wave)
        start = int(below(u[0], min(room, latest) + 1 if room >= 0 else 1 - room))
        if room < 0:
            return wave[start : start + length]
        out = np.zeros(length, np.float32)
        out[start : start + len(wave)] = wave
        return out

    out = dataclasses.replace(form, shape=(length,))
    if not latest:
        return Stage(out, plain, each=True)
    return Stage(out, apply, draws=1, plain=plain, each=True)


def gain(form: Form, where: str, low: Positive = 0.5, high: Positive = 1.5) -> Stage:
    """Louder or softer by a factor in `low`..`high`."""
    if low > high:
        raise ConfigError(f"{where}: low {low} is above high {high}")
    return Stage(form, lambda x, u: augment.gain(x, u, low, high), draws=1)
