"""One network conditioned on the task: feature-wise modulation, and adapters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtmm_jax.batch import Tokens, choose_all
from mtmm_jax.layers import LayerNorm, gelu
from mtmm_jax.ranges import Blocks, Size
from mtmm_jax.registry import check_fields
from mtmm_jax.sharing.parts import WHERE, form, select_tasks


class FiLM(nn.Module):
    """x <- x + GELU((1 + gamma_kl) * (W_l x) + beta_kl), [gamma_kl; beta_kl] = G_l e_k.

    Shared residual layers whose features are scaled and shifted by what a learned embedding e_k of
    the task says: feature-wise linear modulation, with the task in the place of the question.

    Paper: Perez et al. 2018, arXiv:1709.07871. Costs one shared network and an embedding a task:
    the cheapest in parameters. Use it: for many tasks, above all ones that come and go. Not: for
    few that conflict.

    Attributes:
        layers: of the network.
        embedding: the width of e_k.
    """

    tasks: tuple[str, ...]
    layers: Blocks = 1
    embedding: Size = 16

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
        layers = [
            (
                nn.Dense(width, dtype=dtype, name=f"layer{i + 1}"),
                nn.Dense(2 * width, kernel_init=nn.initializers.normal(0.02), name=f"film{i + 1}"),
            )
            for i in range(self.layers)
        ]
        own = {}
        for task, tokens in copies.items():
            embedding = self.param(
                f"embedding_{task}", nn.initializers.normal(1.0), (self.embedding,)
            )
            x = tokens.values
            for number, (layer, generator) in enumerate(layers, start=1):
                gamma, beta = jnp.split(generator(embedding), 2)
                self.sow("intermediates", f"gamma{number}_{task}", gamma)
                self.sow("intermediates", f"beta{number}_{task}", beta)
                x = x + gelu((1 + gamma).astype(dtype) * layer(x) + beta.astype(dtype))
            own[task] = tokens.replace_values(x)
        return own


class Adapter(nn.Module):
    """z_k = h + U_k GELU(V_k LN_k(h)), with U_k = 0 at the start: a residual bottleneck a task.

    What a task wants of its own stays in its adapter and out of the shared features (Rebuffi et al.
    2017, arXiv:1705.08045). It starts as `Hard`.

    Paper: Houlsby et al. 2019, arXiv:1902.00751. Costs 2 D `size` a task and token. Use it: to add
    tasks to a trunk that is trained or frozen; with `isolated`, without disturbing what the other
    tasks have made of it. Not: where tasks need another computation, not a correction.

    Attributes:
        size: of the bottleneck.
        isolated: tasks that read the shared features and do not shape them: their gradient stops
            at their copy, and balancing sees zero.
    """

    tasks: tuple[str, ...]
    size: Size = 64
    isolated: tuple[str, ...] = ()

    keeps_layout: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self, WHERE)
        choose_all(self.isolated, self.tasks, f"{WHERE}.isolated", "task")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, copies: Mapping[str, Tokens], *, train: bool = False, axis_name: str | None = None
    ) -> dict[str, Tokens]:
        del train, axis_name
        own = {}
        for task, tokens in select_tasks(self.tasks, copies).items():
            x = tokens.values
            width, dtype = x.shape[-1], x.dtype
            if task in self.isolated:
                x = jax.lax.stop_gradient(x)
            h = LayerNorm(name=f"norm_{task}")(x)
            h = gelu(nn.Dense(self.size, dtype=dtype, name=f"down_{task}")(h))
            up = nn.Dense(width, dtype=dtype, kernel_init=nn.initializers.zeros, name=f"up_{task}")
            own[task] = tokens.replace_values(x + up(h))
        return own
