"""A model cut in two: forward to its losses, ready to be backpropagated task by task."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtmm_jax.balancing.base import (
    Array,
    PyTree,
    balancing_dtype,
)
from mtmm_jax.registry import ConfigError


class SharedByAllTasks(NamedTuple):
    """One pytree in place of every task's copy: it is `copies[k]` for any k, without end."""

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

    def bind(self, *args: Any) -> Split:
        """The same model with `args` given: `trunk(params)`, `readout(params, copies, aux)`."""
        return Split(
            lambda params: self.trunk(params, *args),
            lambda params, copies, trunk_aux: self.readout(params, copies, trunk_aux, *args),
        )

    def __call__(self, params: PyTree, *args: Any) -> tuple[Array, Array, PyTree]:
        shared, trunk_aux = self.trunk(params, *args)
        return self.readout(
            params, SharedByAllTasks(shared), jax.lax.stop_gradient(trunk_aux), *args
        )


class Crossing(NamedTuple):
    """The values that cross the cut.

    Attributes:
        floats: the floating leaves.
        rebuild: floating leaves -> the pytree, with masks, ids and the like as they are.
        cotangent: gradients of the floating leaves -> a cotangent of the pytree.
    """

    floats: list[Array]
    rebuild: Callable[[list[Array]], PyTree]
    cotangent: Callable[[list[Array]], PyTree]


def crossing(shared: PyTree) -> Crossing:
    """Separates the differentiable leaves of `shared` from masks, ids and the like."""
    leaves, treedef = jax.tree.flatten(shared)
    is_float = [jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in leaves]

    def fill(floats: list[Array], others: list[Any]) -> PyTree:
        rest = iter(floats)
        pairs = zip(is_float, others, strict=True)
        return jax.tree.unflatten(treedef, [next(rest) if f else leaf for f, leaf in pairs])

    zeros = [jax.custom_derivatives.zero_from_primal(leaf) for leaf in leaves]
    return Crossing(
        floats=[leaf for f, leaf in zip(is_float, leaves, strict=True) if f],
        rebuild=lambda floats: fill(floats, leaves),
        cotangent=lambda floats: fill(floats, zeros),
    )


class EngineOptions(NamedTuple):
    """The options that all engines take.

    Attributes:
        num_tasks: K.
        axis_name: the device axis of pmap or shard_map, or None.
        labels: for every parameter leaf, is it shared?
        heads: `"own"` or `"weighted"`, the gradient of the leaves that are not shared.
        chunk: how many pullbacks of engine `full` run as one vmapped call.
        counts: `[K]`, of the whole batch, if the args are one microbatch of it.
    """

    num_tasks: int
    axis_name: Any
    labels: list[bool]
    heads: str
    chunk: int
    counts: Array | None = None


class Tally(NamedTuple):
    """Global losses, who is present, and the scale `1/count` of each task's cotangent."""

    losses: Array
    present: Array
    scale: Array
    axis_name: Any

    def cotangent(self, weights: Array, dtype: Any) -> Array:
        """The cotangent of `sum_k w_k loss_k`; absent tasks get zero."""
        each = jnp.where(self.present, weights * self.scale, 0).astype(dtype)
        return local(each, self.axis_name)


def total(tree: PyTree, axis_name: Any) -> PyTree:
    """Sum over the devices of `axis_name`."""
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def local(tree: PyTree, axis_name: Any) -> PyTree:
    """Marks `tree` as each device's own, so that shard_map adds no psum to its gradient.

    With `check_vma=True` the gradient of a replicated value is summed over devices by shard_map
    itself; under pmap and `check_vma=False` it is not. Here it never is: `total` does it, once.
    """
    if axis_name is None:
        return tree
    return jax.tree.map(lambda x: jax.lax.pcast(x, axis_name, to="varying"), tree)


