"""`FixedEncoder`: the base of encoders whose features are formulas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax.batch import Tokens
from mtmm_jax.encoders.encoder import Encoder
from mtmm_jax.layers import Dropout
from mtmm_jax.ranges import Decay
from mtmm_jax.registry import ConfigError

_SMALLEST_STD = 1e-6


class FixedEncoder(Encoder):
    """f = s(r(x)), then a linear map to one token of `width`.

    r is a formula, s a scaling by statistics of the train split; the statistics are variables of
    the collection "batch_stats", so that checkpoints, exports and averages hold them like those of
    batch norm. `fit` computes them; before that they are zeros and ones.

    Attributes:
        modality: the name that its token carries.
        shape: of one example's `x`.
        dropout: rate on the features in training.
    """

    linear_options: ClassVar[Mapping[str, Any]] = {}
    """Of the features of a linear model, which can afford more of them."""

    sparse: ClassVar[bool] = False
    """Whether `fit` takes a sparse matrix, since most of its raw features are zero."""

    modality: str = "fixed"
    shape: Sequence[int | None] = ()
    dropout: Decay = 0.1

    @property
    def size(self) -> int:
        """The number of features."""
        raise NotImplementedError

    def statistics(self) -> dict[str, tuple[tuple[int, ...], Any, float]]:
        """Name -> shape, dtype and the value before `fit`."""
        return {
            "center": ((self.size,), jnp.float32, 0.0),
            "scale": ((self.size,), jnp.float32, 1.0),
        }

    def __post_init__(self) -> None:
        if not self.shape:
            raise ConfigError(
                f"{type(self).__name__}.shape: is missing; give that of one example's x, such as "
                "Modality.shape"
            )
        super().__post_init__()

    def setup(self) -> None:
        self.stats = {
            name: self.variable("batch_stats", name, jnp.full, shape, value, dtype)
            for name, (shape, dtype, value) in self.statistics().items()
        }
        self.drop = Dropout(self.dropout)
        self.project = nn.Dense(self.width, dtype=self.precision)

    def raw(self, entry: Mapping[str, Any]) -> jax.Array:
        """`[B, R]`: what the statistics are computed from."""
        raise NotImplementedError

    def scaled(self, raw: jax.Array) -> jax.Array:
        """`[B, size]`, by the statistics."""
        return (raw - self.stat("center")).clip(-1e6, 1e6) * self.stat("scale")

    def stat(self, name: str) -> jax.Array:
        return jax.lax.stop_gradient(self.stats[name].value)

    def raw_of(self, entry: Mapping[str, Any], **mode: Any) -> jax.Array:
        """`raw`, as a method to apply."""
        del mode
        return self.raw(entry)

    def vectors(self, entry: Mapping[str, Any], **mode: Any) -> jax.Array:
        """`[B, size]` float32 of about unit length; zeros for an example without the modality."""
        del mode
        values = self.scaled(self.raw(entry)).astype(jnp.float32)
        return jnp.where(entry["present"][:, None], values, 0.0)

    def prepare(self, tokenizer: bytes | None) -> dict[str, np.ndarray]:
        """Statistics that need no data, only what the source keeps."""
        del tokenizer
        return {}

    def fit(self, raw: np.ndarray) -> dict[str, np.ndarray]:
        """The statistics of raw features `[N, R]` of training examples; N may be 0."""
        return standardising(raw)

    def stem(self, entry: Mapping[str, Any], **mode: Any) -> Tokens:
        vectors = self.drop(self.vectors(entry), **mode)
        return Tokens.of(vectors[:, None], entry["present"][:, None], self.modality)

    def first(self, tokens: Tokens, **mode: Any) -> Tokens:
        del mode
        return tokens

    def second(self, tokens: Tokens, **mode: Any) -> Tokens:
        del mode
        return tokens.replace_values(self.project(tokens.values).astype(jnp.float32))


class FrozenVectors(FixedEncoder):
    """Vectors `[B, D]` of a frozen encoder, standardised. No row of `ENCODERS`: linear models read
    it next to the formulas of a modality whose encoder is `pretrained` and frozen."""

    @property
    def size(self) -> int:
        return int(self.shape[0] or 1)

    def raw(self, entry: Mapping[str, Any]) -> jax.Array:
        return entry["x"]


def standardising(raw: np.ndarray) -> dict[str, np.ndarray]:
    """`center` and `scale` that give a row of D informative features the expected length 1.

    A feature that does not vary is always 0.
    """
    raw = np.asarray(raw, np.float64)
    if not len(raw):
        width = raw.shape[1] if raw.ndim == 2 else 0
        return {"center": np.zeros(width, np.float32), "scale": np.zeros(width, np.float32)}
    center, std = raw.mean(0), raw.std(0)
    varies = std > _SMALLEST_STD * (1 + np.abs(center))
    scale = np.where(varies, 1 / np.where(varies, std, 1), 0) / np.sqrt(max(varies.sum(), 1))
    return {"center": center.astype(np.float32), "scale": scale.astype(np.float32)}
