"""A model cut in two, so that every task can be given its own copy of what crosses the cut."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtmm_jax.balancing.rows import Array

PyTree = Any


class Everyone(NamedTuple):
    """One shared pytree standing for every task's copy: `copies[k]` and iteration never end."""

    shared: PyTree

    def __getitem__(self, task: int) -> PyTree:
        return tuple.__getitem__(self, 0)

    def __iter__(self) -> Iterator[PyTree]:
        return itertools.repeat(tuple.__getitem__(self, 0))


class Split(NamedTuple):
    """Losses of K tasks as a shared trunk and a readout; callable as a plain `losses_fn`.

    Attributes:
        trunk: `trunk(params, *args) -> (shared, trunk_aux)`; `shared` is any pytree of arrays, of
            which the floating ones carry gradients. `trunk_aux` carries none.
        readout: `readout(params, [shared_1, ..., shared_K], trunk_aux, *args) ->
            (sums [K], counts [K], aux)`; task k reads its own copy `shared_k` and no other.
    """

    trunk: Callable[..., tuple[PyTree, PyTree]]
    readout: Callable[..., tuple[Array, Array, PyTree]]

    def __call__(self, params: PyTree, *args: Any) -> tuple[Array, Array, PyTree]:
        shared, trunk_aux = self.trunk(params, *args)
        return self.readout(params, Everyone(shared), jax.lax.stop_gradient(trunk_aux), *args)


class Crossing(NamedTuple):
    """What crosses the cut: the floating leaves, and how to put the others back."""

    floats: list[Array]
    rebuild: Callable[[list[Array]], PyTree]


def crossing(shared: PyTree) -> Crossing:
    """Separates the differentiable leaves of `shared` from masks, ids and the like."""
    leaves, treedef = jax.tree.flatten(shared)
    is_float = [jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in leaves]

    def rebuild(floats: list[Array]) -> PyTree:
        rest = iter(floats)
        return jax.tree.unflatten(
            treedef, [next(rest) if f else leaf for f, leaf in zip(is_float, leaves, strict=True)]
        )

    return Crossing([leaf for f, leaf in zip(is_float, leaves, strict=True) if f], rebuild)
