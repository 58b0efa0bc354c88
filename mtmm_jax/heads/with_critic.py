"""A head that gives a vector, and a critic that discriminates such vectors from real ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtmm_jax.batch import Tokens
from mtmm_jax.heads.bound_module import BoundModule
from mtmm_jax.layers import gelu
from mtmm_jax.ranges import SizeOrZero


class WithCritic(nn.Module):
    """`{"values": [B, F], "method"}`: another head's output, and the critic's logit for the loss.

    The critic has one hidden layer and looks at the whole vector. Its method serves the loss, which
    alone knows what is real, by way of `method` (a `BoundModule`).

    Attributes:
        head: gives the vector.
        hidden: of the critic.
    """

    head: nn.Module
    hidden: SizeOrZero = 64

    def setup(self) -> None:
        self.critic_hidden = nn.Dense(self.hidden)
        self.critic_out = nn.Dense(1)

    def __call__(
        self, tokens: Mapping[str, Tokens], *, train: bool = False, axis_name: str | None = None
    ) -> dict[str, Any]:
        values = self.head(tokens, train=train, axis_name=axis_name)
        if self.is_initializing():
            self.critic_logit(values)
        return {"values": values, "method": BoundModule.of(self, train, axis_name)}

    def critic_logit(self, values: jax.Array, **mode: Any) -> jax.Array:
        """`[B]` float32: the logit that each vector is real."""
        del mode
        x = gelu(self.critic_hidden(values.astype(jnp.float32)))
        return self.critic_out(x)[:, 0]
