"""A prediction for every pixel of an image, from the grid of its tokens."""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax

from mtmm_jax.batch import Tokens
from mtmm_jax.heads.grid import Widen, grid_of
from mtmm_jax.ranges import LayersOrZero, Size, SizeOrZero


class Pixels(nn.Module):
    """`[B, H, W, size]`: the grid doubled while it is smaller than the picture, then interpolated.

    What the encoder forgot of edges finer than its cells cannot come back: choose a small stride.

    Paper: Long et al. 2015, arXiv:1411.4038. Costs `size` numbers a pixel, and one convolution a
    doubling of the grid. Use it: for a class or a number at each pixel. Not: behind an encoder of a
    coarse stride.

    Attributes:
        size: numbers for each pixel.
        shape: of the picture that it predicts, (H, W).
        modality: whose grid.
        upsample: how often the grid is doubled by learned layers, at most.
        hidden: channels.
        fusions, where: for the error where there is no grid; given by the task.
    """

    size: Size
    shape: tuple[int, int]
    modality: str = "image"
    upsample: LayersOrZero = 2
    hidden: SizeOrZero = 32
    fusions: tuple[str, ...] = ()
    where: str = "head"

    @nn.compact
    def __call__(
        self, tokens: Mapping[str, Tokens], *, train: bool = False, axis_name: str | None = None
    ) -> jax.Array:
        del train, axis_name
        x = grid_of(tokens, self.modality, self.fusions, self.where)
        times = 0
        while times < self.upsample and _fits(x.shape[1:3], self.shape, times + 1):
            times += 1
        x = nn.Dense(self.size, name="out")(Widen(times, self.hidden, name="widen")(x))
        return jax.image.resize(x, (x.shape[0], *self.shape, self.size), "linear")


def _fits(grid: tuple[int, ...], shape: tuple[int, int], times: int) -> bool:
    return all(cells * 2**times <= pixels for cells, pixels in zip(grid, shape, strict=True))
