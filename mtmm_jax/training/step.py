"""The training state, and the one pure step that is compiled for every kind of devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from mtmm_jax import balancing
from mtmm_jax.assembly import StepContext, StepHook
from mtmm_jax.batch import Batch
from mtmm_jax.devices import parallel
from mtmm_jax.model import Model, shared_parameters
from mtmm_jax.optim.averages import evaluation_params


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
        """The variables to evaluate: averaged parameters, if the optimiser keeps some."""
        params = evaluation_params(self.optimizer, self.params)
        return {"params": params, "batch_stats": self.batch_stats}


@flax.struct.dataclass
class ExtendedState(TrainState):
    """A training state with the memories of hooks, by their names."""

    memory: Any


def initialiser(
    model: Model,
    balancer: Any,
    optimizer: optax.GradientTransformation,
    hooks: Sequence[StepHook] = (),
) -> Callable[[jax.Array], TrainState]:
    """`key data -> state before the first step`, to be compiled as one program."""
    with_memory = [hook for hook in hooks if hook.init is not None]

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
        if not with_memory:
            return TrainState(**parts)
        return ExtendedState(**parts, memory={hook.name: hook.init() for hook in with_memory})

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
    hooks: Sequence[StepHook] = (),
    **trainer: Any,
) -> Callable[..., tuple[TrainState, dict[str, Any]]]:
    """`step(state, batch, *, axis_name=None) -> (state, metrics)`.

    A step whose final update is not finite changes nothing but the step's number.

    Args:
        model, balancer, optimizer: the parts.
        seed: of dropout and the like.
        accumulate: how many microbatches each device's batch is taken in; batch statistics,
            and losses that compare the samples of a batch, are those of a microbatch.
        hooks: of extensions, in the order in which they act; the state is made with the same.
        **trainer: options of `balancing.value_and_grad`: engine, head_gradients, chunk.
    """
    own_gradient = next((hook.gradient for hook in hooks if hook.gradient is not None), None)

    def microbatches(batch_stats: Any, batch: Batch, key: jax.Array) -> list[tuple[Any, ...]]:
        parts = enumerate(balancing.split_rows(batch, accumulate))
        return [(batch_stats, part, jax.random.fold_in(key, i)) for i, part in parts]

    def gradient(
        state: TrainState, context: StepContext, axis_name: str | None
    ) -> Callable[..., balancing.Balanced]:
        if own_gradient is not None:
            return own_gradient(model.split(), balancer, axis_name)
        return balancing.value_and_grad(
            model.split(axis_name, measured_by(hooks, state, context, axis_name)),
            balancer,
            axis_name=axis_name,
            shared=shared_parameters,
            microbatches=microbatches if accumulate > 1 else None,
            **trainer,
        )

    def step(state: TrainState, batch: Batch, *, axis_name: str | None = None):
        root = jax.random.key(seed)
        key = jax.random.fold_in(root, state.step)
        context = StepContext(model, root, state, batch)
        batch = prepared(hooks, context, batch)
        other = None
        if balancer.rule.second_sample:  # two independent samples, every other row
            batch, second = balancing.split_rows(batch, 2)
            other = (state.batch_stats, second, key)
        grad = gradient(state, context, axis_name)
        args = (state.balancing, state.batch_stats, batch, key)
        out = grad(state.params, *args, other=other)
        stats, sums = out.aux["batch_stats"], out.aux.get("measured", {})
        if accumulate > 1:
            stats = jax.tree.map(lambda x: x.mean(0), stats)
            sums = jax.tree.map(lambda x: x.sum(0), sums)
        sums = parallel.total(sums, axis_name) if sums else {}
        change, memory, hook_metrics = reactions(hooks, state, context, sums, key)
        # SAM takes a second gradient in each step, and no argument that it does not know.
        extra = {"grad_fn": lambda params, _: change(grad(params, *args, other=other).grads)}
        for hook in hooks:
            extra |= hook.extra(out.state) if hook.extra is not None else {}
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
        metrics = {"losses": out.losses, **out.diagnostics, **hook_metrics, "skipped": skipped}
        return new, metrics

    return step


def prepared(hooks: Sequence[StepHook], context: StepContext, batch: Batch) -> Batch:
    """The batch after every hook that prepares it, in their order."""
    for hook in hooks:
        if hook.prepare is not None:
            batch = hook.prepare(context, batch)
    return batch


def measured_by(
    hooks: Sequence[StepHook], state: TrainState, context: StepContext, axis_name: str | None
) -> Callable[..., tuple[Any, dict[str, Any]]] | None:
    """`(shared, predictions, batch) -> ({hook: sums}, terms)` for `Model.split`, or None."""
    measuring = [hook for hook in hooks if hook.measure is not None]
    if not measuring:
        return None

    def measure(shared: Any, predictions: Any, batch: Batch) -> tuple[Any, dict[str, Any]]:
        sums, terms = {}, {}
        for hook in measuring:
            memory = state.memory[hook.name] if hook.init is not None else None
            rest = (shared, predictions, batch, axis_name)
            sums[hook.name], own = hook.measure(context, memory, *rest)
            terms |= own
        return sums, terms

    return measure


def reactions(
    hooks: Sequence[StepHook], state: TrainState, context: StepContext, sums: Any, key: jax.Array
) -> tuple[Callable[[Any], Any], dict[str, Any], dict[str, jax.Array]]:
    """`(change of the gradient, changes of the state, metrics)`, of all hooks in their order."""
    changes, metrics = [], {}
    memory = dict(state.memory) if isinstance(state, ExtendedState) else {}
    for hook in hooks:
        if hook.react is not None:
            own = memory.get(hook.name)
            change, learned, found = hook.react(context, own, sums.get(hook.name), key)
            changes.append(change)
            metrics |= found
            if hook.name in memory:
                memory[hook.name] = learned

    def changed(grads: Any) -> Any:
        for change in changes:
            grads = change(grads)
        return grads

    return changed, {"memory": memory} if memory else {}, metrics


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
