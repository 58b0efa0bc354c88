"""Engines that compute task gradients: one function per engine, all with the same result.

An engine, `(losses_fn, options, params, args, other) -> Prepared`, runs the forward pass and what
the evidence needs of the backward pass; `Prepared.backward` turns the balancer's weights into
gradients. `other` are the args of a second sample; only `full_engine` takes one.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtmm_jax.balancing.base import (
    Array,
    Evidence,
    Geometry,
    PyTree,
    Rows,
    balancing_dtype,
    combine,
    gather,
    geometry_of,
    gramian_of,
    largest_entries,
    mask_gramian,
    mask_rows,
    measure,
    paths_of,
    power_of_two,
    scale_rows,
)
from mtmm_jax.balancing.cut import (
    EngineOptions,
    Split,
    Tally,
    local,
    run_to_cut,
    tally,
    total,
    with_aux,
    without_nan,
)

_HIGHEST = jax.lax.Precision.HIGHEST
LossesFn = Callable[..., tuple[Array, Array, PyTree]]


class Prepared(NamedTuple):
    """The losses, the evidence for the rule, and the backward pass that waits for its weights.

    Those of microbatches add up to that of the batch: losses, Gramian, rows and gradients.

    Attributes:
        losses: `[K]`, global means as they are, NaN included.
        present: `[K]` bool: counted and finite, as far as is known.
        backward: `(weights [K], present [K]) -> ` this device's gradient of all parameters; zero
            for those whose rows are known.
        aux: the third output of `losses_fn`.
        geometry: of the task gradients, over all devices, if the engine finds one; NaN norms of
            gradients that are not finite.
        rows: this device's task gradients, if the engine finds them.
        others: those of the second sample.
    """

    losses: Array
    present: Array
    backward: Callable[[Array, Array], PyTree]
    aux: PyTree
    geometry: Geometry | None = None
    rows: Rows | None = None
    others: Rows | None = None

    def evidence(self, axis_name: Any) -> Evidence:
        """The input of the rule: task gradients are summed over devices BEFORE their Gramian, since
        balancing acts on global ones; what is not finite is absent, and zero."""
        if self.rows is not None:
            rows, others = total((self.rows, self.others), axis_name)
            return gather(self.losses, self.present, rows, others)
        losses = jnp.where(self.present, self.losses, 0)
        if self.geometry is None:
            return Evidence(losses, self.present)
        norms, cosines = (x.astype(losses.dtype) for x in self.geometry)
        present = self.present & jnp.isfinite(norms)
        geometry = Geometry(jnp.where(present, norms, 0), mask_gramian(present, cosines))
        return Evidence(jnp.where(present, losses, 0), present, geometry)


def reaches(function: Callable[..., PyTree], params: PyTree, *args: Any) -> list[bool]:
    """For every leaf of `params`: does `function(params, *args)` read it?"""
    leaves, treedef = jax.tree.flatten(params)
    closed = jax.make_jaxpr(lambda *x: function(jax.tree.unflatten(treedef, x), *args))(*leaves)
    read = {id(v) for eqn in closed.jaxpr.eqns for v in eqn.invars}
    read |= {id(v) for v in closed.jaxpr.outvars}
    return [id(v) in read for v in closed.jaxpr.invars]


def losses_engine(
    losses_fn: LossesFn,
    options: EngineOptions,
    params: PyTree,
    args: tuple[Any, ...],
    other: None = None,
) -> Prepared:
    """ONE backward pass with the weights: all that rules of the losses tier need."""
    if isinstance(losses_fn, Split):
        cut = run_to_cut(losses_fn.bind(*args), options, params)
        tallied, aux, pull = cut.tallied, cut.aux, cut.gradient
    else:
        variable = local(params, options.axis_name)
        sums, pull_sums, (counts, aux) = jax.vjp(
            lambda p: with_aux(losses_fn(p, *args)), variable, has_aux=True
        )
        tallied = tally(sums, counts, options)

        def pull(weights: Array, present: Array) -> PyTree:
            gradient = pull_sums(tallied.cotangent(weights, sums.dtype))[0]
            return _choose(options.labels, gradient, without_nan(gradient, present))

    def backward(weights: Array, present: Array) -> PyTree:
        weighted = pull(weights, present)
        if options.heads == "weighted" or all(options.labels):
            return weighted
        return _choose(options.labels, weighted, pull(jnp.ones_like(weights), present))

    return Prepared(tallied.losses, tallied.present, backward, aux)


def _choose(labels: list[bool], shared: PyTree, heads: PyTree) -> PyTree:
    """The shared leaves of one pytree and the others of another."""
    first, treedef = jax.tree.flatten(shared)
    pairs = zip(labels, first, jax.tree.leaves(heads), strict=True)
    return jax.tree.unflatten(treedef, [a if label else b for label, a, b in pairs])


def representation_engine(
    losses_fn: Split,
    options: EngineOptions,
    params: PyTree,
    args: tuple[Any, ...],
    other: None = None,
) -> Prepared:
    """Task gradients at the cut by ONE pullback; then ONE trunk backward with their combination.

    Samples live on separate devices, so the global Gramian is the sum of the local ones.
    """
    cut = run_to_cut(losses_fn.bind(*args), options, params)
    own, rows = cut.rows()
    named = {str(i): row for i, row in enumerate(rows)}
    geometry = _marked(*measure(named, cut.tallied.present, options.axis_name))

    def backward(weights: Array, present: Array) -> PyTree:
        trunk = cut.pull_trunk(combine(weights, mask_rows(present, rows)))
        heads = own if options.heads == "own" else cut.pull_readout(weights)[0]
        return jax.tree.map(jnp.add, trunk, without_nan(heads, present))

    tallied = cut.tallied
    return Prepared(tallied.losses, tallied.present, backward, cut.aux, geometry)


def _marked(geometry: Geometry, finite: Array) -> Geometry:
    """Norms of gradients that are not finite become NaN."""
    return geometry._replace(norms=jnp.where(finite, geometry.norms, jnp.nan))


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
    losses_fn: LossesFn, options: EngineOptions, params: PyTree, args: tuple[Any, ...]
) -> _TaskGradients:
    """K pullbacks through everything, over one linearisation."""
    leaves, treedef = jax.tree.flatten(local(params, options.axis_name))
    labels = options.labels

    def forward(shared: list[Array], heads: list[Array]) -> tuple[Array, tuple[Array, PyTree]]:
        merged = jax.tree.unflatten(treedef, _merge(shared, heads, labels))
        return with_aux(losses_fn(merged, *args))

    sums, pull, (counts, aux) = jax.vjp(
        forward, _pick(leaves, labels, True), _pick(leaves, labels, False), has_aux=True
    )
    tallied = tally(sums, counts, options)
    units = jnp.diag(tallied.cotangent(jnp.ones_like(tallied.losses), sums.dtype))
    rows = pullbacks(lambda ct: pull(ct)[0], units, options.chunk)
    names = _pick(paths_of(params), labels, True)
    return _TaskGradients(
        tallied=tallied,
        rows=dict(zip(names, rows, strict=True)),
        heads=lambda weights: pull(tallied.cotangent(weights, sums.dtype))[1],
        aux=aux,
    )


def _split_gradients(
    split: Split, options: EngineOptions, params: PyTree, args: tuple[Any, ...]
) -> _TaskGradients:
    """K pullbacks through the trunk only; ONE through the readout, for all tasks.

    It also keeps a task's NaN in its own row, which K pullbacks through everything cannot.
    """
    cut = run_to_cut(split.bind(*args), options, params)
    labels = options.labels
    rows_at_cut = mask_rows(cut.tallied.present, cut.rows()[1])

    def pull(cotangent: list[Array], which: bool) -> list[Array]:
        return _pick(jax.tree.leaves(cut.pull_trunk(cotangent)), labels, which)

    rows = pullbacks(lambda ct: pull(ct, True), rows_at_cut, options.chunk)

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


def cheaper_gradients(
    losses_fn: LossesFn, options: EngineOptions, params: PyTree, args: tuple[Any, ...]
) -> Callable[..., _TaskGradients]:
    """The cheaper of two ways to the full task gradients of the shared leaves, as a function of
    the same arguments: through the trunk alone where the readout reads no shared leaf."""
    if not isinstance(losses_fn, Split):
        return _plain_gradients
    shared, trunk_aux = losses_fn.trunk(params, *args)

    def readout(params: PyTree) -> PyTree:
        return losses_fn.readout(params, [shared] * options.num_tasks, trunk_aux, *args)[0]

    reads_shared = any(map(operator.and_, reaches(readout, params), options.labels))
    return _plain_gradients if reads_shared else _split_gradients


def full_engine(
    losses_fn: LossesFn,
    options: EngineOptions,
    params: PyTree,
    args: tuple[Any, ...],
    other: tuple[Any, ...] | None = None,
) -> Prepared:
    """All K task gradients of the shared parameters, K x P numbers."""
    task_gradients = cheaper_gradients(losses_fn, options, params, args)
    first = task_gradients(losses_fn, options, params, args)
    present, others = first.tallied.present, None
    if other is not None:
        second = task_gradients(losses_fn, options, params, other)
        present, others = present & second.tallied.present, second.rows

    def backward(weights: Array, present: Array) -> PyTree:
        heads = first.heads(jnp.ones_like(weights) if options.heads == "own" else weights)
        leaves, treedef = jax.tree.flatten(params)
        shared = [jnp.zeros_like(leaf) for leaf in _pick(leaves, options.labels, True)]
        merged = _merge(shared, without_nan(heads, present), options.labels)
        return jax.tree.unflatten(treedef, merged)

    return Prepared(
        first.tallied.losses, present, backward, first.aux, rows=first.rows, others=others
    )


class Layer(NamedTuple):
    """A tapped dense layer: its pre-activations' shape and where its parameters are.

    Attributes:
        output: shape and dtype of the pre-activations `[..., features]`.
        kernel: path of the `[inputs, features]` leaf.
        bias: path of the `[features]` leaf, or None.
    """

    output: jax.ShapeDtypeStruct
    kernel: str
    bias: str | None


class Tapped(NamedTuple):
    """A `Split` whose trunk has taps on its dense layers; callable as a plain `losses_fn`.

    `mtmm_jax.layers.taps` makes one of a trunk of Linen modules.

    Attributes:
        trunk: `(params, taps, *args) -> (shared, trunk_aux, inputs)`: adds `taps[name]` to the
            pre-activations of each layer and returns the layers' `inputs`.
        readout: as in `Split`.
        layers: `(params, *args) -> {name: Layer}`, what can be tapped; each used exactly once.
    """

    trunk: Callable[..., tuple[PyTree, PyTree, Mapping[str, Array]]]
    readout: Callable[..., tuple[Array, Array, PyTree]]
    layers: Callable[..., dict[str, Layer]]

    @property
    def split(self) -> Split:
        """The same model without taps."""
        return Split(lambda params, *args: self.trunk(params, {}, *args)[:2], self.readout)

    def bind(self, params_of: Callable[[PyTree], PyTree], *args: Any) -> Split:
        """The model with `args` given: `trunk((taps, rest)) -> (shared, (trunk_aux, inputs))`, the
        trunk's parameters being `params_of(rest)`."""

        def trunk(variables: tuple[PyTree, PyTree]) -> tuple[PyTree, tuple[PyTree, PyTree]]:
            taps, rest = variables
            shared, trunk_aux, inputs = self.trunk(params_of(rest), taps, *args)
            return shared, (trunk_aux, inputs)

        return Split(trunk, lambda params, copies, aux: self.readout(params, copies, aux[0], *args))

    def __call__(self, params: PyTree, *args: Any) -> tuple[Array, Array, PyTree]:
        return self.split(params, *args)


