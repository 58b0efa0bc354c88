"""Optimisers from a config: an Optax rule, with schedule, clipping, rules by path and averages.

Next to `kind` and that rule's hyper-parameters a config gives, all optional:

- `learning_rate`, `schedule`, `warmup`: see `schedules.build`;
- `clip`: the largest norm of the whole gradient (without what is frozen);
- `rates`, `freeze`, `decay`, `no_decay`, `depth_decay`: see `per_path`;
- `unfreeze`: what begins to learn later, see `unfreezing`;
- `ema`: the decay of an average of the parameters, see `averaged`;
- `prune`: weights that become zero, see `optim.pruning`.

`accumulate`, `tasks` (see `per_task`) and `private` (see `privacy`) change the gradient, not the
optimiser, and are read by `training.experiment`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mtmm_jax import registry
from mtmm_jax.optim import per_path, pruning, schedules, unfreezing
from mtmm_jax.optim.averages import averaged, masked_averages
from mtmm_jax.optim.averages import evaluation_params as evaluation_params
from mtmm_jax.optim.rules import RULES, Setting
from mtmm_jax.ranges import Between, Decay, Entry, NonNegative, Positive, PositiveShare
from mtmm_jax.registry import ConfigError, check_fields, choose

PyTree = Any
Transformation = optax.GradientTransformationExtraArgs


def _complete(rule: Callable[..., Any]) -> Callable[..., Any]:
    """The rule with clipping and rules by path; its signature stays."""

    @functools.wraps(rule)
    def whole(on: Setting, **hyper: Any) -> optax.GradientTransformation:
        def at(rate: optax.Schedule) -> optax.GradientTransformation:
            return rule(on._replace(rate=rate), **hyper)

        return on.around(unfreezing.staged(at, on.waits, on.rate))

    return whole


def _schedule_free(
    on: Setting,
    *,
    weight_decay: NonNegative = 0.0,
    b1: PositiveShare = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    weight_lr_power: NonNegative = 2.0,
):
    """AdamW that needs no schedule, `y = (1 - b1) z + b1 x`: gradients are taken at y, z moves, and
    x, the average of all z, is evaluated, see `evaluation_params` (Defazio et al. 2024).

    Use it: when the length of the run is not known before; with a warm-up, and rates above Adam's.
    Batch statistics are those of y, not of x: prefer models without BatchNorm.
    """
    base = optax.chain(
        optax.scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True),
        optax.add_decayed_weights(weight_decay, on.mask),
        optax.scale_by_learning_rate(on.rate),
    )
    return optax.contrib.schedule_free(on.around(base), on.rate, b1, weight_lr_power)


def _sam(
    on: Setting,
    *,
    inner: Entry = "adamw",
    rho: Positive = 0.05,
    adaptive: bool = False,
    where: str,
):
    """Descends with the gradient at `p + rho g / |g|`, the worst point near p: flat minima.

    Its `update` takes `grad_fn(params, i) -> gradient`, the second gradient of a step; balancing is
    asked for it anew, with the state that it had. Only the first pass moves the batch statistics
    and the balancing state.

    Papers: Foret et al. 2021; adaptive, where rho is relative to each parameter's size, with steps
    `rho w^2 g / |w g|`: Kwon et al. 2021 (rho ten times as large).
    Cost: twice that of `inner`.

    Args:
        inner: what descends, a name of `RULES` or a mapping with `kind`.
        rho: how far away.
        adaptive: whether the neighbourhood is scaled by the parameters.
    """
    descent = registry.build(COMPLETE, inner, on, where=f"{where}.inner")
    return optax.contrib.sam(descent, _ascent(rho, adaptive, on.frozen), opaque_mode=True)


def _ascent(
    rho: float, adaptive: bool, frozen: Callable[[PyTree], PyTree]
) -> optax.GradientTransformation:
    """The way up with its sign turned, as `optax.contrib.sam` takes it; no way where g is 0."""

    def update(grads: PyTree, params: PyTree) -> PyTree:
        grads = jax.tree.map(lambda g, f: jnp.zeros_like(g) if f else g, grads, frozen(grads))
        scaled = grads
        if adaptive:
            scaled = jax.tree.map(lambda g, p: g * jnp.abs(p).astype(g.dtype), grads, params)
        norm = optax.tree.norm(scaled)
        far = jnp.where(norm > 0, rho / jnp.where(norm > 0, norm, 1), 0)
        if adaptive:
            scaled = jax.tree.map(lambda g, p: g * jnp.abs(p).astype(g.dtype), scaled, params)
        return jax.tree.map(lambda g: -far.astype(g.dtype) * g, scaled)

    return optax.stateless(update)


COMPLETE = {name: _complete(rule) for name, rule in RULES.items()}
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    **COMPLETE,
    "schedule_free": _schedule_free,
    "sam": _sam,
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of every optimiser in addition to its hyper-parameters and the rules by path.

    Attributes:
        learning_rate: the peak of the schedule.
        clip: the largest norm of the whole gradient.
        ema: the decay of an average of the parameters.
        schedule: an entry of `schedules.SCHEDULES`.
        warmup: the share of the steps in which the rate rises from 0.
    """

    learning_rate: Positive = 1e-3
    clip: Positive | None = None
    ema: Between | None = None
    schedule: Entry = "constant"
    warmup: Decay = 0.0


