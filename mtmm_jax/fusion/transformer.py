"""Transformers over the tokens of all modalities, and the parts that other token fusions share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtmm_jax.batch import Tokens, check_tokens
from mtmm_jax.fusion.join import Join, Trunk
from mtmm_jax.fusion.pooled import Concat
from mtmm_jax.layers import LayerNorm, TransformerBlock
from mtmm_jax.layers.latents import CrossBlock, Latents
from mtmm_jax.ranges import Blocks, Decay, Size
from mtmm_jax.registry import ConfigError, check, check_fields, choose

COMBINE = ("concat", "gated")


def check_heads(width: int, heads: int, where: str = "model.fusion.heads") -> None:
    """Raises a `ConfigError` where a width does not split into so many heads."""
    check(heads, Blocks, where)
    if width % heads:
        choices = ", ".join(str(h) for h in range(1, width + 1) if width % h == 0)
        raise ConfigError(f"{where}: {heads!r} does not divide width {width}; choices: {choices}")


def float32(tokens: Mapping[str, Tokens]) -> dict[str, Tokens]:
    """The tokens with values and positions in float32, in which fusions over tokens compute."""
    check_tokens(tokens, "model.fusion")
    return {
        name: jax.tree.map(
            lambda x: x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x, part
        )
        for name, part in tokens.items()
    }


def read_in(tokens: Mapping[str, Tokens], width: int) -> Tokens:
    """All tokens at one width, in one sequence; inside a module's compact method."""
    return Join(width, name="read")(float32(tokens))


def apart(joined: Tokens, tokens: Mapping[str, Tokens]) -> dict[str, Tokens]:
    """The modalities of `read_in`'s sequence again, alphabetically, at its width."""
    parts, start = {}, 0
    for name, part in sorted(tokens.items()):
        stop = start + part.mask.shape[1]
        parts[name] = Tokens(joined.values[:, start:stop], part.mask, None, part.layout)
        start = stop
    return parts


class WithOriginals(nn.Module):
    """Joins what a fusion found, f, with the modalities' own pooled features x_1 .. x_M.

    With u = W_f LN(f) and o = W_o [LN x_1; ..; LN x_M] + b, learned stand-ins for the absent:

        concat:  h = u + o, which is one linear map of [f; x_1; ..; x_M]
        gated:   h = z * u + (1 - z) * o,  z = sigmoid(W_z [u; o] + b_z)

    Attributes:
        width: of the one token that it gives.
        combine: concat or gated.
    """

    width: Size
    combine: str = "concat"

    @nn.compact
    def __call__(self, found: jax.Array, tokens: Mapping[str, Tokens]) -> Tokens:
        """`found[B, F]`, and the tokens as they came to the fusion."""
        choose(self.combine, COMBINE, "model.fusion.combine")
        original = Concat(self.width, name="original")(float32(tokens))
        u = nn.Dense(self.width, use_bias=False, name="found")(LayerNorm(name="norm")(found))
        o = original.values[:, 0]
        if self.combine == "concat":
            return original.replace_values((u + o)[:, None])
        gate = nn.sigmoid(nn.Dense(self.width, name="gate")(jnp.concatenate([u, o], axis=-1)))
        self.sow("intermediates", "gates", gate)
        return original.replace_values((gate * u + (1.0 - gate) * o)[:, None])


class FusionTransformer(nn.Module):
    """x = [cls; x_1; ..; x_M];  x <- Block(x), `layers` times;  gives LN(x)_cls.

    The fusion of AutoGluon (Shi et al. 2021, arXiv:2111.02705; Tang et al. 2024): project to one
    width, add a class token, three blocks of eight heads.

    Paper: Tang et al. 2024, arXiv:2404.16233. Costs the square of all tokens together, in each
    layer. Use it: as the strong plain baseline: any modality may look at any other in each layer.
    Not: where tokens are many; `bottleneck` and `perceiver` cost less.

    Attributes:
        width: of the tokens.
        layers, heads, expansion, dropout: of the Transformer blocks.
    """

    width: Size
    layers: Blocks = 3
    heads: Blocks = 8
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
        read = read_in(tokens, self.width)
        present = read.present[:, None]
        cls = Tokens.of(Latents(1, self.width, name="cls")(present.shape[0]), present, "cls")
        size = (self.width, self.layers, self.heads, self.expansion, self.dropout)
        x = Trunk(*size, name="trunk")(Tokens.join([cls, read]), train=train, axis_name=axis_name)
        return x if self.keeps_layout else Tokens(x.values[:, :1], present)


class FusionTransformerTokens(FusionTransformer):
    """`FusionTransformer` that gives all its tokens, [cls; x_1; ..; x_M], for heads with a grid.

    Paper: Tang et al. 2024, arXiv:2404.16233. Costs as `transformer`. Use it: where a head needs a
    modality's grid after fusion. Not: for heads that read one vector.
    """

    keeps_layout: ClassVar[bool] = True


class EncoderDecoder(nn.Module):
    """e = Encoder([x_1; ..; x_M]);  q = Decoder(q over e);  h = combine([q_1; ..; q_Q], x).

    A Transformer with learned queries in the decoder: each query asks all modalities for one thing,
    and their answers are joined with the original pooled features (`WithOriginals`), so that what
    the decoder lets go is not lost.

    Paper: Vaswani et al. 2017, arXiv:1706.03762; Carion et al. 2020, arXiv:2005.12872. Costs the
    square of all tokens in the encoder, queries x tokens in the decoder. Use it: where a fixed
    number of questions is put to all modalities. Not: with few rows; `transformer` has half the
    layers.

    Attributes:
        width: of the tokens.
        queries: how many vectors are decoded.
        layers, decoder_layers: of the encoder and of the decoder.
        heads, expansion, dropout: of the blocks.
        combine: concat or gated.
    """

    width: Size
    queries: Size = 4
    layers: Blocks = 2
    decoder_layers: Blocks = 1
    heads: Blocks = 4
    expansion: Size = 2
    dropout: Decay = 0.0
    combine: str = "concat"

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
        joined = read_in(tokens, self.width)
        x = Trunk(self.width, self.layers, *block, name="encoder")(joined, **mode)
        batch = x.values.shape[0]
        q = Latents(self.queries, self.width, name="queries")(batch)
        all_queries = jnp.ones(q.shape[:2], bool)
        for layer in range(self.decoder_layers):
            name = f"decoder{layer + 1}"
            q = CrossBlock(*block, name=f"{name}_read")(q, x.values, x.mask, **mode)
            q = TransformerBlock(*block, name=f"{name}_self")(q, all_queries, **mode)
        combine = WithOriginals(self.width, self.combine, name="combine")
        return combine(q.reshape(batch, -1), tokens)
