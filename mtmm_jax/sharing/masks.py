"""Soft masks of each task over shared features: in every layer (MTAN), or once, from the mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from mtmm_jax.batch import Tokens
from mtmm_jax.layers import FeedForward, gelu
from mtmm_jax.ranges import Blocks, Size
from mtmm_jax.registry import check_fields
from mtmm_jax.sharing.parts import WHERE, form, select_tasks


class MTAN(nn.Module):
    """In layer l: u = GELU(U_l p), p <- GELU(P_l u); m_k = sigmoid(g_kl([u; e_l(x_k)])), x_k <- m_k
    * p; z_k is the last x_k.

    A shared network, and for each task a mask over every layer's features that is computed from the
    layer's first half u and from what the task kept of the layer before, carried over by the shared
    e_l (there is none in the first layer). All of it works token by token, where the paper has
    convolutions, ReLU and batch normalisation.

    Paper: Liu et al. 2019, arXiv:1803.10704. Costs the shared layers, and up to 3 D^2 a task, layer
    and token. Use it: for dense tasks on one image, where each wants other places and channels.
    Not: with pooled features and many tasks; `TaskGates` is cheaper there.

    Attributes:
        layers: of the shared network, each with masks.
    """

    tasks: tuple[str, ...]
    layers: Blocks = 2

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

        def dense(name: str) -> nn.Dense:
            return nn.Dense(width, dtype=dtype, name=name)

        layers = [str(i + 1) for i in range(self.layers)]
        first = {layer: dense(f"first{layer}") for layer in layers}
        second = {layer: dense(f"second{layer}") for layer in layers}
        carry = {layer: dense(f"carry{layer}") for layer in layers[1:]}
        own = {}
        for task, tokens in copies.items():
            shared = x = tokens.values
            for layer in layers:
                u = gelu(first[layer](shared))
                shared = gelu(second[layer](u))
                seen = u
                if layer in carry:
                    seen = jnp.concatenate([u, gelu(carry[layer](x))], axis=-1)
                hidden = gelu(dense(f"see{layer}_{task}")(seen))
                mask = nn.sigmoid(dense(f"mask{layer}_{task}")(hidden))
                self.sow("intermediates", f"attention{layer}_{task}", mask)
                x = mask * shared
            own[task] = tokens.replace_values(x)
        return own


class TaskGates(nn.Module):
    """z_k = sigmoid(U_k GELU(V_k mean(h))) * h: each task gates the channels of shared features.

    The mean is over the unmasked tokens, so that a gate sees the whole sample and opens a channel
    for all of its tokens: squeeze-and-excitation, a gate for each task as in attentive
    single-tasking.

    Paper: Hu et al. 2018, arXiv:1709.01507; Maninis et al. 2019, arXiv:1904.08918. Costs 2 D^2 /
    reduction a task and sample, nothing a token. Use it: for many tasks over one trunk that use
    different parts of it. Not: where tasks need features that the trunk lacks; a gate only takes
    away.

    Attributes:
        reduction: how many times narrower the hidden layer is than the tokens.
    """

    tasks: tuple[str, ...]
    reduction: Size = 4

    keeps_layout: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self, WHERE)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, copies: Mapping[str, Tokens], *, train: bool = False, axis_name: str | None = None
    ) -> dict[str, Tokens]:
        del train, axis_name
        own = {}
        for task, tokens in select_tasks(self.tasks, copies).items():
            width, dtype = tokens.values.shape[-1], tokens.values.dtype
            network = FeedForward(
                max(width // self.reduction, 1), dtype=dtype, name=f"network_{task}"
            )
            opened = nn.sigmoid(network(tokens.mean()))
            self.sow("intermediates", f"gate_{task}", opened)
            own[task] = tokens.replace_values(opened[:, None] * tokens.values)
        return own