def tally(sums: Array, counts: Array, options: EngineOptions) -> Tally:
    """Divides once, after the sum over devices, by the counts of the whole batch."""
    dtype, axis_name = balancing_dtype(sums.dtype), options.axis_name
    sums = total(jax.lax.stop_gradient(sums).astype(dtype), axis_name)
    if options.counts is None:
        counts = total(jax.lax.stop_gradient(counts).astype(dtype), axis_name)
    else:
        counts = options.counts.astype(dtype)
    counted = counts > 0
    scale = jnp.where(counted, 1 / jnp.where(counted, counts, 1), 0)
    losses = jnp.where(counted, sums * scale, 0)
    return Tally(losses, counted & jnp.isfinite(losses), scale, axis_name)


def with_aux(result: tuple[Array, Array, PyTree]) -> tuple[Array, tuple[Array, PyTree]]:
    """`(sums, counts, aux)` as `jax.vjp(..., has_aux=True)` takes it."""
    sums, counts, aux = result
    return sums, (counts, aux)


def without_nan(tree: PyTree, present: Array) -> PyTree:
    """An excluded task's own leaves come back as `0 * NaN`; with all present nothing changes."""
    return jax.tree.map(
        lambda leaf: jnp.where(present.all() | jnp.isfinite(leaf), leaf, jnp.zeros_like(leaf)), tree
    )


class Cut(NamedTuple):
    """A split model after its forward pass, with the backward pass of either half.

    Attributes:
        tallied: the losses.
        aux: of the readout.
        trunk_aux: of the trunk.
        pull_readout: weights -> (gradient of all parameters, each task's gradient at the cut).
        pull_trunk: a gradient at the cut -> the gradient of the trunk's variables.
    """

    tallied: Tally
    aux: PyTree
    trunk_aux: PyTree
    pull_readout: Callable[[Array], tuple[PyTree, list[list[Array]]]]
    pull_trunk: Callable[[list[Array]], PyTree]

    def rows(self) -> tuple[PyTree, list[Array]]:
        """The heads' own gradients, and all task gradients at the cut: ONE pullback for both."""
        own, copies = self.pull_readout(jnp.ones_like(self.tallied.losses))
        return own, [jnp.stack(leaf) for leaf in zip(*copies, strict=True)]

    def gradient(self, weights: Array, present: Array) -> PyTree:
        """Of the weighted loss. An excluded task has cotangent 0, but `0 * NaN` is NaN: what it
        sends to the cut is dropped there, by selection, before it can reach the trunk."""
        heads, copies = self.pull_readout(weights)
        heads = without_nan(heads, present)
        combined = [
            functools.reduce(
                jnp.add, [jnp.where(present[k], x, jnp.zeros_like(x)) for k, x in enumerate(leaf)]
            )
            for leaf in zip(*copies, strict=True)
        ]
        return jax.tree.map(jnp.add, self.pull_trunk(combined), heads)


def run_to_cut(
    model: Split, options: EngineOptions, params: PyTree, variables: PyTree | None = None
) -> Cut:
    """Runs the model forward, with a copy of what crosses the cut for every task.

    Every task reads its own copy, so one pullback of the readout separates the tasks.

    Args:
        model: `trunk(variables) -> (shared, trunk_aux)` and
            `readout(params, copies, trunk_aux) -> (sums, counts, aux)`, see `Split.bind`.
        options: of the engine.
        params: the parameters, of the readout.
        variables: what the trunk is differentiated by; the parameters by default.
    """
    params = local(params, options.axis_name)
    variables = params if variables is None else variables
    shared, pull_shared, trunk_aux = jax.vjp(model.trunk, variables, has_aux=True)
    floats, rebuild, cotangent = crossing(shared)
    if not floats:
        raise ConfigError("balancing: no floating array crosses the cut between trunk and readout")

    def read(params: PyTree, copies: list[list[Array]]) -> tuple[Array, tuple[Array, PyTree]]:
        return with_aux(model.readout(params, [rebuild(copy) for copy in copies], trunk_aux))

    copies = [floats] * options.num_tasks
    sums, pull, (counts, aux) = jax.vjp(read, params, copies, has_aux=True)
    tallied = tally(sums, counts, options)
    return Cut(
        tallied=tallied,
        aux=aux,
        trunk_aux=trunk_aux,
        pull_readout=lambda weights: pull(tallied.cotangent(weights, sums.dtype)),
        pull_trunk=lambda floats: pull_shared(cotangent(floats))[0],
    )
