"""Applies modules by path over one plain tree of variables: what a model's pass is made of.

Keys come from the path's name, never from the order of calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax

from mtmm_jax.keys import fold_in_name


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
        return fold_in_name(self._key, path)

    def own(self, path: str) -> dict[str, Any]:
        """The variables of the module at `path`, by collection, as far as they are known."""
        trees = {**self.variables, "batch_stats": self.variables.get("batch_stats", {})}
        found = {name: _get(tree, path.split("/")) for name, tree in trees.items()}
        moved = _get(self.updates.get("batch_stats", {}), path.split("/"))
        if moved is not None:  # another part of the same module ran before
            found["batch_stats"] = moved
        return {name: value for name, value in found.items() if value is not None}

    def __call__(
        self,
        path: str,
        module: nn.Module,
        *args: Any,
        method: str = "__call__",
        record: bool = True,
    ) -> Any:
        """What the module at `path` makes of `args`.

        Args:
            path: of its parameters.
            module: the module.
            *args: what it is called with, besides the mode.
            method: one of its methods; its parts may be run one after the other.
            record: whether its statistics and intermediates are kept; not for a second run over
                the same batch, which would move the statistics twice.
        """
        keys = tuple(path.split("/"))
        if self.initialising:
            # A part that ran before under the same path drew its own; all from one key by name.
            output, variables = module.init_with_output(
                {"params": self.key(path)}, *args, **self.mode, method=method
            )
            for collection in ("params", "batch_stats"):
                _put(self.variables.setdefault(collection, {}), keys, variables.get(collection, {}))
            return output
        own = self.own(path)
        rngs = {} if self._key is None else {"dropout": self.key(path)}
        mutable = ["intermediates", "losses", *(["batch_stats"] if self.mode["train"] else [])]
        output, updates = module.apply(
            own, *args, **self.mode, rngs=rngs, mutable=mutable, method=method
        )
        for collection, value in updates.items() if record else ():
            _put(self.updates.setdefault(collection, {}), keys, value)
        return output


def _get(tree: Mapping[str, Any], keys: Iterable[str]) -> Any:
    for key in keys:
        if key not in tree:
            return None
        tree = tree[key]
    return tree


def _put(tree: dict[str, Any], keys: tuple[str, ...], value: Any) -> None:
    """Sets `value` at a path; a dict joins the dict that is there."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            _put(tree, (*keys, key), entry)
        return
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
    tree[keys[-1]] = value