def _flat(x: Array, lead: int) -> Array:
    """`[..., features]` with everything between the first `lead` axes and the last one merged."""
    return x.reshape(*x.shape[:lead], -1, x.shape[-1]).astype(balancing_dtype(x.dtype))


def layer_gramian(inputs: Array, deltas: Array, has_bias: bool) -> Array:
    """`[K, K]` inner products of a dense layer's task gradients, the cheaper of two ways.

    Args:
        inputs: `[N, inputs]`.
        deltas: `[K, N, features]`.
        has_bias: whether the bias is balanced, too.
    """
    (num, width), (tasks, _, features) = inputs.shape, deltas.shape
    through_samples = tasks * num * features * (num + tasks) + num * num * width
    through_weights = tasks * width * features * (num + tasks)
    if through_samples < through_weights:
        similarity = jnp.matmul(inputs, inputs.T, precision=_HIGHEST)
        similarity = similarity + (1 if has_bias else 0)
        # Batched rather than one einsum over k and d: no transposed copy of the deltas.
        similarity = jnp.broadcast_to(similarity, (tasks, num, num))
        spread = jnp.matmul(similarity, deltas, precision=_HIGHEST)
        return gramian_of({"": deltas}, {"": spread})
    rows = {"kernel": jnp.einsum("ni,knd->kid", inputs, deltas, precision=_HIGHEST)}
    return gramian_of(rows | ({"bias": deltas.sum(1)} if has_bias else {}))


