"""Sound, `[samples]` in -1..1."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np

from mtmm_jax.markup import sound
from mtmm_jax.modalities.columns import Column, Input, one_present, present
from mtmm_jax.modalities.corruption import ABSENT, SHARES, Corruption, Place, lost, of_values
from mtmm_jax.modalities.kind import ModalityKind
from mtmm_jax.modalities.modality import Modality
from mtmm_jax.modalities.units import OverLine, Parts, Units, zeros
from mtmm_jax.ranges import Range, Seconds
from mtmm_jax.readers import audio
from mtmm_jax.readers.cells import Attempt, Setting
from mtmm_jax.readers.decoder import Decoder
from mtmm_jax.readers.limits import Limits, Unreadable, guard
from mtmm_jax.readers.own import OWN, own_bytes, read_own
from mtmm_jax.readers.sounds import RATES, SOUNDS, VERSIONS, decode_audio, seconds_of

SECONDS = 0.1  # of a unit
LONG, WINDOW, MOST_WINDOWS = 4.0, 2.0, 5  # seconds of a guessed column, and its windows


@dataclasses.dataclass(frozen=True, kw_only=True)
class AudioColumn(Column):
    """A recording: mono, at `rate`, without silence around it, `seconds` long, or `windows` times
    that.

    What is longer is cut. With more than one of `windows` it is divided into so many equal parts,
    and the middle `seconds` of each are joined, so that the model hears all of a long recording;
    explanations then count the seconds of what was joined. `random` takes any stretch in training.
    """

    rate: Annotated[int, Range(*RATES)] = 16000
    seconds: Seconds = 2.0
    random: bool = False
    windows: Annotated[int, Range(1, 64)] = 1

    def fit(self, cells: list[str | None], setting: Setting, *_: Any) -> Input:
        folder, limits = setting.folder, setting.limits
        rate, length, windows = self.rate, max(1, round(self.seconds * self.rate)), self.windows
        # A random stretch is drawn anew in each epoch, from the whole recording.
        kept = None if self.random else windows * length
        joined = {"windows": windows} if windows > 1 and not self.random else {}

        def whole(name: str) -> np.ndarray:
            wave = decode_audio(folder.read(name), rate, limits)
            return wave if self.random else audio.stretches(wave, windows, length)

        read = setting.once(
            self.at,
            cells,
            Decoder(
                "audio",
                {"rate": rate, "samples": kept, **joined, **VERSIONS},
                decode=whole,
                pack=lambda wave: ({}, wave),
                unpack=lambda _, wave: wave,
            ),
        )

        def batch(rows: np.ndarray, chance: np.ndarray | None, attempt: Attempt) -> Any:
            def decode(name: str, i: int) -> np.ndarray:
                wave = read(name)
                if not self.random:
                    return wave
                place = None if chance is None else float(chance[i, 0])
                return audio.stretches(wave, windows, length, place)

            found = attempt(self.at, cells, decode)
            silence = np.zeros(0, np.float32)
            x = audio.fit([silence if wave is None else wave for wave in found], windows * length)
            return {"x": x, "present": present(found)}, found

        modality = Modality("audio", (windows * length,), "float32", rate=float(rate))
        return Input(modality, batch, draws=int(self.random))


def read_audio(
    path: str | os.PathLike[str], modality: Modality, windows: int = 1
) -> dict[str, Any]:
    """`x` is `[1, samples]` float32: mono, at the modality's rate, silence before it dropped."""
    decode = lambda where: decode_audio(own_bytes(where), int(modality.rate), OWN)  # noqa: E731
    samples = modality.shape[0]
    wave = audio.stretches(read_own(path, "audio", SOUNDS, decode), windows, samples // windows)
    return one_present(audio.fit([wave], samples))


def guess(contents: Sequence[bytes]) -> dict[str, Any]:
    """As long as 95 of 100 recordings are; of over `LONG` seconds, windows of `WINDOW` each."""
    seconds = []
    for data in contents:
        with contextlib.suppress(Unreadable):
            seconds.append(guard(seconds_of, data, Limits()))
    if not seconds:
        return {}
    need = sorted(seconds)[int(0.95 * (len(seconds) - 1))]
    if need > LONG:
        return {"seconds": WINDOW, "windows": min(math.ceil(need / WINDOW), MOST_WINDOWS)}
    return {"seconds": max(math.ceil(need * 2) / 2, 0.5)}


def moments(modality: Modality, shape: tuple[int, ...]) -> list[tuple[int, int]]:
    seconds = shape[0] / modality.rate if modality.rate else 0.0
    return [(shape[0], max(1, round(seconds / SECONDS)))]


def moment_names(modality: Modality, count: int) -> list[str]:
    del modality
    return [f"{i * SECONDS:.1f} to {(i + 1) * SECONDS:.1f} s" for i in range(count)]


def over_wave(values: np.ndarray, x: np.ndarray, modality: Modality) -> OverLine:
    return OverLine(values, x, len(x) / modality.rate)


def moment_of(parts: Parts, positions: Any, x: Any, modality: Modality) -> Any:
    """The moment of each token: log energies have no slope that leads into silence, so that the
    path is one between tokens."""
    seconds = x.shape[1] / modality.rate
    moment = (positions[..., 0] / seconds * parts.count).astype(jnp.int32)
    return jnp.clip(moment, 0, parts.count - 1)


def _sound_noise(x: np.ndarray, place: Place, level: float) -> np.ndarray:
    """White noise, `level` decibels below the row's own mean power."""
    power = np.square(x).mean(1, keepdims=True)
    amplitude = np.sqrt(power * 10 ** (-level / 10))
    return x + amplitude * place.normal("noise", *x.shape[1:])


def _clipping(x: np.ndarray, place: Place, level: float) -> np.ndarray:
    del place
    limit = level * np.abs(x).max(1, keepdims=True)
    return np.clip(x, -limit, limit)


def _gaps(x: np.ndarray, place: Place, level: float) -> np.ndarray:
    """Silence for `level` of the time, in twenty slots."""
    slots = 20
    gone = lost(place.uniform("gaps", slots), level)
    slot = np.arange(x.shape[1]) * slots // max(x.shape[1], 1)
    return np.where(gone[:, slot], np.float32(0), x)


AUDIO = ModalityKind(
    "audio",
    dimensions=1,
    column=AudioColumn,
    options=lambda modality, given: {
        "rate": int(modality.rate),
        "seconds": modality.shape[0] / modality.rate / given.get("windows", 1),
    },
    read=lambda value, kept: read_audio(value, kept.modality, kept.options.get("windows", 1)),
    endings=(".wav", ".flac", ".ogg", ".mp3", ".opus"),
    magic=rb"RIFF....WAVE|fLaC|OggS|ID3|\xff[\xf2\xf3\xfa\xfb]",
    guess=guess,
    encoder="log_mel_cnn",
    fixed="audio_summary",
    units=Units(moments, zeros, moment_names, over_wave, path=moment_of, masked=False),
    corruptions={
        "noise": Corruption((20.0, 10.0, 5.0, 0.0, -5.0), "dB above it", of_values(_sound_noise)),
        "clipping": Corruption((0.5, 0.25, 0.1, 0.05, 0.02), "of the peak", of_values(_clipping)),
        "gaps": Corruption(SHARES, "share of the time", of_values(_gaps)),
        "absent": ABSENT,
    },
    show=lambda example: sound(example.real, example.modality.rate),
    wide=True,
)
