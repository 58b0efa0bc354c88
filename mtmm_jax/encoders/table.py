"""Rows of numbers `[B, columns]` -> tokens: an MLP, and a Transformer over one token per column.

A value that is missing is masked; the mask is an input of the model, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mtmm_jax.batch import Modality, Tokens
from mtmm_jax.encoders.encoder import MLPEncoder, mask_of
from mtmm_jax.encoders.sequence import TransformerEncoder


def _accepts(modality: Modality) -> bool:
    return modality.is_a("table") and len(modality.shape) == 1


class MLPTable(MLPEncoder):
    """[x; mask] -> two hidden layers, a residual one between -> one token.

    Costs 2 C hidden + hidden^2 a row. Use it: as the default for tables. Not: where a sum over
    columns is enough (`table_columns`).

    Attributes:
        modality: the name that its token carries.
    """

    modality: str = "table"

    accepts = staticmethod(_accepts)

    def vectors(self, entry: Mapping[str, Any]) -> Tokens:
        x = entry["x"]
        known = mask_of(entry).astype(x.dtype)
        x = jnp.concatenate([x * known, known], axis=-1)
        return Tokens.of(x[:, None], entry["present"][:, None], self.modality)


class TransformerTable(TransformerEncoder):
    """A token for each column, x_c w_c + b_c, or m_c where the value is missing -> Transformer.

    The FT-Transformer.

    Paper: Gorishniy et al. 2021, arXiv:2106.11959. Costs the square of the number of columns, in
    each layer. Use it: where columns act together and rows are many, or where fusion should see
    each column. Not: with hundreds of columns.

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
