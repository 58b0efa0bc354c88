"""A residual bottleneck for the tokens of one modality."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from mtmm_jax.batch import Tokens
from mtmm_jax.layers.positionwise import Dense, LayerNorm, gelu
from mtmm_jax.ranges import Size
from mtmm_jax.registry import check_fields


class Adapter(nn.Module):
    """x + U gelu(V LN(x)), with U = 0 at the start, so that it begins as nothing (Houlsby et al.
    2019, after an encoder rather than inside its layers).

    Costs 2 D `width` a token and as many parameters. Use it: where an encoder stays frozen, to let
    its tokens be corrected for these tasks. Not: where the encoder learns anyway. Adapters of
    tasks are a sharing, `adapter`.

    Attributes:
        width: of the bottleneck.
    """

    width: Size = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, "adapter")

    @nn.compact
    def __call__(
        self, tokens: Tokens, *, train: bool = False, axis_name: str | None = None
    ) -> Tokens:
        del train, axis_name
        x = tokens.values
        h = gelu(Dense(self.width, dtype=x.dtype, name="down")(LayerNorm(name="norm")(x)))
        zeros = nn.initializers.zeros
        more = Dense(x.shape[-1], dtype=x.dtype, kernel_init=zeros, name="up")(h)
        return tokens.replace_values(x + jnp.where(tokens.mask[..., None], more, 0))
