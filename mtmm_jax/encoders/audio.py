"""Waveforms -> tokens: a log-mel spectrogram inside the graph, then a small CNN over it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax.batch import Modality, Tokens
from mtmm_jax.encoders.encoder import Encoder
from mtmm_jax.layers import NORMS
from mtmm_jax.registry import choose

# preset -> channels of the stride-2 convolutions
CNNS = {"tiny": (16, 32, 64, 96), "small": (32, 64, 128, 256)}


def mel_filters(bins: int, mels: int, rate: float) -> np.ndarray:
    """`[bins, mels]`: triangles at equal distances on the mel scale m = 2595 log10(1 + f / 700)."""
    top = 2595.0 * np.log10(1.0 + rate / 2 / 700.0)
    edges = 700.0 * (10.0 ** (np.linspace(0.0, top, mels + 2) / 2595.0) - 1.0)
    frequencies = np.linspace(0.0, rate / 2, bins)[:, None]
    rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)


def log_mel(
    wave: jax.Array, rate: float, *, mels: int = 40, window: float = 0.032, hop: float = 0.016
) -> jax.Array:
    """`[B, samples] -> [B, frames, mels]`: log(1e-5 + mel power), by Hann windows and rfft."""
    size, step = round(window * rate), round(hop * rate)
    count = 1 + (wave.shape[1] - size) // step
    if count < 1:
        raise ValueError(f"{wave.shape[1]} samples are shorter than one window of {size}")
    index = np.arange(count)[:, None] * step + np.arange(size)
    hann = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)).astype(np.float32)
    length = 1 << (size - 1).bit_length()
    spectrum = jnp.fft.rfft(wave.astype(jnp.float32)[:, index] * hann, n=length)
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    return jnp.log(1e-5 + power @ mel_filters(length // 2 + 1, mels, rate))


class LogMelCNN(Encoder):
    """log-mel -> stride-2 convolutions over time and frequency -> a token per time step.

    Attributes:
        rate: samples per second.
        modality: the name that its tokens carry.
        preset: size: tiny or small.
        mels: frequency bands.
        norm: "batch" or "group".
        cut: how many convolutions belong to the first half of the body.
    """

    rate: float = 16_000.0
    modality: str = "audio"
    preset: str = "tiny"
    mels: int = 40
    norm: str = "batch"
    cut: int = 2

    @staticmethod
    def accepts(modality: Modality) -> bool:
        return modality.kind == "audio" and len(modality.shape) == 1 and modality.rate is not None

    def setup(self) -> None:
        choose(self.preset, CNNS, "log_mel_cnn.preset", "preset")
        choose(self.norm, NORMS, "log_mel_cnn.norm", "norm")
        channels = CNNS[self.preset]
        self.convs = [
            nn.Conv(c, (3, 3), (2, 2), padding=1, use_bias=False, name=f"conv{i + 1}")
            for i, c in enumerate(channels)
        ]
        self.norms = [NORMS[self.norm](name=f"norm{i + 1}") for i in range(len(channels))]
        self.project = nn.Dense(self.width)

    def stem(self, entry: Mapping[str, Any], **mode: Any) -> Tokens:
        """The spectrogram itself: a grid of frames x bands, one value each."""
        del mode
        x = log_mel(entry["x"], self.rate, mels=self.mels)
        samples, frames = entry["x"].shape[1], x.shape[1]
        if "mask" in entry:
            centres = (np.arange(frames) + 0.5) * (samples / frames)
            mask = entry["mask"][:, centres.astype(int)]
        else:
            mask = jnp.broadcast_to(entry["present"][:, None], x.shape[:2])
        # Speech is loud or faint by the microphone's distance: take out each band's own mean.
        keep = mask[..., None].astype(x.dtype)
        mean = (x * keep).sum(1, keepdims=True) / jnp.maximum(keep.sum(1, keepdims=True), 1.0)
        return self._tokens(((x - mean) / 3.0)[..., None], mask, samples / self.rate)

    def first(self, tokens: Tokens, **mode: Any) -> Tokens:
        return self._tokens(*self._run(slice(0, self.cut), tokens, mode))

    def second(self, tokens: Tokens, **mode: Any) -> Tokens:
        x, mask, seconds = self._run(slice(self.cut, None), tokens, mode)
        values = self.project(x.reshape(*x.shape[:2], -1))
        return self._tokens(values[:, :, None], mask, seconds)

    def _run(
        self, part: slice, tokens: Tokens, mode: dict[str, Any]
    ) -> tuple[jax.Array, jax.Array, float]:
        x, span = tokens.grid(), tokens.layout[0]
        mask = tokens.mask.reshape(x.shape[:3])[:, :, 0]
        for conv, norm in zip(self.convs[part], self.norms[part], strict=True):
            # Output i of a stride-2 convolution sits on input 2i, and so does its mask; masked
            # frames are zero before each convolution, so padding more changes nothing.
            x = conv(x * mask[:, :, None, None].astype(x.dtype))
            mask = mask[:, ::2]
            x = nn.relu(norm(x, mask, **mode))
        return x, mask, span.stride[0] * span.grid[0]

    def _tokens(self, x: jax.Array, mask: jax.Array, seconds: float) -> Tokens:
        """`[B, frames, bands, C]` as tokens whose positions are their times in seconds."""
        batch, frames, bands, channels = x.shape
        times = (jnp.arange(frames, dtype=jnp.float32) + 0.5) * (seconds / frames)
        times = jnp.repeat(times, bands)[:, None]
        grid = (frames, bands) if bands > 1 else (frames,)
        return Tokens.of(
            x.reshape(batch, frames * bands, channels),
            jnp.repeat(mask, bands, axis=1),
            self.modality,
            grid=grid,
            stride=(seconds / frames, *((1.0,) * (len(grid) - 1))),
            positions=jnp.broadcast_to(times, (batch, *times.shape)),
        )
