"""What the Gramian tells about the tasks: cosines, norms, conflicts; cheap enough to log."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mtmm_jax.balancing.core import Evidence
from mtmm_jax.balancing.rows import Array


def cosines(gramian: Array) -> Array:
    """`[K, K]` cosines of the task gradients; 0 where one of them is zero."""
    norms = jnp.sqrt(jnp.maximum(jnp.diagonal(gramian), 0))
    inverse = jnp.where(norms > 0, 1 / jnp.where(norms > 0, norms, 1), 0)
    return gramian * inverse[:, None] * inverse[None, :]


def _pairs(present: Array) -> Array:
    """Which ordered pairs `i != j` are both present."""
    different = ~jnp.eye(present.shape[0], dtype=bool)
    return present[:, None] & present[None, :] & different


def conflict_rate(gramian: Array, present: Array) -> Array:
    """The share of pairs of present tasks whose gradients have a negative inner product."""
    pairs = _pairs(present)
    conflicting = jnp.sum(pairs & (gramian < 0)).astype(gramian.dtype)
    return conflicting / jnp.maximum(pairs.sum(), 1).astype(gramian.dtype)


def magnitude_similarity(gramian: Array, present: Array) -> Array:
    """Mean over pairs of `2 |g_i| |g_j| / (|g_i|^2 + |g_j|^2)`: 1 when all norms are equal."""
    squared = jnp.maximum(jnp.diagonal(gramian), 0)
    norms = jnp.sqrt(squared)
    sums = squared[:, None] + squared[None, :]
    ratio = 2 * norms[:, None] * norms[None, :] / jnp.where(sums > 0, sums, 1)
    pairs = _pairs(present)
    count = pairs.sum().astype(gramian.dtype)
    return jnp.where(count > 0, jnp.sum(jnp.where(pairs, ratio, 0)) / jnp.maximum(count, 1), 1)


def condition_number(gramian: Array, present: Array) -> Array:
    """Of the Jacobian whose rows are the present tasks: `sqrt(lambda_max / lambda_min)` of G."""
    count = jnp.maximum(present.sum(), 1).astype(gramian.dtype)
    mean = jnp.trace(gramian) / count  # lies between the extreme eigenvalues: neutral filler
    filled = gramian + jnp.diag(jnp.where(present, 0, mean))
    values = jnp.linalg.eigvalsh(filled)
    smallest = jnp.maximum(values[0], jnp.finfo(values.dtype).eps * values[-1])
    return jnp.sqrt(jnp.where(smallest > 0, values[-1] / jnp.where(smallest > 0, smallest, 1), 1))


def diagnose(evidence: Evidence, weights: Array, skipped: Array) -> dict[str, Array]:
    """Named outputs of one step. Under jit, what nobody reads is not computed.

    Always: `weights` [K], `present` [K], `skipped`. Where the Gramian is known: `cosines` [K, K],
    `norms` [K], `conflict_rate`, `magnitude_similarity`, `condition_number`.
    """
    named = {"weights": weights, "present": evidence.present, "skipped": skipped}
    if evidence.gramian is None:
        return named
    gramian, present = jax.lax.stop_gradient(evidence.gramian), evidence.present
    return named | {
        "cosines": cosines(gramian),
        "norms": jnp.sqrt(jnp.maximum(jnp.diagonal(gramian), 0)),
        "conflict_rate": conflict_rate(gramian, present),
        "magnitude_similarity": magnitude_similarity(gramian, present),
        "condition_number": condition_number(gramian, present),
    }
