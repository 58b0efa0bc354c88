"""Gradients of the modalities' encoders, modulated by who is ahead: the rules behind
`objectives.imbalance`, and what all of its rules look at and answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtmm_jax.keys import fold_in_name
from mtmm_jax.ranges import Positive, Share
from mtmm_jax.registry import ConfigError

Array = jax.Array
PyTree = Any

# A probability counts as at least this: one hopeless row does not carry a mean of logarithms away.
LEAST = 1e-8


class Setting(NamedTuple):
    """The setting that a rule is built for.

    Attributes:
        modalities: their number, M.
        classes: of the label.
        width: of the modalities' features.
        steps: of the run.
    """

    modalities: int
    classes: int
    width: int
    steps: int


class Scene(NamedTuple):
    """The task's modalities in one step, on one device.

    Attributes:
        logits: `[M, B, C]`, of the unimodal heads; no gradient passes.
        weight: `[M, B]`, 0 for the rows without the modality or without a label.
        label: `[B, C]`, a probability per class.
        features: `[M, B, D]`, pooled; None for rules without a term of their own.
    """

    logits: Array
    weight: Array
    label: Array
    features: Array | None = None


class Verdict(NamedTuple):
    """The result of a rule for one step.

    Attributes:
        memory: for the next one.
        metrics: name -> `[M]`, to be logged; NaN where a modality has none.
        factors: `[M]`, of the encoders' gradients; None leaves them alone.
        noisy: whether noise of each gradient's own size joins it; None: never.
    """

    memory: PyTree
    metrics: dict[str, Array]
    factors: Array | None = None
    noisy: Array | None = None


class ImbalanceRule(NamedTuple):
    """One way to keep modalities in balance.

    Attributes:
        init: `() -> memory`, arrays that the training state carries.
        measure: `(memory, Scene, step, axis_name) -> (sums, term)`; `sums` add over microbatches
            and devices, `term` is the `(sum, count)` of an auxiliary loss, or None.
        react: `(memory, sums, step) -> Verdict`, with the sums of all devices.
        term: whether `measure` gives a term.
    """

    init: Callable[[], PyTree]
    measure: Callable[[PyTree, Scene, Array, str | None], tuple[PyTree, Any]]
    react: Callable[[PyTree, PyTree, Array], Verdict]
    term: bool = False


class Sums(NamedTuple):
    """`[M]` each: of values of rows, and of the rows' weights."""

    value: Array
    count: Array


def sums_of(values: Array, weight: Array) -> Sums:
    """Of `[M, B]` values; a row of weight 0 adds nothing, be it NaN."""
    kept = jnp.where(weight > 0, values, 0.0)
    return Sums((kept * weight).sum(-1), weight.sum(-1))


def means_of(sums: Sums) -> tuple[Array, Array]:
    """`(means [M], there [M])`: a modality without rows, or not finite, is not there."""
    there = (sums.count > 0) & jnp.isfinite(sums.value)
    return jnp.where(there, sums.value / jnp.where(there, sums.count, 1), 0.0), there


def others_mean(values: Array, there: Array) -> tuple[Array, Array]:
    """For each modality the mean of the others that are there, and whether it can be compared."""
    others = there[None, :] & ~jnp.eye(len(values), dtype=bool)
    count = others.sum(-1)
    mean = jnp.where(others, values[None, :], 0.0).sum(-1) / jnp.maximum(count, 1).astype(
        values.dtype
    )
    return mean, there & (count > 0)


def modulated(
    grads: Mapping[str, Any],
    modalities: tuple[str, ...],
    verdict: Verdict,
    key: Array,
) -> dict[str, Any]:
    """The gradients of all parameters, those of the encoders changed as the verdict says.

    g_m <- f_m g_m + N(0, std(g_m)^2), tensor by tensor; the noise only if the verdict wants it.

    Args:
        grads: like the parameters, summed over devices.
        modalities: in the order of the factors.
        verdict: of a rule.
        key: of this step; each tensor draws by its path.
    """
    if verdict.factors is None:
        return dict(grads)

    def one(path: Any, gradient: Array, name: str, factor: Array) -> Array:
        new = factor.astype(gradient.dtype) * gradient
        if verdict.noisy is None:
            return new
        place = jax.tree_util.keystr(path, simple=True, separator="/")
        draw = jax.random.normal(fold_in_name(key, f"imbalance/{name}/{place}"), gradient.shape)
        noise = jnp.std(gradient.astype(jnp.float32)) * draw
        return new + jnp.where(verdict.noisy, noise, 0.0).astype(gradient.dtype)

    encoders = dict(grads.get("encoders", {}))
    for name, factor in zip(modalities, verdict.factors, strict=True):
        if name in encoders:
            encoders[name] = jax.tree_util.tree_map_with_path(
                lambda path, g, name=name, factor=factor: one(path, g, name, factor),
                encoders[name],
            )
    return {**grads, "encoders": encoders} if encoders else dict(grads)


