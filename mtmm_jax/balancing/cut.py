"""A model run forward to its losses and cut in two, ready to be pulled back task by task."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtmm_jax.balancing.core import Rule
from mtmm_jax.balancing.rows import Array, balancing_dtype
from mtmm_jax.balancing.split import Split, crossing
from mtmm_jax.registry import ConfigError

PyTree = Any


class Setting(NamedTuple):
    """What all engines are told.

    Attributes:
        rule: the balancing rule.
        num_tasks: K.
        axis_name: the device axis of pmap or shard_map, or None.
        labels: for every parameter leaf, is it shared?
        heads: `"own"` or `"weighted"`, the gradient of the leaves that are not shared.
        chunk: how many pullbacks of engine `full` run as one vmapped call.
        counts: `[K]`, of the whole batch, if the args are one microbatch of it.
    """

    rule: Rule
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
        """What to pull back for `sum_k w_k loss_k`; absent tasks get zero."""
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


def tally(sums: Array, counts: Array, setting: Setting) -> Tally:
    """Divides once, after the sum over devices, by the counts of the whole batch."""
    dtype, axis_name = balancing_dtype(sums.dtype), setting.axis_name
    sums = total(jax.lax.stop_gradient(sums).astype(dtype), axis_name)
    if setting.counts is None:
        counts = total(jax.lax.stop_gradient(counts).astype(dtype), axis_name)
    else:
        counts = setting.counts.astype(dtype)
    counted = counts > 0
    scale = jnp.where(counted, 1 / jnp.where(counted, counts, 1), 0)
    losses = jnp.where(counted, sums * scale, 0)
    return Tally(losses, counted & jnp.isfinite(losses), scale, axis_name)


def with_aux(result: tuple[Array, Array, PyTree]) -> tuple[Array, tuple[Array, PyTree]]:
    sums, counts, aux = result
    return sums, (counts, aux)


def without_nan(tree: PyTree, present: Array) -> PyTree:
    """An excluded task's own leaves come back as `0 * NaN`; with all present nothing changes."""
    return jax.tree.map(
        lambda leaf: jnp.where(present.all() | jnp.isfinite(leaf), leaf, jnp.zeros_like(leaf)), tree
    )


class Cut(NamedTuple):
    """A split model after its forward pass, and how to go back over either half.

    Attributes:
        tallied: the losses.
        aux: of the readout.
        extra: whatever else the trunk returned.
        pull_readout: weights -> (gradient of all parameters, each task's gradient at the cut).
        pull_trunk: a gradient at the cut -> gradients of the trunk's variables.
    """

    tallied: Tally
    aux: PyTree
    extra: PyTree
    pull_readout: Callable[[Array], tuple[PyTree, list[list[Array]]]]
    pull_trunk: Callable[[list[Array]], tuple[PyTree, ...]]

    def rows(self) -> tuple[PyTree, list[Array]]:
        """The heads' own gradients, and all task gradients at the cut: ONE pullback for both."""
        own, copies = self.pull_readout(jnp.ones_like(self.tallied.losses))
        return own, [jnp.stack(leaf) for leaf in zip(*copies, strict=True)]

    def gradient(self, weights: Array, present: Array) -> PyTree:
        """Of the weighted loss. An excluded task has cotangent 0, but `0 * NaN` is NaN: what it
        sends to the cut is dropped there, by selection, before it can reach the trunk."""
        heads, copies = self.pull_readout(weights)
        heads = without_nan(heads, present)
        mixed = [
            functools.reduce(
                jnp.add, [jnp.where(present[k], x, jnp.zeros_like(x)) for k, x in enumerate(leaf)]
            )
            for leaf in zip(*copies, strict=True)
        ]
        return jax.tree.map(jnp.add, self.pull_trunk(mixed)[0], heads)


def pull_to_cut(
    trunk: Callable[..., tuple[PyTree, PyTree, PyTree]],
    variables: tuple[PyTree, ...],
    readout: Callable[..., tuple[Array, Array, PyTree]],
    setting: Setting,
    params: PyTree,
    args: tuple[Any, ...],
) -> Cut:
    """Forward through `trunk(*variables) -> (shared, trunk_aux, extra)` and the readout.

    Every task reads its own copy of what crosses the cut, so one pullback separates them.
    """

    def floats_of(*variables: PyTree) -> tuple[list[Array], tuple[PyTree, PyTree, PyTree]]:
        shared, trunk_aux, extra = trunk(*variables)
        return crossing(shared).floats, (shared, trunk_aux, extra)

    floats, pull_trunk, (shared, trunk_aux, extra) = jax.vjp(floats_of, *variables, has_aux=True)
    if not floats:
        raise ConfigError("balancing: no floating array crosses the cut between trunk and readout")
    rebuild = crossing(shared).rebuild

    def read(params: PyTree, copies: list[list[Array]]) -> tuple[Array, tuple[Array, PyTree]]:
        rebuilt = [rebuild(copy) for copy in copies]
        return with_aux(readout(params, rebuilt, trunk_aux, *args))

    copies = [floats] * setting.num_tasks
    variable = local(params, setting.axis_name)
    sums, pull, (counts, aux) = jax.vjp(read, variable, copies, has_aux=True)
    tallied = tally(sums, counts, setting)
    return Cut(
        tallied=tallied,
        aux=aux,
        extra=extra,
        pull_readout=lambda weights: pull(tallied.cotangent(weights, sums.dtype)),
        pull_trunk=pull_trunk,
    )


def split_at_cut(split: Split, setting: Setting, params: PyTree, args: tuple[Any, ...]) -> Cut:
    """`pull_to_cut` with the trunk as a function of all parameters."""
    variable = local(params, setting.axis_name)
    return pull_to_cut(
        lambda p: (*split.trunk(p, *args), None), (variable,), split.readout, setting, params, args
    )