def build(
    config: Mapping[str, Any],
    steps: int,
    heads: Callable[[optax.GradientTransformation], optax.GradientTransformation] | None = None,
) -> tuple[Transformation, optax.Schedule]:
    """The optimiser of `config.optimizer` and its learning-rate schedule.

    Rules by path are checked when the optimiser is initialised; `jax.eval_shape(optimizer.init,
    shapes)` is enough. Without the options that need them, states are those of plain Optax.

    Args:
        config: see the module.
        steps: of the run.
        heads: puts rates by task around a rule, see `per_task.pace_heads`.
    """
    config = dict(config)
    own = {field.name: field.default for field in dataclasses.fields(Options)}
    given = Options(**{key: config.pop(key, default) for key, default in own.items()})
    check_fields(given, "optimizer")
    clip, ema, shape = given.clip, given.ema, given.schedule
    schedule = schedules.build(shape, float(given.learning_rate), given.warmup, steps)
    rules = per_path.read(config)
    waits = unfreezing.read(config.pop("unfreeze", None), steps)
    prune = pruning.read(config.pop("prune", None), steps)
    kind = choose(config.get("kind"), OPTIMIZERS, "optimizer.kind", "optimiser")
    if kind == "schedule_free":
        if (shape if isinstance(shape, str) else shape["kind"]) != "constant":
            raise ConfigError("optimizer.schedule: schedule_free takes 'constant', and a warm-up")
        if ema is not None:
            raise ConfigError("optimizer.ema: schedule_free averages by itself")
    if waits and kind in ("schedule_free", "sam"):
        others = ", ".join(sorted(COMPLETE))
        raise ConfigError(f"optimizer.unfreeze: not with {kind}, which moves all; with: {others}")
    _check_decay(config, rules)
    # SAM hands no further arguments on to what it is made of; averages see what really moves.
    within, outside = (None, heads) if kind == "sam" else (heads, None)
    around = _around(clip, rules, within, waits)
    on = Setting(schedule, _decayed(rules), per_path.frozen(rules), around, waits)
    rule = registry.build(OPTIMIZERS, config, on, where="optimizer")
    if outside:
        rule = outside(rule)
    parts = [rule]
    if rules.freeze and kind == "schedule_free":  # whose averaging rounds what it does not move
        parts.append(optax.masked(optax.set_to_zero(), on.frozen))
    if ema is not None:
        parts.append(averaged(ema))
    whole = optax.chain(*parts) if len(parts) > 1 else rule
    whole = optax.with_extra_args_support(whole)
    if prune is not None:
        whole = _pruned(whole, pruning.prune(prune, on.frozen))
    return _guarded(whole, rules, waits), schedules.standalone(schedule)


def _decayed(rules: per_path.PathRules) -> Callable[[PyTree], PyTree]:
    """The mask of weight decay; without rules all matrices, whatever their paths."""
    if rules.decay is not None or rules.no_decay:
        return per_path.decayed(rules)
    return lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _pruned(inner: Transformation, prune: Transformation) -> Transformation:
    """`prune` after all else; averages of the parameters are zero where they are."""

    def init(params: PyTree) -> PyTree:
        return inner.init(params), prune.init(params)

    def update(updates: PyTree, state: PyTree, params: PyTree, **extra: Any):
        updates, own = inner.update(updates, state[0], params, **extra)
        updates, pruned = prune.update(updates, state[1], params)
        return updates, (masked_averages(own, pruned.masks), pruned)

    return Transformation(init, update)


def _check_decay(config: Mapping[str, Any], rules: per_path.PathRules) -> None:
    """Masks of weight decay want a rule that decays."""
    inner = config.get("inner", "adamw") if config["kind"] == "sam" else config
    kind = registry.entry_of(inner, "optimizer.inner").get("kind")
    unruled = rules.decay is None and not rules.no_decay
    if unruled or not isinstance(kind, str) or kind not in OPTIMIZERS:
        return
    if "weight_decay" not in registry.parameters(OPTIMIZERS[kind]):
        key = "no_decay" if rules.decay is None else "decay"
        able = [k for k, v in OPTIMIZERS.items() if "weight_decay" in registry.parameters(v)]
        raise ConfigError(f"optimizer.{key}: {kind} has no weight decay; with: {', '.join(able)}")


def _around(
    clip: float | None,
    rules: per_path.PathRules,
    heads: Callable[..., Any] | None,
    waits: unfreezing.Waits = (),
) -> Callable[..., Any]:
    def around(rule: optax.GradientTransformation) -> optax.GradientTransformation:
        if clip:
            rule = optax.chain(optax.clip_by_global_norm(clip), rule)
            if waits:
                rule = optax.chain(unfreezing.hold(waits), rule)
        if rules.freeze:
            labels = per_path.frozen(rules)
            name = lambda params: jax.tree.map(("free", "frozen").__getitem__, labels(params))  # noqa: E731
            rule = optax.partition({"free": rule, "frozen": optax.set_to_zero()}, name)
        if rules.rates or rules.depth_decay is not None:
            rule = optax.chain(rule, per_path.scale_by_path(rules))
        return heads(rule) if heads else rule

    return around


def _guarded(
    whole: Transformation, rules: per_path.PathRules, waits: unfreezing.Waits
) -> Transformation:
    """Checks the rules by path against the parameters."""

    def init(params: PyTree) -> PyTree:
        per_path.check(rules, params)
        unfreezing.check(waits, params)
        return whole.init(params)

    def update(updates: PyTree, state: PyTree, params: PyTree | None = None, **extra: Any):
        with jax.numpy_dtype_promotion("standard"):  # Optax raises floats to integer powers
            return whole.update(updates, state, params, **extra)

    return Transformation(init, update)
