"""The training state, and the one pure step that is compiled for every kind of devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from mtmm_jax import balancing
from mtmm_jax.batch import Batch
from mtmm_jax.devices import parallel
from mtmm_jax.keys import example_keys, fold_in_name
from mtmm_jax.model import Model, shared_parameters
from mtmm_jax.optim import privacy
from mtmm_jax.optim.averages import evaluation_params
from mtmm_jax.optim.per_task import current_rates


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
        """What to evaluate: averaged parameters, if the optimiser keeps some."""
        params = evaluation_params(self.optimizer, self.params)
        return {"params": params, "batch_stats": self.batch_stats}


@flax.struct.dataclass
class ImbalanceState(TrainState):
    """A training state with the memory of a rule of `objectives.imbalance`."""

    imbalance: Any


def initialiser(
    model: Model,
    balancer: Any,
    optimizer: optax.GradientTransformation,
    imbalance: Any = None,
) -> Callable[[jax.Array], TrainState]:
    """`key data -> state before the first step`, to be compiled as one program."""

    def init(key_data: jax.Array) -> TrainState:
        key = jax.random.wrap_key_data(key_data)
        variables = model.init(key, model.spec.example(2))
        params = variables["params"]
        parts = {
            "step": jnp.zeros((), jnp.int32),
            "params": params,
            "batch_stats": variables.get("batch_stats", {}),
            "optimizer": optimizer.init(params),
            "balancing": balancer.init(params, shared_parameters),
        }
        if imbalance is None:
            return TrainState(**parts)
        return ImbalanceState(**parts, imbalance=imbalance.init())

    return init


def key_data(seed: int) -> Any:
    """A key as numbers of the host: several processes cannot hand over an array of one device."""
    return jax.device_get(jax.random.key_data(jax.random.key(seed)))


def init_state(
    model: Model, balancer: Any, optimizer: optax.GradientTransformation, seed: int, **options: Any
) -> TrainState:
    """The state before the first step; `options` are those of `initialiser`."""
    return parallel.jit_once(initialiser(model, balancer, optimizer, **options))(key_data(seed))


def make_step(
    model: Model,
    balancer: Any,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    accumulate: int = 1,
    augment: Callable[[jax.Array, Batch], Batch] | None = None,
    imbalance: Any = None,
    private: Any = None,
    task_rates: bool = False,
    teach: Callable[[Any, Batch, jax.Array], dict[str, Any]] | None = None,
    **trainer: Any,
) -> Callable[..., tuple[TrainState, dict[str, Any]]]:
    """`step(state, batch, *, axis_name=None) -> (state, figures)`.

    A step whose final update is not finite changes nothing but the step's number.

    Args:
        model, balancer, optimizer: the parts.
        seed: of dropout and the like.
        accumulate: how many microbatches each device's batch is taken in; batch statistics,
            and losses that compare the samples of a batch, are those of a microbatch.
        augment: `(keys [B], batch) -> batch`, such as `data.pipeline.augment_jit.augmenter` makes.
        imbalance: of `objectives.imbalance.prepare`; the state is made with the same.
        private: of `optim.privacy.read`: every sample's gradient is clipped, and noise added.
        task_rates: whether the optimizer takes the rates of a paced balancer (`optim.per_task`).
        teach: `(variables to evaluate, batch, step) -> {target: {"y", "present"}}`: targets that
            the batch lacks, from the batch before `augment`.
        **trainer: options of `balancing.value_and_grad`: engine, head_gradients, chunk.
    """

    def microbatches(batch_stats: Any, batch: Batch, key: jax.Array) -> list[tuple[Any, ...]]:
        parts = enumerate(balancing.split_rows(batch, accumulate))
        return [(batch_stats, part, jax.random.fold_in(key, i)) for i, part in parts]

    def gradient(state: TrainState, axis_name: str | None) -> Callable[..., balancing.Balanced]:
        if private is not None:
            return privacy.value_and_grad(model.split(), balancer, private, axis_name=axis_name)
        measure = None
        if imbalance is not None:

            def measure(shared: Any, predictions: Any, batch: Batch) -> Any:
                rest = (shared, predictions, batch, axis_name)
                return imbalance.measure(model, state.imbalance, state.step, *rest)

        return balancing.value_and_grad(
            model.split(axis_name, measure),
            balancer,
            axis_name=axis_name,
            shared=shared_parameters,
            microbatches=microbatches if accumulate > 1 else None,
            **trainer,
        )

    def step(state: TrainState, batch: Batch, *, axis_name: str | None = None):
        root = jax.random.key(seed)
        key, seen = jax.random.fold_in(root, state.step), batch
        if augment is not None:
            keys = example_keys(fold_in_name(root, "augment"), state.step, batch["id"])
            batch = augment(keys, batch)
        if teach is not None:
            targets = jax.lax.stop_gradient(teach(state.variables, seen, state.step))
            batch = {**batch, "targets": {**batch["targets"], **targets}}
        other = None
        if balancer.rule.second_sample:  # two independent samples, every other row
            batch, second = balancing.split_rows(batch, 2)
            other = (state.batch_stats, second, key)
        grad = gradient(state, axis_name)
        args = (state.balancing, state.batch_stats, batch, key)
        out = grad(state.params, *args, other=other)
        stats = out.aux["batch_stats"]
        if accumulate > 1:
            stats = jax.tree.map(lambda x: x.mean(0), stats)
        change, memory, more = lambda grads: grads, {}, {}
        if imbalance is not None:
            measured = out.aux["imbalance"]
            if accumulate > 1:
                measured = jax.tree.map(lambda x: x.sum(0), measured)
            measured = parallel.total(measured, axis_name)
            change, learned, more = imbalance.react(state.imbalance, measured, state.step, key)
            memory = {"imbalance": learned}
        # SAM takes a second gradient in each step, and no argument that it does not know.
        extra = {"grad_fn": lambda params, _: change(grad(params, *args, other=other).grads)}
        if task_rates:
            extra["task_rates"] = current_rates(out.state)
        updates, optimizer_state = optimizer.update(
            change(out.grads), state.optimizer, state.params, **extra
        )
        new, skipped = _updated(
            state,
            updates,
            batch_stats=_merged(state.batch_stats, stats),
            optimizer=optimizer_state,
            balancing=out.state,
            **memory,
        )
        figures = {"losses": out.losses, **out.diagnostics, **more, "skipped": skipped}
        return new, figures

    return step


def _updated(state: TrainState, updates: Any, **changes: Any) -> tuple[TrainState, jax.Array]:
    """The next state, and whether the update was skipped because it is not finite."""
    kept = state.replace(step=state.step + 1)
    params = optax.apply_updates(state.params, updates)
    fine = jnp.isfinite(optax.tree.norm(updates))
    new = kept.replace(params=params, **changes)
    return jax.tree.map(lambda a, b: jnp.where(fine, a, b), new, kept), ~fine


def _merged(old: Any, new: Any) -> Any:
    """Statistics of modules that did not run (a modality left out of the batch) stay."""
    if not isinstance(old, dict):
        return new
    return {key: _merged(value, new[key]) if key in new else value for key, value in old.items()}
