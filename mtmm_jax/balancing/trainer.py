"""`value_and_grad`: losses, balanced gradients and diagnostics of one training step."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp

from mtmm_jax.balancing.base import (
    Array,
    Balancer,
    BalancerState,
    Evidence,
    Geometry,
    PyTree,
    Rows,
    Rule,
    add_geometries,
    advance,
    balancing_dtype,
    decide,
    not_finite,
    paths_of,
    shared_labels,
)
from mtmm_jax.balancing.cut import EngineOptions, Split, total
from mtmm_jax.balancing.engines import (
    LossesFn,
    Prepared,
    Tapped,
    full_engine,
    gramian_engine,
    losses_engine,
    reaches,
    representation_engine,
)
from mtmm_jax.ranges import Size
from mtmm_jax.registry import ConfigError, check, choose


class Balanced(NamedTuple):
    """One step of `value_and_grad`.

    Attributes:
        losses: `[K]`, global means; 0 for a task without labels, NaN if it diverged.
        grads: like the parameters; the sum over devices is done.
        state: the balancer's next state.
        diagnostics: named arrays, see `diagnostics.diagnose`.
        aux: the third output of `losses_fn`, of this device; with a leading axis over the
            microbatches if there are any.
    """

    losses: Array
    grads: PyTree
    state: BalancerState
    diagnostics: dict[str, Array]
    aux: PyTree


RUN_ENGINE: dict[str, Callable[..., Prepared]] = {
    "losses": losses_engine,
    "representation": representation_engine,
    "gramian": gramian_engine,
    "full": full_engine,
}
ENGINES = ("auto", *RUN_ENGINE)
HeadGradients = Literal["weighted", "own"] | None
DEFAULTS = {"engine": "auto", "head_gradients": None, "chunk": 1}
TRAINER = {"engine": Literal[ENGINES], "head_gradients": HeadGradients, "chunk": Size}
"""Options of `value_and_grad` that stand in `config.balancing`."""


def _gramian_suffices(rule: Rule) -> bool:
    return rule.needs != "jacobian" and not rule.second_sample


def choose_engine(engine: str, losses_fn: Any, rule: Rule) -> str:
    """The engine by name; `"auto"`: the cheapest one that gives the rule the evidence it needs."""
    choose(engine, ENGINES, "balancing.engine", "engine")
    if engine != "auto":
        return engine
    if rule.needs == "losses":
        return "losses"
    if _gramian_suffices(rule) and isinstance(losses_fn, Split | Tapped):
        return "representation" if isinstance(losses_fn, Split) else "gramian"
    return "full"


def check_engine(engine: str, losses_fn: Any, rule: Rule, microbatches: Any) -> None:
    """Refuses an engine that cannot serve the rule, the losses or the microbatches."""
    if engine == "losses" and rule.needs != "losses":
        choose(engine, ("representation", "gramian", "full"), "balancing.engine", "engine")
    if engine == "gramian" and microbatches is not None:
        raise ConfigError(
            "balancing.engine: 'gramian' needs all samples at once and cannot accumulate over "
            "microbatches; choices: full, or representation with a Split"
        )
    if engine == "representation" and not isinstance(losses_fn, Split | Tapped):
        raise ConfigError("balancing.engine: 'representation' needs a balancing.Split")
    if engine == "gramian" and not isinstance(losses_fn, Tapped):
        raise ConfigError("balancing.engine: 'gramian' needs a balancing.Tapped")
    if engine in ("representation", "gramian") and not _gramian_suffices(rule):
        raise ConfigError(
            f"balancing.engine: {engine!r} has no task gradients of the parameters, which this "
            "method needs; choices: auto, full"
        )


def _with_shared(grads: PyTree, balanced: Rows) -> PyTree:
    """The balanced gradient of the shared leaves, and that of the others as it is."""
    leaves, treedef = jax.tree.flatten(grads)
    named = zip(paths_of(grads), leaves, strict=True)
    found = [
        balanced[path].astype(leaf.dtype) if path in balanced else leaf for path, leaf in named
    ]
    return jax.tree.unflatten(treedef, found)


def value_and_grad(
    losses_fn: Any,
    balancer: Balancer,
    *,
    engine: str = "auto",
    axis_name: Any = None,
    shared: PyTree | Callable[[PyTree], PyTree] | None = None,
    head_gradients: HeadGradients = None,
    chunk: Size = 1,
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
    options = {"engine": engine, "head_gradients": head_gradients, "chunk": chunk}
    for key, value in options.items():
        if value is not DEFAULTS[key]:
            check(value, TRAINER[key], f"balancing.{key}")
    rule, num_tasks = balancer.rule, balancer.num_tasks
    engine = choose_engine(engine, losses_fn, rule)
    check_engine(engine, losses_fn, rule, microbatches)
    if isinstance(losses_fn, Tapped) and engine != "gramian":
        losses_fn = losses_fn.split
    default = "weighted" if rule.needs == "losses" else "own"
    heads = head_gradients or default
    run_engine = RUN_ENGINE[engine]

    def fn(
        params: PyTree, state: BalancerState, *args: Any, other: tuple[Any, ...] | None = None
    ) -> Balanced:
        if rule.second_sample and other is None:
            raise ConfigError("balancing: this method needs a second batch: fn(..., other=args)")
        other = other if rule.second_sample else None
        labels = _shared_leaves(shared, losses_fn, params, args)
        options = EngineOptions(num_tasks, axis_name, labels, heads, chunk)
        if microbatches is None:
            prepared = run_engine(losses_fn, options, params, args, other)
        else:
            micros = microbatches(*args)
            others = [None] * len(micros) if other is None else microbatches(*other)
            prepared = accumulate(run_engine, losses_fn, options, params, micros, others)
        return balance(balancer, state, prepared, axis_name)

    return fn


def _shared_leaves(
    shared: PyTree | Callable[[PyTree], PyTree] | None,
    losses_fn: Any,
    params: PyTree,
    args: tuple[Any, ...],
) -> list[bool]:
    """One bool per leaf of `params`; by default the leaves that the trunk of a `Split` reads."""
    if shared is not None or not isinstance(losses_fn, Split | Tapped):
        return shared_labels(shared, params)
    split = losses_fn if isinstance(losses_fn, Split) else losses_fn.split
    return reaches(split.trunk, params, *args)


def balance(
    balancer: Balancer, state: BalancerState, prepared: Prepared, axis_name: Any
) -> Balanced:
    """The rule's decision on the evidence, and the backward pass with its weights."""
    chex.assert_shape(prepared.losses, (balancer.num_tasks,))
    evidence = prepared.evidence(axis_name)
    outcome = decide(balancer.rule, state.rule, evidence)
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


