"""All tokens in one sequence, and the Transformer that reads a fused sequence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from mtmm_jax.batch import Tokens, check_tokens
from mtmm_jax.fusion.groups import spread_out
from mtmm_jax.layers import LayerNorm, TransformerBlock, sinusoid
from mtmm_jax.ranges import Blocks, Decay, Size


class Join(nn.Module):
    """[W_1 x_1 + e_1; ..; W_M x_M + e_M]: tokens of a common width, side by side.

    e_m is a learned embedding of the modality; positions are added as sinusoids where they are
    known. Nothing meets here.

    Costs one matrix and one vector a modality. Use it: with the stage early, or with a head that
    attends. Not: with a head that pools; nothing meets then.

    Attributes:
        width: of the tokens.
    """

    width: Size

    modalities: ClassVar[tuple[int, int | None]] = (1, None)
    keeps_layout: ClassVar[bool] = True

    @nn.compact
    def __call__(
        self, tokens: Mapping[str, Tokens], *, train: bool = False, axis_name: str | None = None
    ) -> Tokens:
        del train, axis_name
        check_tokens(tokens, "model.fusion")
        parts = []
        for name, part in sorted(tokens.items()):
            x = nn.Dense(self.width, dtype=part.values.dtype, name=f"project_{name}")(part.values)
            own = self.param(f"modality_{name}", nn.initializers.normal(0.02), (self.width,))
            x = x + own.astype(x.dtype)
            if part.positions is not None:
                x = x + sinusoid(part.positions, self.width).astype(x.dtype)
            parts.append(part.replace_values(x))
        return Tokens.join(parts)


class Trunk(nn.Module):
    """The Transformer that all modalities share once they are fused; keeps the layout.

    Attributes:
        width: of the tokens.
        layers, heads, expansion, dropout: of the Transformer.
    """

    width: Size
    layers: Blocks = 2
    heads: Blocks = 4
    expansion: Size = 2
    dropout: Decay = 0.0

    @nn.compact
    def __call__(
        self, tokens: Tokens, *, train: bool = False, axis_name: str | None = None
    ) -> Tokens:
        x = tokens.values
        if x.shape[-1] != self.width:
            x = nn.Dense(self.width, name="project")(x)
        for i in range(self.layers):
            block = TransformerBlock(self.heads, self.expansion, self.dropout, name=f"layer{i + 1}")
            x = block(x, tokens.mask, train=train, axis_name=axis_name)
        return tokens.replace_values(LayerNorm(name="norm")(x))


class ProjectToModality(nn.Module):
    """The input of a modality's second half: h, brought to its own tokens' places and width.

    x_n = W [h_n; mean(h)] (+ t_n), where h_n is the fused token at the place of t_n. A fusion that
    does not keep the layout has none: x_n = W mean(h) (+ t_n).

    Attributes:
        modality: whose second half it is.
        own: whether the modality's own tokens t are added.
    """

    modality: str
    own: bool = True

    @nn.compact
    def __call__(
        self,
        fused: Tokens,
        groups: Tokens,
        tokens: Tokens,
        *,
        train: bool = False,
        axis_name: str | None = None,
    ) -> Tokens:
        """`groups` are what fusion read of the modality, `tokens` what its second half expects."""
        del train, axis_name
        h = fused.mean()[:, None]
        if any(span.name == self.modality for span in fused.layout):
            own = spread_out(fused.select(self.modality).values, groups, tokens)
            h = jnp.concatenate([own, jnp.broadcast_to(h, own.shape)], axis=-1)
        x = nn.Dense(tokens.values.shape[-1], name="project")(h)
        if self.own:
            return tokens.replace_values(x + tokens.values)
        return tokens.replace_values(jnp.broadcast_to(x, tokens.values.shape))
