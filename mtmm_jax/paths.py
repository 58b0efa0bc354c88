"""Parameters chosen by regexes over their paths, such as `encoders/text/.*/kernel`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from mtmm_jax.registry import ConfigError

PyTree = Any


def regexes(value: Any, where: str) -> tuple[str, ...]:
    """One regex or several, checked."""
    patterns = (value,) if isinstance(value, str) else value or ()
    if not isinstance(patterns, list | tuple):
        raise ConfigError(f"{where}: {value!r} is not a list of regexes over parameter paths")
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise ConfigError(f"{where}: {pattern!r} is not a regex over parameter paths")
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"{where}: {pattern!r} is not a regex: {error}") from error
    return tuple(patterns)


def some_regexes(value: Any, where: str) -> tuple[str, ...]:
    """As `regexes`, one or more."""
    found = regexes(value, where)
    if not found:
        raise ConfigError(f"{where}: is empty; needs a regex over parameter paths")
    return found


def renames(value: Any, where: str) -> tuple[tuple[str, str], ...]:
    """Pairs of a regex and a replacement, or a mapping, checked."""
    pairs = list(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(pairs, list | tuple):
        raise ConfigError(f"{where}: {value!r} is not a list of pairs of a regex and a path")
    for i, pair in enumerate(pairs):
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[1], str):
            raise ConfigError(f"{where}[{i}]: {pair!r} is not a pair of a regex and a path")
        regexes([pair[0]], f"{where}[{i}]")
        try:
            re.sub(pair[0], pair[1], "")
        except (re.error, IndexError) as error:
            raise ConfigError(f"{where}[{i}]: {pair[1]!r} is not a path: {error}") from error
    return tuple((pattern, path) for pattern, path in pairs)


def mapped(path: str, pairs: tuple[tuple[str, str], ...]) -> str | None:
    """The path of an origin's parameter in this model; None where no rule matches it."""
    for pattern, replacement in pairs:
        if found := re.fullmatch(pattern, path):
            return found.expand(replacement)
    return None if pairs else path


def matches(patterns: Iterable[str], path: str) -> bool:
    """Whether any of them matches the whole path."""
    return any(re.fullmatch(pattern, path) for pattern in patterns)


def by_path(function: Callable[[str, Any], Any], tree: PyTree) -> PyTree:
    """`function("heads/category/kernel", leaf)` of every leaf, as a tree."""

    def one(path: Any, leaf: Any) -> Any:
        return function(jax.tree_util.keystr(path, simple=True, separator="/"), leaf)

    return jax.tree_util.tree_map_with_path(one, tree)


def leaves(tree: PyTree) -> dict[str, Any]:
    """`{path: leaf}` of any tree of dicts."""
    found: dict[str, Any] = {}
    by_path(found.__setitem__, tree)
    return found


def some(paths: Iterable[str], most: int = 8) -> str:
    """The first paths in words, and how many more there are."""
    paths = list(paths)
    return ", ".join(paths[:most]) + (f" and {len(paths) - most} more" * (len(paths) > most))


def matrices(patterns: Iterable[str], params: PyTree, where: str) -> dict[str, Any]:
    """`{path: leaf}` of the leaves of two dimensions or more that a regex matches.

    Biases, scales of norms and single numbers are no matrices, and are passed over.

    Raises:
        ConfigError: for a regex that matches no matrix.
    """
    found = {path: leaf for path, leaf in leaves(params).items() if leaf.ndim > 1}
    for pattern in patterns:
        if not any(re.fullmatch(pattern, path) for path in found):
            raise ConfigError(
                f"{where}: {pattern!r} matches no parameter of two dimensions or more; there are: "
                f"{some(found)}"
            )
    return {path: leaf for path, leaf in found.items() if matches(patterns, path)}