def split_rows(batch: PyTree, parts: int) -> list[PyTree]:
    """Every `parts`-th row of all leaves `[B, ...]`, `parts` times: rows stay on their devices."""
    sizes = {leaf.shape[0] for leaf in jax.tree.leaves(batch)}
    if parts < 1 or any(size % parts for size in sizes):
        raise ConfigError(f"batch: {sorted(sizes)} rows do not divide into {parts} equal parts")
    return [jax.tree.map(lambda x, i=i: x[i::parts], batch) for i in range(parts)]


def global_counts(
    losses_fn: LossesFn, params: PyTree, micros: Sequence[tuple[Any, ...]], axis_name: Any
) -> Array:
    """`[K]`, of all microbatches and devices. XLA drops what counts do not depend on."""
    counts = sum(jax.lax.stop_gradient(losses_fn(params, *args)[1]) for args in micros)
    return total(counts.astype(balancing_dtype(counts.dtype)), axis_name)


def accumulate(
    run_engine: Callable[..., Prepared],
    losses_fn: Any,
    options: EngineOptions,
    params: PyTree,
    micros: Sequence[tuple[Any, ...]],
    others: Sequence[tuple[Any, ...] | None],
) -> Prepared:
    """Gradient accumulation: the whole batch as one `Prepared`, one microbatch in memory.

    Pass one adds up losses and Gramian (or task gradients) over the microbatches; the rule decides
    once; pass two adds up the weighted gradients. The result is that of the whole batch, except for
    losses that compare or normalise the samples of a batch (contrastive ones, batch normalisation,
    balancing of experts): they see one microbatch at a time.

    Unrolled, since a convolution's weight gradient inside a loop is slow on CPUs; each microbatch
    waits for the sum of those before it, so that only one is in memory at a time.
    """
    counts = global_counts(losses_fn, params, micros, options.axis_name)

    def in_turn(measure: Callable[[Prepared], PyTree], counts: Array) -> tuple[PyTree, list[Any]]:
        summed, auxes = None, []
        for sample in zip(micros, others, strict=True):
            args, other = _after(counts if summed is None else summed, sample)
            prepared = run_engine(losses_fn, options._replace(counts=counts), params, args, other)
            part = jax.tree.map(_widened, measure(prepared))
            summed = part if summed is None else _sum(summed, part)
            auxes.append((prepared.aux, prepared.present))
        return summed, auxes

    found, seen = in_turn(lambda p: (p.losses, p.geometry, p.rows, p.others), counts)
    losses, geometry, rows, seconds = found
    auxes, present = zip(*seen, strict=True)

    def backward(weights: Array, present: Array) -> PyTree:
        # A task that diverged in one microbatch counts in none.
        summed, _ = in_turn(lambda p: p.backward(weights, present), jnp.where(present, counts, 0))
        return jax.tree.map(lambda g, p: g.astype(p.dtype), summed, params)

    return Prepared(
        losses=losses,
        present=functools.reduce(jnp.logical_and, present),
        backward=backward,
        aux=jax.tree.map(lambda *x: jnp.stack(x), *auxes),
        geometry=geometry,
        rows=rows,
        others=seconds,
    )


