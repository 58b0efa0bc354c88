"""Distances between two domains' features, as losses that make an encoder give both alike.

Domains are classes of a label that every row has, such as the `origin` of a mixture: no label of
the target domain is needed. Both compare the whole batch, so that they need rows of both domains in
every step and are no sum over microbatches: each microbatch compares its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from mtmm_jax.batch import Spec, choose_all
from mtmm_jax.devices import parallel
from mtmm_jax.ranges import NonNegative, Positive
from mtmm_jax.registry import ConfigError
from mtmm_jax.tasks.task import FUSED, find_target
from mtmm_jax.tasks.terms.term import Regulariser, Term, View, count_of, two

WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
EXACT = jax.lax.Precision.HIGHEST


def coral_loss(
    x: jax.Array, one: jax.Array, other: jax.Array, *, means: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """|C_s - C_t|_F^2 / 4 D^2 + means |m_s - m_t|^2 / D: covariances, and means, made equal.

    Deep CORAL (Sun and Saenko 2016); the term of the means is not in the paper, whose features are
    centred by the classifier's bias. The cost is batch D^2. For domains that differ in the scale
    and the correlation of their features (contrast, colour, style). Not where classes are mixed in
    other proportions: it would mix them too.

    Args:
        x: `[B, D]` pooled features.
        one, other: `[B]` bool: the rows of either domain.
        means: weight of the means' distance; 0 leaves them alone.

    Returns:
        The loss, 0 unless both domains have two rows or more, and whether they do.
    """
    x, size = x.astype(jnp.float32), x.shape[-1]
    (first, c_first), (second, c_second) = (_moments(x, rows) for rows in (one, other))
    loss = jnp.square(c_first - c_second).sum() / (4 * size**2)
    loss += means * jnp.square(first - second).sum() / size
    enough = (one.sum() > 1) & (other.sum() > 1)
    return jnp.where(enough, loss, 0.0), enough


def _moments(x: jax.Array, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean `[D]` and covariance `[D, D]` of some rows."""
    weight = rows.astype(jnp.float32)[:, None]
    count = weight.sum()
    mean = jnp.where(rows[:, None], x, 0.0).sum(0) / jnp.maximum(count, 1.0)
    centred = jnp.where(rows[:, None], x - mean, 0.0)
    covariance = jnp.matmul(centred.T, centred, precision=EXACT)
    return mean, covariance / jnp.maximum(count - 1.0, 1.0)


def mmd_loss(
    x: jax.Array, one: jax.Array, other: jax.Array, *, widths: Sequence[float] = WIDTHS
) -> tuple[jax.Array, jax.Array]:
    """mean k(s, s') + mean k(t, t') - 2 mean k(s, t): 0 only for equal distributions.

    k(x, y) = mean_w exp(-|x - y|^2 / (w m)), m the median of |x - y|^2 over all pairs of the batch,
    through which no gradient goes. Maximum mean discrepancy with several widths (Gretton et al.
    2012; Long et al. 2015), the biased estimate: 0 for equal sets and never below. The cost is
    batch^2 D, and a sort of batch^2 numbers. It sees every difference, not only covariances, but
    weakly in many dimensions; larger batches help.

    Args:
        x: `[B, D]` pooled features.
        one, other: `[B]` bool: the rows of either domain.
        widths: of the kernels, in medians.

    Returns:
        The loss, 0 unless both domains have two rows or more, and whether they do.
    """
    both = one | other
    x = jnp.where(both[:, None], x.astype(jnp.float32), 0.0)
    centre = x.sum(0) / jnp.maximum(both.sum().astype(jnp.float32), 1.0)
    x = jnp.where(both[:, None], x - centre, 0.0)  # far from 0 the squares would cancel
    squares = jnp.square(x).sum(-1)
    cross = jnp.matmul(x, x.T, precision=EXACT)
    distances = jnp.maximum(squares[:, None] + squares[None] - 2.0 * cross, 0.0)
    pairs = both[:, None] & both[None] & ~jnp.eye(len(x), dtype=bool)
    middle = jax.lax.stop_gradient(_median(distances, pairs))
    kernel = sum(jnp.exp(-distances / (w * middle)) for w in widths) / len(widths)
    weight = _mean_of(one) - _mean_of(other)
    enough = (one.sum() > 1) & (other.sum() > 1)
    value = jnp.einsum("i,ij,j->", weight, kernel, weight, precision=EXACT)
    return jnp.where(enough, value, 0.0), enough


def _mean_of(rows: jax.Array) -> jax.Array:
    return rows.astype(jnp.float32) / jnp.maximum(rows.sum().astype(jnp.float32), 1.0)


def _median(values: jax.Array, there: jax.Array) -> jax.Array:
    """The lower median of those that are there, above 0; 1 where there is none."""
    ordered = jnp.sort(jnp.where(there, values, jnp.inf).ravel())
    found = ordered[jnp.maximum(there.sum() - 1, 0) // 2]
    return jnp.where(jnp.isfinite(found), jnp.maximum(found, 1e-12), 1.0)


def coral(
    *,
    between: Sequence[str],
    on: str = FUSED,
    target: str = "origin",
    means: NonNegative = 1.0,
    data: Spec,
    where: str = "regularisers",
) -> Regulariser:
    """Two domains' pooled features get the same covariances, and means: `coral_loss`.

    Args:
        between: two classes of the label that tells the domains.
        on: a read, such as "image" or "fused".
        target: that label; a mixture with `origin: True` has one of that name.
        means: weight of the means' distance.
        data, where: given by the model.
    """
    return _across(functools.partial(coral_loss, means=means), between, on, target, data, where)


def mmd(
    *,
    between: Sequence[str],
    on: str = FUSED,
    target: str = "origin",
    widths: Sequence[Positive] = WIDTHS,
    data: Spec,
    where: str = "regularisers",
) -> Regulariser:
    """Two domains' pooled features get the same distribution: `mmd_loss`.

    Args:
        between, on, target: as for `coral`.
        widths: of the Gaussian kernels, in medians of the squared distances.
        data, where: given by the model.
    """
    if not widths:
        raise ConfigError(f"{where}.widths: is empty; needs one number or more")
    loss = functools.partial(mmd_loss, widths=tuple(map(float, widths)))
    return _across(loss, between, on, target, data, where)


def _across(
    loss: Callable[..., Term],
    between: Sequence[str],
    on: str,
    target: str,
    data: Spec,
    where: str,
) -> Regulariser:
    """A loss between two domains' rows, over the rows of all devices."""
    _, label = find_target(target, target, "class", data, where)
    choose_all(two(between, where), label.classes, f"{where}.between", f"class of {target}")
    places = [label.classes.index(name) for name in between]

    def term(view: View) -> Term:
        tokens, entry = view.tokens[on], view.targets.get(target)
        if entry is None:
            return jnp.float32(0), jnp.float32(0)
        here = tokens.present & entry["present"]
        domains = [here & (entry["y"] == place) for place in places]
        own = count_of(domains[0] | domains[1])
        whole = [parallel.gather(x, view.axis_name) for x in (tokens.mean(), *domains)]
        value, enough = loss(*whole)
        return value * own, jnp.where(enough, own, 0.0)

    return Regulariser(term, reads=(on,), targets=(target,))