def gramian_engine(
    losses_fn: Tapped,
    options: EngineOptions,
    params: PyTree,
    args: tuple[Any, ...],
    other: None = None,
) -> Prepared:
    """The parameter Gramian layer by layer, without the K x P task gradients.

    For a dense layer `y = x W + b` the gradient of task k is `X^T D_k` with `D_k` its gradient at
    the pre-activations, so `<g_i, g_j> = <D_i, (X X^T + 1) D_j>`: K pullbacks stop at the
    pre-activations, and the gradient of the layer is `X^T sum_k w_k D_k`, without a second backward
    pass. Shared parameters without a tap have their task gradients computed. A shared parameter is
    what the trunk reads; what the readout does with it is not balanced.
    """
    axis_name, names = options.axis_name, paths_of(params)
    shared = {name for name, label in zip(names, options.labels, strict=True) if label}
    layers = _shared_layers(losses_fn.layers(params, *args), shared)
    tapped = {path for layer in layers.values() for path in _parameters_of(layer)}
    values = dict(zip(names, jax.tree.leaves(local(params, axis_name)), strict=True))
    rest = {name: values[name] for name in names if name not in tapped}
    taps = {name: jnp.zeros(x.output.shape, x.output.dtype) for name, x in layers.items()}

    def as_params(found: Mapping[str, Array]) -> PyTree:
        return jax.tree.unflatten(jax.tree.structure(params), [found[name] for name in names])

    model = losses_fn.bind(lambda rest: as_params(values | rest), *args)
    cut = run_to_cut(model, options, params, (local(taps, axis_name), rest))
    own, rows_at_cut = cut.rows()

    def pull(cotangent: list[Array]) -> tuple[PyTree, Rows]:
        deltas, rest = cut.pull_trunk(cotangent)
        return deltas, {name: rest[name] for name in shared - tapped}

    # Brought to the order of one by powers of two, so that no square leaves the dtype's range.
    largest = largest_entries(rows_at_cut)
    if axis_name is not None:
        largest = jax.lax.pmax(largest, axis_name)
    finite = cut.tallied.present & jnp.isfinite(largest)
    unit = power_of_two(jnp.where(finite, largest, 1))
    near = [scale_rows(1 / unit, row) for row in mask_rows(finite, rows_at_cut)]
    deltas, rest_rows = pullbacks(pull, near, options.num_tasks)
    _, inputs = cut.trunk_aux

    def backward(weights: Array, present: Array) -> PyTree:
        scaled = weights * unit.astype(weights.dtype)
        found = combine(scaled, mask_rows(present, rest_rows))
        found |= _layer_gradients(
            layers, inputs, combine(scaled, mask_rows(present, deltas)), values
        )
        heads = own if options.heads == "own" else cut.pull_readout(weights)[0]
        read = dict(zip(names, jax.tree.leaves(heads), strict=True))
        found |= without_nan({name: read[name] for name in names if name not in shared}, present)
        return as_params(found)

    gramian = _global_gramian(layers, inputs, deltas, total(rest_rows, axis_name), axis_name)
    finite = finite & jnp.isfinite(jnp.diagonal(gramian))
    geometry = geometry_of(mask_gramian(finite, gramian), unit.astype(gramian.dtype))
    geometry = _marked(geometry, finite)
    return Prepared(cut.tallied.losses, cut.tallied.present, backward, cut.aux, geometry)


