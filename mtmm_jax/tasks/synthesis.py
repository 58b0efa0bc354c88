"""Text to speech: mel frames, compared with those of the recording; Griffin-Lim to listen."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax.batch import Batch, Spec
from mtmm_jax.layers.alignment import align
from mtmm_jax.layers.spectrogram import FLOOR, frame_count, griffin_lim, log_mel
from mtmm_jax.ranges import Seconds, Size
from mtmm_jax.registry import ConfigError, choose
from mtmm_jax.tasks.metrics.cepstral import distortion
from mtmm_jax.tasks.metrics.intervals import of_mean
from mtmm_jax.tasks.metrics.monoids import Metric, add
from mtmm_jax.tasks.task import Labels, Task, find_target, masked
from mtmm_jax.tasks.traits import Speech

# Log-mel values of speech lie between about -11 (silence) and 8: about -1..1 for the network.
_MIDDLE, _SPREAD = -3.0, 4.0

_MEANS = {"warped_distortion": "warped", "distortion": "distortion", "duration_error": "seconds"}
"""Metric -> the sum in the state that it is the mean of."""


@dataclasses.dataclass(frozen=True)
class Synthesis(Task):
    """A task whose head also gets the recording's speaker.

    Attributes:
        speaker: the name of that label, of kind "class"; None if there is none. `Labels.y` of its
            rows is `{"wave", "speaker"}`.
    """

    speaker: str | None = None

    def labels(self, batch: Batch, present: Mapping[str, jax.Array]) -> Labels:
        found = super().labels(batch, present)
        if found.y is None:
            return found
        if self.speaker is None:
            who = jnp.zeros(found.weight.shape, jnp.int32)
            return dataclasses.replace(found, y={"wave": found.y, "speaker": who})
        entry = batch["targets"].get(self.speaker)
        if entry is None:
            return dataclasses.replace(found, y=None, weight=jnp.zeros_like(found.weight))
        weight = jnp.where(entry["present"], found.weight, 0.0)
        return dataclasses.replace(found, y={"wave": found.y, "speaker": entry["y"]}, weight=weight)


def synthesis(
    name: str,
    spec: Spec,
    *,
    make_head: Any,
    where: str,
    reads: str | Iterable[str] = "fused",
    target: str | None = None,
    head: str | Mapping[str, Any] = "mel",
    speaker: str | None = None,
    voice: str | None = None,
    mels: Size = 64,
    window: Seconds = 0.032,
    hop: Seconds = 0.0125,
) -> Task:
    """|m - m'| + 1/2 (p - m')^2 + (log d - log d')^2, means over frames and bands, and over tokens.

    m' are the frames of the recording, m those drawn with the durations d' that the best monotonic
    alignment of m' to the tokens' priors p gives, d the predicted durations. The alignment is found
    anew in each step; no aligner, no labels but the recording.

    Who speaks is an input where the data say it: the head learns every speaker's voice from the
    label, and `voice` speaks when a person asks. Distortions are in the voice of the recording.

    Paper: Kim et al. 2020, arXiv:2005.11129. Costs frames x tokens for the alignment, in each step.
    Use it: for speech from text. Not: for sounds without a text.

    Args:
        name, spec, make_head, where: given by the model.
        reads: what the head reads.
        target: the label's name, of kind "wave"; the task's own name by default.
        head: an entry of `heads.HEADS`.
        speaker: the label, of kind "class", that says who speaks; None takes all for one voice.
        voice: the speaker of predictions: one of its classes, by default the first.
        mels: frequency bands.
        window, hop: of the spectrogram, in seconds.
    """
    target, label = find_target(name, target, "wave", spec, where)
    voices = find_target(name, speaker, "class", spec, where)[1].classes if speaker else ()
    if voice is not None and not speaker:
        raise ConfigError(f"{where}.voice: {voice!r}: without `speaker` there is one voice only")
    if voice is not None:
        choose(voice, voices, f"{where}.voice", "voice")
    if not label.rate:
        raise ConfigError(f"{where}.target: {target!r} has no rate, and needs one")
    form = {"window": window, "hop": hop}
    try:
        frames = frame_count(label.length, label.rate, **form)
    except ValueError as error:
        raise ConfigError(f"{where}.window: {error}") from error
    silence = (float(np.log(FLOOR)) - _MIDDLE) / _SPREAD

    def heard(labels: Labels) -> tuple[jax.Array, jax.Array, jax.Array]:
        counts = labels.weight > 0
        wave = jnp.where(counts[:, None], labels.y["wave"], 0.0)
        mel = (log_mel(wave, label.rate, mels=mels, **form) - _MIDDLE) / _SPREAD
        samples = jnp.where(wave != 0, jnp.arange(label.length) + 1, 0).max(1)
        seconds = samples.astype(jnp.float32) / label.rate
        count = jnp.ceil((seconds - window) / hop).astype(jnp.int32) + 1
        who = jnp.where(counts, labels.y["speaker"], 0)
        return mel, jnp.clip(count, 1, frames), jnp.clip(who, 0, max(len(voices) - 1, 0))

    def loss(prediction: dict[str, Any], labels: Labels, axis_name: str | None):
        del axis_name
        memory, mask, method = (prediction[key] for key in ("memory", "mask", "method"))
        if labels.y is None:
            return masked(prediction["mel"][:, 0, 0], labels.weight)
        mel, count, who = heard(labels)
        tokens = mask.sum(1)
        prior = method("prior", memory, mask, who)
        path = align(closeness(prior, mel, mask), tokens, count)
        real = (jnp.arange(frames) < count[:, None]).astype(mel.dtype)
        lasts = _durations(path, real, mask.shape[1])
        drawn = method("render", memory, mask, who, lasts)
        guess = method("durations", memory, mask, who)
        aligned = jnp.take_along_axis(prior, path[..., None], 1)
        each = jnp.abs(drawn - mel).mean(-1) + 0.5 * jnp.square(aligned - mel).mean(-1)
        each = (each * real).sum(1) / real.sum(1)
        error = jnp.square(guess - jnp.log(jnp.maximum(lasts, 1.0)))
        each = each + jnp.where(mask, error, 0.0).sum(1) / jnp.maximum(tokens, 1).astype(each.dtype)
        # More tokens than frames, or none at all: nothing to align.
        return masked(each, jnp.where((tokens > 0) & (tokens <= count), labels.weight, 0.0))

    def measure(prediction: dict[str, Any], labels: Labels) -> dict[str, jax.Array]:
        if labels.y is None:
            keys = [f"{key}{end}" for key in _MEANS.values() for end in ("", "_squared")]
            return dict.fromkeys(("count", *keys), jnp.zeros(()))
        mel, count, who = heard(labels)
        memory, mask, method = (prediction.get(key) for key in ("memory", "mask", "method"))
        said, length, drawn = prediction["mel"], prediction["frames"], prediction["mel"]
        if method is not None:
            said, length = say(prediction, who)
            path = align(
                closeness(method("prior", memory, mask, who), mel, mask), mask.sum(1), count
            )
            real = (jnp.arange(frames) < count[:, None]).astype(mel.dtype)
            lasts = _durations(path, real, mask.shape[1])
            drawn = method("render", memory, mask, who, lasts)
        loud = [x * _SPREAD + _MIDDLE for x in (mel, drawn, said)]
        values = {
            "distortion": distortion(loud[1], loud[0], count, count, warp=False),
            "warped": distortion(loud[2], loud[0], length, count, warp=True),
            "seconds": jnp.abs(length - count).astype(jnp.float32) * hop,
        }
        values |= {f"{key}_squared": jnp.square(x) for key, x in values.items()}
        sums = {key: masked(x, labels.weight)[0] for key, x in values.items()}
        return {"count": labels.weight.sum(), **sums}

    def compute(state: dict[str, Any]) -> dict[str, float]:
        s = {key: float(value) for key, value in state.items()}
        count = s["count"] if s["count"] > 0 else float("nan")
        return {name: s[key] / count for name, key in _MEANS.items()}

    def intervals(state: dict[str, Any]) -> dict[str, Any]:
        s = {key: float(value) for key, value in state.items()}
        return {
            name: of_mean(s[key], s[f"{key}_squared"], s["count"], low=0.0)
            for name, key in _MEANS.items()
        }

    def say(prediction: dict[str, Any], who: jax.Array) -> tuple[jax.Array, jax.Array]:
        return prediction["method"]("speak", prediction["memory"], prediction["mask"], who)

    def listen(mel: np.ndarray, count: int) -> np.ndarray:
        heard = np.asarray(mel, np.float32)[: max(int(count), 1)] * _SPREAD + _MIDDLE
        return griffin_lim(heard, label.rate, **form)

    def decode(prediction: dict[str, Any]) -> dict[str, Any]:
        """`{"seconds", "rate", "wave"}`, in the chosen voice."""
        wave = listen(prediction["mel"], prediction["frames"])
        return {"seconds": len(wave) / label.rate, "rate": label.rate, "wave": wave}

    def decode_outputs(outputs: Mapping[str, Any]) -> dict[str, Any]:
        mel = (np.asarray(outputs["log_mel"]) - _MIDDLE) / _SPREAD
        return decode({"mel": mel, "frames": outputs["frames"]})

    def outputs(prediction: dict[str, Any]) -> dict[str, jax.Array]:
        """The logarithms of mel power; a wave is made of them on the host."""
        return {"log_mel": prediction["mel"] * _SPREAD + _MIDDLE, "frames": prediction["frames"]}

    return Synthesis(
        name=name,
        kind="synthesis",
        reads=reads,
        target=target,
        head=make_head(
            head,
            where=f"{where}.head",
            size=mels,
            frames=frames,
            speakers=max(len(voices), 1),
            speaker=voices.index(voice) if voice else 0,
            silence=silence,
        ),
        loss=loss,
        metrics={"distortion": Metric(measure, add, compute, intervals)},
        headline="warped_distortion",
        decode=decode,
        trivial={
            "mel": np.full((frames, mels), silence, np.float32),
            "frames": np.asarray(frames // 2, np.int32),
        },
        smaller=("warped_distortion", "distortion", "duration_error"),
        outputs=outputs,
        decode_outputs=decode_outputs,
        explained=None,
        speech=Speech(heard, say, listen),
        speaker=speaker,
    )


def closeness(prior: jax.Array, mel: jax.Array, mask: jax.Array) -> jax.Array:
    """`[B, N, T]`: the log-likelihood of each frame `mel[B, T, K]` under each token's
    `prior[B, N, K]`, of unit variance, less what all tokens of a frame share; tiny without one."""
    cross = jnp.einsum("bnk,btk->bnt", prior, mel)
    scores = cross - 0.5 * jnp.square(prior).sum(-1)[..., None]
    return jnp.where(mask[..., None], scores, -1e6)


def _durations(path: jax.Array, real: jax.Array, tokens: int) -> jax.Array:
    """`[B, N]`: how many of the real frames each token has."""
    own = path[:, None] == jnp.arange(tokens)[:, None]
    return jnp.where(own, real[:, None], 0.0).sum(-1)


def write_wave(path: str | Path, wave: np.ndarray, rate: float) -> None:
    """A WAV file, 16 bits, brought down to full scale where it is louder."""
    import soundfile  # only to listen

    wave = np.asarray(wave, np.float32)
    loudest = np.abs(wave).max(initial=0.0)
    soundfile.write(path, wave / max(loudest, 1.0), round(rate), subtype="PCM_16")
