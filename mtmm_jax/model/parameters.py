"""Parameters by their readable paths, and how they may be learned in another form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from flax import traverse_util

PyTree = Any
REWRITES = ("lora",)  # rooms whose leaves stand under the paths of what they change


class Rewrite(NamedTuple):
    """Maps the learned parameters to those that modules read, such as W + s B A.

    Attributes:
        room: where its own parameters are kept, next to `encoders`, `fusion` and the others.
        init: `(key, params) -> its own parameters`, a tree under the paths of what they change;
            empty where it has none.
        apply: `params -> params` as modules read them; pure, and differentiable.
    """

    room: str
    init: Callable[[jax.Array, PyTree], PyTree]
    apply: Callable[[PyTree], PyTree]


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """`{path: leaf}`, with paths such as `encoders/image/conv1/kernel`."""
    return traverse_util.flatten_dict(tree, sep="/")
