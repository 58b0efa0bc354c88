"""A head bound to its parameters, whose methods a loss calls once the label is known.

Teacher forcing needs the label inside the decoder, and heads are called without labels. So such a
head hands its parameters on, as part of its prediction, to the loss that has the label; gradients
flow back through them like through any other tensor. What nobody reads, XLA leaves out.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import numpy as np


@flax.struct.dataclass
class BoundModule:
    """A head with its parameters: `bound("method", *args)`.

    Attributes:
        parameters: the head's.
        key: of its dropout; None where nothing is drawn.
        module: the head.
        train, axis_name: as it was called.
    """

    parameters: Any
    key: jax.Array | None
    module: nn.Module = flax.struct.field(pytree_node=False)
    train: bool = flax.struct.field(pytree_node=False, default=False)
    axis_name: str | None = flax.struct.field(pytree_node=False, default=None)

    @classmethod
    def of(cls, head: nn.Module, train: bool, axis_name: str | None) -> BoundModule:
        """To be called inside the head, after its parameters were made."""
        key = head.make_rng("dropout") if train and head.has_rng("dropout") else None
        return cls(head.variables["params"], key, head.clone(parent=None), train, axis_name)

    def __call__(self, method: str, *args: Any) -> Any:
        rngs = {} if self.key is None else {"dropout": self.key}
        mode = {"train": self.train and bool(rngs), "axis_name": self.axis_name}
        return self.module.apply(
            {"params": self.parameters}, *args, **mode, rngs=rngs, method=method
        )


def row_of(predictions: Any, i: int) -> Any:
    """The predictions of one row; scalars, and heads with their parameters, have no rows."""

    def leaf(x: Any) -> Any:
        return x[i] if not isinstance(x, BoundModule) and np.ndim(x) else x

    return jax.tree.map(leaf, predictions, is_leaf=lambda x: isinstance(x, BoundModule))
