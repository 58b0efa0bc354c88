"""PMR: slow modalities are drawn to their class prototypes, which the training state carries."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtmm_jax.devices import parallel
from mtmm_jax.objectives.imbalance_rules import (
    LEAST,
    Array,
    ImbalanceRule,
    Scene,
    Setting,
    Sums,
    Verdict,
    means_of,
    others_mean,
    sums_of,
)
from mtmm_jax.ranges import Decay, Positive, Share

EXACT = jax.lax.Precision.HIGHEST


class Prototypes(NamedTuple):
    """The running means of the features, `[M, C, D]`, and which classes were seen, `[M, C]`."""

    means: Array
    seen: Array


class Found(NamedTuple):
    """The sums of one step: of the prototypes' verdicts, and of the features by class."""

    scores: Sums
    features: Array
    counts: Array


def distances(features: Array, prototypes: Array) -> Array:
    """Euclidean, not squared: `[M, B, D], [M, C, D] -> [M, B, C]`; the gradient at 0 is 0."""
    centre = prototypes.mean(1, keepdims=True)  # far from 0 the squares would cancel
    x, c = features - centre, prototypes - centre
    cross = jnp.einsum("mbd,mcd->mbc", x, c, precision=EXACT)
    squared = (x**2).sum(-1)[:, :, None] + (c**2).sum(-1)[:, None, :] - 2 * cross
    apart = squared > LEAST
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, squared, 1.0)), 0.0)


def log_probabilities(features: Array, prototypes: Prototypes) -> Array:
    """log p_m(c | z) = log softmax_c(-|z - c_m[c]|) over the classes seen, 0 for the others."""
    seen = prototypes.seen[:, None, :]
    far = -distances(features, prototypes.means)
    lowest = jnp.finfo(jnp.float32).min
    log_p = jax.nn.log_softmax(jnp.where(seen, far, lowest))
    return jnp.where(seen, log_p, 0.0)


def updated(prototypes: Prototypes, found: Found, momentum: float) -> Prototypes:
    """c[k] <- momentum c[k] + (1 - momentum) (mean of this step's rows of class k); the first
    mean as it is. A class without rows, or whose mean is not finite, stays."""
    here = (found.counts > 0) & jnp.isfinite(found.features).all(-1)
    mean = found.features / jnp.where(here, found.counts, 1.0)[..., None]
    moved = momentum * prototypes.means + (1 - momentum) * mean
    new = jnp.where(prototypes.seen[..., None], moved, mean)
    means = jnp.where(here[..., None], new, prototypes.means)
    return Prototypes(means, prototypes.seen | here)


def pmr(
    on: Setting, *, mu: Positive = 1.0, momentum: Decay = 0.9, entropy: Share = 0.1
) -> ImbalanceRule:
    """PMR: a slow modality learns from its class prototypes, without the others' help.

    p_m = softmax_k(-|z_m - c_m[k]|),  z_m the pooled features, c_m[k] their running class means,
    s_m = mean of p_m[y],  rho_m = s_m / mean_{n != m} s_n,
    loss + mu sum_m clip(1 / rho_m - 1, 0, 1) mean(-log p_m[y])
         - mu sum_m clip(rho_m - 1, 0, 1) mean H(p_m), the latter early in the run only

    The distance is the Euclidean one, not its square, as in the paper. The coefficients and the
    prototypes carry no gradient. The term is the auxiliary row `imbalance`. Prototypes follow the
    training batches, where the paper computes them anew every epoch; rows whose class has none yet
    do not count. With gradient accumulation rho is that of a microbatch.

    Paper: Fan et al., CVPR 2023.
    Cost: that of the unimodal heads, O(M B C D) a step, and M C D numbers in the state.
    Use it: where slowing the leader, as `ogm_ge` does, would cost accuracy; under any optimiser.
    Not: with very many classes, whose prototypes a batch rarely meets.

    Args:
        on: given by `prepare`.
        mu: the term's weight.
        momentum: of the prototypes.
        entropy: the share of the run's steps, from the first, with the entropy's part.
    """
    early = round(entropy * on.steps)

    def init() -> Prototypes:
        shape = (on.modalities, on.classes)
        return Prototypes(jnp.zeros((*shape, on.width)), jnp.zeros(shape, bool))

    def pulls(scores: Sums, step: Array) -> tuple[Array, Array, Array]:
        """`(slow, leading, rho)`: the clipped coefficients, `[M]` each."""
        mean, there = means_of(scores)
        others, known = others_mean(mean, there)
        rho = mean / jnp.maximum(others, LEAST)
        slow = jnp.where(known, jnp.clip(1 / jnp.maximum(rho, LEAST) - 1, 0, 1), 0.0)
        leading = jnp.where(known & (step < early), jnp.clip(rho - 1, 0, 1), 0.0)
        return slow, leading, jnp.where(known, rho, jnp.nan)

    def measure(memory: Prototypes, scene: Scene, step: Array, axis_name: str | None):
        log_p = log_probabilities(scene.features, memory)
        p = jnp.where(memory.seen[:, None, :], jnp.exp(log_p), 0.0)
        strange = jnp.einsum("bc,mc->mb", scene.label, (~memory.seen).astype(jnp.float32))
        weight = jnp.where(strange > 0, 0.0, scene.weight)
        scores = jax.lax.stop_gradient(sums_of((p * scene.label).sum(-1), weight))
        whole = parallel.total(scores, axis_name)
        slow, leading, _ = pulls(whole, step)
        cross_entropy = sums_of(-(log_p * scene.label).sum(-1), weight).value
        spread = sums_of(-(p * log_p).sum(-1), weight).value
        each = (slow * cross_entropy - leading * spread) / jnp.maximum(whole.count, LEAST)
        # The means are over all devices' rows: together the devices count one term.
        one = jnp.where(whole.count.any(), 1 / parallel.total(jnp.float32(1), axis_name), 0.0)
        features = jax.lax.stop_gradient(scene.features)
        kept = jnp.where(scene.weight[..., None] > 0, features, 0.0) * scene.weight[..., None]
        found = Found(
            scores,
            jnp.einsum("bc,mbd->mcd", scene.label, kept, precision=EXACT),
            jnp.einsum("bc,mb->mc", scene.label, scene.weight, precision=EXACT),
        )
        return found, (mu * each.sum(), one)

    def react(memory: Prototypes, found: Found, step: Array) -> Verdict:
        slow, leading, rho = pulls(found.scores, step)
        metrics = {"coefficient": mu * (slow - leading), "ratio": rho}
        return Verdict(updated(memory, found, momentum), metrics)

    return ImbalanceRule(init, measure, react, term=True)
