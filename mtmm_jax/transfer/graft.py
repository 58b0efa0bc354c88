"""Grafting of imported variables into a model's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from mtmm_jax.registry import ConfigError


def load_pretrained(
    variables: Mapping[str, Any],
    imported: Mapping[str, Any],
    at: str = "",
    keep: str = r"project/.*",
) -> dict[str, Any]:
    """`variables` with the imported ones in their place; nothing else is touched.

    Args:
        variables: `{"params": ..., "batch_stats": ...}`, of a model or of one module.
        imported: the same collections, of one module.
        at: the module's path, such as "encoders/text"; empty if `variables` are the module's own.
        keep: a regex of paths under `at` that the imported lack and that stay as they are: the last
            linear map to the model's width.

    Raises:
        ConfigError: naming every path that has no place, another shape, or would stay untrained.
    """
    prefix = f"{at.strip('/')}/" if at.strip("/") else ""
    flat = traverse_util.flatten_dict(variables, sep="/")
    new = {
        f"{collection}/{prefix}{path}": leaf
        for collection, tree in imported.items()
        for path, leaf in traverse_util.flatten_dict(tree, sep="/").items()
    }
    below = {
        path: path.split("/", 1)[1][len(prefix) :]
        for path in flat
        if path.split("/", 1)[1].startswith(prefix)
    }
    if not below:
        rooms = sorted({"/".join(path.split("/")[1:3]) for path in flat})
        raise ConfigError(f"load_pretrained.at: there is no {at!r}; choices: {', '.join(rooms)}")
    problems = {
        "no place for": [path for path in new if path not in flat],
        "not imported": [p for p, own in below.items() if p not in new and not _is(keep, own)],
        "of another shape": [
            f"{path} {list(leaf.shape)}, not {list(flat[path].shape)}"
            for path, leaf in new.items()
            if path in flat and leaf.shape != flat[path].shape
        ],
    }
    if any(problems.values()):
        listed = "; ".join(
            f"{what}: {', '.join(names)}" for what, names in problems.items() if names
        )
        raise ConfigError(f"load_pretrained at {at!r}: {listed}")

    def replaced(keys: tuple[Any, ...], old: Any) -> Any:
        path = "/".join(key.key for key in keys)
        return jnp.asarray(new[path], old.dtype) if path in new else old

    return jax.tree_util.tree_map_with_path(replaced, dict(variables))


def _is(pattern: str, path: str) -> bool:
    return re.fullmatch(pattern, path) is not None
