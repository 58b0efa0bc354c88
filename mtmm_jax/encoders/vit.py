"""Patches as words: Transformers over the patches of images, and over the tubelets of clips."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtmm_jax.batch import Modality, Tokens
from mtmm_jax.encoders.encoder import mask_of
from mtmm_jax.encoders.image import accepts_images, image_tokens
from mtmm_jax.encoders.sequence import TransformerEncoder
from mtmm_jax.layers import cells, fill_up, patches, sinusoid
from mtmm_jax.ranges import Positive, Size, SizeOrZero
from mtmm_jax.registry import ConfigError, choose

# preset -> layers, width, heads; small and base are ViT-S and ViT-B
VITS = {"tiny": (2, 128, 4), "small": (12, 384, 6), "base": (12, 768, 12)}
POSITIONS = ("sinusoid", "learned")


def divided(shape: tuple[int, ...], patch: int, kind: str) -> tuple[int, int]:
    """Patches down and across."""
    height, width = shape[-3:-1]
    if height % patch or width % patch:
        raise ConfigError(
            f"{kind}.patch: {patch} pixels do not divide an image of {height} x {width}"
        )
    return height // patch, width // patch


class ViT(TransformerEncoder):
    """Patches -> a linear map + positions -> Transformer.

    Paper: Dosovitskiy et al. 2021, arXiv:2010.11929. Costs the square of the number of patches, in
    each layer. Use it: pretrained, or with much data. Not: from scratch on a few thousand pictures.

    Attributes:
        preset: size: tiny, small (ViT-S) or base (ViT-B).
        modality: the name that its tokens carry.
        patch: pixels of a patch's side: 8 suits images of 32 to 64 pixels, 16 those of 224.
        position_kind: "sinusoid" of the patch's row and column (any image size), or "learned".
        registers: tokens of no patch that the body may write to (Darcet et al. 2024); they stay in.
        summary: give a learned token that reads all patches (CLS) instead of the patches.
    """

    modality: str = "image"
    patch: Size = 8
    position_kind: str = "sinusoid"
    registers: SizeOrZero = 0
    summary: bool = False

    presets: ClassVar[Mapping[str, tuple[int, ...]]] = VITS
    accepts = staticmethod(accepts_images)

    def setup(self) -> None:
        super().setup()
        choose(self.position_kind, POSITIONS, "vit.position_kind", "positions")
        shape = (self.registers + self.summary, self.size[1])
        if shape[0]:
            self.own_tokens = self.param("registers", nn.initializers.normal(0.02), shape)

    @nn.compact
    def stem(self, entry: Mapping[str, Any], **mode: Any) -> Tokens:
        del mode
        x, inner = entry["x"], self.size[1]
        grid = divided(x.shape, self.patch, "vit")
        read = nn.Dense(inner, dtype=self.precision, name="patches")
        values = read(patches(x, (self.patch, self.patch)))
        tokens = image_tokens(values, entry["present"], x.shape[1:3], self.modality)
        if self.position_kind == "learned":
            spread = nn.initializers.normal(0.02)
            at = self.param("positions", spread, (grid[0] * grid[1], inner))
        else:
            at = sinusoid(cells(grid, (1.0, 1.0)), inner)
        return tokens.replace_values(tokens.values + at)

    def first(self, tokens: Tokens, **mode: Any) -> Tokens:
        if self.registers or self.summary:
            extra = _with_type(tokens, self.own_tokens, f"{self.modality}_registers")
            tokens = Tokens.join([tokens, extra])
        return super().first(tokens, **mode)

    def second(self, tokens: Tokens, **mode: Any) -> Tokens:
        tokens = super().second(tokens, **mode)
        if self.summary:
            present = tokens.present[:, None]
            return Tokens.of(tokens.values[:, -1:], present, self.modality)
        return tokens.select(self.modality)


def _with_type(tokens: Tokens, values: jax.Array, name: str) -> Tokens:
    """The same `values[N, D]` for each row, at no place."""
    batch = tokens.values.shape[0]
    return Tokens.of(
        jnp.broadcast_to(values, (batch, *values.shape)),
        jnp.broadcast_to(tokens.present[:, None], (batch, len(values))),
        name,
        positions=jnp.zeros((batch, len(values), tokens.positions.shape[-1])),
    )


class TubeletVideo(TransformerEncoder):
    """Boxes of a few frames by a few pixels -> a linear map + positions -> Transformer.

    ViViT in its joint space-time form.

    Paper: Arnab et al. 2021, arXiv:2103.15691. Costs the square of the number of tubelets, in each
    layer. Use it: for short, small clips whose motion decides. Not: for long ones.

    Attributes:
        preset: size: tiny, small (ViT-S) or base (ViT-B).
        modality: the name that its tokens carry.
        rate: frames per second, if known.
        patch: pixels of a tubelet's side.
        frames: of a tubelet.
    """

    modality: str = "video"
    rate: Positive | None = None
    patch: Size = 8
    frames: Size = 2

    presets: ClassVar[Mapping[str, tuple[int, ...]]] = VITS

    @staticmethod
    def accepts(modality: Modality) -> bool:
        return modality.is_a("video") and len(modality.shape) == 4

    @nn.compact
    def stem(self, entry: Mapping[str, Any], **mode: Any) -> Tokens:
        del mode
        mask = mask_of(entry)
        # Frames that are not there are black, and so are those that fill up the last tubelet.
        seen = entry["x"] * mask[..., None, None, None].astype(entry["x"].dtype)
        x = fill_up(seen, self.frames)
        down, across = divided(x.shape, self.patch, "video_tubelets")
        read = nn.Dense(self.size[1], dtype=self.precision, name="tubelets")
        values = read(patches(x, (self.frames, self.patch, self.patch))).astype(jnp.float32)
        batch, steps = values.shape[:2]
        grid = (steps, down, across)
        seconds = self.frames / (self.rate or 1.0)
        # Frame i is seen at i / rate, a tubelet in the middle of its frames.
        at = cells((steps,), (seconds,)) - 0.5 / (self.rate or 1.0)
        at = jnp.repeat(at, down * across, axis=0)
        values = values.reshape(batch, len(at), -1) + sinusoid(
            cells(grid, (1.0, 1.0, 1.0)), values.shape[-1]
        )
        return Tokens.of(
            values,
            jnp.repeat(mask[:, :: self.frames], down * across, axis=1),
            self.modality,
            grid=grid,
            stride=(seconds, float(self.patch), float(self.patch)),
            positions=jnp.broadcast_to(at, (batch, *at.shape)),
        )
