"""One modality's tokens look at another's: the non-local gate, and crossmodal Transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from mtmm_jax.batch import Tokens
from mtmm_jax.fusion.pooled import query_first, single
from mtmm_jax.fusion.transformer import apart, check_heads, read_in
from mtmm_jax.layers import LayerNorm, TransformerBlock
from mtmm_jax.layers.attention import masked_softmax
from mtmm_jax.layers.latents import CrossBlock, Latents
from mtmm_jax.ranges import Blocks, Decay, Size
from mtmm_jax.registry import check_fields


class NonLocalGate(nn.Module):
    """h = softmax(Q K^T) V + Q, with Q from one modality, K and V from all the others.

    The NL-gate of MultiBench, after non-local networks (Wang et al. 2018, arXiv:1711.07971): not
    scaled, one head. Gives the query modality's tokens, refined; where that modality is absent, a
    learned query stands in for them as one token, and where the others are absent h = Q. With one
    modality h = Q always.

    Paper: Liang et al. 2021, arXiv:2107.07502. Costs the query tokens x the other tokens. Use it:
    for one leading modality with others that help it. Not: where any modality may lead.

    Attributes:
        width: of the tokens.
        query: the modality that asks; alphabetically the first by default.
    """

    width: Size
    query: str | None = None

    modalities: ClassVar[tuple[int, int | None]] = (1, None)
    keeps_layout: ClassVar[bool] = False

    @nn.compact
    def __call__(
        self, tokens: Mapping[str, Tokens], *, train: bool = False, axis_name: str | None = None
    ) -> Tokens:
        del train, axis_name
        joined = read_in(tokens, self.width)
        name = query_first(tokens, self.query)[0]
        read = apart(joined, tokens)
        own, ask = read.pop(name), nn.Dense(self.width, name="query")
        if not read:
            return Tokens(ask(own.values), own.mask)
        others = Tokens.join(read.values())
        stand_in = Latents(1, self.width, name=f"absent_{name}")(own.mask.shape[0])
        alone = others.present & ~own.present
        asking = Tokens.join([Tokens(stand_in, alone[:, None]), own])
        query = ask(asking.values)
        key = nn.Dense(self.width, use_bias=False, name="key")(others.values)
        value = nn.Dense(self.width, name="value")(others.values)
        logits = jnp.einsum("bnd,bmd->bnm", query, key)
        weights = masked_softmax(logits, others.mask[:, None])
        self.sow("intermediates", "weights", weights)
        return Tokens(jnp.einsum("bnm,bmd->bnd", weights, value) + query, asking.mask)


class CrossModal(nn.Module):
    """c_ij = Cross(Q = x_i, K = V = x_j);  z_i = Self(x_i + W_i [c_ij]_j);  h = W [mean z_i]_i + b.

    The multimodal Transformer (MulT): for each ordered pair of modalities a crossmodal Transformer
    whose every layer reads the other's first features, for sequences that are not aligned. [..]_j
    is the concatenation over the others j, [..]_i that over all. Next to it x_i itself is passed
    on, so that a modality that is alone is just self-attended. What an absent modality would add to
    either concatenation is zero, and all else is as in the model without it.

    Paper: Tsai et al. 2019, arXiv:1906.00295. Costs M (M - 1) crossmodal Transformers, each at the
    product of two lengths. Use it: for two or three sequences that are not aligned. Not: with many
    modalities.

    Attributes:
        width: of the tokens.
        layers: of each crossmodal Transformer, and of each self-attending one.
        heads, expansion, dropout: of their blocks.
    """

    width: Size
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
        block = (self.heads, self.expansion, self.dropout)
        read = apart(read_in(tokens, self.width), tokens)
        total = self.param("bias", nn.initializers.zeros, (self.width,))
        for own_name, own in read.items():
            z = own.values
            for name, other in read.items():
                if name == own_name:
                    continue
                pair, x = f"{own_name}_from_{name}", own.values
                for layer in range(self.layers):
                    cross = CrossBlock(*block, name=f"{pair}_layer{layer + 1}")
                    x = cross(x, other.values, other.mask, **mode)
                x = LayerNorm(name=f"{pair}_norm")(x)
                # The concatenation's linear map, one block of its matrix at a time.
                x = nn.Dense(self.width, use_bias=False, name=f"{pair}_out")(x)
                z = z + jnp.where(other.present[:, None, None], x, 0.0)
            for layer in range(self.layers):
                own_block = TransformerBlock(*block, name=f"{own_name}_layer{layer + 1}")
                z = own_block(z, own.mask, **mode)
            z = own.replace_values(LayerNorm(name=f"{own_name}_norm")(z))
            total = total + nn.Dense(self.width, use_bias=False, name=f"{own_name}_out")(z.mean())
        return single(total, tokens)