def _sum(a: PyTree, b: PyTree) -> PyTree:
    """Two microbatches' parts; Gramians add up, not norms and cosines."""

    def one(x: Any, y: Any) -> Any:
        return add_geometries([x, y]) if isinstance(x, Geometry) else x + y

    return jax.tree.map(one, a, b, is_leaf=lambda x: isinstance(x, Geometry))


def _after(done: PyTree, args: PyTree) -> PyTree:
    """`args` unchanged, but not before `done` is known.

    `jax.lax.optimization_barrier` would say so, but XLA drops it on CPUs before it orders the
    work. A zero that the compiler cannot see through stays.
    """
    last = sum(jnp.ravel(leaf)[0].astype(jnp.float32) for leaf in jax.tree.leaves(done))
    zero = (jax.lax.bitcast_convert_type(last, jnp.uint32) >> 31) >> 1

    def tied(x: Any) -> Any:
        if not hasattr(x, "dtype") or jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return x
        return x ^ (zero != 0) if x.dtype == bool else x + zero.astype(x.dtype)

    return jax.tree.map(tied, args)


def _widened(x: Array) -> Array:
    return x.astype(balancing_dtype(x.dtype))


def _pairs(present: Array) -> Array:
    """Mask of the ordered pairs `i != j` that are both present."""
    different = ~jnp.eye(present.shape[0], dtype=bool)
    return present[:, None] & present[None, :] & different


def conflict_rate(gramian: Array, present: Array) -> Array:
    """The share of pairs of present tasks whose gradients have a negative inner product."""
    pairs = _pairs(present)
    conflicting = jnp.sum(pairs & (gramian < 0)).astype(gramian.dtype)
    return conflicting / jnp.maximum(pairs.sum(), 1).astype(gramian.dtype)


def magnitude_similarity(gramian: Array, present: Array) -> Array:
    """Mean over pairs of `2 |g_i| |g_j| / (|g_i|^2 + |g_j|^2)`: 1 when all norms are equal."""
    squared = jnp.maximum(jnp.diagonal(gramian), 0)
    norms = jnp.sqrt(squared)
    sums = squared[:, None] + squared[None, :]
    ratio = 2 * norms[:, None] * norms[None, :] / jnp.where(sums > 0, sums, 1)
    pairs = _pairs(present)
    count = pairs.sum().astype(gramian.dtype)
    return jnp.where(count > 0, jnp.sum(jnp.where(pairs, ratio, 0)) / jnp.maximum(count, 1), 1)


def condition_number(gramian: Array, present: Array) -> Array:
    """Of the Jacobian whose rows are the present tasks: `sqrt(lambda_max / lambda_min)` of G."""
    count = jnp.maximum(present.sum(), 1).astype(gramian.dtype)
    mean = jnp.trace(gramian) / count  # lies between the extreme eigenvalues: neutral filler
    filled = gramian + jnp.diag(jnp.where(present, 0, mean))
    values = jnp.linalg.eigvalsh(filled)
    smallest = jnp.maximum(values[0], jnp.finfo(values.dtype).eps * values[-1])
    return jnp.sqrt(jnp.where(smallest > 0, values[-1] / jnp.where(smallest > 0, smallest, 1), 1))


def diagnose(evidence: Evidence, weights: Array, skipped: Array) -> dict[str, Array]:
    """Named outputs of one step. Under jit, what nobody reads is not computed.

    Always: `weights` [K], `present` [K], `skipped`. Where the Gramian is known: `cosines` [K, K],
    `norms` [K], `conflict_rate`, `magnitude_similarity`, `condition_number`.
    """
    named = {"weights": weights, "present": evidence.present, "skipped": skipped}
    if evidence.geometry is None:
        return named
    geometry, present = jax.lax.stop_gradient(evidence.geometry), evidence.present
    longest = jnp.max(geometry.norms)  # what follows does not depend on the unit
    inverse = 1 / jnp.where(longest > 0, longest, 1)
    gramian = geometry._replace(norms=geometry.norms * inverse).gramian
    return named | {
        "cosines": geometry.cosines,
        "norms": geometry.norms,
        "conflict_rate": conflict_rate(gramian, present),
        "magnitude_similarity": magnitude_similarity(gramian, present),
        "condition_number": condition_number(gramian, present),
    }
