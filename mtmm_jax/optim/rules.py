"""The table of Optax rules, by the names that configs use: a rate in, a transformation out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import optax

from mtmm_jax.ranges import Between, Count, Decay, Layers, NonNegative, Positive

PyTree = Any


class Setting(NamedTuple):
    """The arguments of every entry of `OPTIMIZERS`.

    Attributes:
        rate: the schedule.
        mask: parameters -> tree of bools: what weight decay acts on.
        frozen: parameters -> tree of bools: what does not move.
        around: puts clipping before a rule, factors by path after it, and leaves out what is
            frozen.
        waits: what begins to learn later, see `unfreezing`.
    """

    rate: optax.Schedule
    mask: Callable[[PyTree], PyTree]
    frozen: Callable[[PyTree], PyTree]
    around: Callable[[optax.GradientTransformation], optax.GradientTransformation]
    waits: tuple[tuple[str, int], ...] = ()


def _adamw(
    on: Setting,
    *,
    weight_decay: NonNegative = 0.0,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    nesterov: bool = False,
):
    """Adam with decoupled weight decay (Kingma, Ba 2015; Loshchilov, Hutter 2019)."""
    return optax.adamw(
        on.rate, b1, b2, eps, weight_decay=weight_decay, mask=on.mask, nesterov=nesterov
    )


def _adam(
    on: Setting,
    *,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    nesterov: bool = False,
):
    """Adam (Kingma, Ba 2015), with nesterov as of Dozat (2016)."""
    return optax.adam(on.rate, b1, b2, eps, nesterov=nesterov)


def _sgd(
    on: Setting, *, momentum: Decay = 0.0, nesterov: bool = False, weight_decay: NonNegative = 0.0
):
    """Stochastic gradient descent; weight decay is added to the gradient, before the momentum."""
    rule = optax.sgd(on.rate, momentum=momentum or None, nesterov=nesterov)
    return optax.chain(optax.add_decayed_weights(weight_decay, on.mask), rule)


def _lion(on: Setting, *, b1: Decay = 0.9, b2: Decay = 0.99, weight_decay: NonNegative = 1e-3):
    """The sign of a momentum (Chen et al. 2023). Rates of a third to a tenth of Adam's."""
    return optax.lion(on.rate, b1, b2, weight_decay=weight_decay, mask=on.mask)


def _lamb(
    on: Setting,
    *,
    weight_decay: NonNegative = 0.0,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-6,
):
    """Adam, each tensor's step as long as a share of the tensor (You et al. 2020)."""
    return optax.lamb(on.rate, b1, b2, eps, weight_decay=weight_decay, mask=on.mask)


def _lars(
    on: Setting,
    *,
    weight_decay: NonNegative = 0.0,
    trust_coefficient: Positive = 1e-3,
    eps: NonNegative = 0.0,
    momentum: Decay = 0.9,
    nesterov: bool = False,
):
    """Momentum, each tensor's step as long as a share of the tensor (You et al. 2017). What is not
    decayed steps as in SGD."""
    return optax.lars(
        on.rate,
        weight_decay,
        on.mask,
        trust_coefficient,
        eps,
        trust_ratio_mask=on.mask,
        momentum=momentum,
        nesterov=nesterov,
    )


def _adafactor(
    on: Setting,
    *,
    weight_decay: NonNegative | None = None,
    momentum: Decay | None = None,
    decay_rate: Between = 0.8,
    min_dim_size_to_factor: Count = 128,
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: Positive | None = 1.0,
):
    """Second moments by rows and columns, little memory (Shazeer, Stern 2018). Its weight decay is
    not multiplied by the learning rate."""
    return optax.adafactor(
        on.rate,
        min_dim_size_to_factor=min_dim_size_to_factor,
        decay_rate=decay_rate,
        multiply_by_parameter_scale=multiply_by_parameter_scale,
        clipping_threshold=clipping_threshold,
        momentum=momentum,
        weight_decay_rate=weight_decay,
        weight_decay_mask=on.mask,
    )


def _rmsprop(
    on: Setting,
    *,
    smoothing: Decay = 0.9,
    eps: NonNegative = 1e-8,
    centered: bool = False,
    momentum: Decay = 0.0,
    nesterov: bool = False,
):
    """Divided by a running root mean square, whose decay is `smoothing` (Tieleman, Hinton 2012)."""
    return optax.rmsprop(
        on.rate, smoothing, eps, centered=centered, momentum=momentum or None, nesterov=nesterov
    )


def _adagrad(on: Setting, *, initial_accumulator_value: NonNegative = 0.1, eps: NonNegative = 1e-7):
    """Divided by the root of all squares so far (Duchi et al. 2011): sparse features."""
    return optax.adagrad(on.rate, initial_accumulator_value, eps)


def _muon(
    on: Setting,
    *,
    weight_decay: NonNegative = 0.0,
    beta: Decay = 0.95,
    ns_steps: Layers = 5,
    nesterov: bool = True,
    consistent_rms: Positive | None = None,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
):
    """Orthogonalised momentum on matrices, Adam (b1, b2) on all else (Jordan 2024). With
    consistent_rms=0.2 its steps are as large as AdamW's (Liu et al. 2025)."""
    # The rate comes last, so that decay, by the mask, acts on what Adam moves, too.
    direction = optax.contrib.muon(
        -1.0,
        ns_steps=ns_steps,
        beta=beta,
        nesterov=nesterov,
        consistent_rms=consistent_rms,
        adam_b1=b1,
        adam_b2=b2,
    )
    decay = optax.add_decayed_weights(weight_decay, on.mask)
    return optax.chain(direction, decay, optax.scale_by_learning_rate(on.rate))


RULES: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adamw": _adamw,
    "adam": _adam,
    "sgd": _sgd,
    "lion": _lion,
    "lamb": _lamb,
    "lars": _lars,
    "adafactor": _adafactor,
    "rmsprop": _rmsprop,
    "adagrad": _adagrad,
    "muon": _muon,
}
