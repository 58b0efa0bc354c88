"""Foreign tensors -> our variables, by a table of rules; what does not fit is named at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from mtmm_jax.registry import ConfigError

Transform = Callable[[np.ndarray], np.ndarray]


def same(x: np.ndarray) -> np.ndarray:
    return x


def transposed(x: np.ndarray) -> np.ndarray:
    """A linear map's `[out, in]` as a Dense kernel `[in, out]`."""
    return x.T


def hwio(x: np.ndarray) -> np.ndarray:
    """A convolution's `[out, in, h, w]` as a kernel `[h, w, in, out]`."""
    return x.transpose(2, 3, 1, 0)


class PathRule(NamedTuple):
    """The destination of one kind of foreign tensor.

    Attributes:
        pattern: a regex that the whole foreign name matches.
        path: ours, beginning with the collection. `{0}` is the first group of the pattern; `{next}`
            is the group named `index`, which counts from 0 where our names count from 1.
        transform: of the array.
    """

    pattern: str
    path: str
    transform: Transform = same


def _place(name: str, rules: Iterable[PathRule]) -> tuple[str, Transform] | None:
    for rule in rules:
        match = re.fullmatch(rule.pattern, name)
        if match:
            index = match.groupdict().get("index")
            after = {} if index is None else {"next": int(index) + 1}
            return rule.path.format(*match.groups(), **after), rule.transform
    return None


def convert(
    tensors: Mapping[str, Any],
    rules: Iterable[PathRule],
    wanted: Mapping[str, Any],
    where: str,
    ignore: str = "",
) -> dict[str, Any]:
    """The tensors under our paths, as float32.

    Args:
        tensors: foreign name -> array.
        rules: the first that matches a name says where it goes.
        wanted: the variables' shapes, `{collection: {path ...: leaf with a shape}}`.
        where: what is read, for the error.
        ignore: a regex of foreign names that we have no place for, and need none.

    Raises:
        ConfigError: naming every tensor that is missing, left over or of another shape.
    """
    shapes = {p: leaf.shape for p, leaf in traverse_util.flatten_dict(wanted, sep="/").items()}
    rules, found, extra, wrong = list(rules), {}, [], []
    for name, tensor in tensors.items():
        place = _place(name, rules)
        if place is None or place[0] not in shapes:
            if not re.fullmatch(ignore, name):
                extra.append(name)
            continue
        path, transform = place
        array = np.asarray(tensor)
        try:
            value = transform(array)
        except ValueError:  # of another rank
            value = array
        if value.shape != shapes[path]:
            wrong.append(f"{name} {list(array.shape)} for {path} {list(shapes[path])}")
        found[path] = value
    missing = [path for path in shapes if path not in found]
    problems = {"missing": missing, "left over": extra, "of another shape": wrong}
    if any(problems.values()):
        listed = "; ".join(f"{what}: {', '.join(n)}" for what, n in problems.items() if n)
        raise ConfigError(f"{where}: the tensors do not fit: {listed}")
    values = {path: np.ascontiguousarray(value, np.float32) for path, value in found.items()}
    return traverse_util.unflatten_dict(values, sep="/")
