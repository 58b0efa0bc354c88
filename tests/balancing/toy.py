"""A small model with K heads and missing labels, whole or cut in two, for the balancing tests."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax import balancing

K = 3
BATCH, IN, HIDDEN, OUT = 8, 5, 6, 2


def params(seed: int = 0, dtype: Any = np.float32) -> dict[str, Any]:
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[0]), dtype)

    return {
        "trunk": {"w1": draw(IN, HIDDEN), "w2": draw(HIDDEN, HIDDEN)},
        "heads": [{"w": draw(HIDDEN, OUT)} for _ in range(K)],
    }


def batch(seed: int = 1, dtype: Any = np.float32, filler: float = 0.0) -> dict[str, jax.Array]:
    """Labels missing here and there, at least one of every task there."""
    rng = np.random.default_rng(seed)
    present = rng.random((BATCH, K)) < 0.6
    present[0] = True
    y = rng.normal(size=(BATCH, K, OUT))
    y = np.where(present[:, :, None], y, filler)
    return {
        "x": jnp.asarray(rng.normal(size=(BATCH, IN)), dtype),
        "y": jnp.asarray(y, dtype),
        "present": jnp.asarray(present),
    }


def shared_labels(tree: Any) -> Any:
    """True for the trunk, False for the heads."""
    return {
        "trunk": jax.tree.map(lambda _: True, tree["trunk"]),
        "heads": jax.tree.map(lambda _: False, tree["heads"]),
    }


def trunk(p: Any, b: Any) -> tuple[Any, Any]:
    hidden = jnp.tanh(jnp.tanh(b["x"] @ p["trunk"]["w1"]) @ p["trunk"]["w2"])
    return {"hidden": hidden, "mask": b["present"].any(1)}, {"seen": b["present"].sum()}


def readout(p: Any, copies: Any, aux: Any, b: Any) -> tuple[jax.Array, jax.Array, Any]:
    sums, counts = [], []
    for k, (head, copy) in enumerate(zip(p["heads"], copies, strict=False)):
        error = jnp.sum((copy["hidden"] @ head["w"] - b["y"][:, k]) ** 2, axis=1)
        here = b["present"][:, k] & copy["mask"]
        sums.append(jnp.where(here, error, 0).sum())
        counts.append(here.sum().astype(error.dtype))
    return jnp.stack(sums), jnp.stack(counts), {"seen": aux["seen"], "sums": jnp.stack(sums)}


SPLIT = balancing.Split(trunk, readout)


def whole(p: Any, b: Any) -> tuple[jax.Array, jax.Array, Any]:
    return SPLIT(p, b)
