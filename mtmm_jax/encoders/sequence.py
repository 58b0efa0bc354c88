"""Bodies for sequences of any modality: a Transformer, a GRU and a mean; others add the stems."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtmm_jax.batch import Tokens
from mtmm_jax.encoders.encoder import Encoder
from mtmm_jax.layers import GRU, LayerNorm, TransformerBlock
from mtmm_jax.ranges import Decay, LayersOrZero
from mtmm_jax.registry import choose

# preset -> layers, width, heads
TRANSFORMERS = {"tiny": (2, 128, 4), "small": (4, 256, 4), "base": (12, 768, 12)}
# What `remat` may keep besides each block's input, so that it is not computed again.
POLICIES = {
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_without_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
# preset -> width
GRUS = {"tiny": 96, "small": 256}


class TransformerEncoder(Encoder):
    """Pre-norm Transformer (Vaswani et al. 2017).

    Attributes:
        preset: size: tiny, small or base.
        dropout: rate inside the blocks.
        cut: how many layers belong to the first half of the body.
        remat: keep only each block's input for the backward pass and compute the rest again: a
            third more time, for memory that hardly grows with depth. "dots" keeps what all matrix
            products give as well, "dots_without_batch" those with parameters, not attention's.
        scan: compile one block and run it over the depth, where compiling all of them takes long.
            Parameters keep their names and are stacked for each step, a copy of them; attention
            maps inside the blocks are not recorded, and layers there cannot be tapped.
    """

    preset: str = "tiny"
    dropout: Decay = 0.1
    cut: LayersOrZero = 1
    remat: bool | str = False
    scan: bool = False

    presets: ClassVar[Mapping[str, tuple[int, ...]]] = TRANSFORMERS

    def setup(self) -> None:
        layers, _, heads = self.size
        self.blocks = [
            TransformerBlock(
                heads, dropout=self.dropout, dtype=self.precision, name=f"block{i + 1}"
            )
            for i in range(layers)
        ]
        self.norm = LayerNorm()
        self.project = nn.Dense(self.width, dtype=jnp.float32)

    @property
    def size(self) -> tuple[int, ...]:
        """Layers, inner width, heads."""
        return self.presets[choose(self.preset, self.presets, "encoder.preset", "preset")]

    @property
    def policy(self) -> Any:
        """JAX's, of `remat`."""
        if isinstance(self.remat, bool):
            return None
        return POLICIES[choose(self.remat, POLICIES, "encoder.remat", "policy besides True")]

    def first(self, tokens: Tokens, **mode: Any) -> Tokens:
        return self._run(self.blocks[: self.cut], tokens, mode)

    def second(self, tokens: Tokens, **mode: Any) -> Tokens:
        tokens = self._run(self.blocks[self.cut :], tokens, mode)
        return tokens.replace_values(self.project(self.norm(tokens.values)))

    def _run(self, blocks: list[Any], tokens: Tokens, mode: dict[str, Any]) -> Tokens:
        x, mask = tokens.values, tokens.mask
        if self.scan and len(blocks) > 1 and not self.is_initializing():
            x = self._scanned(blocks, x.astype(self.precision), mask, mode)
        else:

            def run(block: nn.Module, x: Any) -> Any:
                return block(x, mask, **mode)

            for block in blocks:
                x = (nn.remat(run, policy=self.policy) if self.remat else run)(block, x)
        return tokens.replace_values(x.astype(jnp.float32))

    @nn.nowrap
    def _scanned(self, blocks: list[Any], x: Any, mask: Any, mode: dict[str, Any]) -> Any:
        block = blocks[0].clone(parent=None, name=None)
        each = [one.variables["params"] for one in blocks]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
        keys = None
        if self.has_rng("dropout"):
            keys = jax.random.split(self.make_rng("dropout"), len(blocks))

        def run(x: Any, own: Any) -> tuple[Any, None]:
            params, key = own
            rngs = {} if key is None else {"dropout": key}
            return block.apply({"params": params}, x, mask, **mode, rngs=rngs), None

        step = jax.checkpoint(run, policy=self.policy) if self.remat else run
        return jax.lax.scan(step, x, (stacked, keys))[0]


class GRUEncoder(Encoder):
    """A GRU, in both directions by default (Cho et al. 2014).

    The first half of the body is the forward recurrence, the second the backward one.

    Attributes:
        preset: size: tiny or small.
        bidirectional: whether a second recurrence reads from the end.
        projected: whether a linear map to `width` ends it; else the width is the recurrences'.
    """

    preset: str = "tiny"
    bidirectional: bool = True
    projected: bool = True

    def setup(self) -> None:
        self.forward = GRU(self.size, dtype=self.precision)
        if self.bidirectional:
            self.backward = GRU(self.size, reverse=True, dtype=self.precision)
        self.project = self.projection()

    @property
    def size(self) -> int:
        """Inner width."""
        return GRUS[choose(self.preset, GRUS, "encoder.preset", "preset")]

    @property
    def features(self) -> int:
        return self.size * (2 if self.bidirectional else 1)

    def first(self, tokens: Tokens, **mode: Any) -> Tokens:
        del mode
        return tokens.replace_values(self.forward(tokens.values, tokens.mask))

    def second(self, tokens: Tokens, **mode: Any) -> Tokens:
        del mode
        x = tokens.values
        if self.bidirectional:
            x = jnp.concatenate([x, self.backward(x, tokens.mask)], axis=-1)
        return tokens.replace_values(self.project(x))


class MeanEncoder(Encoder):
    """The mean of the tokens there are, and a linear map: one token.

    Attributes:
        projected: whether there is that map; else tokens must come in at `width`.
    """

    projected: bool = True

    def setup(self) -> None:
        self.project = self.projection()

    @property
    def features(self) -> int:
        return self.width

    def first(self, tokens: Tokens, **mode: Any) -> Tokens:
        del mode
        return tokens

    def second(self, tokens: Tokens, **mode: Any) -> Tokens:
        del mode
        values = self.project(tokens.mean())
        name = tokens.layout[0].name
        return Tokens.of(values[:, None], tokens.present[:, None], name)
