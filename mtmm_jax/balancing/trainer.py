"""The trainer's face: losses, balanced gradients and diagnostics in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax

from mtmm_jax.balancing import engines
from mtmm_jax.balancing.accumulation import accumulate, global_counts
from mtmm_jax.balancing.core import Balancer, BalancerState, advance, decide
from mtmm_jax.balancing.cut import Setting, total
from mtmm_jax.balancing.diagnostics import diagnose
from mtmm_jax.balancing.layerwise import Tapped, gramian_engine
from mtmm_jax.balancing.rows import Array, Rows, not_finite, paths_of, shared_labels
from mtmm_jax.balancing.split import Split
from mtmm_jax.registry import ConfigError, choose

PyTree = Any

ENGINES = ("auto", "losses", "representation", "gramian", "full")


class Balanced(NamedTuple):
    """One step of `value_and_grad`.

    Attributes:
        losses: `[K]`, global means; 0 for a task without labels, NaN if it diverged.
        grads: like the parameters; the sum over devices is done.
        state: the balancer's next state.
        diagnostics: named arrays, see `diagnostics.diagnose`.
        aux: what `losses_fn` returned besides, of this device; with a leading axis over the
            microbatches if there are any.
    """

    losses: Array
    grads: PyTree
    state: BalancerState
    diagnostics: dict[str, Array]
    aux: PyTree


def choose_engine(engine: str, losses_fn: Any, balancer: Balancer) -> str:
    """`"auto"`: the cheapest engine that gives the rule the evidence it needs."""
    choose(engine, ENGINES, "balancing.engine", "engine")
    if engine != "auto":
        return engine
    rule = balancer.rule
    if rule.needs == "losses":
        return "losses"
    if rule.needs == "gramian" and not rule.second_sample:
        if isinstance(losses_fn, Split):
            return "representation"
        if isinstance(losses_fn, Tapped):
            return "gramian"
    return "full"


def prepare(
    engine: str,
    losses_fn: Any,
    setting: Setting,
    params: PyTree,
    args: tuple[Any, ...],
    other: tuple[Any, ...] | None,
) -> engines.Prepared:
    """Runs the named engine as far as the evidence."""
    if setting.rule.second_sample and other is None:
        raise ConfigError("balancing: this method needs a second batch: fn(..., other=args)")
    if engine == "full":
        other = other if setting.rule.second_sample else None
        return engines.full_engine(losses_fn, setting, params, args, other)
    table = {
        "losses": engines.losses_engine,
        "representation": engines.representation_engine,
        "gramian": gramian_engine,
    }
    return table[engine](losses_fn, setting, params, args)


def _with_shared(grads: PyTree, mixed: Rows) -> PyTree:
    """The balanced gradient of the shared leaves beside that of the others."""
    leaves, treedef = jax.tree.flatten(grads)
    named = zip(paths_of(grads), leaves, strict=True)
    found = [mixed[path].astype(leaf.dtype) if path in mixed else leaf for path, leaf in named]
    return jax.tree.unflatten(treedef, found)


def value_and_grad(
    losses_fn: Any,
    balancer: Balancer,
    *,
    engine: str = "auto",
    axis_name: Any = None,
    shared: PyTree | Callable[[PyTree], PyTree] | None = None,
    head_gradients: str | None = None,
    chunk: int = 1,
    microbatches: Callable[..., Sequence[tuple[Any, ...]]] | None = None,
) -> Callable[..., Balanced]:
    """Like `jax.value_and_grad`, for K losses balanced into one gradient.

    Args:
        losses_fn: `(params, *args) -> (sums [K], counts [K], aux)`, the masked sums and counts of
            this device, or a `Split`. `loss_k = sum_k / count_k`, after both are summed over
            devices; a task of count 0 is absent. Counts carry no gradient. Fillers of missing
            labels should be masked inside; a `Split` also keeps a task's NaN from the others.
        balancer: from `balancing.build` or one of the methods.
        engine: how task gradients are computed: `"losses"` (one backward pass, for rules that need
            losses only), `"representation"` (at the cut of a `Split`), `"gramian"` (of all
            shared parameters, layer by layer, of a `Tapped`), `"full"` (K x P numbers), or
            `"auto"`, the cheapest.
        axis_name: the device axis under `pmap` or `shard_map`. Under `jit` with sharded global
            arrays it stays None.
        shared: which parameters are shared: a pytree of bools like the parameters or a callable
            that makes one. Default: what the trunk of a `Split` reads; all of them otherwise.
        head_gradients: the gradient of parameters that are not shared: `"weighted"`, that of
            `sum_k w_k loss_k` (the default of losses-only methods), or `"own"`, that of
            `sum_k loss_k` (the default of the others).
        chunk: for `"full"`: how many pullbacks run as one vmapped call; speed against memory.
        microbatches: gradient accumulation: `(*args) -> [args_1, ..., args_n]`, with
            `split_rows` for instance. The balanced gradient is that of the whole batch, and one
            microbatch is in memory at a time, at the price of a second forward pass. Not for
            `"gramian"`, whose layers need all samples at once. Losses that compare the samples
            of a batch compare those of a microbatch.

    Returns:
        `fn(params, state, *args, other=None) -> Balanced`. `other` is a tuple of args, a second
        independent batch, for the methods that need one.
    """
    rule, num_tasks = balancer.rule, balancer.num_tasks
    engine = choose_engine(engine, losses_fn, balancer)
    if isinstance(losses_fn, Tapped) and engine != "gramian":
        losses_fn = losses_fn.split
    if engine == "losses" and rule.needs != "losses":
        choose(engine, ("representation", "gramian", "full"), "balancing.engine", "engine")
    default = "weighted" if rule.needs == "losses" else "own"
    heads = choose(head_gradients or default, ("weighted", "own"), "balancing.head_gradients")
    if microbatches is not None and engine == "gramian":
        raise ConfigError(
            "balancing.engine: 'gramian' needs all samples at once and cannot accumulate over "
            "microbatches; choices: full, or representation with a Split"
        )
    if chunk < 1:
        choose(chunk, ("1", "2", "..."), "balancing.chunk")

    def fn(
        params: PyTree, state: BalancerState, *args: Any, other: tuple[Any, ...] | None = None
    ) -> Balanced:
        if shared is None and isinstance(losses_fn, Split | Tapped):
            cut = losses_fn if isinstance(losses_fn, Split) else losses_fn.split
            labels = engines.reaches(cut.trunk, params, *args)
        else:
            labels = shared_labels(shared, params)
        setting = Setting(rule, num_tasks, axis_name, labels, heads, chunk)
        if microbatches is None:
            prepared = prepare(engine, losses_fn, setting, params, args, other)
        else:
            micros = microbatches(*args)
            others = [None] * len(micros) if other is None else microbatches(*other)
            counts = global_counts(losses_fn, params, micros, axis_name)
            part = lambda counts, *a: prepare(  # noqa: E731
                engine, losses_fn, setting._replace(counts=counts), *a
            )
            prepared = accumulate(part, counts, params, micros, others)
        chex.assert_shape(prepared.losses, (num_tasks,))
        evidence = prepared.evidence(axis_name)
        outcome = decide(rule, state.rule, evidence)
        grads = total(prepared.backward(outcome.weights, evidence.present), axis_name)
        if outcome.gradient is not None:
            grads = _with_shared(grads, outcome.gradient)
        skipped = not_finite(grads)
        return Balanced(
            losses=prepared.losses,
            grads=grads,
            state=advance(state, outcome, evidence.present, skipped),
            diagnostics=diagnose(evidence, outcome.weights, skipped),
            aux=prepared.aux,
        )

    return fn