def _parameters_of(layer: Layer) -> tuple[str, ...]:
    """The paths of the kernel and, if there is one, the bias."""
    return (layer.kernel,) if layer.bias is None else (layer.kernel, layer.bias)


def _shared_layers(layers: Mapping[str, Layer], shared: set[str]) -> dict[str, Layer]:
    """The layers whose parameters are all shared."""
    return {k: layer for k, layer in layers.items() if shared.issuperset(_parameters_of(layer))}


def _layer_gradients(
    layers: Mapping[str, Layer],
    inputs: Mapping[str, Array],
    deltas: Mapping[str, Array],
    values: Mapping[str, Array],
) -> Rows:
    """The gradients of the layers' parameters, from those at their pre-activations."""
    found = {}
    for name, layer in layers.items():
        delta = _flat(deltas[name], 0)
        gradient = jnp.matmul(_flat(inputs[name], 0).T, delta)
        found[layer.kernel] = gradient.astype(values[layer.kernel].dtype)
        if layer.bias is not None:
            found[layer.bias] = delta.sum(0).astype(values[layer.bias].dtype)
    return found


def _global_gramian(
    layers: Mapping[str, Layer],
    inputs: Mapping[str, Array],
    deltas: Mapping[str, Array],
    rest_rows: Rows,
    axis_name: Any,
) -> Array:
    """Of the gradients summed over devices: samples of all devices meet in every layer."""

    def gathered(x: Array, axis: int) -> Array:
        if axis_name is None:
            return x
        return jax.lax.all_gather(x, axis_name, axis=axis, tiled=True)

    parts = [
        layer_gramian(
            gathered(_flat(inputs[name], 0), 0),
            gathered(_flat(deltas[name], 1), 1),
            layer.bias is not None,
        )
        for name, layer in layers.items()
    ]
    if rest_rows:
        parts.append(gramian_of(rest_rows))
    dtype = balancing_dtype(*(part.dtype for part in parts))
    return sum(part.astype(dtype) for part in parts)
