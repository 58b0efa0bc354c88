"""Hard parameter sharing: one trunk, and nothing between it and the heads (Caruana 1997)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn

from mtmm_jax.batch import Tokens


class Hard(nn.Module):
    """z_k = h for every task k.

    Paper: Caruana 1997. Costs nothing. Use it: first, and as the baseline of every other sharing.
    Not: where tasks conflict.
    """

    tasks: tuple[str, ...]

    keeps_layout: ClassVar[bool] = True

    @nn.compact
    def __call__(
        self, copies: Mapping[str, Tokens], *, train: bool = False, axis_name: str | None = None
    ) -> dict[str, Tokens]:
        del train, axis_name
        return {task: copies[task] for task in self.tasks if task in copies}
