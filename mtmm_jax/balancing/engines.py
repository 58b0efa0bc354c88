"""How task gradients are computed: one function per engine, all with the same answer.

An engine runs the forward pass and as much of the backward pass as the evidence needs, and returns
`Prepared`, whose `backward` turns the balancer's weights into gradients.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtmm_jax.balancing.core import Evidence, gather
from mtmm_jax.balancing.cut import (
    Setting,
    Tally,
    local,
    split_at_cut,
    tally,
    total,
    with_aux,
    without_nan,
)
from mtmm_jax.balancing.rows import (
    Array,
    Rows,
    combine,
    gramian_of,
    mask_gramian,
    mask_rows,
    paths_of,
)
from mtmm_jax.balancing.split import Split
from mtmm_jax.registry import ConfigError

PyTree = Any
LossesFn = Callable[..., tuple[Array, Array, PyTree]]


class Prepared(NamedTuple):
    """The state of affairs between the evidence and the decision.

    Of one microbatch all of it is a part of a sum: losses, Gramian, rows and gradients add up.

    Attributes:
        losses: `[K]`, global means as they are, NaN included.
        present: `[K]` bool: counted and finite, as far as is known.
        backward: `(weights [K], present [K]) -> ` this device's gradient of all parameters; zero
            for those whose rows are known.
        aux: what `losses_fn` returned besides.
        gramian: `[K, K]`, over all devices, if the engine finds one.
        rows: this device's task gradients, if the engine finds them.
        others: those of the second sample.
    """

    losses: Array
    present: Array
    backward: Callable[[Array, Array], PyTree]
    aux: PyTree
    gramian: Array | None = None
    rows: Rows | None = None
    others: Rows | None = None

    def evidence(self, axis_name: Any) -> Evidence:
        """What the rule sees: task gradients are summed over devices BEFORE their Gramian, since
        balancing acts on global ones; what is not finite is absent, and zero."""
        if self.rows is not None:
            rows, others = total((self.rows, self.others), axis_name)
            return gather(self.losses, self.present, rows, others)
        if self.gramian is None:
            return Evidence(jnp.where(self.present, self.losses, 0), self.present)
        gramian = self.gramian.astype(self.losses.dtype)
        present = self.present & jnp.isfinite(jnp.diagonal(gramian))
        losses = jnp.where(present, self.losses, 0)
        return Evidence(losses, present, mask_gramian(present, gramian))


def reaches(function: Callable[..., PyTree], params: PyTree, *args: Any) -> list[bool]:
    """For every leaf of `params`: does `function(params, *args)` read it?"""
    leaves, treedef = jax.tree.flatten(params)
    closed = jax.make_jaxpr(lambda *x: function(jax.tree.unflatten(treedef, x), *args))(*leaves)
    read = {id(v) for eqn in closed.jaxpr.eqns for v in eqn.invars}
    read |= {id(v) for v in closed.jaxpr.outvars}
    return [id(v) in read for v in closed.jaxpr.invars]


def losses_engine(
    losses_fn: LossesFn, setting: Setting, params: PyTree, args: tuple[Any, ...]
) -> Prepared:
    """ONE backward pass with the weights: all that rules of the losses tier need."""
    if isinstance(losses_fn, Split):
        cut = split_at_cut(losses_fn, setting, params, args)
        tallied, aux, pull = cut.tallied, cut.aux, cut.gradient
    else:
        variable = local(params, setting.axis_name)
        sums, pull_sums, (counts, aux) = jax.vjp(
            lambda p: with_aux(losses_fn(p, *args)), variable, has_aux=True
        )
        tallied = tally(sums, counts, setting)

        def pull(weights: Array, present: Array) -> PyTree:
            pulled = pull_sums(tallied.cotangent(weights, sums.dtype))[0]
            return _choose(setting.labels, pulled, without_nan(pulled, present))

    def backward(weights: Array, present: Array) -> PyTree:
        weighted = pull(weights, present)
        if setting.heads == "weighted" or all(setting.labels):
            return weighted
        return _choose(setting.labels, weighted, pull(jnp.ones_like(weights), present))

    return Prepared(tallied.losses, tallied.present, backward, aux)


def _choose(labels: list[bool], shared: PyTree, heads: PyTree) -> PyTree:
    """The shared leaves of one pytree and the others of another."""
    first, treedef = jax.tree.flatten(shared)
    pairs = zip(labels, first, jax.tree.leaves(heads), strict=True)
    return jax.tree.unflatten(treedef, [a if label else b for label, a, b in pairs])


def representation_engine(
    losses_fn: LossesFn, setting: Setting, params: PyTree, args: tuple[Any, ...]
) -> Prepared:
    """Task gradients at the cut by ONE pullback; then ONE trunk backward with their mixture.

    Samples live on separate devices, so the global Gramian is the sum of the local ones.
    """
    if not isinstance(losses_fn, Split):
        raise ConfigError("balancing.engine: 'representation' needs a balancing.Split")
    if setting.rule.needs == "jacobian" or setting.rule.second_sample:
        raise ConfigError(
            "balancing.engine: this method needs the task gradients of the parameters "
            "themselves; choices: auto, full"
        )
    cut = split_at_cut(losses_fn, setting, params, args)
    own, rows = cut.rows()
    gramian = total(gramian_of({str(i): row for i, row in enumerate(rows)}), setting.axis_name)

    def backward(weights: Array, present: Array) -> PyTree:
        (trunk,) = cut.pull_trunk(combine(weights, mask_rows(present, rows)))
        heads = own if setting.heads == "own" else cut.pull_readout(weights)[0]
        return jax.tree.map(jnp.add, trunk, without_nan(heads, present))

    tallied = cut.tallied
    return Prepared(tallied.losses, tallied.present, backward, cut.aux, gramian)


def pullbacks(pull: Callable[[PyTree], PyTree], cotangents: PyTree, chunk: int) -> PyTree:
    """`pull` over the leading axis: vmapped `chunk` at a time, the chunks unrolled.

    Unrolled rather than scanned: a convolution's weight gradient inside a loop misses XLA's fast
    path on CPU by a factor of hundreds.
    """
    num = jax.tree.leaves(cotangents)[0].shape[0]
    parts = []
    for start in range(0, num, chunk):
        part = jax.tree.map(lambda x, start=start: x[start : start + chunk], cotangents)
        if min(chunk, num - start) == 1:
            one = pull(jax.tree.map(lambda x: x[0], part))
            parts.append(jax.tree.map(lambda x: x[None], one))
        else:
            parts.append(jax.vmap(pull)(part))
    return jax.tree.map(lambda *x: jnp.concatenate(x) if len(x) > 1 else x[0], *parts)


class _TaskGradients(NamedTuple):
    """Rows of the shared leaves, and the other leaves' gradient for given task weights."""

    tallied: Tally
    rows: Rows
    heads: Callable[[Array], list[Array]]
    aux: PyTree


