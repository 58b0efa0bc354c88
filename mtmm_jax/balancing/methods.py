"""The table of methods, by the names that configs use, and `build`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mtmm_jax.balancing.adaptive_losses import dwa, famo, imtl_l, performance, rlw
from mtmm_jax.balancing.affinity import affinity
from mtmm_jax.balancing.closed_forms import aligned_mtl, conflict_free, imtl_g, krum
from mtmm_jax.balancing.core import Balancer
from mtmm_jax.balancing.gradvac import gradvac
from mtmm_jax.balancing.gramian_rules import cagrad, dualproj, fairgrad, mgda, nash, pcgrad, upgrad
from mtmm_jax.balancing.jacobian_rules import db_mtl, excess_mtl, graddrop, moco, trimmed_mean
from mtmm_jax.balancing.losses_only import equal, static, uncertainty
from mtmm_jax.balancing.scalarisations import cosmos, gls, pbi, stch
from mtmm_jax.balancing.stateful_rules import gradnorm, learned, modo, pcd, sdmgrad
from mtmm_jax.balancing.wrappers import WRAPPERS
from mtmm_jax.registry import build as build_entry
from mtmm_jax.registry import entry_of

METHODS: dict[str, Callable[..., Balancer]] = {
    "equal": equal,
    "static": static,
    "uncertainty": uncertainty,
    "dwa": dwa,
    "gls": gls,
    "rlw": rlw,
    "imtl_l": imtl_l,
    "famo": famo,
    "stch": stch,
    "performance": performance,
    "learned": learned,
    "affinity": affinity,
    "cosmos": cosmos,
    "pbi": pbi,
    "gradnorm": gradnorm,
    "mgda": mgda,
    "pcgrad": pcgrad,
    "cagrad": cagrad,
    "imtl_g": imtl_g,
    "nash": nash,
    "fairgrad": fairgrad,
    "upgrad": upgrad,
    "dualproj": dualproj,
    "aligned_mtl": aligned_mtl,
    "sdmgrad": sdmgrad,
    "modo": modo,
    "pcd": pcd,
    "krum": krum,
    "graddrop": graddrop,
    "gradvac": gradvac,
    "moco": moco,
    "db_mtl": db_mtl,
    "excess_mtl": excess_mtl,
    "conflict_free": conflict_free,
    "trimmed_mean": trimmed_mean,
}


def build(spec: str | Mapping[str, Any], num_tasks: int) -> Balancer:
    """The balancer that a config names.

    Args:
        spec: a name of `METHODS`, or a mapping with `kind`, that method's hyper-parameters and,
            if wanted, `wrap`: a list of specs of `WRAPPERS`, the innermost first:
            `{"kind": "cagrad", "c": 0.4, "wrap": [{"kind": "smoothed", "decay": 0.9}]}`.
        num_tasks: K.
    """
    hyper = entry_of(spec)
    around = hyper.pop("wrap", ())
    balancer = build_entry(METHODS, hyper, num_tasks, where="balancing")
    for number, wrapper in enumerate([around] if isinstance(around, str) else around):
        balancer = build_entry(WRAPPERS, wrapper, balancer, where=f"balancing.wrap[{number}]")
    return balancer
