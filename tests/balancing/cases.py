"""Runs the Optax transformation of any table row on task gradients, one compile per row."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax import balancing

RANDOM = {"pcgrad", "gradvac", "rlw", "graddrop"}
# Short warm-ups, so that a few steps see more than the first phase of each method.
HYPER: dict[str, dict[str, Any]] = {
    "stch": {"warmup": 1},
    "dwa": {"epoch": 1},
    "static": {"weights": 0.7},
}


def make(kind: str, num_tasks: int, **hyper: Any) -> balancing.Balancer:
    return balancing.build({"kind": kind, **HYPER.get(kind, {}), **hyper}, num_tasks)


JACOBIAN = {kind for kind in balancing.METHODS if make(kind, 2).rule.needs == "jacobian"}


@functools.cache
def stepper(kind: str, num_tasks: int, hyper: tuple[tuple[str, Any], ...] = ()) -> Any:
    """`(rows, losses, present, other, state) -> (update, state)`, jitted and kept."""
    balancer = make(kind, num_tasks, **dict(hyper))

    def step(rows: Any, losses: Any, present: Any, other: Any, state: Any) -> Any:
        return balancer.update(
            {"x": rows}, state, losses=losses, present=present, other={"x": other}
        )

    return balancer, jax.jit(step)


def run(
    kind: str,
    jacobian: np.ndarray,
    losses: np.ndarray | None = None,
    present: np.ndarray | None = None,
    other: np.ndarray | None = None,
    steps: int = 1,
    dtype: Any = np.float64,
    **hyper: Any,
) -> tuple[np.ndarray, np.ndarray, Any]:
    """The update, the weights and the state after some steps on the same gradients."""
    k = len(jacobian)
    losses = np.linspace(0.5, 1.5, k) if losses is None else losses
    present = np.ones(k, bool) if present is None else present
    other = jacobian if other is None else other
    with jax.enable_x64(dtype == np.float64):
        balancer, step = stepper(kind, k, tuple(hyper.items()))
        rows, others, at = (jnp.asarray(a, dtype) for a in (jacobian, other, losses))
        state = balancer.init({"x": jnp.zeros_like(rows[0])})
        for _ in range(steps):
            update, state = step(rows, at, jnp.asarray(present), others, state)
        return np.asarray(update["x"], np.float64), np.asarray(state.task_weights), state
