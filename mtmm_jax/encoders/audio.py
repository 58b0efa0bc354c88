"""Waveforms -> tokens: a log-mel spectrogram inside the graph, then a small CNN, a Transformer over
its patches, or an MLP over its frames."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax.batch import Modality, Tokens
from mtmm_jax.encoders.encoder import Encoder, MLPEncoder
from mtmm_jax.encoders.sequence import TransformerEncoder
from mtmm_jax.layers import NORMS, cells, fill_up, patches, sinusoid
from mtmm_jax.layers.spectrogram import log_mel
from mtmm_jax.ranges import LayersOrZero, Positive, Size, SizeOrZero
from mtmm_jax.registry import ConfigError, choose

# preset -> channels of the stride-2 convolutions
CNNS = {"tiny": (16, 32, 64, 96), "small": (32, 64, 128, 256)}


WINDOW, HOP = 0.032, 0.016  # seconds, to the nearest sample


def _accepts(modality: Modality) -> bool:
    return modality.is_a("audio") and len(modality.shape) == 1 and modality.rate is not None


def hop(rate: float) -> float:
    """Seconds from one frame to the next."""
    return round(HOP * rate) / rate


def spectrogram(entry: Mapping[str, Any], rate: float, mels: int) -> tuple[jax.Array, jax.Array]:
    """`[B, frames, mels]`, each band's own mean taken out, and the frames' mask `[B, frames]`."""
    x = log_mel(entry["x"], rate, mels=mels, window=WINDOW, hop=HOP)
    mask = frame_mask(entry, rate, x.shape[1])
    # Speech is loud or faint by the microphone's distance: take out each band's own mean.
    keep = mask[..., None].astype(x.dtype)
    mean = (x * keep).sum(1, keepdims=True) / jnp.maximum(keep.sum(1, keepdims=True), 1.0)
    return (x - mean) / 3.0 * keep, mask


def frame_mask(entry: Mapping[str, Any], rate: float, frames: int) -> jax.Array:
    """`[B, frames]`: a frame is there if all of its samples are, and the first one always, so that
    padding a wave with more silence changes nothing."""
    if "mask" not in entry:
        return jnp.broadcast_to(entry["present"][:, None], (entry["x"].shape[0], frames))
    last = np.arange(frames) * round(HOP * rate) + round(WINDOW * rate) - 1
    last[0] = 0
    return entry["mask"][:, last]


def frame_tokens(x: jax.Array, mask: jax.Array, name: str, step: float) -> Tokens:
    """`[B, frames, bands, C]` as float32 tokens at the seconds in the middle of their windows."""
    batch, frames, bands, channels = x.shape
    times = jnp.arange(frames, dtype=jnp.float32) * step + WINDOW / 2
    times = jnp.repeat(times, bands)[:, None]
    grid = (frames, bands) if bands > 1 else (frames,)
    return Tokens.of(
        x.reshape(batch, frames * bands, channels).astype(jnp.float32),
        jnp.repeat(mask, bands, axis=1),
        name,
        grid=grid,
        stride=(step, *((1.0,) * (len(grid) - 1))),
        positions=jnp.broadcast_to(times, (batch, *times.shape)),
    )


class LogMelCNN(Encoder):
    """log-mel -> stride-2 convolutions over time and frequency -> a token per time step.

    Paper: Hershey et al. 2017, arXiv:1609.09430. Costs the spectrogram and 9 c^2 a cell, a quarter
    of it after each layer. Use it: for the kind of a sound. Not: for what is spoken
    (`log_mel_gru`).

    Attributes:
        rate: samples per second.
        modality: the name that its tokens carry.
        preset: size: tiny or small.
        mels: frequency bands.
        norm: "batch" or "group".
        cut: how many convolutions belong to the first half of the body.
    """

    rate: Positive = 16_000.0
    modality: str = "audio"
    preset: str = "tiny"
    mels: Size = 40
    norm: str = "batch"
    cut: LayersOrZero = 2

    accepts = staticmethod(_accepts)

    def setup(self) -> None:
        choose(self.preset, CNNS, "log_mel_cnn.preset", "preset")
        choose(self.norm, NORMS, "log_mel_cnn.norm", "norm")
        channels = CNNS[self.preset]
        self.convs = [
            nn.Conv(
                c,
                (3, 3),
                (2, 2),
                padding=1,
                use_bias=False,
                dtype=self.precision,
                name=f"conv{i + 1}",
            )
            for i, c in enumerate(channels)
        ]
        self.norms = [NORMS[self.norm](name=f"norm{i + 1}") for i in range(len(channels))]
        self.project = nn.Dense(self.width, dtype=jnp.float32)

    def stem(self, entry: Mapping[str, Any], **mode: Any) -> Tokens:
        """The spectrogram itself: a grid of frames x bands, one value each."""
        del mode
        x, mask = spectrogram(entry, self.rate, self.mels)
        return frame_tokens(x[..., None], mask, self.modality, hop(self.rate))

    def first(self, tokens: Tokens, **mode: Any) -> Tokens:
        return frame_tokens(*self._run(slice(0, self.cut), tokens, mode))

    def second(self, tokens: Tokens, **mode: Any) -> Tokens:
        x, mask, name, step = self._run(slice(self.cut, None), tokens, mode)
        values = self.project(x.reshape(*x.shape[:2], math.prod(x.shape[2:])))
        return frame_tokens(values[:, :, None], mask, name, step)

    def _run(
        self, part: slice, tokens: Tokens, mode: dict[str, Any]
    ) -> tuple[jax.Array, jax.Array, str, float]:
        x, span = tokens.grid().astype(self.precision), tokens.layout[0]
        mask, step = tokens.mask.reshape(x.shape[:3])[:, :, 0], span.stride[0]
        for conv, norm in zip(self.convs[part], self.norms[part], strict=True):
            # Output i of a stride-2 convolution sits on input 2i, and so does its mask; masked
            # frames are zero before each convolution, so padding more changes nothing.
            x = conv(x * mask[:, :, None, None].astype(x.dtype))
            mask, step = mask[:, ::2], 2 * step
            x = nn.relu(norm(x, mask, **mode))
        return x, mask, span.name, step


class TransformerAudio(TransformerEncoder):
    """log-mel -> patches of a few frames by a few bands -> Transformer.

    As AST, here with patches that do not overlap and with sinusoidal positions, so that any length
    is read.

    Paper: Gong et al. 2021, arXiv:2104.01778. Costs the square of the number of patches, in each
    layer. Use it: with pretrained weights or much audio. Not: from scratch on a few thousand clips.

    Attributes:
        rate: samples per second.
        modality: the name that its tokens carry.
        mels: frequency bands.
        frames, bands: of a patch.
    """

    rate: Positive = 16_000.0
    modality: str = "audio"
    mels: Size = 40
    frames: Size = 4
    bands: Size = 10

    accepts = staticmethod(_accepts)

    @nn.compact
    def stem(self, entry: Mapping[str, Any], **mode: Any) -> Tokens:
        del mode
        if self.mels % self.bands:
            raise ConfigError(
                f"audio_transformer.bands: {self.bands} do not divide {self.mels} mels"
            )
        x, mask = spectrogram(entry, self.rate, self.mels)
        x = patches(fill_up(x, self.frames)[..., None], (self.frames, self.bands))
        x = nn.Dense(self.size[1], dtype=self.precision, name="patches")(x).astype(jnp.float32)
        at = sinusoid(cells(x.shape[1:3], (1.0, 1.0)), x.shape[-1])
        values = x + at.reshape(x.shape[1:])
        return frame_tokens(
            values, mask[:, :: self.frames], self.modality, self.frames * hop(self.rate)
        )


class MLPAudio(MLPEncoder):
    """log-mel -> each frame with its neighbours -> two hidden layers: a token per frame.

    The acoustic "DNN".

    Paper: Hinton et al. 2012. Costs two matrices a frame. Use it: as the baseline for frame-wise
    labels. Not: where more than the neighbouring frames matters.

    Attributes:
        rate: samples per second.
        modality: the name that its tokens carry.
        mels: frequency bands.
        context: neighbours on each side that are read with a frame.
    """

    rate: Positive = 16_000.0
    modality: str = "audio"
    mels: Size = 40
    context: SizeOrZero = 5

    accepts = staticmethod(_accepts)

    def vectors(self, entry: Mapping[str, Any]) -> Tokens:
        x, mask = spectrogram(entry, self.rate, self.mels)
        count, window = x.shape[1], 2 * self.context + 1
        x = jnp.pad(x, ((0, 0), (self.context, self.context), (0, 0)))
        x = jnp.concatenate([x[:, i : i + count] for i in range(window)], axis=-1)
        return frame_tokens(x[:, :, None], mask, self.modality, hop(self.rate))
