"""Rows of numbers -> piecewise linear functions of each column."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax.batch import Modality
from mtmm_jax.encoders.encoder import mask_of
from mtmm_jax.encoders.fixed.fixed import FixedEncoder, standardising
from mtmm_jax.ranges import Several

_LIMIT = 5.0  # of a standardised value


class TableColumns(FixedEncoder):
    """[x; max(0, x - q_k) for quantiles q_k; whether x is missing] of each column, standardised.

    A linear model over them is a sum of piecewise linear functions, one of each column; one-hot
    columns of a category stay what they are. Quantiles are those of the train split.

    Costs `knots + 2` features a column. Use it: for tables of which a sum over columns says most.
    Not: where columns act together; the learned `table_mlp` next to it finds that.

    Attributes:
        knots: quantiles of a column.
    """

    knots: Several = 5

    @staticmethod
    def accepts(modality: Modality) -> bool:
        return modality.is_a("table") and len(modality.shape) == 1 and modality.shape[0] is not None

    @property
    def columns(self) -> int:
        return int(self.shape[0] or 1)

    @property
    def size(self) -> int:
        return (self.knots + 2) * self.columns

    def statistics(self) -> dict[str, tuple[tuple[int, ...], Any, float]]:
        own = {"quantiles": ((self.knots, self.columns), jnp.float32, 0.0)}
        return {**super().statistics(), **own}

    def raw(self, entry: Mapping[str, Any]) -> jax.Array:
        """`[B, 2 columns]`: values, and ones where they are missing."""
        known = mask_of(entry)
        x = jnp.nan_to_num(entry["x"].astype(jnp.float32)).clip(-_LIMIT, _LIMIT)
        return jnp.concatenate([jnp.where(known, x, 0), 1 - known.astype(jnp.float32)], axis=1)

    def scaled(self, raw: jax.Array) -> jax.Array:
        return super().scaled(_hinges(raw, self.stat("quantiles"), jnp))

    def fit(self, raw: np.ndarray) -> dict[str, np.ndarray]:
        raw = np.asarray(raw, np.float32)
        count = raw.shape[1] // 2
        quantiles = np.zeros((self.knots, count), np.float32)
        at = (np.arange(self.knots) + 0.5) / self.knots
        for column in range(count):
            known = raw[raw[:, count + column] == 0, column]
            if len(known):
                quantiles[:, column] = np.quantile(known, at)
        return {"quantiles": quantiles, **standardising(_hinges(raw, quantiles, np))}


def _hinges(raw: Any, quantiles: Any, numpy: Any) -> Any:
    """`[N, (knots + 2) columns]`; a missing value, 0, has no hinges."""
    x, missing = numpy.split(raw, 2, axis=1)
    over = numpy.maximum(x[:, None] - quantiles, 0) * (1 - missing)[:, None]
    over = over.reshape(x.shape[0], over.shape[1] * over.shape[2])
    return numpy.concatenate([x, over, missing], axis=1)
