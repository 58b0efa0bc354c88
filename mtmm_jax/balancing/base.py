"""The interface of balancing methods: a `Rule` over `Evidence`, and the Optax transformation of any
rule.

A rule turns what its tier paid for (losses, a Gramian, task gradients) into weights or a gradient.
`Balancer` is that rule as an `optax.GradientTransformationExtraArgs`, to stand first in a chain.
Around them: the arithmetic on task gradients that rules and engines share.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from mtmm_jax.ranges import hints_of
from mtmm_jax.registry import ConfigError, check

TIERS = ("losses", "gramian", "jacobian")

Array = jax.Array
PyTree = Any
Rows = dict[str, Array]
"""Task gradients by parameter path: `{"trunk/kernel": [K, *shape], ...}`, shared leaves only."""


def balancing_dtype(*dtypes: Any) -> Any:
    """float32, or float64 where the inputs are: balancing never runs in half precision."""
    return jnp.dtype(jnp.float64 if jnp.dtype(jnp.float64) in dtypes else jnp.float32)


def gramian_of(left: Rows, right: Rows | None = None) -> Array:
    """The `[K, K]` inner products of the rows of `left` with those of `right` (or themselves).

    Summed leaf by leaf in at least float32 and at full matmul precision: Gramians square the
    condition number, and TF32 or bfloat16 products would show up as false conflicts.
    """
    right = left if right is None else right

    def one(a: Array, b: Array) -> Array:
        dtype = balancing_dtype(a.dtype, b.dtype)
        a, b = (x.reshape(x.shape[0], -1).astype(dtype) for x in (a, b))
        return jax.lax.dot_general(
            a, b, (((1,), (1,)), ((), ())), precision=jax.lax.Precision.HIGHEST
        )

    return sum(one(left[path], right[path]) for path in left)


class Geometry(NamedTuple):
    """Lengths of and angles between the task gradients, at any scale that the dtype holds.

    The Gramian is `n_i C_ij n_j`; its entries are squares, and leave float32 at lengths of 1e-19
    and 1e19, where lengths and cosines do not.

    Attributes:
        norms: `[K]`.
        cosines: `[K, K]`, of ones on the diagonal; 0 where a gradient is zero.
    """

    norms: Array
    cosines: Array

    @property
    def gramian(self) -> Array:
        """`[K, K]` inner products, at most what the dtype holds."""
        largest = float(jnp.finfo(self.norms.dtype).max)
        products = self.norms[:, None] * self.cosines * self.norms[None, :]
        return jnp.clip(products, -largest, largest)

    def scaled(self, factors: Array) -> Geometry:
        """That of the gradients times nonnegative factors `[K]`."""
        return geometry_of(self.cosines, self.norms * factors)


def geometry_of(gramian: Array, factors: Array | None = None) -> Geometry:
    """The geometry of gradients from their Gramian.

    Args:
        gramian: `[K, K]`.
        factors: `[K]`, what the gradients of the Gramian are to be multiplied by.
    """
    norms = jnp.sqrt(jnp.maximum(jnp.diagonal(gramian), 0))
    usable = norms > 0
    inverse = jnp.where(usable, 1 / jnp.where(usable, norms, 1), 0)
    cosines = jnp.clip(gramian * inverse[:, None] * inverse[None, :], -1, 1)
    size = len(norms)
    cosines = jnp.where(jnp.eye(size, dtype=bool), usable.astype(gramian.dtype), cosines)
    if factors is None:
        return Geometry(norms, cosines)
    norms = norms * factors
    usable = norms > 0
    return Geometry(norms, mask_gramian(usable, cosines))


def cosines(gramian: Array) -> Array:
    """`[K, K]` cosines of the task gradients; 0 where one of them is zero."""
    return geometry_of(gramian).cosines


def power_of_two(values: Array) -> Array:
    """The nearest powers of two, within what can be inverted."""
    info = jnp.finfo(values.dtype)
    largest = 2.0 ** (int(info.maxexp) - 2)
    clipped = jnp.clip(values, 1 / largest, largest)
    return jax.lax.reduce_precision(clipped, exponent_bits=int(info.nexp), mantissa_bits=0)


def largest_entries(rows: PyTree) -> Array:
    """`[K]` largest absolute values, over all leaves `[K, ...]`."""

    def one(leaf: Array) -> Array:
        dtype = balancing_dtype(leaf.dtype)
        return jnp.max(jnp.abs(leaf.reshape(leaf.shape[0], -1)), axis=1, initial=0).astype(dtype)

    return functools.reduce(jnp.maximum, map(one, jax.tree.leaves(rows)))


def row_norms(rows: Rows) -> Array:
    """`[K]` lengths of the task gradients, without squares that leave the dtype's range."""
    unit = power_of_two(largest_entries(rows))

    def one(leaf: Array) -> Array:
        near = scale_rows(1 / unit, leaf.astype(unit.dtype))
        return jnp.sum(near.reshape(len(leaf), -1) ** 2, axis=1)

    return jnp.sqrt(sum(one(leaf) for leaf in rows.values())) * unit


