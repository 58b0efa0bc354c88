"""Rows of numbers `[B, columns]` -> tokens: an MLP, and a Transformer over one token per column.

A value that is missing is masked; that it is missing is itself told to the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mtmm_jax.batch import Modality, Tokens
from mtmm_jax.encoders.encoder import Encoder
from mtmm_jax.encoders.sequence import TransformerEncoder, mask_of
from mtmm_jax.layers import Dropout, gelu
from mtmm_jax.registry import choose

MLPS = {"tiny": 128, "small": 512}


def _accepts(modality: Modality) -> bool:
    return modality.kind == "table" and len(modality.shape) == 1


class MLPTable(Encoder):
    """[x; mask] -> two hidden layers, a residual one between -> one token.

    Attributes:
        modality: the name that its token carries.
        preset: size: tiny or small.
        dropout: rate on the hidden layers.
    """

    modality: str = "table"
    preset: str = "tiny"
    dropout: float = 0.1

    accepts = staticmethod(_accepts)

    def setup(self) -> None:
        inner = MLPS[choose(self.preset, MLPS, "mlp_table.preset", "preset")]
        self.read = nn.Dense(inner)
        self.hidden = nn.Dense(inner)
        self.project = nn.Dense(self.width)
        self.drop = Dropout(self.dropout)
        self.drop_again = Dropout(self.dropout)

    def stem(self, entry: Mapping[str, Any], **mode: Any) -> Tokens:
        x, present = entry["x"], entry["present"]
        known = mask_of(entry).astype(x.dtype)
        h = self.drop(gelu(self.read(jnp.concatenate([x * known, known], axis=-1))), **mode)
        return Tokens.of(h[:, None], present[:, None], self.modality)

    def first(self, tokens: Tokens, **mode: Any) -> Tokens:
        h = self.drop_again(gelu(self.hidden(tokens.values)), **mode)
        return tokens.replace_values(tokens.values + h)

    def second(self, tokens: Tokens, **mode: Any) -> Tokens:
        del mode
        return tokens.replace_values(self.project(tokens.values))


class TransformerTable(TransformerEncoder):
    """A token for each column, x_c w_c + b_c, or m_c where the value is missing -> Transformer.

    Paper: Gorishniy et al., NeurIPS 2021 (FT-Transformer).

    Attributes:
        modality: the name that its tokens carry.
    """

    modality: str = "table"

    accepts = staticmethod(_accepts)

    @nn.compact
    def stem(self, entry: Mapping[str, Any], **mode: Any) -> Tokens:
        del mode
        x, known = entry["x"], mask_of(entry)
        shape, spread = (x.shape[1], self.size[1]), nn.initializers.normal(0.5)
        slope, bias, missing = (self.param(n, spread, shape) for n in ("slope", "bias", "missing"))
        values = jnp.where(known[..., None], x[..., None] * slope + bias, missing)
        mask = jnp.broadcast_to(entry["present"][:, None], x.shape)
        return Tokens.of(values, mask, self.modality)
