"""A text, token by token, from everything that the task reads: a Transformer decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtmm_jax.batch import Tokens
from mtmm_jax.heads.bound_module import BoundModule
from mtmm_jax.layers import Dropout, FeedForward, masked_softmax, sinusoid
from mtmm_jax.ranges import Blocks, Decay, Size
from mtmm_jax.registry import ConfigError

END = 0  # the id that ends a text, and begins it


class DecoderBlock(nn.Module):
    """x + SelfAttention(LN x), + CrossAttention(LN x), + FeedForward(LN x).

    Keys are given from outside: one block serves a whole text at once and one token at a time.
    """

    width: Size
    heads: Blocks
    dropout: Decay

    def setup(self) -> None:
        self.norms = [nn.LayerNorm(name=f"norm_{name}") for name in ("self", "cross", "forward")]
        self.self_query, self.self_key, self.self_value, self.self_out = self._four("self")
        self.cross_query, self.cross_key, self.cross_value, self.cross_out = self._four("cross")
        self.feed_forward = FeedForward(4 * self.width, self.dropout)
        self.drop = Dropout(self.dropout)

    @nn.nowrap
    def _four(self, name: str) -> list[nn.Dense]:
        parts = ("query", "key", "value", "out")
        return [nn.Dense(self.width, name=f"{name}_{part}") for part in parts]

    def _split(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(0, 2, 1, 3)

    def memory_keys(self, memory: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Keys and values `[B, H, M, d]` of what is read."""
        return self._split(self.cross_key(memory)), self._split(self.cross_value(memory))

    def own_keys(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Keys and values `[B, H, N, d]` of tokens written."""
        h = self.norms[0](x)
        return self._split(self.self_key(h)), self._split(self.self_value(h))

    def __call__(
        self,
        x: jax.Array,
        own: tuple[jax.Array, jax.Array],
        before: jax.Array,
        memory: tuple[jax.Array, jax.Array],
        mask: jax.Array,
        **mode: Any,
    ) -> jax.Array:
        """`x[B, N, D]`; `before[N, K]`, which own keys each may see; `mask[B, M]`."""
        query = self._split(self.self_query(self.norms[0](x)))
        x = x + self.drop(self.self_out(_attend(query, *own, before[None, None])), **mode)
        query = self._split(self.cross_query(self.norms[1](x)))
        x = x + self.drop(self.cross_out(_attend(query, *memory, mask[:, None, None])), **mode)
        return x + self.drop(self.feed_forward(self.norms[2](x), **mode), **mode)


def _attend(query: jax.Array, key: jax.Array, value: jax.Array, allowed: jax.Array) -> jax.Array:
    """`[B, N, D]`; zero where nothing may be seen."""
    logits = jnp.einsum("bhnd,bhmd->bhnm", query, key) * query.shape[-1] ** -0.5
    weights = masked_softmax(logits, allowed).astype(value.dtype)
    mixed = jnp.einsum("bhnm,bhmd->bhnd", weights, value).transpose(0, 2, 1, 3)
    return mixed.reshape(*mixed.shape[:2], -1)


class Decoder(nn.Module):
    """p(y_i | y_1 .. y_{i-1}, x), causal self-attention and attention over the tokens read.

    Its prediction is the greedy text, written inside jit with the keys of earlier tokens kept:

        {"ids": [B, length], 0 after the end, "score": [B] log-probability, "memory", "mask",
         "method"}

    `method("teach", memory, mask, labels)` (a `BoundModule`) gives the logits given the label's own
    beginning, for the loss.

    Paper: Vaswani et al. 2017, arXiv:1706.03762. Costs length^2 + length x tokens a layer; a
    prediction writes token by token. Use it: for captions and any text. Not: for speech with few
    hours of it (`ctc`).

    Attributes:
        size: token ids; 0 ends a text.
        length: the longest text.
        width, layers, heads: of the Transformer.
        dropout: rate inside the blocks.
        where: the place in the config, for error messages.
    """

    size: Size
    length: Size
    width: Size = 128
    layers: Blocks = 2
    heads: Blocks = 4
    dropout: Decay = 0.1
    where: str = "head"

    def setup(self) -> None:
        if self.width % self.heads:
            raise ConfigError(
                f"{self.where}.width: {self.width} does not divide over {self.heads} heads"
            )
        self.embedding = nn.Embed(self.size, self.width)
        self.blocks = [
            DecoderBlock(self.width, self.heads, self.dropout, name=f"block{i + 1}")
            for i in range(self.layers)
        ]
        self.read_norm = nn.LayerNorm()
        self.read = nn.Dense(self.width)
        self.out_norm = nn.LayerNorm()
        self.out = nn.Dense(self.size)
        self.drop = Dropout(self.dropout)

    def __call__(
        self, tokens: Mapping[str, Tokens], *, train: bool = False, axis_name: str | None = None
    ) -> dict[str, Any]:
        widths = {read: part.values.shape[-1] for read, part in tokens.items()}
        if len(set(widths.values())) > 1:
            raise ConfigError(f"{self.where}: reads tokens of different widths: {widths}")
        values = jnp.concatenate([part.values for part in tokens.values()], axis=1)
        mask = jnp.concatenate([part.mask for part in tokens.values()], axis=1)
        memory = self.read(self.read_norm(values))
        if self.is_initializing():
            self.teach(memory, mask, jnp.zeros((len(mask), self.length), jnp.int32))
        method = BoundModule.of(self, train, axis_name)
        ids, score = _write(method.replace(key=None), memory, mask, self.length)
        return {"ids": ids, "score": score, "memory": memory, "mask": mask, "method": method}

    def teach(
        self, memory: jax.Array, mask: jax.Array, labels: jax.Array, **mode: Any
    ) -> jax.Array:
        """`[B, length + 1, size]`: logits of y_1 .. y_n and the end, each given those before it."""
        shifted = jnp.pad(labels, ((0, 0), (1, 0)), constant_values=END)
        count = shifted.shape[1]
        x = self.drop(self._embedded(shifted, jnp.arange(count)), **mode)
        before = jnp.tril(jnp.ones((count, count), bool))
        for block in self.blocks:
            x = block(x, block.own_keys(x), before, block.memory_keys(memory), mask, **mode)
        return self.out(self.out_norm(x))

    def keys(self, memory: jax.Array, **mode: Any) -> list[tuple[jax.Array, jax.Array]]:
        """Keys and values of the memory for each block."""
        del mode
        return [block.memory_keys(memory) for block in self.blocks]

    def step(
        self,
        ids: jax.Array,
        place: jax.Array,
        cache: list[tuple[jax.Array, jax.Array]],
        keys: list[tuple[jax.Array, jax.Array]],
        mask: jax.Array,
        **mode: Any,
    ) -> tuple[jax.Array, list[tuple[jax.Array, jax.Array]]]:
        """Logits `[B, size]` after the token `ids[B]` at `place`, and the cache with its keys."""
        x = self._embedded(ids[:, None], place[None])
        before = (jnp.arange(cache[0][0].shape[2]) <= place)[None]
        grown = []
        for block, kept, read in zip(self.blocks, cache, keys, strict=True):
            new = block.own_keys(x)
            kept = tuple(
                jax.lax.dynamic_update_slice_in_dim(old, one, place, axis=2)
                for old, one in zip(kept, new, strict=True)
            )
            x = block(x, kept, before, read, mask, **mode)
            grown.append(kept)
        return self.out(self.out_norm(x))[:, 0], grown

    def _embedded(self, ids: jax.Array, places: jax.Array) -> jax.Array:
        positions = sinusoid(places.astype(jnp.float32)[:, None], self.width)
        return self.embedding(ids) * self.width**0.5 + positions


def _write(
    head: BoundModule, memory: jax.Array, mask: jax.Array, length: int
) -> tuple[jax.Array, jax.Array]:
    """The greedy text `[B, length]` and its log-probability `[B]`, the end included."""
    module = head.module
    shape = (memory.shape[0], module.heads, length + 1, module.width // module.heads)
    empty = jnp.zeros(shape, memory.dtype)
    cache = [(empty, empty) for _ in range(module.layers)]
    keys = head("keys", memory)

    def step(state: Any, place: jax.Array) -> tuple[Any, jax.Array]:
        cache, last, score, ended = state
        logits, cache = head("step", last, place, cache, keys, mask)
        log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
        best = jnp.where(ended, END, log_p.argmax(-1)).astype(jnp.int32)
        score = score + jnp.where(ended, 0.0, jnp.take_along_axis(log_p, best[:, None], 1)[:, 0])
        return (cache, best, score, ended | (best == END)), best

    rows = memory.shape[0]
    start = (cache, jnp.zeros(rows, jnp.int32), jnp.zeros(rows), jnp.zeros(rows, bool))
    (cache, last, score, ended), ids = jax.lax.scan(step, start, jnp.arange(length))
    logits, _ = head("step", last, jnp.asarray(length), cache, keys, mask)
    end = jax.nn.log_softmax(logits.astype(jnp.float32))[:, END]
    return ids.T, score + jnp.where(ended, 0.0, end)