def measure(rows: Rows, present: Array, axis_name: Any = None) -> tuple[Geometry, Array]:
    """The geometry of task gradients, and which of the present ones are finite.

    Where a square would leave the dtype's range (a gradient of 1e20, or of 1e-20) all rows are
    brought to the order of one first, by powers of two, which is exact.

    Args:
        rows: `{path: [K, ...]}`; with `axis_name`, of samples that only this device has.
        present: `[K]`.
        axis_name: the device axis to sum the Gramian over.
    """

    def rescaled() -> tuple[Array, Array, Array]:
        largest = largest_entries(rows)
        if axis_name is not None:
            largest = jax.lax.pmax(largest, axis_name)
        finite = present & jnp.isfinite(largest)
        unit = power_of_two(jnp.where(finite, largest, 1))
        near = jax.tree.map(lambda g: scale_rows(1 / unit, g), mask_rows(finite, rows))
        gramian = gramian_of(near)
        if axis_name is not None:
            gramian = jax.lax.psum(gramian, axis_name)
        return mask_gramian(finite, gramian), jnp.where(finite, unit, 0), finite

    if axis_name is not None:
        gramian, unit, finite = rescaled()
        return geometry_of(gramian, unit), finite
    plain = gramian_of(rows)
    squared = jnp.diagonal(plain)
    info = jnp.finfo(plain.dtype)
    low, high = float(info.tiny) ** (2 / 3), float(info.max) ** (3 / 4)
    in_range = ((squared > low) & (squared < high)) | ~present
    gramian, unit, finite = jax.lax.cond(
        in_range.all(),
        lambda: (mask_gramian(present, plain), present.astype(plain.dtype), present),
        rescaled,
    )
    return geometry_of(gramian, unit), finite


def add_geometries(parts: Sequence[Geometry]) -> Geometry:
    """That of gradients whose Gramians are to be added, such as those of microbatches."""
    largest = functools.reduce(jnp.maximum, [part.norms for part in parts])
    unit = power_of_two(largest)
    gramian = sum(part.scaled(1 / unit).gramian for part in parts)
    return geometry_of(gramian, jnp.where(largest > 0, unit, 0))


def combine(weights: Array, rows: PyTree) -> PyTree:
    """`sum_k w_k g_k` for every leaf `[K, ...]`, in the leaf's own dtype."""

    def one(leaf: Array) -> Array:
        dtype = balancing_dtype(leaf.dtype)
        flat = leaf.reshape(leaf.shape[0], -1).astype(dtype)
        mixed = jnp.matmul(weights.astype(dtype), flat, precision=jax.lax.Precision.HIGHEST)
        return mixed.reshape(leaf.shape[1:]).astype(leaf.dtype)

    return jax.tree.map(one, rows)


def per_task(vector: Array, like: Array) -> Array:
    """`[K]` shaped to broadcast against a leaf `[K, ...]`."""
    return vector.reshape((-1,) + (1,) * (like.ndim - 1))


def scale_rows(factors: Array, leaf: Array) -> Array:
    """Each task's row of a leaf `[K, ...]` times its factor, in the leaf's dtype."""
    return leaf * per_task(factors, leaf).astype(leaf.dtype)


