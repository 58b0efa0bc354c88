"""Runs the Optax transformation of any table row on task gradients, one program per row."""

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
def runner(kind: str, num_tasks: int, hyper: tuple[tuple[str, Any], ...] = ()) -> Any:
    """`(rows, losses, present [T, K], other, steps) -> (update, state)`, jitted and kept.

    From the initial state, on the same gradients at every step; after step T the last row of
    `present` holds.
    """
    balancer = make(kind, num_tasks, **dict(hyper))

    def run_steps(rows: Any, losses: Any, present: Any, other: Any, steps: Any) -> Any:
        def step(number: Any, carry: Any) -> Any:
            return balancer.update(
                {"x": rows},
                carry[1],
                losses=losses,
                present=present[jnp.minimum(number, len(present) - 1)],
                other={"x": other},
            )

        nothing = {"x": jnp.zeros_like(rows[0])}
        return jax.lax.fori_loop(np.int32(0), steps, step, (nothing, balancer.init(nothing)))

    return jax.jit(run_steps)


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
    """The update, the weights and the state after some steps on the same gradients.

    `present` is `[K]`, or `[3, K]`: one row for each of the first steps.
    """
    k = len(jacobian)
    losses = np.linspace(0.5, 1.5, k) if losses is None else losses
    present = np.ones(k, bool) if present is None else present
    other = jacobian if other is None else other
    with jax.enable_x64(dtype == np.float64):
        update, state = runner(kind, k, tuple(hyper.items()))(
            np.asarray(jacobian, dtype),
            np.asarray(losses, dtype),
            np.broadcast_to(present, (3, k)),
            np.asarray(other, dtype),
            np.int32(steps),
        )
        return np.asarray(update["x"], np.float64), np.asarray(state.task_weights), state


def padded(jacobian: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The same tasks and absent ones after them, so that matrices of one shape share a program.

    Every method leaves an absent task out as if its row were deleted (`test_properties.py`), and
    no method sees columns of zeros.
    """
    more = rows - len(jacobian), columns - jacobian.shape[1]
    return np.pad(jacobian, [(0, n) for n in more])
