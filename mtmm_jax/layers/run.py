"""Applies modules by path over one plain tree of variables: what a model's pass is made of.

Keys come from the path's name, never from the order of calls.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax


class Run:
    """One pass over a tree of variables.

    Args:
        variables: `{collection: {path ...: leaf}}`.
        key: the root of all keys; None where nothing is drawn.
        mode: `train` and `axis_name`, given to every module.
        init: whether modules without parameters get some.
    """

    def __init__(
        self,
        variables: Mapping[str, Any],
        key: jax.Array | None,
        mode: dict[str, Any],
        init: bool = False,
    ) -> None:
        self.variables: dict[str, Any] = dict(variables)
        self.mode, self.initialising, self._key = mode, init, key
        self.updates: dict[str, Any] = {}

    def key(self, path: str) -> jax.Array:
        return jax.random.fold_in(self._key, zlib.crc32(path.encode()))

    def own(self, path: str) -> dict[str, Any]:
        """The variables of the module at `path`, by collection."""
        found = {name: _get(tree, path.split("/")) for name, tree in self.variables.items()}
        return {name: value for name, value in found.items() if value is not None}

    def __call__(self, path: str, module: nn.Module, *args: Any) -> Any:
        keys = tuple(path.split("/"))
        if self.initialising and _get(self.variables.get("params", {}), keys) is None:
            output, variables = module.init_with_output(
                {"params": self.key(path)}, *args, **self.mode
            )
            for collection in ("params", "batch_stats"):
                _put(self.variables.setdefault(collection, {}), keys, variables.get(collection, {}))
            return output
        own = self.own(path)
        rngs = {} if self._key is None else {"dropout": self.key(path)}
        mutable = ["intermediates", *(["batch_stats"] if self.mode["train"] else [])]
        output, updates = module.apply(own, *args, **self.mode, rngs=rngs, mutable=mutable)
        for collection, value in updates.items():
            _put(self.updates.setdefault(collection, {}), keys, value)
        return output


def _get(tree: Mapping[str, Any], keys: Iterable[str]) -> Any:
    for key in keys:
        if key not in tree:
            return None
        tree = tree[key]
    return tree


def _put(tree: dict[str, Any], keys: tuple[str, ...], value: Any) -> None:
    if not value:
        return
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
    tree[keys[-1]] = value
