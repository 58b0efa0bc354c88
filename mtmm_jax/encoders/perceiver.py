"""Anything -> a fixed number of tokens: latents that read the raw input by cross-attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mtmm_jax.batch import Modality, Tokens
from mtmm_jax.encoders.encoder import mask_of
from mtmm_jax.encoders.sequence import TransformerEncoder
from mtmm_jax.encoders.vit import divided
from mtmm_jax.layers import cells, fill_up, fourier, patches
from mtmm_jax.layers.latents import CrossBlock, Latents
from mtmm_jax.modalities import kind_of
from mtmm_jax.ranges import Positive, Size, SizeOrZero

_LONGEST = (
    4096.0  # pieces in the slowest Fourier wave; of no input's own length: padding moves nothing
)


class Perceiver(TransformerEncoder):
    """z <- z + Attention(z over [x; Fourier positions]), then self-attention among the latents z.

    A picture or a clip is read in small patches, a waveform in short runs of samples, a table by
    its columns, text and series token by token.

    Paper: Jaegle et al. 2021, arXiv:2103.03206. Costs latents x inputs once, and latents^2 in each
    layer, whatever the modality. Use it: for inputs too long for a Transformer, and where one body
    should do for all. Not: for short inputs.

    Attributes:
        vocabulary: the number of token ids, for text.
        modality: the name that its tokens carry.
        rate: samples, frames or steps per second, if the modality has any.
        latents: how many tokens it gives.
        patch: pixels of a patch's side.
        samples: of a waveform in one run.
        fourier_bands: sines and cosines of each coordinate.
    """

    vocabulary: SizeOrZero | None = None
    modality: str = "any"
    rate: Positive | None = None
    latents: Size = 16
    patch: Size = 4
    samples: Size = 64
    fourier_bands: Size = 16

    @staticmethod
    def accepts(modality: Modality) -> bool:
        dimensions = kind_of(modality).dimensions
        if len(modality.shape) != dimensions or dimensions > 4:
            return False
        if modality.is_a("text"):
            return modality.vocabulary is not None
        if modality.is_a("audio"):  # a waveform and a table differ in having a rate
            return modality.rate is not None
        return modality.rate is None or not modality.is_a("table")

    def setup(self) -> None:
        super().setup()
        _, inner, heads = self.size
        if self.vocabulary:
            self.embedding = nn.Embed(self.vocabulary, inner)
        self.read = nn.Dense(inner, dtype=self.precision)
        self.start = Latents(self.latents, inner)
        self.reader = CrossBlock(heads, dropout=self.dropout, dtype=self.precision)

    def stem(self, entry: Mapping[str, Any], **mode: Any) -> Tokens:
        """The pieces of the input, each with where it is."""
        del mode
        x, mask, grid, stride, at = self._pieces(entry)
        where = fourier(cells(grid, (1.0,) * len(grid)), self.fourier_bands, _LONGEST)
        where = jnp.broadcast_to(where, (x.shape[0], *where.shape))
        values = self.read(jnp.concatenate([x, where], axis=-1)).astype(jnp.float32)
        at = None if at is None else jnp.broadcast_to(at, (x.shape[0], *at.shape))
        return Tokens.of(values, mask, self.modality, grid=grid, stride=stride, positions=at)

    def first(self, tokens: Tokens, **mode: Any) -> Tokens:
        z = self.start(tokens.values.shape[0])
        z = self.reader(z, tokens.values, tokens.mask, **mode)
        mask = jnp.broadcast_to(tokens.present[:, None], z.shape[:2])
        return super().first(Tokens.of(z, mask, self.modality), **mode)

    def _pieces(self, entry: Mapping[str, Any]) -> tuple[Any, ...]:
        """`[B, N, C]` float32, `[B, N]`, grid, stride, and `[N, P]` positions if it has any."""
        x, mask = entry["x"], mask_of(entry)
        step = 1.0 / (self.rate or 1.0)
        if jnp.issubdtype(x.dtype, jnp.integer):
            return self.embedding(x), mask, *_line(x.shape[1], 1.0)
        if x.ndim == 2 and self.rate is None:
            known = mask.astype(x.dtype)
            present = jnp.broadcast_to(entry["present"][:, None], x.shape)
            return jnp.stack([x * known, known], -1), present, *_line(x.shape[1], 1.0)[:2], None
        if x.ndim == 2:
            runs = fill_up(x * mask.astype(x.dtype), self.samples)
            runs = runs.reshape(x.shape[0], -1, self.samples)
            line = _line(runs.shape[1], self.samples * step, 0.5)
            return runs, mask[:, :: self.samples], *line
        if x.ndim == 3:
            return x * mask[..., None].astype(x.dtype), mask, *_line(x.shape[1], step)
        height, width = divided(x.shape, self.patch, "perceiver")
        side, channels = float(self.patch), x.shape[-1] * self.patch**2
        if x.ndim == 4:
            grid, stride = (height, width), (side, side)
            values = patches(x, (self.patch, self.patch)).reshape(x.shape[0], -1, channels)
            mask = jnp.broadcast_to(entry["present"][:, None], values.shape[:2])
            return values, mask, grid, stride, cells(grid, stride)
        x = x * mask[..., None, None, None].astype(x.dtype)
        values = patches(x, (1, self.patch, self.patch)).reshape(x.shape[0], -1, channels)
        grid, stride = (x.shape[1], height, width), (step, side, side)
        at = jnp.repeat(_line(x.shape[1], step)[2], height * width, axis=0)
        return values, jnp.repeat(mask, height * width, axis=1), grid, stride, at


def _line(count: int, step: float, offset: float = 0.0) -> tuple[Any, ...]:
    """Grid, stride and positions of `count` steps."""
    at = (jnp.arange(count, dtype=jnp.float32)[:, None] + offset) * step
    return (count,), (step,), at
