"""Attention that knows of tasks: over the tasks' features, and from the tasks to the tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtmm_jax.batch import Tokens
from mtmm_jax.layers import Attention, FeedForward, LayerNorm, gelu
from mtmm_jax.ranges import Blocks, Size
from mtmm_jax.registry import ConfigError, check_fields
from mtmm_jax.sharing.parts import WHERE, form, mixture, select_tasks


class TaskAttention(nn.Module):
    """g = sum_k a_k f_k, f_k = GELU(W_k h), a = softmax_k(v . tanh(V mean(f_k))); z_k = g for all.

    A small network, one for all tasks, reads each task's features, and the features weighted by
    what it says are one global feature, which all heads read: additive attention over tasks. The
    weights belong to a sample; tasks that are not there have none.

    Output k reads copies[k] only, through all the tasks' layers; copies[j] does not reach it, the
    layer of task j does.

    Paper: Bahdanau et al. 2015, arXiv:1409.0473. Costs K D^2, K-fold in the backward pass. Use it:
    when tasks help each other and it should be seen how much in a sample; the weights are among the
    intermediates. Not: for tasks that conflict, as all heads read the same.

    Attributes:
        hidden: of the small network.
    """

    tasks: tuple[str, ...]
    hidden: Size = 16

    keeps_layout: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self, WHERE)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, copies: Mapping[str, Tokens], *, train: bool = False, axis_name: str | None = None
    ) -> dict[str, Tokens]:
        del train, axis_name
        copies = select_tasks(self.tasks, copies)
        width, dtype = form(copies)
        layers = [nn.Dense(width, dtype=dtype, name=f"feature_{task}") for task in copies]
        hidden = nn.Dense(self.hidden, name="hidden")
        score = nn.Dense(1, use_bias=False, name="score")

        def weigh(features: list[Tokens]) -> jax.Array:
            if len(self.tasks) == 1:  # nothing to weigh, nothing to learn
                return jnp.ones((features[0].mask.shape[0], 1))
            means = jnp.stack([f.mean().astype(jnp.float32) for f in features], axis=1)
            return nn.softmax(score(nn.tanh(hidden(means)))[..., 0])

        own = {}
        for number, (task, tokens) in enumerate(copies.items()):
            features = [tokens.replace_values(gelu(layer(tokens.values))) for layer in layers]
            weights = weigh(features)
            if number == 0:
                self.sow("intermediates", "task_weights", weights)
            own[task] = tokens.replace_values(mixture(weights, [f.values for f in features]))
        return own


class TaskQueries(nn.Module):
    """z_k = y + FF(LN y), y = q_k + Attention(LN q_k, LN h): learned queries of a task read the
    tokens.

    The read-out of Perceiver IO with queries routed to tasks; attention and feed-forward network
    are shared. Gives `queries` tokens a task, present where any token is: the modalities' grids are
    gone.

    Output k reads copies[k] only.

    Paper: Jaegle et al. 2022, arXiv:2107.14795. Costs `queries` N D a task. Use it: for long
    sequences of which tasks need different places, with heads that read a vector. Not: for heads
    that need a grid, such as detection's.

    Attributes:
        queries: tokens that each task gets.
        heads: of the attention; the width must divide by it.
        expansion: of the feed-forward network.
    """

    tasks: tuple[str, ...]
    queries: Size = 4
    heads: Blocks = 4
    expansion: Size = 2

    keeps_layout: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fields(self, WHERE)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, copies: Mapping[str, Tokens], *, train: bool = False, axis_name: str | None = None
    ) -> dict[str, Tokens]:
        copies = select_tasks(self.tasks, copies)
        width, dtype = form(copies)
        if width % self.heads:
            raise ConfigError(
                f"{WHERE}.heads: {self.heads} does not divide the tokens' width {width}; "
                f"choices: {', '.join(str(n) for n in range(1, width + 1) if width % n == 0)}"
            )
        attention = Attention(self.heads, dtype, name="attention")
        feed_forward = FeedForward(self.expansion * width, dtype=dtype, name="feed_forward")
        query_norm, norm, again = (
            LayerNorm(name=name) for name in ("query_norm", "token_norm", "feed_forward_norm")
        )
        own = {}
        for task, tokens in copies.items():
            rows = tokens.mask.shape[0]
            start = self.param(
                f"queries_{task}", nn.initializers.normal(0.02), (self.queries, width)
            )
            queries = jnp.broadcast_to(start.astype(dtype), (rows, *start.shape))
            y = queries + attention(query_norm(queries), norm(tokens.values), tokens.mask)
            y = y + feed_forward(again(y), train=train, axis_name=axis_name)
            mask = jnp.broadcast_to(tokens.present[:, None], y.shape[:2])
            own[task] = Tokens(y, mask)
        return own
