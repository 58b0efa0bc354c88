"""What every encoder is: a stem, and a body in two halves, run one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtmm_jax.batch import Tokens
from mtmm_jax.registry import choose

DTYPES = ("float32", "bfloat16")


class Encoder(nn.Module):
    """`second(first(stem(entry)))`; subclasses say what these are.

    Attributes:
        width: of the tokens it gives; an encoder that is not `projected` gives its own.
        dtype: of the matrix products and convolutions inside, "float32" or "bfloat16". Parameters,
            statistics, softmax, recurrent states and the tokens that leave a stem or a half are
            always float32, so that fusion can stand between any two of them.
    """

    width: int
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if not getattr(self, "projected", True):
            object.__setattr__(self, "width", self.features)
        super().__post_init__()

    @property
    def features(self) -> int:
        """Of a token before a projection, where an encoder can do without one."""
        raise NotImplementedError

    @property
    def precision(self) -> Any:
        return jnp.dtype(choose(self.dtype, DTYPES, "encoder.dtype", "dtype"))

    def stem(self, entry: Mapping[str, Any], **mode: Any) -> Tokens:
        raise NotImplementedError

    def first(self, tokens: Tokens, **mode: Any) -> Tokens:
        raise NotImplementedError

    def second(self, tokens: Tokens, **mode: Any) -> Tokens:
        raise NotImplementedError

    def __call__(
        self, entry: Mapping[str, Any], *, train: bool = False, axis_name: str | None = None
    ) -> Tokens:
        mode = {"train": train, "axis_name": axis_name}
        return self.second(self.first(self.stem(entry, **mode), **mode), **mode)


def mask_of(entry: Mapping[str, Any]) -> jax.Array:
    """The entry's mask, or all of a present row: `[B, N]` of an `x` that is `[B, N, ...]`."""
    shape = entry["x"].shape[:2]
    return entry.get("mask", jnp.broadcast_to(entry["present"][:, None], shape))


def projection(encoder: Any) -> Any:
    """The last layer, `encoder.features -> encoder.width`, in float32; none if it is not
    `projected`: features then leave as they are."""
    if encoder.projected:
        return nn.Dense(encoder.width, dtype=jnp.float32, name="project")
    return lambda values: values.astype(jnp.float32)