def mask_rows(present: Array, rows: PyTree) -> PyTree:
    """Rows of absent tasks replaced by zeros (selected, not multiplied: `0 * NaN` is NaN)."""

    def one(leaf: Array) -> Array:
        return jnp.where(per_task(present, leaf), leaf, jnp.zeros_like(leaf))

    return jax.tree.map(one, rows)


def mask_gramian(present: Array, gramian: Array) -> Array:
    """Rows and columns of absent tasks replaced by zeros."""
    return jnp.where(present[:, None] & present[None, :], gramian, jnp.zeros_like(gramian))


def select_tasks(present: Array, new: PyTree, old: PyTree) -> PyTree:
    """Per-task state `[K, ...]`: the new one where the task is present, else the old one."""

    def one(n: Array, o: Array) -> Array:
        return jnp.where(per_task(present, n), n, o)

    return jax.tree.map(one, new, old)


def paths_of(tree: PyTree) -> list[str]:
    """`"trunk/kernel"`-like names of the leaves, in flattening order."""
    paths, _ = zip(*jax.tree_util.tree_leaves_with_path(tree), strict=True)
    return [jax.tree_util.keystr(path, simple=True, separator="/") or "." for path in paths]


def shared_labels(shared: PyTree | Callable[[PyTree], PyTree] | None, params: PyTree) -> list[bool]:
    """One bool per leaf of `params`: does more than one task depend on it?

    Args:
        shared: a pytree of bools like `params` (or a prefix of it), a callable that makes one from
            `params`, or None for all.
        params: the parameters.
    """
    if shared is None:
        return [True] * len(jax.tree.leaves(params))
    labels = shared(params) if callable(shared) else shared
    spread = jax.tree.map(lambda label, part: jax.tree.map(lambda _: label, part), labels, params)
    return [bool(label) for label in jax.tree.leaves(spread)]


