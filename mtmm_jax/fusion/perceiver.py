"""A few latents read the tokens of all modalities: Perceiver, and Perceiver IO with queries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from mtmm_jax.batch import Tokens
from mtmm_jax.fusion.transformer import check_heads, read_in
from mtmm_jax.layers import LayerNorm, TransformerBlock
from mtmm_jax.layers.latents import CrossBlock, Latents
from mtmm_jax.ranges import Blocks, Decay, Size
from mtmm_jax.registry import check_fields


class PerceiverFusion(nn.Module):
    """z <- Cross(z over [x_1; ..; x_M]), then z <- Block(z) `layers` times; all of it `iterations`
    times. Gives LN(z), the latents as tokens.

    All iterations after the first share their parameters, as in the paper.

    Paper: Jaegle et al. 2021, arXiv:2103.03206. Costs latents x tokens an iteration, and layers x
    latents^2. Use it: for long inputs and many modalities. Not: for short ones; what does not fit
    into the latents is lost.

    Attributes:
        width: of the latents.
        latents: how many.
        iterations: how often they read the tokens.
        layers: of self-attention after each reading.
        heads, expansion, dropout: of the blocks.
    """

    width: Size
    latents: Size = 16
    iterations: Blocks = 2
    layers: Blocks = 1
    heads: Blocks = 4
    expansion: Size = 2
    dropout: Decay = 0.0

    modalities: ClassVar[tuple[int, int | None]] = (1, None)
    keeps_layout: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fields(self, "model.fusion")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, tokens: Mapping[str, Tokens], *, train: bool = False, axis_name: str | None = None
    ) -> Tokens:
        check_heads(self.width, self.heads)
        mode = {"train": train, "axis_name": axis_name}
        hyper = (self.heads, self.expansion, self.dropout)
        joined = read_in(tokens, self.width)
        z = Latents(self.latents, self.width, name="latents")(joined.mask.shape[0])
        mask = jnp.broadcast_to(joined.present[:, None], z.shape[:2])
        for iteration in range(self.iterations):
            if iteration < 2:
                stem = "first" if iteration == 0 else "again"
                cross = CrossBlock(*hyper, name=f"{stem}_read")
                blocks = [
                    TransformerBlock(*hyper, name=f"{stem}_layer{layer + 1}")
                    for layer in range(self.layers)
                ]
            z = cross(z, joined.values, joined.mask, **mode)
            for block in blocks:
                z = block(z, mask, **mode)
        return Tokens(LayerNorm(name="norm")(z), mask)


class PerceiverIO(nn.Module):
    """z = Perceiver(x_1 .. x_M);  h = LN(Cross(q over z)): output queries decode from the latents.

    As many output tokens as there are queries q, which are learned, whatever the number of latents.

    Paper: Jaegle et al. 2022, arXiv:2107.14795. Costs queries x latents on top of the Perceiver.
    Use it: as `perceiver`, with a fixed number of output tokens. Not: where a head reads one
    vector.

    Attributes:
        queries: how many tokens it gives.
        others: as in `PerceiverFusion`.
    """

    width: Size
    queries: Size = 1
    latents: Size = 16
    iterations: Blocks = 1
    layers: Blocks = 2
    heads: Blocks = 4
    expansion: Size = 2
    dropout: Decay = 0.0

    modalities: ClassVar[tuple[int, int | None]] = (1, None)
    keeps_layout: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fields(self, "model.fusion")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, tokens: Mapping[str, Tokens], *, train: bool = False, axis_name: str | None = None
    ) -> Tokens:
        mode = {"train": train, "axis_name": axis_name}
        hyper = (self.heads, self.expansion, self.dropout)
        size = (self.width, self.latents, self.iterations, self.layers)
        z = PerceiverFusion(*size, *hyper, name="perceiver")(tokens, **mode)
        q = Latents(self.queries, self.width, name="queries")(z.mask.shape[0])
        q = CrossBlock(*hyper, name="decode")(q, z.values, z.mask, **mode)
        mask = jnp.broadcast_to(z.present[:, None], q.shape[:2])
        return Tokens(LayerNorm(name="norm")(q), mask)
