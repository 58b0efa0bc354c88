"""Attention bottlenecks: modalities exchange through a few shared tokens (Nagrani et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from mtmm_jax.batch import Tokens
from mtmm_jax.fusion.transformer import float32
from mtmm_jax.layers import TransformerBlock, sinusoid
from mtmm_jax.ranges import Blocks, Decay, Size


class Bottleneck(nn.Module):
    """y_m = Block_m([x_m; b]);  b <- mean over the present m of b_m.

    Gives every modality's tokens and the bottleneck tokens.

    Paper: Nagrani et al. 2021, arXiv:2107.00135. Costs sum_m (N_m + B)^2 a layer, not
    (sum_m N_m)^2. Use it: for long sequences, such as video with audio. Not: for modalities of one
    token each.

    Attributes:
        width: of the tokens.
        bottlenecks: the number of shared tokens, drawn from N(0, .02) at the start.
        layers: how often the modalities exchange.
        heads, dropout: of the Transformer blocks.
    """

    width: Size
    bottlenecks: Size = 4
    layers: Blocks = 2
    heads: Blocks = 4
    expansion: Size = 2
    dropout: Decay = 0.0

    modalities: ClassVar[tuple[int, int | None]] = (1, None)
    keeps_layout: ClassVar[bool] = True

    @nn.compact
    def __call__(
        self, tokens: Mapping[str, Tokens], *, train: bool = False, axis_name: str | None = None
    ) -> Tokens:
        tokens = float32(tokens)
        names = sorted(tokens)
        present = {name: tokens[name].present for name in names}
        x = {}
        for name in names:
            values = tokens[name].values
            x[name] = nn.Dense(self.width, name=f"project_{name}")(values)
            if tokens[name].positions is not None:
                x[name] += sinusoid(tokens[name].positions, self.width).astype(values.dtype)
        start = self.param(
            "bottlenecks", nn.initializers.normal(0.02), (self.bottlenecks, self.width)
        )
        batch = x[names[0]].shape[0]
        shared = jnp.broadcast_to(start.astype(x[names[0]].dtype), (batch, *start.shape))
        weight = jnp.stack([present[name] for name in names]).astype(shared.dtype)[:, :, None, None]
        weight = weight / jnp.maximum(weight.sum(0), 1.0)
        for layer in range(self.layers):
            views = []
            for name in names:
                block = TransformerBlock(
                    self.heads, self.expansion, self.dropout, name=f"layer{layer + 1}_{name}"
                )
                seen = jnp.broadcast_to(present[name][:, None], (batch, self.bottlenecks))
                y = block(
                    jnp.concatenate([x[name], shared], axis=1),
                    jnp.concatenate([tokens[name].mask, seen], axis=1),
                    train=train,
                    axis_name=axis_name,
                )
                x[name], view = y[:, : -self.bottlenecks], y[:, -self.bottlenecks :]
                views.append(view)
            shared = (jnp.stack(views) * weight).sum(0)
        anyone = jnp.stack(list(present.values())).any(0)
        parts = [
            Tokens(nn.LayerNorm(name=f"norm_{n}")(x[n]), tokens[n].mask, None, tokens[n].layout)
            for n in names
        ]
        mask = jnp.broadcast_to(anyone[:, None], (batch, self.bottlenecks))
        parts.append(Tokens.of(nn.LayerNorm(name="norm")(shared), mask, "bottleneck"))
        return Tokens.join(parts)
