"""K losses or K gradients -> one update: multi-task gradient balancing as Optax transforms.

Useful alone: this package imports jax, optax and chex only. A method is a function
`method(num_tasks, **hyper)`, exported under its name in the table `METHODS`; `build` makes one from
a config. A new method is a function in the file of its tier and one row of the table.

With one's own task gradients (leaves `[K, *shape]`), first in a chain:

    >>> import jax, jax.numpy as jnp, optax
    >>> from mtmm_jax import balancing
    >>> params = {"w": jnp.zeros(3)}
    >>> def losses_of(p):
    ...     return jnp.stack([jnp.sum((p["w"] - 1) ** 2), jnp.sum((p["w"] + 2) ** 2)])
    >>> optimizer = optax.chain(balancing.cagrad(2, c=0.4), optax.clip_by_global_norm(1.0),
    ...                         optax.sgd(0.1))
    >>> state = optimizer.init(params)
    >>> grads = jax.jacrev(losses_of)(params)
    >>> updates, state = optimizer.update(grads, state, params, losses=losses_of(params))
    >>> params = optax.apply_updates(params, updates)
    >>> weights = balancing.current_weights(state)
    >>> weights.shape
    (2,)

Or from the losses, paying only for what the method needs, `Split` being the model cut in two:

    split = balancing.Split(trunk, readout)
    step = balancing.value_and_grad(split, balancing.upgrad(K))
    losses, grads, state, diagnostics, aux = step(params, state, batch)

Clipping, Adam, `MultiSteps` and `apply_if_finite` come AFTER the balancer.

| tier | cost |
|---|---|
| losses | one backward pass at any K |
| gramian | one backward pass, K gradients at the cut (engine `representation`); K pullbacks for |
| | those of the parameters (engines `gramian`, `full`) |
| gramian, two samples | twice K pullbacks |
| jacobian | K pullbacks, K x P numbers |

Which one: begin with `equal`, then `static` with weights from the losses' units. Likelihoods of
different units: `uncertainty`. Many tasks, no budget: `famo`, `dwa`. Conflicts to be resolved
without sacrificing a task: `upgrad`; keeping the mean in sight: `cagrad`; one main task: `pcd`;
losses of incomparable scale: `nash`, `imtl_g`, `aligned_mtl`. Every method's docstring says more.

A task that is absent from a batch, or whose loss or gradient is not finite, is left out exactly as
if its row were deleted, weighs 0, and is counted in the state's `absences`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mtmm_jax.balancing import (
    gramian,
    gramian_stateful,
    jacobian,
    losses,
    losses_adaptive,
    losses_grouped,
    solvers,
)
from mtmm_jax.balancing.affinity import (
    Affinities,
    affinity,
    affinity_weights,
    best_groups,
    first_order_affinity,
    group_score,
    lookahead_affinity,
    measured_affinity,
    relative,
    static_weights,
)
from mtmm_jax.balancing.base import (
    Balancer,
    BalancerState,
    Evidence,
    Geometry,
    Rule,
    WeightedGradient,
    checked_method,
    cosines,
    current_rates,
    current_weights,
    geometry_of,
    gramian_of,
)
from mtmm_jax.balancing.cut import Split
from mtmm_jax.balancing.engines import Layer, Tapped
from mtmm_jax.balancing.instancewise import instance_value_and_grad
from mtmm_jax.balancing.losses_adaptive import blending
from mtmm_jax.balancing.trainer import (
    ENGINES,
    Balanced,
    condition_number,
    conflict_rate,
    diagnose,
    magnitude_similarity,
    split_rows,
    value_and_grad,
)
from mtmm_jax.balancing.wrappers import WRAPPERS, shared_by_path, with_auxiliary_losses
from mtmm_jax.ranges import Entry
from mtmm_jax.registry import build as build_entry
from mtmm_jax.registry import check, entry_of

METHODS: dict[str, Callable[..., Balancer]] = {
    "equal": losses.equal,
    "static": losses.static,
    "uncertainty": losses.uncertainty,
    "dwa": losses_adaptive.dwa,
    "gls": losses.gls,
    "rlw": losses_adaptive.rlw,
    "imtl_l": losses.imtl_l,
    "famo": losses_adaptive.famo,
    "go4align": losses_grouped.go4align,
    "ldc_mtl": losses_grouped.ldc_mtl,
    "stch": losses.stch,
    "performance": losses_adaptive.performance,
    "learned": gramian_stateful.learned,
    "auto_lambda": gramian_stateful.auto_lambda,
    "affinity": affinity,
    "cosmos": losses.cosmos,
    "pbi": losses.pbi,
    "gradnorm": gramian_stateful.gradnorm,
    "mgda": gramian.mgda,
    "pcgrad": gramian.pcgrad,
    "cagrad": gramian.cagrad,
    "imtl_g": gramian.imtl_g,
    "nash": gramian.nash,
    "fairgrad": gramian.fairgrad,
    "upgrad": gramian.upgrad,
    "dualproj": gramian.dualproj,
    "aligned_mtl": gramian.aligned_mtl,
    "sdmgrad": gramian_stateful.sdmgrad,
    "modo": gramian_stateful.modo,
    "pcd": gramian_stateful.pcd,
    "krum": gramian.krum,
    "graddrop": jacobian.graddrop,
    "gradvac": jacobian.gradvac,
    "moco": jacobian.moco,
    "db_mtl": jacobian.db_mtl,
    "excess_mtl": jacobian.excess_mtl,
    "conflict_free": gramian.conflict_free,
    "trimmed_mean": jacobian.trimmed_mean,
}

METHODS = {name: checked_method(method, f"balancing.{name}") for name, method in METHODS.items()}


def build(spec: str | Mapping[str, Any], num_tasks: int) -> Balancer:
    """The balancer that a config names.

    Args:
        spec: a name of `METHODS`, or a mapping with `kind`, that method's hyper-parameters and,
            if wanted, `wrap`: a list of specs of `WRAPPERS`, the innermost first:
            `{"kind": "cagrad", "c": 0.4, "wrap": [{"kind": "smoothed", "decay": 0.9}]}`.
        num_tasks: K.
    """
    hyper = entry_of(spec, "balancing")
    around = check(hyper.pop("wrap", ()), str | Sequence[Entry], "balancing.wrap")
    balancer = build_entry(METHODS, hyper, num_tasks, where="balancing")
    for number, wrapper in enumerate([around] if isinstance(around, str) else around):
        balancer = build_entry(WRAPPERS, wrapper, balancer, where=f"balancing.wrap[{number}]")
    return balancer


globals().update(METHODS | WRAPPERS)

__all__ = [
    *METHODS,
    *WRAPPERS,
    "ENGINES",
    "METHODS",
    "WRAPPERS",
    "Affinities",
    "Balanced",
    "Balancer",
    "BalancerState",
    "Evidence",
    "Geometry",
    "Layer",
    "Rule",
    "Split",
    "Tapped",
    "WeightedGradient",
    "affinity_weights",
    "best_groups",
    "blending",
    "build",
    "condition_number",
    "conflict_rate",
    "cosines",
    "current_rates",
    "current_weights",
    "diagnose",
    "first_order_affinity",
    "geometry_of",
    "gramian_of",
    "group_score",
    "instance_value_and_grad",
    "lookahead_affinity",
    "magnitude_similarity",
    "measured_affinity",
    "relative",
    "shared_by_path",
    "solvers",
    "split_rows",
    "static_weights",
    "value_and_grad",
    "with_auxiliary_losses",
]

__doc__ = "\n".join(
    [__doc__ or "", "Methods:", ""]
    + [f"    {name:<14}{(make.__doc__ or name).splitlines()[0]}" for name, make in METHODS.items()]
)
