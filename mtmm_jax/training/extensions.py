"""`EXTENSIONS`: the sections of a config that change what an experiment is made of, in order.

Adding one: a file with `extend(section, parts) -> parts` and a row here. A section without a dot
is a key of the config; one with a dot, such as `optimizer.private`, a key of that section.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from mtmm_jax import balancing, registry
from mtmm_jax.assembly import Extension, Parts
from mtmm_jax.objectives import distillation, imbalance, in_step, relatedness, semi
from mtmm_jax.optim import optimizers, per_path, per_task, privacy
from mtmm_jax.ranges import Layers
from mtmm_jax.registry import ConfigError, check
from mtmm_jax.store.config import KEYS
from mtmm_jax.transfer import init_from, lora, pretrained, quantising

TRAINER_KEYS = ("engine", "head_gradients", "chunk")


def build_balancer(section: Any, parts: Parts) -> Parts:
    """`config.balancing`, as extensions left it in `parts.balancing`: the balancer, and the
    options of the trainer that stand next to it."""
    del section
    config, model = registry.entry_of(parts.balancing, "balancing"), parts.model
    trainer = {key: config.pop(key) for key in TRAINER_KEYS if key in config}
    auxiliaries = config.pop("auxiliaries", "added")
    registry.choose(auxiliaries, ("added", "balanced"), "balancing.auxiliaries", "way")
    count = len(model.loss_names if auxiliaries == "balanced" else model.tasks)
    balancer = parts.make_balancer(config, count)
    balancer = balancing.with_auxiliary_losses(balancer, len(model.loss_names) - count)
    needs = balancer.rule.needs
    with_loss = any(imbalance.LOSS in task.metrics for task in model.tasks.values())
    if balancer.rule.observes == "losses" and not with_loss:
        raise ConfigError(
            "balancing: this form waits for later losses, which training does not hand back; "
            "famo: after='next', dwa: epoch of 1 or more steps"
        )
    if model.probes and needs != "losses":
        raise ConfigError(
            f"balancing: {', '.join(model.probes)} only score (unimodal: 'probe'), so that their "
            "gradient of shared parameters is zero and this method would weigh against nothing; "
            "set unimodal to True, or choose a method that needs losses only"
        )
    cuts = {task.reads for task in model.tasks.values()}
    if needs != "losses" and trainer.get("engine", "auto") == "auto" and len(cuts) > 1:
        # Tasks that read different tensors do not meet at the cut: their gradients there would be
        # orthogonal by construction, and every conflict inside the encoders invisible.
        trainer["engine"] = "full"
    return parts.replace(balancer=balancer, trainer={**parts.trainer, **trainer})


def accumulate(section: Any, parts: Parts) -> Parts:
    """The extension `optimizer.accumulate`: how many microbatches make a step."""
    count = check(section, Layers, "optimizer.accumulate")
    if count > 1 and parts.trainer.get("engine") == "gramian":
        raise ConfigError(
            "optimizer.accumulate: engine 'gramian' needs all samples at once; "
            "balancing.engine choices: auto, representation, full"
        )
    return parts.replace(trainer={**parts.trainer, "accumulate": count})


def build_optimizer(section: Any, parts: Parts) -> Parts:
    """`config.optimizer`, less what is an extension of its own, and what does not learn."""
    own = {key: value for key, value in section.items() if f"optimizer.{key}" not in EXTENSIONS}
    freeze = [*per_path.regexes(own.get("freeze"), "optimizer.freeze"), *parts.freeze]
    model = parts.model
    if parts.rates_by_path:
        given = own.get("rates") or ()
        pairs = given.items() if isinstance(given, Mapping) else given
        own["rates"] = [*pairs, *parts.rates_by_path]
    if freeze:
        own["freeze"] = freeze
        rewrites = (per_path.held(freeze), *model.rewrites)
        model = dataclasses.replace(model, rewrites=rewrites)
    heads = None if parts.around_heads is None else parts.around_heads(parts)
    rules_by_path = any(key in own for key in per_path.KEYS)
    optimizer, rates = optimizers.build(own, parts.config["steps"], heads)
    if rules_by_path:  # read where paths are
        jax.eval_shape(optimizer.init, model.shapes["params"])
    return parts.replace(model=model, optimizer=optimizer, rates=rates)


EXTENSIONS: dict[str, Extension] = {
    "optimizer.imbalance": Extension(
        imbalance.extend,
        10,
        {"optimizer.private": "it follows the samples' scores, which no noise covers"},
    ),
    "relatedness": Extension(
        relatedness.extend, 20, {"optimizer.private": "no noise covers what is measured"}
    ),
    "teachers": Extension(distillation.extend, 30),
    "semi": Extension(semi.extend, 40),
    "optimizer.tasks": Extension(per_task.extend, 45),
    "balancing": Extension(build_balancer, 50),
    "data.in_step": Extension(in_step.augment, 60),
    "tasks": Extension(in_step.mask, 61),
    "optimizer.accumulate": Extension(accumulate, 65),
    "model": Extension(pretrained.extend, 69),
    "init_from": Extension(init_from.extend, 70),
    "lora": Extension(lora.extend, 71),
    "quantise": Extension(quantising.extend, 72),
    "optimizer": Extension(build_optimizer, 80),
    "optimizer.private": Extension(privacy.extend, 90),
}


def optional_sections() -> tuple[str, ...]:
    """The sections that a config may leave out: those of extensions which `KEYS` does not have."""
    return tuple(place for place in EXTENSIONS if "." not in place and place not in KEYS)
