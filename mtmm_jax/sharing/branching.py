"""A branching network whose tree is learned with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtmm_jax.batch import Tokens
from mtmm_jax.layers import gelu
from mtmm_jax.ranges import Blocks, Positive, Several
from mtmm_jax.registry import check_fields
from mtmm_jax.sharing.parts import WHERE, form, select_tasks


class Branching(nn.Module):
    """x_n^(l+1) = GELU(W_n^(l+1) sum_p d_np x_p^l), d_n = softmax((log a_n + G) / T).

    Every layer has `branches` nodes; each node, and at the end each task, draws its one parent
    among the nodes before it. In training the draw is relaxed, with Gumbel noise G and the
    temperature T; otherwise each takes its likeliest parent, and the slope is that of the softmax
    without noise (straight through). What the likeliest parents leave is a tree: tasks share as far
    as they have ancestors in common.

    One tree is drawn for the whole batch, the same for all tasks and on all devices. The paper
    cools T while it trains: anneal by training in stages, each from the checkpoint before, with a
    smaller `temperature`; the parameters do not depend on it.

    Output k reads copies[k] only.

    Paper: Guo et al. 2020, arXiv:2006.01895. Costs layers * branches Dense layers. Use it: with
    many tasks, to find which belong together. Not: with two; there `CrossStitch` or `CGC` say as
    much.

    Attributes:
        layers: of the network.
        branches: nodes a layer.
        temperature: T; large mixes all parents, small picks one.
    """

    tasks: tuple[str, ...]
    layers: Blocks = 2
    branches: Several = 3
    temperature: Positive = 1.0

    keeps_layout: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self, WHERE)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, copies: Mapping[str, Tokens], *, train: bool = False, axis_name: str | None = None
    ) -> dict[str, Tokens]:
        del axis_name  # the key, and so the tree, is the same on all devices
        copies = select_tasks(self.tasks, copies)
        width, dtype = form(copies)
        nodes = [
            [
                nn.Dense(width, dtype=dtype, name=f"layer{i + 1}_{n + 1}")
                for n in range(self.branches)
            ]
            for i in range(self.layers)
        ]
        routes = [
            self._draw(f"parents{i + 1}", (self.branches, self.branches), train)
            for i in range(1, self.layers)
        ]
        leaves = {task: self._draw(f"parent_{task}", (1, self.branches), train) for task in copies}
        own = {}
        for task, tokens in copies.items():
            x = jnp.stack([gelu(node(tokens.values)) for node in nodes[0]])
            for layer, route in zip(nodes[1:], routes, strict=True):
                inputs = _follow(route, x)
                x = jnp.stack([gelu(node(part)) for node, part in zip(layer, inputs, strict=True)])
            own[task] = tokens.replace_values(_follow(leaves[task], x)[0])
        return own

    def _draw(self, name: str, shape: tuple[int, int], train: bool) -> jax.Array:
        """`[children, parents]`, rows that sum to one."""
        logits = self.param(name, nn.initializers.zeros, shape)
        if train:
            noise = jax.random.gumbel(self.make_rng("dropout"), shape)
            route = nn.softmax((logits + noise) / self.temperature)
        else:
            soft = nn.softmax(logits / self.temperature)
            hard = nn.one_hot(logits.argmax(-1), shape[-1])
            route = hard + soft - jax.lax.stop_gradient(soft)
        self.sow("intermediates", f"routing_{name}", route)
        return route


def _follow(route: jax.Array, x: jax.Array) -> jax.Array:
    """`[children, parents]` and `[parents, B, N, D]` -> `[children, B, N, D]`."""
    return jnp.einsum("cp,pbnd->cbnd", route.astype(x.dtype), x)