def _pick(leaves: list[Any], labels: list[bool], which: bool) -> list[Any]:
    return [leaf for leaf, label in zip(leaves, labels, strict=True) if label == which]


def _merge(shared: list[Any], heads: list[Any], labels: list[bool]) -> list[Any]:
    first, second = iter(shared), iter(heads)
    return [next(first) if label else next(second) for label in labels]


def _plain_gradients(
    losses_fn: LossesFn, setting: Setting, params: PyTree, args: tuple[Any, ...]
) -> _TaskGradients:
    """K pullbacks through everything, over one linearisation."""
    leaves, treedef = jax.tree.flatten(local(params, setting.axis_name))
    labels = setting.labels

    def forward(shared: list[Array], heads: list[Array]) -> tuple[Array, tuple[Array, PyTree]]:
        merged = jax.tree.unflatten(treedef, _merge(shared, heads, labels))
        sums, counts, aux = losses_fn(merged, *args)
        return sums, (counts, aux)

    sums, pull, (counts, aux) = jax.vjp(
        forward, _pick(leaves, labels, True), _pick(leaves, labels, False), has_aux=True
    )
    tallied = tally(sums, counts, setting)
    units = jnp.diag(tallied.cotangent(jnp.ones_like(tallied.losses), sums.dtype))
    rows = pullbacks(lambda ct: pull(ct)[0], units, setting.chunk)
    names = _pick(paths_of(params), labels, True)
    return _TaskGradients(
        tallied=tallied,
        rows=dict(zip(names, rows, strict=True)),
        heads=lambda weights: pull(tallied.cotangent(weights, sums.dtype))[1],
        aux=aux,
    )


