"""The training state, and the one pure step that every device form compiles."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from mtmm_jax import balancing
from mtmm_jax.batch import Batch
from mtmm_jax.data.augment_jit import example_keys
from mtmm_jax.model import Model, shared_parameters


@flax.struct.dataclass
class TrainState:
    """Everything that changes while training: one immutable pytree."""

    step: jax.Array
    params: Any
    batch_stats: Any
    optimizer: Any
    balancing: Any

    @property
    def variables(self) -> dict[str, Any]:
        return {"params": self.params, "batch_stats": self.batch_stats}


def split_of(model: Model, axis_name: str | None) -> balancing.Split:
    """The model's losses, cut where balancing may give each task its own copy."""

    def mode(key: jax.Array) -> dict[str, Any]:
        return {"train": True, "key": key, "axis_name": axis_name}

    def trunk(params: Any, batch_stats: Any, batch: Batch, key: jax.Array):
        variables = {"params": params, "batch_stats": batch_stats}
        shared, updates = model.trunk(variables, batch["inputs"], **mode(key))
        return shared, updates.get("batch_stats", {})

    def readout(params: Any, copies: Any, stats: Any, batch_stats: Any, batch: Batch, key: Any):
        variables = {"params": params, "batch_stats": batch_stats}
        mine = dict(zip(model.tasks, copies, strict=False))
        predictions, _ = model.readout(variables, mine, **mode(key))
        sums, counts = model.losses(predictions, batch, axis_name)
        return sums, counts, {"batch_stats": stats}

    return balancing.Split(trunk, readout)


def init_state(
    model: Model,
    balancer: Any,
    optimizer: optax.GradientTransformation,
    seed: int,
) -> TrainState:
    """The state before the first step. Compiled as one program, lightly optimised: it runs once."""

    def init(key: jax.Array) -> TrainState:
        variables = model.init(key, model.spec.example(2))
        params = variables["params"]
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=variables.get("batch_stats", {}),
            optimizer=optimizer.init(params),
            balancing=balancer.init(params, shared_parameters),
        )

    return jax.jit(init)(jax.random.key(seed))


def make_step(
    model: Model,
    balancer: Any,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    accumulate: int = 1,
    augment: Callable[[jax.Array, Batch], Batch] | None = None,
    **trainer: Any,
) -> Callable[..., tuple[TrainState, dict[str, Any]]]:
    """`step(state, batch, *, axis_name=None) -> (state, figures)`.

    A step whose final update is not finite changes nothing but the step's number.

    Args:
        model, balancer, optimizer: the parts.
        seed: of dropout and the like.
        accumulate: how many microbatches each device's batch is taken in; batch statistics,
            and losses that compare the samples of a batch, are those of a microbatch.
        augment: `(keys [B], batch) -> batch`, such as `data.augment_jit.augmenter` makes.
        **trainer: options of `balancing.value_and_grad`: engine, head_gradients, chunk.
    """

    def microbatches(batch_stats: Any, batch: Batch, key: jax.Array) -> list[tuple[Any, ...]]:
        parts = enumerate(balancing.split_rows(batch, accumulate))
        return [(batch_stats, part, jax.random.fold_in(key, i)) for i, part in parts]

    def step(state: TrainState, batch: Batch, *, axis_name: str | None = None):
        grad = balancing.value_and_grad(
            split_of(model, axis_name),
            balancer,
            axis_name=axis_name,
            shared=shared_parameters,
            microbatches=microbatches if accumulate > 1 else None,
            **trainer,
        )
        root = jax.random.key(seed)
        key = jax.random.fold_in(root, state.step)
        if augment is not None:
            batch = augment(example_keys(named(root, "augment"), state.step, batch["id"]), batch)
        first, second = _samples(batch, balancer)
        out = grad(
            state.params,
            state.balancing,
            state.batch_stats,
            first,
            key,
            other=None if second is None else (state.batch_stats, second, key),
        )
        stats = out.aux["batch_stats"]
        if accumulate > 1:
            stats = jax.tree.map(lambda x: x.mean(0), stats)
        updates, optimizer_state = optimizer.update(out.grads, state.optimizer, state.params)
        fine = jnp.isfinite(optax.tree.norm(updates))
        new = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=_merged(state.batch_stats, stats),
            optimizer=optimizer_state,
            balancing=out.state,
        )
        kept = state.replace(step=state.step + 1)
        new = jax.tree.map(lambda a, b: jnp.where(fine, a, b), new, kept)
        figures = {"losses": out.losses, **out.diagnostics, "skipped": ~fine}
        return new, figures

    return step


def named(key: jax.Array, name: str) -> jax.Array:
    """The key of a purpose."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def _samples(batch: Batch, balancer: Any) -> tuple[Batch, Batch | None]:
    """Two independent samples, every other row, for the methods that need them."""
    return balancing.split_rows(batch, 2) if balancer.rule.second_sample else (batch, None)


def _merged(old: Any, new: Any) -> Any:
    """Statistics of modules that did not run (a modality left out of the batch) stay."""
    if not isinstance(old, dict):
        return new
    return {key: _merged(value, new[key]) if key in new else value for key, value in old.items()}
