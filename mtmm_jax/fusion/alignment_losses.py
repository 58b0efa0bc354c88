"""Losses that align two modalities' pooled features, over the rows in which both are present.

Each gives `(sum, count)` of this device's rows, to be divided at the end; a docstring says over
what they add.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mtmm_jax.devices import parallel
from mtmm_jax.layers import batch_rows
from mtmm_jax.registry import ConfigError


def _pair(x: jax.Array, y: jax.Array, both: jax.Array, same: bool) -> tuple[jax.Array, jax.Array]:
    """Float32, with zeros where not both are there; sizes checked."""
    if x.shape[0] != y.shape[0] or (same and x.shape != y.shape):
        raise ConfigError(f"alignment loss: features of {x.shape} and {y.shape} do not compare")
    keep = both[:, None]
    return tuple(jnp.where(keep, f.astype(jnp.float32), 0.0) for f in (x, y))


def contrastive_loss(
    x: jax.Array,
    y: jax.Array,
    both: jax.Array,
    *,
    scale: jax.Array | float = 1.0 / 0.07,
    ids: jax.Array | None = None,
    axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """-1/2 log softmax_j(scale cos(x_i, y_j))_i and the same with x and y changed, summed over i.

    InfoNCE both ways (van den Oord et al. 2018; Radford et al. 2021). `(sum, count)` add over
    devices, whose rows are gathered as negatives, but not over microbatches: each has fewer of
    them. The cost is batch^2 similarities.

    Args:
        x, y: `[B, D]`, two modalities' pooled features; need no norm.
        both: `[B]` bool: the rows in which both are present; the others are nobody's negatives.
        scale: the inverse temperature.
        ids: `[B]`; rows with equal ids show the same and are no negatives of each other.
        axis_name: the devices' axis inside pmap, or None.
    """
    x, y = _pair(x, y, both, same=True)
    # A small constant inside the root: zero rows have a gradient too.
    x, y = (f * jax.lax.rsqrt(jnp.square(f).sum(-1, keepdims=True) + 1e-12) for f in (x, y))
    rows = batch_rows(len(x), axis_name)
    all_rows, all_both = parallel.gather(rows, axis_name), parallel.gather(both, axis_name)
    own = rows[:, None] == all_rows[None]
    rival = all_both[None] & ~own
    if ids is not None:
        rival &= ids[:, None] != parallel.gather(ids, axis_name)[None]
    total = jnp.zeros(())
    for one, other in ((x, y), (y, x)):
        logits = scale * one @ parallel.gather(other, axis_name).T
        logits = jnp.where(own | rival, logits, jnp.finfo(jnp.float32).min)
        log_p = jnp.where(own, jax.nn.log_softmax(logits), 0.0).sum(-1)
        total -= 0.5 * jnp.where(both, log_p, 0.0).sum()
    return total, both.sum().astype(jnp.float32)


def kl_loss(
    x: jax.Array, y: jax.Array, both: jax.Array, *, temperature: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """The sum over rows of (KL(p || q) + KL(q || p)) / 2, p = softmax(x / T), q = softmax(y / T).

    Jeffreys' divergence, halved: two modalities' predictions, or features read as such, are to
    agree. `(sum, count)` add over rows, microbatches and devices.

    Args:
        x, y: `[B, D]`, logits or features of two modalities.
        both: `[B]` bool: the rows in which both are present.
        temperature: T.
    """
    x, y = _pair(x, y, both, same=True)
    log_p, log_q = jax.nn.log_softmax(x / temperature), jax.nn.log_softmax(y / temperature)
    rows = 0.5 * ((jnp.exp(log_p) - jnp.exp(log_q)) * (log_p - log_q)).sum(-1)
    return jnp.where(both, rows, 0.0).sum(), both.sum().astype(jnp.float32)


def cca_loss(
    x: jax.Array,
    y: jax.Array,
    both: jax.Array,
    *,
    ridge: float = 1e-3,
    axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """1 - mean_k s_k, where s are the singular values of S_xx^-1/2 S_xy S_yy^-1/2: correlations.

    Deep canonical correlation (Andrew et al. 2013), over the min(D, E) directions. Nonlinear in the
    batch's covariances: it adds over devices, which share them, but NOT over microbatches, and
    needs many more rows than features, or all correlations are near 1. The cost is
    batch x width^2 + width^3. Given as (loss x rows, rows), so that the quotient is the loss; with
    fewer than two rows the loss is 0.

    Args:
        x, y: `[B, D]` and `[B, E]`, two modalities' pooled features.
        both: `[B]` bool: the rows in which both are present.
        ridge: added to the variances, relative to their mean.
        axis_name: the devices' axis inside pmap, or None.
    """
    x, y = _pair(x, y, both, same=False)
    weight = both.astype(jnp.float32)
    own = weight.sum()
    count = jnp.maximum(parallel.total(own, axis_name), 1.0)

    def centred(f: jax.Array) -> jax.Array:
        mean = parallel.total(f.sum(0), axis_name) / count
        return (f - mean) * weight[:, None]

    def covariance(f: jax.Array, g: jax.Array) -> jax.Array:
        return parallel.total(f.T @ g, axis_name) / jnp.maximum(count - 1.0, 1.0)

    def root(f: jax.Array) -> jax.Array:
        s = covariance(f, f)
        more = ridge * jnp.trace(s) / len(s) + 1e-6
        return jnp.linalg.cholesky(s + more * jnp.eye(len(s), dtype=s.dtype))

    x, y = centred(x), centred(y)
    # L^-1 S_xy L'^-T has the singular values of S_xx^-1/2 S_xy S_yy^-1/2: L = S^1/2 x rotation.
    half = jax.scipy.linalg.solve_triangular(root(x), covariance(x, y), lower=True)
    whole = jax.scipy.linalg.solve_triangular(root(y), half.T, lower=True)
    correlations = jnp.linalg.svd(whole, compute_uv=False)
    loss = jnp.where(count > 1.0, 1.0 - correlations.mean(), 0.0)
    return loss * own, own