def not_finite(tree: PyTree) -> Array:
    """Whether any element of any leaf is NaN or infinite, as a scalar bool."""
    bad = [~jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.any(jnp.stack(bad)) if bad else jnp.zeros((), bool)


class Evidence(NamedTuple):
    """Losses, Gramian and gradients of one step; None where the tier does not compute them.

    Rows of absent tasks are zero here, never NaN: a rule only has to look at `present`.

    Attributes:
        losses: `[K]`, global means.
        present: `[K]` bool: the task has labels in this step and is finite.
        geometry: norms and cosines of the task gradients.
        grads: `{path: [K, ...]}`, the task gradients of the shared leaves.
        other: a second, independent sample: the cross Gramian `J1 J2^T`, `[K, K]`.
    """

    losses: Array
    present: Array
    geometry: Geometry | None = None
    grads: Rows | None = None
    other: Array | None = None

    @property
    def gramian(self) -> Array | None:
        """`[K, K]`, inner products of the task gradients."""
        return None if self.geometry is None else self.geometry.gramian


class Rule(NamedTuple):
    """A balancing method, written once for the Optax transformation and every engine.

    Attributes:
        needs: its tier, `"losses"`, `"gramian"` or `"jacobian"`.
        init: `(rows, num_tasks) -> state`; `rows` are zeros like the task gradients.
        weigh: `(state, Evidence) -> (result, state)`; the result is weights `[K]`, a gradient
            `{path: [...]}`, or both as a `WeightedGradient`.
        observe: `(state, values [K]) -> state`; NaN entries are tasks that were not measured.
        second_sample: whether `Evidence.other` is needed.
        observes: what `observe` takes: `"metrics"` of a validation, where larger is better unless
            the method's options say otherwise, or later `"losses"`; empty without it.
        reads_losses: whether `weigh` looks at the losses' values; `update` may omit them otherwise.
    """

    needs: str
    init: Callable[[Rows, int], PyTree]
    weigh: Callable[[PyTree, Evidence], tuple[Any, PyTree]]
    observe: Callable[[PyTree, Array], PyTree] | None = None
    second_sample: bool = False
    observes: str = ""
    reads_losses: bool = True


class BalancerState(NamedTuple):
    """The state of a balancer: arrays only, of fixed structure and dtype.

    Attributes:
        rule: the rule's own state.
        task_weights: `[K]`, of the last step; the implied weights (all ones) if the rule returns a
            gradient rather than weights.
        absences: `[K]` int32, how often each task was absent or not finite.
        skipped: int32, how often the balanced gradient was not finite.
    """

    rule: PyTree
    task_weights: Array
    absences: Array
    skipped: Array


class PacedState(NamedTuple):
    """The state of a paced rule: the inner rule's, the pace's, and the last rates `[K]`."""

    inner: PyTree
    pace: PyTree
    rates: Array


class WeightedGradient(NamedTuple):
    """The result of a rule that combines the gradients itself, and the weights it used, if any."""

    gradient: Rows
    weights: Array


class Outcome(NamedTuple):
    """The decision of a balancer: weights and/or a gradient of the shared leaves."""

    weights: Array
    gradient: Rows | None
    state: PyTree


class Balancer(optax.GradientTransformationExtraArgs):
    """A balancing rule as an Optax transformation.

    `update(grads, state, params=None, *, losses=None, present=None, other=None)` balances every
    leaf of shape `[K, *p.shape]` and passes every leaf of shape `p.shape` (a head's own gradient)
    through; without `params` all leaves are stacked. `losses` and `present` are `[K]`; losses may
    be omitted where the rule never reads them. `other` is a second independent sample of the
    stacked gradients, for the rules that need one.

    Attributes:
        rule: the `Rule`.
        num_tasks: K.
    """

    rule: Rule
    num_tasks: int

    def __new__(cls, rule: Rule, num_tasks: int) -> Balancer:
        if rule.needs not in TIERS:
            raise ConfigError(f"rule.needs: {rule.needs!r}; choices: {', '.join(TIERS)}")
        if num_tasks < 1:
            raise ConfigError(f"num_tasks: {num_tasks}; a balancer needs at least one task")

        def init(params: PyTree, shared: PyTree | None = None) -> BalancerState:
            return initial_state(rule, num_tasks, params, shared)

        def update(
            grads: PyTree,
            state: BalancerState,
            params: PyTree | None = None,
            *,
            losses: Array | None = None,
            present: Array | None = None,
            other: PyTree | None = None,
            **extra_args: Any,
        ) -> tuple[PyTree, BalancerState]:
            del extra_args  # meant for other members of the chain
            return _update(rule, num_tasks, grads, state, params, losses, present, other)

        self = super().__new__(cls, init, update)
        self.rule = rule
        self.num_tasks = num_tasks
        return self

    def observe(self, state: BalancerState, values: Array) -> BalancerState:
        """Feeds later losses or validation metrics `[K]` to rules that learn from them."""
        if self.rule.observe is None:
            return state
        chex.assert_shape(values, (self.num_tasks,))
        return state._replace(rule=self.rule.observe(state.rule, values))


def initial_state(
    rule: Rule, num_tasks: int, params: PyTree, shared: PyTree | None = None
) -> BalancerState:
    """The state before the first step; with `shared`, rules keep buffers of shared leaves only."""
    labels = shared_labels(shared, params)
    leaves = jax.tree.leaves(params)
    rows = {
        path: jnp.zeros((num_tasks, *leaf.shape), leaf.dtype)
        for path, leaf, label in zip(paths_of(params), leaves, labels, strict=True)
        if label
    }
    dtype = balancing_dtype(*(leaf.dtype for leaf in leaves))
    return BalancerState(
        # Own buffers for all leaves: a donated state must not hold the same one twice.
        rule=jax.tree.map(jnp.copy, rule.init(rows, num_tasks)),
        task_weights=jnp.ones((num_tasks,), dtype),
        absences=jnp.zeros((num_tasks,), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
    )


def decide(rule: Rule, state: PyTree, evidence: Evidence) -> Outcome:
    """Applies the rule; the weights of absent tasks become exactly zero."""
    result, new_state = rule.weigh(state, evidence)
    if isinstance(result, Mapping | WeightedGradient):
        combined = weighted_gradient(result, evidence)
        return Outcome(combined.weights, combined.gradient, new_state)
    weights = jnp.where(evidence.present, result, 0).astype(evidence.losses.dtype)
    gradient = None if evidence.grads is None else combine(weights, evidence.grads)
    return Outcome(weights, gradient, new_state)


def weighted_gradient(result: Any, evidence: Evidence) -> WeightedGradient:
    """Any result of a rule as a gradient with weights (ones where the rule gives none)."""
    dtype = evidence.losses.dtype
    if isinstance(result, WeightedGradient):
        weights = jnp.where(evidence.present, result.weights, 0).astype(dtype)
        return WeightedGradient(dict(result.gradient), weights)
    if isinstance(result, Mapping):
        return WeightedGradient(dict(result), evidence.present.astype(dtype))
    weights = jnp.where(evidence.present, result, 0).astype(dtype)
    return WeightedGradient(combine(weights, evidence.grads), weights)


def advance(
    state: BalancerState, outcome: Outcome, present: Array, skipped: Array
) -> BalancerState:
    """The next state; a rule does not learn from a step whose update is not finite."""
    rule = jax.tree.map(
        lambda new, old: jnp.where(skipped, old, new).astype(old.dtype), outcome.state, state.rule
    )
    return BalancerState(
        rule=rule,
        task_weights=outcome.weights.astype(state.task_weights.dtype),
        absences=state.absences + jnp.where(present, 0, 1).astype(jnp.int32),
        skipped=state.skipped + skipped.astype(jnp.int32),
    )


def current_weights(state: PyTree) -> Array:
    """The task weights of the last step, found by name in any (chained, wrapped) Optax state."""
    found = optax.tree.get_all_with_path(state, "task_weights")
    if not found:
        raise ConfigError("current_weights: no balancer in this optimizer state")
    if len(found) > 1:
        raise ConfigError(
            f"current_weights: {len(found)} balancers in this optimizer state; pass the part of it "
            "that belongs to one of them"
        )
    return found[0][1]


def current_rates(state: PyTree) -> Array | None:
    """The task rates `[K]` of the last step, found in any state; None without a paced balancer."""

    def is_paced(node: Any) -> bool:
        return isinstance(node, PacedState)

    found = [node for node in jax.tree.leaves(state, is_leaf=is_paced) if is_paced(node)]
    return found[0].rates if found else None


def _stacked(grads: PyTree, params: PyTree | None, num_tasks: int) -> list[bool]:
    """A tree of booleans: the leaves that carry one row per task."""
    leaves = jax.tree.leaves(grads)
    if params is None:
        shapes = [leaf.shape[1:] for leaf in leaves]
    else:
        shapes = [leaf.shape for leaf in jax.tree.leaves(params)]
    stacked = []
    for path, leaf, shape in zip(paths_of(grads), leaves, shapes, strict=True):
        if params is None and leaf.shape == (num_tasks,):
            raise ConfigError(
                f"gradient of {path!r} has shape {leaf.shape}: one number per task, or a vector "
                "that is no task gradient? Pass `params`: update(grads, state, params)"
            )
        is_row = leaf.shape == (num_tasks, *shape)
        if not is_row and leaf.shape != shape:
            raise ConfigError(
                f"gradient of {path!r} has shape {leaf.shape}; a balancer of {num_tasks} tasks "
                f"takes {(num_tasks, *shape)} (one row per task) or {shape} (passed through)"
            )
        stacked.append(is_row)
    return stacked


def _rows_of(grads: PyTree, stacked: list[bool]) -> Rows:
    named = zip(paths_of(grads), jax.tree.leaves(grads), stacked, strict=True)
    return {path: leaf for path, leaf, is_row in named if is_row}


def _forbid_outer_wrappers() -> None:
    """Raises where `optax.MultiSteps` or `apply_if_finite` calls the balancer: they expect updates
    shaped like the gradients, and would fail after the balancer, or fold K rows into one.

    Python's stack shows the caller, also under `jit`, and is read when the step is traced.
    """
    frame = inspect.currentframe()
    while frame is not None:
        module, name = frame.f_globals.get("__name__", ""), frame.f_code.co_qualname
        wrapper = name.split(".")[0]
        if module.startswith("optax.") and wrapper in ("MultiSteps", "apply_if_finite"):
            after = ".gradient_transformation()" if wrapper == "MultiSteps" else ""
            raise ConfigError(
                f"optax.{wrapper} around a balancer: rows of K tasks come in, one gradient goes "
                f"out. Put it behind: optax.chain(balancer, optax.{wrapper}(optimizer, n){after})"
            )
        frame = frame.f_back


def _forbid_lists(grads: PyTree, params: PyTree | None, num_tasks: int) -> None:
    """Refuses a list of K gradients, and other gradients without the parameters' structure."""
    if params is None or jax.tree.structure(grads) == jax.tree.structure(params):
        return
    one_a_task = isinstance(grads, list | tuple) and len(grads) == num_tasks
    if one_a_task and {jax.tree.structure(g) for g in grads} == {jax.tree.structure(params)}:
        raise ConfigError(
            f"gradients: a {type(grads).__name__} of {num_tasks}, one a task; a balancer takes "
            "one tree with a row per task: jax.tree.map(lambda *g: jnp.stack(g), *gradients), "
            "or jax.jacrev(losses)(params) at once"
        )
    if len(jax.tree.leaves(grads)) != len(jax.tree.leaves(params)):
        raise ConfigError(
            f"gradients: {len(jax.tree.leaves(grads))} arrays for {len(jax.tree.leaves(params))} "
            "parameters; a balancer takes jax.jacrev(losses)(params), a row per task in each array"
        )


def _update(
    rule: Rule,
    num_tasks: int,
    grads: PyTree,
    state: BalancerState,
    params: PyTree | None,
    losses: Array | None,
    present: Array | None,
    other: PyTree | None,
) -> tuple[PyTree, BalancerState]:
    """`Balancer.update`: all task gradients are given, whatever the tier."""
    if losses is None and rule.reads_losses:
        raise ConfigError(
            f"this method reads the losses: update(..., losses=array of shape ({num_tasks},))"
        )
    losses = jnp.ones((num_tasks,), jnp.float32) if losses is None else jnp.asarray(losses)
    if losses.shape != (num_tasks,):
        raise ConfigError(f"losses: shape {losses.shape}; {num_tasks} tasks need ({num_tasks},)")
    losses = losses.astype(balancing_dtype(losses.dtype))
    _forbid_outer_wrappers()
    _forbid_lists(grads, params, num_tasks)
    stacked = _stacked(grads, params, num_tasks)
    rows = _rows_of(grads, stacked)
    if not rows:
        raise ConfigError(f"no gradient has one row per task ({num_tasks} tasks)")
    present = jnp.ones((num_tasks,), bool) if present is None else jnp.asarray(present, bool)
    if rule.second_sample and other is None:
        raise ConfigError("this rule needs a second independent sample of the gradients: `other`")
    others = _rows_of(other, stacked) if rule.second_sample else None
    evidence = gather(losses, present, rows, others)
    outcome = decide(rule, state.rule, evidence)
    leaves, treedef = jax.tree.flatten(grads)
    named = zip(paths_of(grads), leaves, stacked, strict=True)
    mixed = [outcome.gradient[path] if is_row else leaf for path, leaf, is_row in named]
    skipped = not_finite(mixed)
    return jax.tree.unflatten(treedef, mixed), advance(state, outcome, evidence.present, skipped)


def gather(losses: Array, present: Array, rows: Rows, others: Rows | None = None) -> Evidence:
    """Evidence from task gradients: what is not finite is absent, what is absent is zero."""
    present = present & jnp.isfinite(losses)
    if others is not None:
        present = present & jnp.isfinite(largest_entries(others))
    geometry, present = measure(rows, present)
    rows = mask_rows(present, rows)
    dtype = balancing_dtype(losses.dtype, *(x.dtype for x in rows.values()))
    other = None
    if others is not None:
        other = cross_gramian(rows, mask_rows(present, others)).astype(dtype)
    return Evidence(
        losses=jnp.where(present, losses, 0).astype(dtype),
        present=present,
        geometry=jax.tree.map(lambda x: x.astype(dtype), geometry),
        grads=rows,
        other=other,
    )


def cross_gramian(left: Rows, right: Rows) -> Array:
    """`[K, K]` inner products of two samples' gradients, at most what the dtype holds."""
    units = power_of_two(largest_entries(left)), power_of_two(largest_entries(right))
    scaled = [
        jax.tree.map(lambda g, unit=unit: scale_rows(1 / unit, g), rows)
        for rows, unit in zip((left, right), units, strict=True)
    ]
    # An even power in the middle: the product of the two must not overflow on the way.
    products = gramian_of(*scaled) * units[0][:, None] * units[1][None, :]
    largest = float(jnp.finfo(products.dtype).max) / len(products) / 4
    return jnp.clip(products, -largest, largest)


def rule_dtype(rows: Rows) -> Any:
    """The dtype of a rule's own state: that of the balancing arithmetic."""
    return balancing_dtype(*(row.dtype for row in rows.values()))


def stateless(rows: Rows, num_tasks: int) -> tuple[()]:
    """The state of a rule without memory."""
    del rows, num_tasks
    return ()


def divide(values: Array, norms: Array) -> Array:
    """Weights of gradients from the weights of their unit vectors: 0 for a zero gradient, and
    at most what the dtype holds."""
    usable = norms > 0
    largest = float(jnp.finfo(values.dtype).max) / 4
    ratio = jnp.where(usable, values / jnp.where(usable, norms, 1), 0)
    return jnp.clip(ratio, -largest, largest)


def as_number(value: Any, dtype: Any) -> Any:
    """A hyper-parameter in the arithmetic's dtype: an array where a schedule gave one."""
    return value if isinstance(value, int | float) else jnp.asarray(value).astype(dtype)


def task_vector(value: float | Sequence[float] | Array, num_tasks: int, what: str) -> Any:
    """A number for all tasks, or one for each, as K numbers: a tuple, or an array if it was one."""
    if isinstance(value, int | float):
        return (float(value),) * num_tasks
    shape = getattr(value, "shape", None)
    if shape == ():
        return jnp.broadcast_to(value, (num_tasks,))
    count = len(value) if shape is None else shape[0]
    if count != num_tasks:
        raise ConfigError(f"{what}: {count} values for {num_tasks} tasks")
    return value if shape is not None else tuple(float(v) for v in value)


def task_array(values: Any, dtype: Any) -> Array:
    """The result of `task_vector` as an array."""
    return (
        jnp.asarray(values).astype(dtype)
        if hasattr(values, "shape")
        else jnp.asarray(values, dtype)
    )


def checked_method(method: Callable[..., Balancer], where: str) -> Callable[..., Balancer]:
    """A method whose hyper-parameters are checked by their hints; arrays, such as those that
    `optax.inject_hyperparams` makes of schedules, are taken as they are."""
    signature, hints = inspect.signature(method), hints_of(method)

    @functools.wraps(method)
    def build(*args: Any, **kwargs: Any) -> Balancer:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            if not isinstance(value, jax.Array):
                check(value, hints.get(name, Any), f"{where}.{name}")
            elif name == "num_tasks":
                raise ConfigError(
                    f"{where}.num_tasks: an array; with optax.inject_hyperparams pass "
                    "static_args=('num_tasks',)"
                )
        return method(*args, **kwargs)

    return build


class RandomState(NamedTuple):
    """Draws depend on the seed and the step only, so a checkpoint resumes them exactly."""

    key: Array
    step: Array


def random_state(seed: int) -> RandomState:
    """The key of a seed, at step 0."""
    return RandomState(jax.random.PRNGKey(seed), jnp.zeros((), jnp.int32))


def random_init(seed: int) -> Callable[[Rows, int], RandomState]:
    """`Rule.init` of a rule whose state is a `RandomState`."""
    return lambda rows, num_tasks: random_state(seed)


def random_next(state: RandomState) -> tuple[Array, RandomState]:
    """This step's key and the next step's state."""
    return jax.random.fold_in(state.key, state.step), state._replace(step=state.step + 1)
