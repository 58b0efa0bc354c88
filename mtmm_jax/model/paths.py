"""Parameters by their readable paths: flat, and which of them tasks share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from flax import traverse_util

from mtmm_jax.model.rewrite import REWRITES

SHARED = ("encoders", "adapters", "bottleneck", "fusion")


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """`{path: leaf}`, with paths such as `encoders/image/conv1/kernel`."""
    return traverse_util.flatten_dict(tree, sep="/")


def shared_parameters(params: Mapping[str, Any]) -> Any:
    """The label tree of balancing: True on the leaves that more than one task learns."""
    return {
        room: shared_parameters(tree)
        if room in REWRITES
        else jax.tree.map(lambda _, room=room: room in SHARED, tree)
        for room, tree in params.items()
    }
