"""Tokens of a text -> mel frames: each token lasts as long as it is predicted to, then is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtmm_jax.batch import Tokens
from mtmm_jax.heads.bound_module import BoundModule
from mtmm_jax.heads.spans import span_of
from mtmm_jax.layers import Dropout, gelu
from mtmm_jax.layers.alignment import expand
from mtmm_jax.ranges import Blocks, Decay, Real, Size, SizeOrZero
from mtmm_jax.registry import ConfigError

LONGEST = 4.0  # log of the most frames that a token is given


class Mel(nn.Module):
    """A mel spectrogram from a text, not autoregressive: FastSpeech with the durations of Glow-TTS.

    A frame starts as the features of its token, the speaker, and the place in the token; residual
    convolutions over time draw the sound. Its prediction is what the default speaker would say:

        {"mel": [B, frames, size], "frames": [B], "memory", "mask", "method"}

    The methods serve the loss, by way of `method` (a `BoundModule`). Tokens come before their
    padding, as encoders of text give them.

    Paper: Ren et al. 2019, arXiv:1905.09263; Kim et al. 2020, arXiv:2005.11129. Costs `kernel` D^2
    a frame and layer, all frames at once. Use it: for speech from text. Not: for sounds without a
    text.

    Attributes:
        size: frequency bands.
        frames: how many there is room for.
        speakers: how many voices it learns.
        speaker: the default one.
        silence: the value of the bands behind the end.
        span: whose tokens to read, where what the task reads has those of several modalities.
        width: of the convolutions.
        layers: how many.
        kernel: frames that each looks at.
        dropout: after each.
        where: the place in the config, for error messages.
    """

    size: Size
    frames: Size
    speakers: Size = 1
    speaker: SizeOrZero = 0
    silence: Real = 0.0
    span: str | None = None
    width: Size = 128
    layers: Blocks = 5
    kernel: Size = 5
    dropout: Decay = 0.1
    where: str = "head"

    def setup(self) -> None:
        self.read = nn.Dense(self.width)
        self.voices = nn.Embed(self.speakers, self.width)
        self.prior_out = nn.Dense(self.size)
        self.duration_hidden = nn.Conv(self.width, (3,))
        self.duration_norm = nn.LayerNorm()
        self.duration_out = nn.Dense(1)
        self.place = nn.Dense(self.width)
        each = range(self.layers)
        self.norms = [nn.LayerNorm(name=f"norm{i + 1}") for i in each]
        self.convs = [nn.Conv(self.width, (self.kernel,), name=f"conv{i + 1}") for i in each]
        self.mixes = [nn.Dense(self.width, name=f"mix{i + 1}") for i in each]
        self.out_norm = nn.LayerNorm()
        self.out = nn.Dense(self.size)
        self.drop = Dropout(self.dropout)

    def __call__(
        self, tokens: Mapping[str, Tokens], *, train: bool = False, axis_name: str | None = None
    ) -> dict[str, Any]:
        part = span_of(tokens, self.span, self.where)
        if part.values.shape[1] > self.frames:
            raise ConfigError(
                f"{self.where}: {part.layout[0].name} has {part.values.shape[1]} tokens and the "
                f"sound {self.frames} frames; each token needs one: a shorter hop, or longer sound"
            )
        memory, mask = self.read(part.values), part.mask
        voice = jnp.full(mask.shape[:1], self.speaker)
        mode = {"train": train, "axis_name": axis_name}
        if self.is_initializing():
            self.prior(memory, mask, voice)
        mel, frames = self.speak(memory, mask, voice, **mode)
        return {
            "mel": mel,
            "frames": frames,
            "memory": memory,
            "mask": mask,
            "method": BoundModule.of(self, train, axis_name),
        }

    def prior(self, memory: jax.Array, mask: jax.Array, voice: jax.Array, **mode: Any) -> jax.Array:
        """`[B, N, size]`: the frame that a token would be if it sounded the same throughout."""
        del mask, mode
        return self.prior_out(memory + self.voices(voice)[:, None])

    def durations(
        self, memory: jax.Array, mask: jax.Array, voice: jax.Array, **mode: Any
    ) -> jax.Array:
        """`[B, N]`, logarithms of frames. The memory does not learn from them."""
        x = jax.lax.stop_gradient(memory) + self.voices(voice)[:, None]
        x = gelu(self.duration_hidden(x * mask[..., None].astype(x.dtype)))
        x = self.drop(self.duration_norm(x), **mode)
        return jnp.minimum(self.duration_out(x)[..., 0], LONGEST)

    def render(
        self,
        memory: jax.Array,
        mask: jax.Array,
        voice: jax.Array,
        durations: jax.Array,
        **mode: Any,
    ) -> jax.Array:
        """`[B, frames, size]` of tokens that last `durations[B, N]` frames, 0 for padding."""
        del mask
        token, progress = expand(durations, self.frames)
        lasts = jnp.take_along_axis(durations, token, 1)
        place = jnp.stack([progress, 1 - progress, jnp.log1p(lasts)], -1).astype(memory.dtype)
        x = jnp.take_along_axis(memory, token[..., None], 1)
        x = x + self.voices(voice)[:, None] + self.place(place)
        heard = jnp.arange(self.frames, dtype=durations.dtype) + 0.5 < durations.sum(
            1, keepdims=True
        )
        keep = heard[..., None].astype(x.dtype)
        for norm, conv, mix in zip(self.norms, self.convs, self.mixes, strict=True):
            x = x + self.drop(mix(gelu(conv(norm(x) * keep))), **mode)
        mel = self.out(self.out_norm(x))
        return jnp.where(heard[..., None], mel, jnp.asarray(self.silence, mel.dtype))

    def speak(
        self, memory: jax.Array, mask: jax.Array, voice: jax.Array, **mode: Any
    ) -> tuple[jax.Array, jax.Array]:
        """Frames by the predicted durations, and how many `[B]`."""
        lasts = jnp.exp(self.durations(memory, mask, voice, **mode))
        lasts = jnp.where(mask, jnp.maximum(lasts, 1.0), 0.0)
        total = jnp.minimum(jnp.round(lasts.sum(1)), self.frames).astype(jnp.int32)
        return self.render(memory, mask, voice, lasts, **mode), total
