"""K losses or K gradients -> one update: multi-task gradient balancing as Optax transforms.

Useful alone: this package imports jax, optax and chex only. A method is a function
`method(num_tasks, **hyper)`; `METHODS` is the table, `build` makes one from a config.

With one's own task gradients (leaves `[K, *shape]`), first in a chain:

    import jax, jax.numpy as jnp, optax
    from mtmm_jax import balancing

    params = {"w": jnp.zeros(3)}
    losses_of = lambda p: jnp.stack([jnp.sum((p["w"] - 1) ** 2), jnp.sum((p["w"] + 2) ** 2)])
    optimizer = optax.chain(balancing.cagrad(2, c=0.4), optax.clip_by_global_norm(1.0),
                            optax.sgd(0.1))
    state = optimizer.init(params)
    grads = jax.jacrev(losses_of)(params)
    updates, state = optimizer.update(grads, state, params, losses=losses_of(params))
    params = optax.apply_updates(params, updates)
    weights = balancing.current_weights(state)

Or from the losses, paying only for what the method needs, `Split` being the model cut in two:

    split = balancing.Split(trunk, readout)
    step = balancing.value_and_grad(split, balancing.upgrad(K))
    losses, grads, state, diagnostics, aux = step(params, state, batch)

Clipping, Adam, `MultiSteps` and `apply_if_finite` come AFTER the balancer.

| tier | cost | methods |
|---|---|---|
| losses | one backward pass at any K | equal static uncertainty dwa gls rlw imtl_l famo stch |
| | | performance cosmos pbi |
| gramian | one backward pass, K gradients at the cut (engine `representation`); | mgda pcgrad |
| | K pullbacks (`gramian`, `full`) for those of the parameters | cagrad imtl_g nash fairgrad |
| | | upgrad dualproj aligned_mtl pcd krum gradvac conflict_free gradnorm affinity |
| gramian, two batches | twice K pullbacks | sdmgrad modo learned |
| jacobian | K pullbacks, K x P numbers | graddrop moco db_mtl excess_mtl trimmed_mean |

Which one: begin with `equal`, then `static` with weights from the losses' units. Likelihoods of
different units: `uncertainty`. Many tasks, no budget: `famo`, `dwa`. Conflicts to be resolved
without sacrificing a task: `upgrad`; keeping the mean in sight: `cagrad`; one main task: `pcd`;
losses of incomparable scale: `nash`, `imtl_g`, `aligned_mtl`. Every method's docstring says more.

A task that is absent from a batch, or whose loss or gradient is not finite, is left out exactly as
if its row were deleted, weighs 0, and is counted in the state's `absences`.
"""

from mtmm_jax.balancing import solvers
from mtmm_jax.balancing.accumulation import split_rows
from mtmm_jax.balancing.adaptive_losses import dwa, famo, imtl_l, performance, rlw
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
from mtmm_jax.balancing.beside import beside
from mtmm_jax.balancing.blending import blending
from mtmm_jax.balancing.closed_forms import aligned_mtl, conflict_free, imtl_g, krum
from mtmm_jax.balancing.core import Balancer, BalancerState, Evidence, Mixed, Rule, current_weights
from mtmm_jax.balancing.diagnostics import (
    condition_number,
    conflict_rate,
    cosines,
    diagnose,
    magnitude_similarity,
)
from mtmm_jax.balancing.gradvac import gradvac
from mtmm_jax.balancing.gramian_rules import cagrad, dualproj, fairgrad, mgda, nash, pcgrad, upgrad
from mtmm_jax.balancing.jacobian_rules import db_mtl, excess_mtl, graddrop, moco, trimmed_mean
from mtmm_jax.balancing.layerwise import Layer, Tapped
from mtmm_jax.balancing.losses_only import equal, static, uncertainty
from mtmm_jax.balancing.methods import METHODS, build
from mtmm_jax.balancing.rows import gramian_of
from mtmm_jax.balancing.scalarisations import cosmos, gls, pbi, stch
from mtmm_jax.balancing.split import Split
from mtmm_jax.balancing.stateful_rules import gradnorm, learned, modo, pcd, sdmgrad
from mtmm_jax.balancing.trainer import ENGINES, Balanced, value_and_grad
from mtmm_jax.balancing.wrappers import (
    WRAPPERS,
    every,
    grouped,
    normalised,
    shared_by_path,
    smoothed,
    warmed_up,
)

__all__ = [
    "ENGINES",
    "METHODS",
    "WRAPPERS",
    "Affinities",
    "Balanced",
    "Balancer",
    "BalancerState",
    "Evidence",
    "Layer",
    "Mixed",
    "Rule",
    "Split",
    "Tapped",
    "affinity",
    "affinity_weights",
    "aligned_mtl",
    "beside",
    "best_groups",
    "blending",
    "build",
    "cagrad",
    "condition_number",
    "conflict_free",
    "conflict_rate",
    "cosines",
    "cosmos",
    "current_weights",
    "db_mtl",
    "diagnose",
    "dualproj",
    "dwa",
    "equal",
    "every",
    "excess_mtl",
    "fairgrad",
    "famo",
    "first_order_affinity",
    "gls",
    "graddrop",
    "gradnorm",
    "gradvac",
    "gramian_of",
    "group_score",
    "grouped",
    "imtl_g",
    "imtl_l",
    "krum",
    "learned",
    "lookahead_affinity",
    "magnitude_similarity",
    "measured_affinity",
    "mgda",
    "moco",
    "modo",
    "nash",
    "normalised",
    "pbi",
    "pcd",
    "pcgrad",
    "performance",
    "relative",
    "rlw",
    "sdmgrad",
    "shared_by_path",
    "smoothed",
    "solvers",
    "split_rows",
    "static",
    "static_weights",
    "stch",
    "trimmed_mean",
    "uncertainty",
    "upgrad",
    "value_and_grad",
    "warmed_up",
]
