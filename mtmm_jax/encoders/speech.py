"""Speech -> tokens fine enough to be written down: log-mel, a convolution, GRUs both ways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax.batch import Modality, Tokens
from mtmm_jax.encoders.encoder import Encoder
from mtmm_jax.layers import GRU, NORMS, Dropout, LayerNorm
from mtmm_jax.layers.spec_augment import SpecAugment
from mtmm_jax.layers.spectrogram import log_mel, sizes
from mtmm_jax.ranges import Decay, LayersOrZero, Positive, Size
from mtmm_jax.registry import choose

# preset -> layers, width of one direction
PRESETS = {"tiny": (1, 64), "small": (2, 128), "base": (3, 256)}


class LogMelGRU(Encoder):
    """log-mel every 10 ms -> a strided convolution over time -> bidirectional GRUs -> a token each.

    A token lasts `hop * stride` seconds, 20 ms by default: speech has up to 24 letters a second,
    and CTC needs a token for each. It learns from few hours of speech, where Transformers do not.

    Paper: Amodei et al. 2016, arXiv:1512.02595. Costs 6 D^2 a token and layer, one after the other.
    Use it: for speech, with the task `recognition`. Not: for long recordings on an accelerator.

    Attributes:
        rate: samples per second.
        modality: the name that its tokens carry.
        preset: size: tiny, small or base.
        mels: frequency bands.
        window, hop: of the spectrogram, in seconds.
        stride: of the convolution, in frames.
        norm: "batch" or "group".
        dropout: after each layer.
        spec_augment: whether training leaves out stretches of time and of frequency.
        cut: how many layers belong to the first half of the body, besides the convolution.
    """

    rate: Positive = 16_000.0
    modality: str = "audio"
    preset: str = "small"
    mels: Size = 40
    window: Positive = 0.025
    hop: Positive = 0.01
    stride: Size = 2
    norm: str = "batch"
    dropout: Decay = 0.2
    spec_augment: bool = True
    cut: LayersOrZero = 1

    @staticmethod
    def accepts(modality: Modality) -> bool:
        return modality.is_a("audio") and len(modality.shape) == 1 and modality.rate is not None

    def setup(self) -> None:
        layers, width = PRESETS[choose(self.preset, PRESETS, "log_mel_gru.preset", "preset")]
        choose(self.norm, NORMS, "log_mel_gru.norm", "norm")
        self.augment = SpecAugment() if self.spec_augment else SpecAugment(times=0, bands=0)
        kind = self.precision
        self.conv = nn.Conv(
            width, (5,), (self.stride,), padding=2, use_bias=False, dtype=kind, name="conv"
        )
        self.conv_norm = NORMS[self.norm]()
        self.forward = [GRU(width, dtype=kind, name=f"forward{i + 1}") for i in range(layers)]
        self.backward = [
            GRU(width, reverse=True, dtype=kind, name=f"backward{i + 1}") for i in range(layers)
        ]
        self.drop = Dropout(self.dropout)
        self.out_norm = LayerNorm()
        self.project = nn.Dense(self.width, dtype=jnp.float32)

    def stem(self, entry: Mapping[str, Any], **mode: Any) -> Tokens:
        """The spectrogram itself, a token of `mels` values each frame, each band's mean taken out:
        speech is loud or faint by the microphone's distance."""
        x = log_mel(entry["x"], self.rate, mels=self.mels, window=self.window, hop=self.hop)
        size, step, _ = sizes(self.rate, self.window, self.hop)
        if "mask" in entry:  # a frame is there if all of it is, and the first one always
            last = np.arange(x.shape[1]) * step + size - 1
            last[0] = 0
            mask = entry["mask"][:, last]
        else:
            mask = jnp.broadcast_to(entry["present"][:, None], x.shape[:2])
        keep = mask[..., None].astype(x.dtype)
        mean = (x * keep).sum(1, keepdims=True) / jnp.maximum(keep.sum(1, keepdims=True), 1.0)
        return self._tokens(self.augment((x - mean) / 3.0, **mode), mask, step / self.rate)

    def first(self, tokens: Tokens, **mode: Any) -> Tokens:
        # Masked frames are zero before the convolution, so padding more changes nothing.
        x = self.conv(tokens.values * tokens.mask[..., None].astype(tokens.values.dtype))
        mask = tokens.mask[:, :: self.stride]
        x = nn.relu(self.conv_norm(x, mask, **mode)).astype(jnp.float32)
        step = tokens.layout[0].stride[0] * self.stride
        return self._run(slice(0, self.cut), self._tokens(x, mask, step), mode)

    def second(self, tokens: Tokens, **mode: Any) -> Tokens:
        tokens = self._run(slice(self.cut, None), tokens, mode)
        return tokens.replace_values(self.project(self.out_norm(tokens.values)))

    def _run(self, part: slice, tokens: Tokens, mode: dict[str, Any]) -> Tokens:
        x = tokens.values
        for forward, backward in zip(self.forward[part], self.backward[part], strict=True):
            x = jnp.concatenate([forward(x, tokens.mask), backward(x, tokens.mask)], axis=-1)
            x = self.drop(x, **mode)
        return tokens.replace_values(x)

    def _tokens(self, x: jax.Array, mask: jax.Array, step: float) -> Tokens:
        """Positions are the middles of the windows, in seconds."""
        at = jnp.arange(x.shape[1], dtype=jnp.float32)[:, None] * step + self.window / 2
        at = jnp.broadcast_to(at, (x.shape[0], *at.shape))
        return Tokens.of(x, mask, self.modality, stride=(step,), positions=at)
