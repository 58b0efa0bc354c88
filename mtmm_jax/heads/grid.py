"""The grid of a picture's tokens, for heads that predict something at every place of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtmm_jax.batch import Tokens
from mtmm_jax.layers import gelu
from mtmm_jax.ranges import SizeOrZero
from mtmm_jax.registry import ConfigError


def grid_of(
    tokens: Mapping[str, Tokens], modality: str, fusions: Iterable[str], where: str
) -> jax.Array:
    """`[B, h, w, D]`: the cells of `modality` in the first thing read that still has them.

    Of a clip, `[t, h, w]` cells: those of the last moment that is there.

    Raises:
        ConfigError: where pooling has left no grid, naming the `fusions` that keep one.
    """
    for part in tokens.values():
        for span in part.layout:
            if span.name == modality and len(span.grid) in (2, 3):
                own = part.select(modality)
                return own.grid() if len(span.grid) == 2 else _last(own)
    found = ", ".join(f"{read}: {_spans(part)}" for read, part in tokens.items())
    raise ConfigError(
        f"{where}: needs the grid of {modality!r}, and what it reads has none ({found}); read "
        f"{modality!r} itself, or choose a fusion that keeps the layout: {', '.join(fusions)}"
    )


def _last(clip: Tokens) -> jax.Array:
    grid = clip.grid()
    there = clip.mask.reshape(grid.shape[:-1]).any((2, 3))
    last = jnp.where(there, jnp.arange(grid.shape[1]), 0).max(1)
    return jnp.take_along_axis(grid, last[:, None, None, None, None], axis=1)[:, 0]


def _spans(tokens: Tokens) -> str:
    spans = ", ".join(f"{span.name} {list(span.grid)}" for span in tokens.layout)
    return spans or "no layout"


class Widen(nn.Module):
    """Doubles a grid `times` times, a 3 x 3 convolution after each, then one more convolution.

    Attributes:
        times: how often.
        hidden: channels.
    """

    times: int
    hidden: SizeOrZero

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.LayerNorm(name="norm")(x)
        for i in range(self.times):
            x = nn.Conv(self.hidden, (3, 3), name=f"up{i + 1}")(double(x))
            x = gelu(nn.LayerNorm(name=f"up{i + 1}_norm")(x))
        x = nn.Conv(self.hidden, (3, 3), name="hidden")(x)
        return gelu(nn.LayerNorm(name="hidden_norm")(x))


def double(x: jax.Array) -> jax.Array:
    """`[B, h, w, D] -> [B, 2h, 2w, D]`: every cell four times."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)
