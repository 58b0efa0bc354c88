"""Auxiliary losses of modules, such as the even use of experts, added to the tasks' losses."""

from __future__ import annotations

import flax.linen as nn
import jax

LOSSES = "losses"


def auxiliary(module: nn.Module, name: str, total: jax.Array, count: jax.Array) -> None:
    """Hands a term `total / count`, already scaled, to the training step.

    Both are sums over this device's rows, so that they add over microbatches and devices; the
    quotient joins the total loss, outside balancing.
    """
    module.sow(LOSSES, name, (total, count))
