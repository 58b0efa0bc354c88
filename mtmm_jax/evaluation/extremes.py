"""The rows that a model does best and worst, found in the pass that measures it.

Like a metric it is a monoid: a batch gives its `SHOWN` rows of largest and of smallest loss, with
labels and predictions, and of two such states the same are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax.batch import Batch
from mtmm_jax.tasks.task import Labels, Task

SHOWN = 4  # of each end
SIGNS = {"worst": 1.0, "best": -1.0}

State = dict[str, dict[str, Any]]


def shows(task: Task) -> bool:
    """Whether a row of the task has a loss and a label of its own that a person can read."""
    return task.labelling is not None and task.target is not None and not task.traits.compares_rows


def extremes(task: Task, prediction: Any, labels: Labels) -> State:
    """`{"worst" | "best": {"loss", "id", "y", "prediction"}}` of one batch; pure.

    Rows that do not count have id -1. There are `SHOWN` rows of each, fewer in a smaller batch.
    """

    def loss_of(prediction: Any, y: Any, weight: jax.Array) -> jax.Array:
        one = Labels(*jax.tree.map(lambda x: x[None], (y, weight)))
        total, _ = task.loss(jax.tree.map(lambda x: x[None], prediction), one, None)
        return total

    counts = labels.weight > 0
    ones = jnp.where(counts, 1.0, 0.0).astype(jnp.float32)
    losses = jax.vmap(loss_of)(prediction, labels.y, ones).astype(jnp.float32)
    finite = jnp.isfinite(losses)
    found = {}
    for end, sign in SIGNS.items():
        # A loss that is no number is the worst there is.
        order = jnp.where(finite, sign * losses, jnp.where(sign > 0, jnp.inf, -jnp.inf))
        order = jnp.where(counts, order, -jnp.inf)
        _, rows = jax.lax.top_k(order, min(SHOWN, len(losses)))
        kept = {"loss": losses, "id": labels.id, "y": labels.y, "prediction": prediction}
        found[end] = jax.tree.map(lambda x, rows=rows: x[rows], kept)
        found[end]["id"] = jnp.where(counts[rows], found[end]["id"], -1)
    return found


def merge(a: State, b: State) -> State:
    """The state of two batches; on the host."""
    found = {}
    for end, sign in SIGNS.items():
        both = jax.tree.map(lambda x, y: np.concatenate([x, y]), a[end], b[end])
        loss = np.nan_to_num(sign * both["loss"], nan=np.inf if sign > 0 else -np.inf)
        order = np.argsort(np.where(both["id"] < 0, np.inf, -loss), kind="stable")[:SHOWN]
        found[end] = jax.tree.map(lambda x, rows=order: x[rows], both)
    return found


def inputs_of(source: Any, split: str, ids: set[int], batch_size: int) -> Mapping[int, Batch]:
    """`{id: batch of that one row}`, as evaluation sees it; of ids that are not found nothing."""
    found: dict[int, Batch] = {}
    for batch in _candidates(source, split, ids, batch_size):
        for i, row in enumerate(np.asarray(batch["id"]).tolist()):
            if row in ids and row not in found:
                found[row] = jax.tree.map(lambda x, i=i: np.asarray(x)[i : i + 1], batch)
        if len(found) == len(ids):
            break
    return found


def _candidates(source: Any, split: str, ids: set[int], batch_size: int) -> Iterator[Batch]:
    """The rows themselves, where a row's id is its number, as most sources have it; then all."""
    rows = np.intersect1d(np.array(sorted(ids), np.int64), source.rows[split])
    if len(rows):
        yield source.compose(rows, None)
    yield from source.batches(split, batch_size)
