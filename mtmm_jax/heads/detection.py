"""Things in a picture: a map of centres, or a set of guesses; `tasks/detection.py` reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtmm_jax.batch import Tokens
from mtmm_jax.heads.grid import Widen, grid_of
from mtmm_jax.layers import Attention, Dropout, FeedForward, TransformerBlock, sinusoid
from mtmm_jax.ranges import Blocks, Decay, LayersOrZero, Size, SizeOrZero

# Of a cell to be a centre, before anything is learned: few are (Lin et al. 2017, section 3.3).
_PRIOR_LOGIT = -3.5


class Centres(nn.Module):
    """A class map and a box for every cell of an image's grid.

    Gives `{"heat": [B, h, w, classes] logits, "box": [B, h, w, 4]}`; a box is the centre's offset
    from the cell's middle (y, x) and the logarithms of height and width, all in cells.

    Paper: Zhou et al. 2019, arXiv:1904.07850. Costs classes + 4 numbers a cell. Use it: as the
    default for boxes; it learns from a few thousand pictures. Not: where centres fall into one
    cell.

    Attributes:
        size: the number of classes.
        modality: whose grid.
        upsample: how often the grid is doubled.
        hidden: channels.
        fusions, where: for the error where there is no grid; given by the task.
    """

    size: Size
    modality: str = "image"
    upsample: LayersOrZero = 0
    hidden: SizeOrZero = 64
    fusions: tuple[str, ...] = ()
    where: str = "head"

    @nn.compact
    def __call__(
        self, tokens: Mapping[str, Tokens], *, train: bool = False, axis_name: str | None = None
    ) -> dict[str, jax.Array]:
        del train, axis_name
        x = grid_of(tokens, self.modality, self.fusions, self.where)
        x = Widen(self.upsample, self.hidden, name="widen")(x)
        start = nn.initializers.constant(_PRIOR_LOGIT)
        return {
            "heat": nn.Dense(self.size, bias_init=start, name="heat")(x),
            "box": nn.Dense(4, name="box")(x),
        }


class Queries(nn.Module):
    """Learned queries that look at all tokens, each a guess or none (DETR).

    Gives `{"logits": [B, queries, classes + 1], "box": [B, queries, 4]}`; the last class is "none",
    a box is centre (y, x), height and width in 0..1.

    Paper: Carion et al. 2020, arXiv:2005.12872. Costs queries x tokens a layer, and a matching of
    queries x boxes in the loss. Use it: where boxes overlap, with much data. Not: with a few
    thousand pictures.

    Attributes:
        size: the number of classes.
        queries: the number of guesses.
        width: of the queries.
        layers, heads, dropout: of the decoder.
    """

    size: Size
    queries: Size = 16
    width: Size = 128
    layers: Blocks = 2
    heads: Blocks = 4
    dropout: Decay = 0.0

    @nn.compact
    def __call__(
        self, tokens: Mapping[str, Tokens], *, train: bool = False, axis_name: str | None = None
    ) -> dict[str, jax.Array]:
        mode: dict[str, Any] = {"train": train, "axis_name": axis_name}
        parts = [self._memory(t, name=f"memory_{i}") for i, t in enumerate(tokens.values())]
        memory = jnp.concatenate(parts, axis=1)
        mask = jnp.concatenate([t.mask for t in tokens.values()], axis=1)
        start = self.param("queries_start", nn.initializers.normal(1.0), (self.queries, self.width))
        rows = memory.shape[0]
        x = jnp.broadcast_to(start.astype(memory.dtype), (rows, *start.shape))
        all_of_them = jnp.ones((rows, self.queries), bool)
        for i in range(self.layers):
            h = nn.LayerNorm(name=f"look{i + 1}_norm")(x)
            h = Attention(self.heads, name=f"look{i + 1}")(h, memory, mask)
            x = x + Dropout(self.dropout)(h, **mode)
            block = TransformerBlock(self.heads, 2, self.dropout, name=f"block{i + 1}")
            x = block(x, all_of_them, **mode)
        x = nn.LayerNorm(name="norm")(x)
        box = nn.Dense(4, name="box")(FeedForward(self.width, name="box_hidden")(x))
        return {"logits": nn.Dense(self.size + 1, name="logits")(x), "box": jax.nn.sigmoid(box)}

    def _memory(self, tokens: Tokens, name: str) -> jax.Array:
        """The tokens in the queries' width, with their places."""
        x = nn.Dense(self.width, name=name)(nn.LayerNorm(name=f"{name}_norm")(tokens.values))
        if tokens.positions is None:
            return x
        return x + sinusoid(tokens.positions, self.width).astype(x.dtype)
