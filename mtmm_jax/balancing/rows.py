"""Arithmetic on task gradients: one row per task, `{path: [K, ...]}`, and on their Gramian."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array
PyTree = Any
Rows = dict[str, Array]
"""Task gradients by parameter path: `{"trunk/kernel": [K, *shape], ...}`, shared leaves only."""


def balancing_dtype(*dtypes: Any) -> Any:
    """float32, or float64 where the inputs are: balancing never runs in half precision."""
    return jnp.dtype(jnp.float64 if jnp.dtype(jnp.float64) in dtypes else jnp.float32)


def gramian_of(left: Rows, right: Rows | None = None) -> Array:
    """The `[K, K]` inner products of the rows of `left` with those of `right` (or themselves).

    Summed leaf by leaf in at least float32 and at full matmul precision: Gramians square the
    condition number, and TF32 or bfloat16 products would show up as false conflicts.
    """
    right = left if right is None else right

    def one(a: Array, b: Array) -> Array:
        dtype = balancing_dtype(a.dtype, b.dtype)
        a, b = (x.reshape(x.shape[0], -1).astype(dtype) for x in (a, b))
        return jax.lax.dot_general(
            a, b, (((1,), (1,)), ((), ())), precision=jax.lax.Precision.HIGHEST
        )

    return sum(one(left[path], right[path]) for path in left)


def combine(weights: Array, rows: PyTree) -> PyTree:
    """`sum_k w_k g_k` for every leaf `[K, ...]`, in the leaf's own dtype."""

    def one(leaf: Array) -> Array:
        dtype = balancing_dtype(leaf.dtype)
        flat = leaf.reshape(leaf.shape[0], -1).astype(dtype)
        mixed = jnp.matmul(weights.astype(dtype), flat, precision=jax.lax.Precision.HIGHEST)
        return mixed.reshape(leaf.shape[1:]).astype(leaf.dtype)

    return jax.tree.map(one, rows)


def per_task(vector: Array, like: Array) -> Array:
    """`[K]` shaped to meet a leaf `[K, ...]`."""
    return vector.reshape((-1,) + (1,) * (like.ndim - 1))


def mask_rows(present: Array, rows: PyTree) -> PyTree:
    """Rows of absent tasks replaced by zeros (selected, not multiplied: `0 * NaN` is NaN)."""

    def one(leaf: Array) -> Array:
        return jnp.where(per_task(present, leaf), leaf, jnp.zeros_like(leaf))

    return jax.tree.map(one, rows)


def mask_gramian(present: Array, gramian: Array) -> Array:
    """Rows and columns of absent tasks replaced by zeros."""
    return jnp.where(present[:, None] & present[None, :], gramian, jnp.zeros_like(gramian))


def select_tasks(present: Array, new: PyTree, old: PyTree) -> PyTree:
    """Per-task state `[K, ...]`: the new one where the task is present, else the old one."""

    def one(n: Array, o: Array) -> Array:
        return jnp.where(per_task(present, n), n, o)

    return jax.tree.map(one, new, old)


def paths_of(tree: PyTree) -> list[str]:
    """`"trunk/kernel"`-like names of the leaves, in flattening order."""
    paths, _ = zip(*jax.tree_util.tree_leaves_with_path(tree), strict=True)
    return [jax.tree_util.keystr(path, simple=True, separator="/") or "." for path in paths]


def shared_labels(shared: PyTree | Callable[[PyTree], PyTree] | None, params: PyTree) -> list[bool]:
    """One bool per leaf of `params`: does more than one task depend on it?

    Args:
        shared: a pytree of bools like `params` (or a prefix of it), a callable that makes one from
            `params`, or None for all.
        params: the parameters.
    """
    if shared is None:
        return [True] * len(jax.tree.leaves(params))
    labels = shared(params) if callable(shared) else shared
    spread = jax.tree.map(lambda label, part: jax.tree.map(lambda _: label, part), labels, params)
    return [bool(label) for label in jax.tree.leaves(spread)]


def not_finite(tree: PyTree) -> Array:
    """Whether any element of any leaf is NaN or infinite, as a scalar bool."""
    bad = [~jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.any(jnp.stack(bad)) if bad else jnp.zeros((), bool)
