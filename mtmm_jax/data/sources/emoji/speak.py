"""eSpeak NG through ctypes, used at packing time only: text in, 16 kHz speech out.

Needs the `voices` extra (`espeakng-loader` carries the library and its data).
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
from collections.abc import Callable

import numpy as np
from scipy.signal import resample_poly

from mtmm_jax.data.sources.emoji.asset import RATE
from mtmm_jax.readers.audio import trim

_SYNCHRONOUS = 2  # espeak_AUDIO_OUTPUT: deliver samples to the callback, return when done
_UTF8 = 1
_SPEED, _PITCH = 1, 3  # espeak_PARAMETER


@dataclasses.dataclass(frozen=True)
class Voice:
    """An accent with a vocal-tract variant (`language+variant`), a pitch and words per minute."""

    language: str
    pitch: int
    speed: int


VOICES = {
    "us_man": Voice("en-us", 40, 185),
    "us_woman": Voice("en-us+f3", 62, 190),
    "scottish_man": Voice("en-gb-scotland+m3", 22, 170),
    "english_woman": Voice("en-gb-x-rp+f5", 88, 200),
}


@functools.cache
def _engine() -> tuple[ctypes.CDLL, Callable[[], np.ndarray], int]:
    """The library, a function that hands over the collected samples, and their rate."""
    import espeakng_loader

    library = ctypes.cdll.LoadLibrary(espeakng_loader.get_library_path())
    data = str(espeakng_loader.get_data_path()).encode()
    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, data, 0)
    if rate <= 0:
        raise RuntimeError("eSpeak NG did not start: is its data folder complete?")
    chunks: list[np.ndarray] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def collect(samples, count, _):
        if count > 0:
            chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    library.espeak_SetSynthCallback(collect)
    library.espeak_ng_SetRandSeed(
        ctypes.c_long(0)
    )  # breath is noise, seeded by the clock otherwise

    def take(keep_alive=collect) -> np.ndarray:
        wave = np.concatenate(chunks)
        chunks.clear()
        return wave

    return library, take, rate


def speak(text: str, voice: Voice) -> np.ndarray:
    """One utterance: int16 at `RATE`, silence before and after removed.

    eSpeak carries state from one utterance to the next (phase, noise): the same calls in the same
    order in a fresh process give the same samples, other orders give inaudibly different ones.
    """
    library, take, rate = _engine()
    if library.espeak_SetVoiceByName(voice.language.encode()) != 0:
        raise RuntimeError(f"eSpeak NG has no voice {voice.language!r}")
    library.espeak_SetParameter(_SPEED, voice.speed, 0)
    library.espeak_SetParameter(_PITCH, voice.pitch, 0)
    raw = text.encode() + b"\0"
    if library.espeak_Synth(raw, len(raw), 0, 1, 0, _UTF8, None, None) != 0:
        raise RuntimeError(f"eSpeak NG could not speak {text!r}")
    library.espeak_Synchronize()
    wave = resample_poly(take().astype(np.float64), RATE, rate)
    wave = trim(wave.astype(np.float32), RATE)
    return np.clip(np.round(wave), -32768, 32767).astype(np.int16)
