"""Gradient accumulation inside the step: the whole batch balanced, one microbatch in memory.

Pass one adds up losses and Gramian (or task gradients) over the microbatches; the rule decides
once; pass two adds up the weighted gradients. The answer is that of the whole batch, except for
losses that compare or normalise the samples of a batch (contrastive ones, batch normalisation,
balancing of experts): they see one microbatch at a time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mtmm_jax.balancing.cut import total
from mtmm_jax.balancing.engines import LossesFn, Prepared
from mtmm_jax.balancing.rows import Array, PyTree, balancing_dtype
from mtmm_jax.registry import ConfigError


def split_rows(batch: PyTree, parts: int) -> list[PyTree]:
    """Every `parts`-th row of all leaves `[B, ...]`, `parts` times: rows stay on their devices."""
    sizes = {leaf.shape[0] for leaf in jax.tree.leaves(batch)}
    if parts < 1 or any(size % parts for size in sizes):
        raise ConfigError(f"batch: {sorted(sizes)} rows do not divide into {parts} equal parts")
    return [jax.tree.map(lambda x, i=i: x[i::parts], batch) for i in range(parts)]


def global_counts(
    losses_fn: LossesFn, params: PyTree, micros: Sequence[tuple[Any, ...]], axis_name: Any
) -> Array:
    """`[K]`, of all microbatches and devices. XLA drops what counts do not depend on."""
    counts = sum(jax.lax.stop_gradient(losses_fn(params, *args)[1]) for args in micros)
    return total(counts.astype(balancing_dtype(counts.dtype)), axis_name)


def accumulate(
    prepare: Callable[[Array, PyTree, tuple[Any, ...], Any], Prepared],
    counts: Array,
    params: PyTree,
    micros: Sequence[tuple[Any, ...]],
    others: Sequence[tuple[Any, ...] | None],
) -> Prepared:
    """`prepare(counts, params, args, other)` of every microbatch in turn, as one `Prepared`.

    Unrolled, since a convolution's weight gradient inside a loop is slow on CPUs; each microbatch
    waits for the sum of those before it, so that only one is in memory at a time.
    """

    def in_turn(measure: Callable[[Prepared], PyTree], counts: Array) -> tuple[PyTree, list[Any]]:
        summed, auxes = None, []
        for part_args in zip(micros, others, strict=True):
            args, other = _after(counts if summed is None else summed, part_args)
            prepared = prepare(counts, params, args, other)
            part = jax.tree.map(_widened, measure(prepared))
            summed = part if summed is None else jax.tree.map(jnp.add, summed, part)
            auxes.append((prepared.aux, prepared.present))
        return summed, auxes

    found, seen = in_turn(lambda p: (p.losses, p.gramian, p.rows, p.others), counts)
    losses, gramian, rows, seconds = found
    auxes, present = zip(*seen, strict=True)

    def backward(weights: Array, present: Array) -> PyTree:
        # A task that diverged in one microbatch counts in none.
        summed, _ = in_turn(lambda p: p.backward(weights, present), jnp.where(present, counts, 0))
        return jax.tree.map(lambda g, p: g.astype(p.dtype), summed, params)

    return Prepared(
        losses=losses,
        present=functools.reduce(jnp.logical_and, present),
        backward=backward,
        aux=jax.tree.map(lambda *x: jnp.stack(x), *auxes),
        gramian=gramian,
        rows=rows,
        others=seconds,
    )


def _after(done: PyTree, args: PyTree) -> PyTree:
    """`args` as they are, but not before `done` is known.

    `jax.lax.optimization_barrier` would say so, but XLA drops it on CPUs before it orders the
    work. A zero that the compiler cannot see through stays.
    """
    last = sum(jnp.ravel(leaf)[0].astype(jnp.float32) for leaf in jax.tree.leaves(done))
    zero = (jax.lax.bitcast_convert_type(last, jnp.uint32) >> 31) >> 1

    def tied(x: Any) -> Any:
        if not hasattr(x, "dtype") or jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return x
        return x ^ (zero != 0) if x.dtype == bool else x + zero.astype(x.dtype)

    return jax.tree.map(tied, args)


def _widened(x: Array) -> Array:
    return x.astype(balancing_dtype(x.dtype))