def ogm_ge(
    on: Setting,
    *,
    alpha: Positive = 0.3,
    noise: bool = True,
    begin: Share = 0.0,
    end: Share = 1.0,
    where: str,
) -> ImbalanceRule:
    """OGM-GE: the modality that is ahead learns slower, and noise keeps its steps lively.

    s_m = mean of softmax(f_m)[y],  rho_m = s_m / mean_{n != m} s_n,
    g_m <- k_m g_m + N(0, std(g_m)^2),  k_m = 1 - tanh(alpha rho_m) if rho_m > 1, else 1

    The mean is over the rows that have the modality, so that being rare is not being weak; where
    nobody is absent rho is the ratio of the published sums. The published code adds noise to
    convolutions only, here every tensor of the encoders gets it.

    Paper: Peng et al., CVPR 2022.
    Cost: that of the unimodal heads.
    Use it: with SGD. Adam divides a constant factor out again, and feels only its changes. Not:
    where one modality is ahead because the others have nothing to say.

    Args:
        on: given by `prepare`.
        alpha: how hard the leader is slowed.
        noise: whether the gradients get noise (GE).
        begin, end: shares of the run's steps between which it acts.
        where: the place in the config.
    """
    if begin >= end:
        raise ConfigError(f"{where}.end: {end} is not after begin, {begin}")
    first, last = round(begin * on.steps), round(end * on.steps)

    def measure(memory: tuple[()], scene: Scene, step: Array, axis_name: str | None):
        del memory, step, axis_name
        own = (jax.nn.softmax(scene.logits) * scene.label).sum(-1)
        return sums_of(own, scene.weight), None

    def react(memory: tuple[()], sums: Sums, step: Array) -> Verdict:
        scores, there = means_of(sums)
        others, known = others_mean(scores, there)
        rho = scores / jnp.maximum(others, LEAST)
        active = (step >= first) & (step < last)
        slowed = jnp.where(active & known & (rho > 1), 1 - jnp.tanh(alpha * rho), 1.0)
        metrics = {"coefficient": slowed, "ratio": jnp.where(known, rho, jnp.nan)}
        return Verdict(memory, metrics, slowed, active if noise else None)

    return ImbalanceRule(tuple, measure, react)


class Running(NamedTuple):
    """`[M]` each: the mean over all steps so far, and how many they were."""

    mean: Array
    count: Array


def agm(on: Setting, *, alpha: Positive = 1.0) -> ImbalanceRule:
    """AGM: a modality that leads by more than it used to is slowed, one that fell back is pushed.

    s_m = mean of log softmax(f_m)[y],  r_m = exp(mean_{n != m} (s_m - s_n)),
    tau_m = the same of the scores' means over the steps before,
    g_m <- exp(alpha min(tau_m - r_m, 7)) g_m

    A modality is compared from its second step on; until then its factor is 1. The scores are
    those of the unimodal heads, where the paper takes them from Shapley values of one network.

    Paper: Li et al., ICCV 2023.
    Cost: that of the unimodal heads.
    Use it: where the modalities' natural lead should stay as it is, and only drift be held back;
    with SGD, as `ogm_ge`. Not: with tiny batches, whose scores jump.

    Args:
        on: given by `prepare`.
        alpha: how hard it acts.
    """

    def init() -> Running:
        return Running(jnp.zeros(on.modalities), jnp.zeros(on.modalities, jnp.int32))

    def measure(memory: Running, scene: Scene, step: Array, axis_name: str | None):
        del memory, step, axis_name
        least = jnp.log(jnp.float32(LEAST))
        own = (jnp.maximum(jax.nn.log_softmax(scene.logits), least) * scene.label).sum(-1)
        return sums_of(own, scene.weight), None

    def react(memory: Running, sums: Sums, step: Array) -> Verdict:
        del step
        scores, there = means_of(sums)
        before = there & (memory.count > 0)
        others, known = others_mean(scores, before)
        ratio = jnp.exp(scores - others)
        usual = jnp.exp(memory.mean - others_mean(memory.mean, before)[0])
        factors = jnp.where(known, jnp.exp(alpha * jnp.minimum(usual - ratio, 7.0)), 1.0)
        count = memory.count + there.astype(jnp.int32)
        change = (scores - memory.mean) / jnp.maximum(count, 1).astype(scores.dtype)
        running = Running(memory.mean + jnp.where(there, change, 0.0), count)
        metrics = {"coefficient": factors, "ratio": jnp.where(known, ratio, jnp.nan)}
        return Verdict(running, metrics, factors)

    return ImbalanceRule(init, measure, react)
