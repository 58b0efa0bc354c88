"""The random state of rules that draw: a raw key and a counter, equal on every device."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtmm_jax.balancing.rows import Array


class RandomState(NamedTuple):
    """Draws depend on the seed and the step only, so a checkpoint resumes them exactly."""

    key: Array
    step: Array


def random_init(seed: int) -> RandomState:
    """The key of a seed, at step 0."""
    return RandomState(jax.random.PRNGKey(seed), jnp.zeros((), jnp.int32))


def random_next(state: RandomState) -> tuple[Array, RandomState]:
    """This step's key and the next step's state."""
    return jax.random.fold_in(state.key, state.step), state._replace(step=state.step + 1)
