"""Layers of a task's own around shared ones, and networks of a task's own throughout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn

from mtmm_jax.batch import Tokens
from mtmm_jax.layers import gelu
from mtmm_jax.ranges import Blocks, Several, SizeOrZero
from mtmm_jax.registry import check_fields
from mtmm_jax.sharing.parts import WHERE, select_tasks


class SharedMiddle(nn.Module):
    """z_k = W_k^out m(GELU(W_k^in h)), with one network m of Dense -> GELU layers for all tasks.

    Every task translates into and out of a common language: the inputs may be of different widths,
    and an output has the width of its input. The shared hidden layers of Caruana, with several
    inputs as well as several outputs.

    Paper: Caruana 1997. Costs 2 D H a task, and `layers` H^2 for each task's pass over the middle.
    Use it: when tasks need the same computation over differently arranged features. Not: where
    tasks compete for room, as the middle is a bottleneck for all.

    Attributes:
        hidden: H, the width of the middle; 0 for that of the widest input.
        layers: of the middle.
    """

    tasks: tuple[str, ...]
    hidden: SizeOrZero = 0
    layers: Blocks = 1

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
        hidden = self.hidden or max(tokens.values.shape[-1] for tokens in copies.values())
        dtype = next(iter(copies.values())).values.dtype
        middle = [nn.Dense(hidden, dtype=dtype, name=f"middle{i + 1}") for i in range(self.layers)]
        own = {}
        for task, tokens in copies.items():
            values = tokens.values
            x = gelu(nn.Dense(hidden, dtype=dtype, name=f"in_{task}")(values))
            for layer in middle:
                x = gelu(layer(x))
            x = nn.Dense(values.shape[-1], dtype=dtype, name=f"out_{task}")(x)
            own[task] = tokens.replace_values(x)
        return own


class Separate(nn.Module):
    """z_k = f_k(h): a network for each task over the same set of features.

    Every f_k has its own input layer, `layers - 2` between, and its own output layer. Nothing but
    the features is shared.

    Costs K networks. Use it: as the other end of the scale from `Hard`; where the tasks agree on
    the features and on nothing else. Not: with little data for each task.

    Attributes:
        layers: of each network, the input and the output layer included.
        hidden: their width; 0 for that of the tokens.
    """

    tasks: tuple[str, ...]
    layers: Several = 2
    hidden: SizeOrZero = 0

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
            x = tokens.values
            width, dtype = x.shape[-1], x.dtype
            names = ["in", *(f"layer{i}" for i in range(2, self.layers))]
            for name in names:
                x = gelu(nn.Dense(self.hidden or width, dtype=dtype, name=f"{name}_{task}")(x))
            x = nn.Dense(width, dtype=dtype, name=f"out_{task}")(x)
            own[task] = tokens.replace_values(x)
        return own
