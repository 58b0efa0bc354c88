"""K losses or K gradients -> one update: multi-task gradient balancing as Optax transforms."""

from mtmm_jax.balancing import solvers
from mtmm_jax.balancing.adaptive_losses import dwa, famo, imtl_l, performance, rlw
from mtmm_jax.balancing.affinity import (
    affinity,
    affinity_weights,
    first_order_affinity,
    lookahead_affinity,
)
from mtmm_jax.balancing.core import (
    Balancer,
    BalancerState,
    Evidence,
    Mixed,
    Rule,
    current_weights,
    gramian_of,
)
from mtmm_jax.balancing.diagnostics import (
    condition_number,
    conflict_rate,
    cosines,
    diagnose,
    magnitude_similarity,
)
from mtmm_jax.balancing.gradvac import gradvac
from mtmm_jax.balancing.gramian_rules import (
    aligned_mtl,
    cagrad,
    conflict_free,
    dualproj,
    fairgrad,
    imtl_g,
    krum,
    mgda,
    nash,
    pcgrad,
    upgrad,
)
from mtmm_jax.balancing.jacobian_rules import db_mtl, excess_mtl, graddrop, moco, trimmed_mean
from mtmm_jax.balancing.layerwise import Layer, Tapped
from mtmm_jax.balancing.losses_only import equal, static, uncertainty
from mtmm_jax.balancing.methods import METHODS, build
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
    "grouped",
    "imtl_g",
    "imtl_l",
    "krum",
    "learned",
    "lookahead_affinity",
    "magnitude_similarity",
    "mgda",
    "moco",
    "modo",
    "nash",
    "normalised",
    "pbi",
    "pcd",
    "pcgrad",
    "performance",
    "rlw",
    "sdmgrad",
    "shared_by_path",
    "smoothed",
    "solvers",
    "static",
    "stch",
    "trimmed_mean",
    "uncertainty",
    "upgrad",
    "value_and_grad",
    "warmed_up",
]
