"""GradVac: conflicts repaired up to a learned target similarity of each pair of tasks."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtmm_jax.balancing.core import Balancer, Evidence, Rule
from mtmm_jax.balancing.gramian_rules import random_orders
from mtmm_jax.balancing.losses_only import rule_dtype
from mtmm_jax.balancing.randomness import RandomState, random_init, random_next
from mtmm_jax.balancing.rows import Array, Rows
from mtmm_jax.balancing.wrappers import grouped
from mtmm_jax.registry import ConfigError, choose


class GradVacState(NamedTuple):
    """The target similarity of every ordered pair, and the randomness."""

    target: Array
    random: RandomState


def gradvac(
    num_tasks: int,
    beta: float = 0.5,
    target: float = 0.0,
    groups: str = "whole",
    seed: int = 0,
) -> Balancer:
    """GradVac: as PCGrad, but where `phi = cos(c_i, g_j)` falls below the target `rho_ij`:
    `c_i += ||c_i|| (rho sqrt(1 - phi^2) - phi sqrt(1 - rho^2)) / (||g_j|| sqrt(1 - rho^2)) g_j`,
    after which their cosine is rho; then `rho <- (1 - beta) rho + beta phi`.

    Paper: Wang et al., ICLR 2021.
    Cost: O(K^3) on the Gramian with `groups="whole"`; K task gradients per group otherwise.
    Use it: many related tasks (languages) with positive typical similarity. Not: when an answer
    that does not depend on the order of tasks is wanted.

    Args:
        num_tasks: K.
        beta: rate of the target similarities.
        target: the first rho.
        groups: `"whole"` model, each `"layer"` (all leaves of one module) or each `"matrix"`.
        seed: of the random orders.
    """
    choose(groups, ("whole", "layer", "matrix"), "gradvac.groups")
    if not -1 < target < 1:
        raise ConfigError(f"gradvac.target: {target}; must be in (-1, 1)")

    def init(rows: Rows, num_tasks: int) -> GradVacState:
        rho = jnp.full((num_tasks, num_tasks), target, rule_dtype(rows))
        return GradVacState(rho, random_init(seed))

    def weigh(state: GradVacState, evidence: Evidence) -> tuple[Array, GradVacState]:
        key, random = random_next(state.random)
        weights, rho = gradvac_weights(
            evidence.gramian.astype(state.target.dtype),
            evidence.present,
            random_orders(key, num_tasks),
            state.target,
            beta,
        )
        return weights, GradVacState(rho, random)

    whole = Balancer(Rule("gramian", init, weigh), num_tasks)
    if groups == "whole":
        return whole
    return grouped(whole, by=groups)


def gradvac_weights(
    gramian: Array, present: Array, orders: Array, target: Array, beta: float
) -> tuple[Array, Array]:
    """Weights and the next targets, for given orders `[K, K]` (row i: the order for task i)."""
    tasks = jnp.arange(gramian.shape[0])
    norms = jnp.sqrt(jnp.maximum(jnp.diagonal(gramian), 0))
    usable = present & (norms > 0)
    inverse = jnp.where(usable, 1 / jnp.where(usable, norms, 1), 0)

    def repair(carry: tuple[Array, Array, Array], js: Array) -> tuple[tuple, None]:
        coefficients, products, rho_all = carry  # a_i and G a_i, as rows
        chosen = js[:, None] == tasks[None, :]

        def pick(table: Array) -> Array:
            return jnp.sum(jnp.where(chosen, table, 0), axis=1)

        length = jnp.sqrt(jnp.maximum(jnp.sum(coefficients * products, axis=1), 0))
        counts = (js != tasks) & usable[js] & usable & (length > 0)
        phi = pick(products) * inverse[js] / jnp.where(length > 0, length, 1)
        phi = jnp.clip(phi, -1, 1)
        rho = pick(rho_all)
        below = counts & (phi < rho)
        root = jnp.sqrt(jnp.maximum(1 - rho**2, 1e-12))
        step = length * (rho * jnp.sqrt(1 - phi**2) - phi * root) * inverse[js] / root
        step = jnp.where(below, step, 0)
        coefficients = coefficients + jnp.where(chosen, step[:, None], 0)
        products = products + step[:, None] * gramian[js]
        learned = jnp.where(counts, (1 - beta) * rho + beta * phi, rho)
        return (coefficients, products, jnp.where(chosen, learned[:, None], rho_all)), None

    start = (jnp.diag(present.astype(gramian.dtype)), gramian, target)
    (coefficients, _, target), _ = jax.lax.scan(repair, start, orders.T)
    return coefficients.sum(0), target
