"""The base of every encoder: a stem and a body in two halves; and the body of those of vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtmm_jax.batch import Tokens, check_entry
from mtmm_jax.layers import Dropout, gelu
from mtmm_jax.ranges import Decay, Dtype, Size
from mtmm_jax.registry import check_fields, choose

DTYPES = ("float32", "bfloat16")
MLPS = {"tiny": 128, "small": 512}  # preset -> hidden width


class Encoder(nn.Module):
    """Base of the encoders: `second(first(stem(entry)))`, defined by subclasses.

    Attributes:
        width: of the tokens it gives; an encoder that is not `projected` gives its own.
        dtype: of the matrix products and convolutions inside, "float32" or "bfloat16". Parameters,
            statistics, softmax, recurrent states and the tokens that leave a stem or a half are
            always float32, so that fusion can stand between any two of them.
    """

    width: Size
    dtype: Dtype = "float32"

    def __post_init__(self) -> None:
        if not getattr(self, "projected", True):
            object.__setattr__(self, "width", self.features)
        check_fields(self, "encoder")
        super().__post_init__()

    @property
    def features(self) -> int:
        """Of a token before a projection, where an encoder can do without one."""
        raise NotImplementedError

    @property
    def precision(self) -> Any:
        return jnp.dtype(self.dtype)

    def projection(self) -> Callable[[jax.Array], jax.Array]:
        """The last layer, `features -> width`, in float32; none if the encoder is not `projected`:
        features then leave as they are. To be called in `setup`."""
        if self.projected:
            return nn.Dense(self.width, dtype=jnp.float32, name="project")
        return lambda values: values.astype(jnp.float32)

    def stem(self, entry: Mapping[str, Any], **mode: Any) -> Tokens:
        raise NotImplementedError

    def first(self, tokens: Tokens, **mode: Any) -> Tokens:
        raise NotImplementedError

    def second(self, tokens: Tokens, **mode: Any) -> Tokens:
        raise NotImplementedError

    def __call__(
        self, entry: Mapping[str, Any], *, train: bool = False, axis_name: str | None = None
    ) -> Tokens:
        check_entry(entry, "encoder")
        mode = {"train": train, "axis_name": axis_name}
        return self.second(self.first(self.stem(entry, **mode), **mode), **mode)


def mask_of(entry: Mapping[str, Any]) -> jax.Array:
    """The entry's mask, or all of a present row: `[B, N]` of an `x` that is `[B, N, ...]`."""
    shape = entry["x"].shape[:2]
    return entry.get("mask", jnp.broadcast_to(entry["present"][:, None], shape))


class MLPEncoder(Encoder):
    """h = GELU(W x), then h + GELU(W' h), then a linear map, of the vectors that `vectors` gives.

    Attributes:
        preset: size: tiny or small.
        dropout: rate on the hidden layers.
    """

    preset: str = "tiny"
    dropout: Decay = 0.1

    def setup(self) -> None:
        inner = MLPS[choose(self.preset, MLPS, "mlp.preset", "preset")]
        self.read = nn.Dense(inner, dtype=self.precision)
        self.hidden = nn.Dense(inner, dtype=self.precision)
        self.project = nn.Dense(self.width, dtype=jnp.float32)
        self.drop = Dropout(self.dropout)
        self.drop_again = Dropout(self.dropout)

    def vectors(self, entry: Mapping[str, Any]) -> Tokens:
        """The raw input as tokens, one or several."""
        raise NotImplementedError

    def stem(self, entry: Mapping[str, Any], **mode: Any) -> Tokens:
        tokens = self.vectors(entry)
        h = self.drop(gelu(self.read(tokens.values)), **mode)
        return tokens.replace_values(h.astype(jnp.float32))

    def first(self, tokens: Tokens, **mode: Any) -> Tokens:
        h = self.drop_again(gelu(self.hidden(tokens.values)), **mode)
        return tokens.replace_values(tokens.values + h.astype(jnp.float32))

    def second(self, tokens: Tokens, **mode: Any) -> Tokens:
        del mode
        return tokens.replace_values(self.project(tokens.values))