def _split_gradients(
    split: Split, setting: Setting, params: PyTree, args: tuple[Any, ...]
) -> _TaskGradients:
    """K pullbacks through the trunk only; the readout is pulled back once for all tasks.

    It also keeps a task's NaN in its own row, which K pullbacks through everything cannot.
    """
    cut = split_at_cut(split, setting, params, args)
    labels = setting.labels
    rows_at_cut = mask_rows(cut.tallied.present, cut.rows()[1])

    def pull(cotangent: list[Array], which: bool) -> list[Array]:
        return _pick(jax.tree.leaves(cut.pull_trunk(cotangent)[0]), labels, which)

    rows = pullbacks(lambda ct: pull(ct, True), rows_at_cut, setting.chunk)

    def heads(weights: Array) -> list[Array]:
        through_readout = _pick(jax.tree.leaves(cut.pull_readout(weights)[0]), labels, False)
        through_trunk = pull(combine(weights, rows_at_cut), False)
        return [a + b for a, b in zip(through_readout, through_trunk, strict=True)]

    names = _pick(paths_of(params), labels, True)
    return _TaskGradients(
        tallied=cut.tallied,
        rows=dict(zip(names, rows, strict=True)),
        heads=heads,
        aux=cut.aux,
    )


def task_gradients(
    losses_fn: LossesFn, setting: Setting, params: PyTree, args: tuple[Any, ...]
) -> _TaskGradients:
    """The full task gradients of the shared leaves, by the cheaper of two ways."""
    if isinstance(losses_fn, Split):
        shared, trunk_aux = losses_fn.trunk(params, *args)

        def readout(params: PyTree) -> PyTree:
            return losses_fn.readout(params, [shared] * setting.num_tasks, trunk_aux, *args)[0]

        if not any(map(operator.and_, reaches(readout, params), setting.labels)):
            return _split_gradients(losses_fn, setting, params, args)
    return _plain_gradients(losses_fn, setting, params, args)


def full_engine(
    losses_fn: LossesFn,
    setting: Setting,
    params: PyTree,
    args: tuple[Any, ...],
    other: tuple[Any, ...] | None = None,
) -> Prepared:
    """All K task gradients of the shared parameters, K x P numbers."""
    first = task_gradients(losses_fn, setting, params, args)
    present, others = first.tallied.present, None
    if other is not None:
        second = task_gradients(losses_fn, setting, params, other)
        present, others = present & second.tallied.present, second.rows

    def backward(weights: Array, present: Array) -> PyTree:
        heads = first.heads(jnp.ones_like(weights) if setting.heads == "own" else weights)
        leaves, treedef = jax.tree.flatten(params)
        shared = [jnp.zeros_like(leaf) for leaf in _pick(leaves, setting.labels, True)]
        merged = _merge(shared, without_nan(heads, present), setting.labels)
        return jax.tree.unflatten(treedef, merged)

    return Prepared(
        first.tallied.losses, present, backward, first.aux, rows=first.rows, others=others
    )
