"""Predictions of several runs for the same rows: their metrics, and a learned rule over them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtmm_jax.data.pipeline.folds import fold_of
from mtmm_jax.evaluation.split import Results, compute, merge
from mtmm_jax.model import Model
from mtmm_jax.tasks.task import Labels, Task

_FOLDS, _STEPS, _RATE = 5, 300, 1e-2

Answer = Callable[["Votes"], tuple[dict[str, Any], dict[str, Any]]]


@flax.struct.dataclass
class Votes:
    """The predictions of M runs for one batch.

    Attributes:
        values: task -> `[B, M, P]`, a prediction's numbers in one row.
        present: task -> `[B, M]` bool: which run has something to go by.
        batch: targets, weight and id; no inputs.
    """

    values: dict[str, Any]
    present: dict[str, Any]
    batch: dict[str, Any]

    @classmethod
    def of(cls, predictions: Sequence[tuple[dict, dict]], batch: Mapping[str, Any]) -> Votes:
        """From each run's `({task: [B, P]}, {task: [B]})`."""
        values, present = (
            {
                task: np.stack([run[part][task] for run in predictions], axis=1)
                for task in predictions[0][part]
            }
            for part in (0, 1)
        )
        kept = {key: batch[key] for key in ("targets", "weight", "id") if key in batch}
        return cls(values, present, kept)

    def labels(self, task: Task, there: Any) -> Labels:
        """A task's labels, counting the rows `[B]` in which somebody answers."""
        return task.labels(self.batch, dict.fromkeys(task.reads, there))


def joined(votes: Sequence[Votes]) -> Votes:
    """The votes on all batches of a split as those on one."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *votes)


def fused_metrics(model: Model, answer: Answer, batches: Sequence[Votes]) -> Results:
    """`{task: {metric: value}}` over a split.

    Args:
        model: whose tasks count.
        answer: `Votes -> ({task: prediction}, {task: [B] bool, whether there is one})`.
        batches: the votes, batch by batch.
    """

    @jax.jit
    def step(votes: Votes) -> dict[str, Any]:
        predictions, there = answer(votes)
        return {
            name: {
                key: metric.update(predictions[name], votes.labels(task, there[name]))
                for key, metric in task.metrics.items()
            }
            for name, task in model.tasks.items()
        }

    states = [jax.device_get(step(votes)) for votes in batches]
    return compute(model, reduce(partial(merge, model), states))


def learn(
    task: Task, rule: nn.Module, rebuild: Callable[[Any], Any], votes: Votes, seed: int = 0
) -> dict[str, Any]:
    """The parameters of a rule, fitted to a split's votes by the task's own loss.

    Adam on all rows at once. How many steps is chosen by five folds of the rows: where the mean
    loss of what is held out is least, none included; a rule with many numbers and few rows stops
    early. Cost: 300 steps six times, of the rule only.

    Args:
        task: whose loss.
        rule: of `DECISIONS`.
        rebuild: `[B, P]` -> predictions.
        votes: of the whole split, which must not be one that the runs were trained on.
        seed: of the first parameters and of the folds.
    """
    values = jnp.asarray(votes.values[task.name])
    present = jnp.asarray(votes.present[task.name])
    first = rule.init(jax.random.key(seed), values[:1], present[:1]).get("params", {})
    if not first:
        return {}
    ids = np.asarray(votes.batch["id"])
    fold = fold_of(ids, min(_FOLDS, len(np.unique(ids))), seed, "--rule")
    masks = jnp.asarray(fold == np.arange(fold.max() + 1)[:, None])
    with jax.numpy_dtype_promotion("standard"):  # optax.adam raises a float to an integer power
        program = jax.jit(_fitting(task, rule, rebuild))
        return jax.device_get(program(first, values, present, masks, votes))


def _fitting(task: Task, rule: nn.Module, rebuild: Callable[[Any], Any]) -> Callable[..., Any]:
    """`(first params, values, present, masks [F, N], votes) -> params`. Pure."""
    optimizer = optax.adam(_RATE)

    def fit(first: Any, values: Any, present: Any, masks: Any, votes: Votes) -> Any:
        labels = votes.labels(task, present.any(1))

        def loss(params: Any, rows: jax.Array) -> jax.Array:
            prediction = rebuild(rule.apply({"params": params}, values, present))
            counted = dataclasses.replace(labels, weight=labels.weight * rows.astype(jnp.float32))
            total, count = task.loss(prediction, counted, None)
            return total / jnp.maximum(count, 1.0)

        def update(state: Any, rows: jax.Array) -> Any:
            params, inner = state
            updates, inner = optimizer.update(jax.grad(loss)(params, rows), inner)
            return optax.apply_updates(params, updates), inner

        def held_out(rows: jax.Array) -> jax.Array:
            def body(state: Any, _: None) -> tuple[Any, jax.Array]:
                return update(state, ~rows), loss(state[0], rows)

            return jax.lax.scan(body, start, None, length=_STEPS)[1]

        start = first, optimizer.init(first)
        best = jnp.nanargmin(jax.vmap(held_out)(masks).mean(0))
        everyone = jnp.ones_like(masks[0])
        return jax.lax.fori_loop(0, best, lambda _, state: update(state, everyone), start)[0]

    return fit
