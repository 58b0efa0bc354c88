"""A symbol, or none, for each token of one modality in time."""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax

from mtmm_jax.batch import Tokens
from mtmm_jax.heads.spans import span_of
from mtmm_jax.layers import Dropout
from mtmm_jax.ranges import Decay, Size
from mtmm_jax.registry import ConfigError


class CTC(nn.Module):
    """Logits `[B, T, size]` of the tokens in time, and which of them are there.

    Paper: Graves et al. 2006. Costs one matrix, width x size, a token in time. Use it: where the
    text follows the recording from left to right, with fewer symbols than tokens. Not: for
    translation (`decoder`).

    Attributes:
        size: symbols, the blank (0) among them.
        length: the longest label; there must be at least as many tokens.
        span: whose tokens to read, where what the task reads has those of several modalities.
        dropout: on the tokens.
        where: the place in the config, for error messages.
    """

    size: Size
    length: Size
    span: str | None = None
    dropout: Decay = 0.0
    where: str = "head"

    @nn.compact
    def __call__(
        self, tokens: Mapping[str, Tokens], *, train: bool = False, axis_name: str | None = None
    ) -> dict[str, jax.Array]:
        part = span_of(tokens, self.span, self.where)
        span, frames = part.layout[0], part.values.shape[1]
        if frames < self.length:
            raise ConfigError(
                f"{self.where}: {span.name} gives {frames} tokens, one every {span.stride[0]:g}, "
                f"and a label has up to {self.length}: its encoder's stride is too large by a "
                f"factor of {self.length / frames:.1f}, or the labels are too long"
            )
        x = Dropout(self.dropout)(part.values, train=train, axis_name=axis_name)
        return {"logits": nn.Dense(self.size, name="out")(x), "mask": part.mask}
