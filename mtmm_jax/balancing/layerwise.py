"""The parameter Gramian without the K x P task gradients: engine `gramian`.

For a dense layer `y = x W + b` the gradient of task k is `X^T D_k` with `D_k` its gradient at the
pre-activations, so `<g_i, g_j> = <D_i, (X X^T + 1) D_j>`: K pullbacks stop at the pre-activations,
and the update of the layer is `X^T sum_k w_k D_k`, without a second backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtmm_jax.balancing.cut import Setting, local, pull_to_cut, total, without_nan
from mtmm_jax.balancing.engines import Prepared, pullbacks
from mtmm_jax.balancing.rows import (
    Array,
    Rows,
    balancing_dtype,
    combine,
    gramian_of,
    mask_rows,
    paths_of,
)
from mtmm_jax.balancing.split import Split
from mtmm_jax.registry import ConfigError

PyTree = Any
_HIGHEST = jax.lax.Precision.HIGHEST


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
    losses_fn: Any, setting: Setting, params: PyTree, args: tuple[Any, ...]
) -> Prepared:
    """Layer by layer; shared parameters without a tap go by their task gradients.

    A shared parameter is what the trunk reads; what the readout does with it is not balanced.
    """
    if not isinstance(losses_fn, Tapped):
        raise ConfigError("balancing.engine: 'gramian' needs a balancing.Tapped")
    if setting.rule.needs == "jacobian" or setting.rule.second_sample:
        raise ConfigError(
            "balancing.engine: this method needs the task gradients themselves; choices: auto, full"
        )
    axis_name, num_tasks = setting.axis_name, setting.num_tasks
    names, treedef = paths_of(params), jax.tree.structure(params)
    shared = {name for name, label in zip(names, setting.labels, strict=True) if label}
    layers = {
        name: layer
        for name, layer in losses_fn.layers(params, *args).items()
        if layer.kernel in shared and (layer.bias is None or layer.bias in shared)
    }
    tapped = {layer.kernel for layer in layers.values()}
    tapped |= {layer.bias for layer in layers.values() if layer.bias is not None}
    values = dict(zip(names, jax.tree.leaves(local(params, axis_name)), strict=True))
    taps = {name: jnp.zeros(x.output.shape, x.output.dtype) for name, x in layers.items()}
    rest = {name: values[name] for name in names if name not in tapped}

    def trunk(taps: PyTree, rest: PyTree) -> tuple[PyTree, PyTree, PyTree]:
        merged = values | rest
        whole = jax.tree.unflatten(treedef, [merged[name] for name in names])
        return losses_fn.trunk(whole, taps, *args)

    variables = (local(taps, axis_name), rest)
    cut = pull_to_cut(trunk, variables, losses_fn.readout, setting, params, args)
    tallied, inputs = cut.tallied, cut.extra
    own, rows_at_cut = cut.rows()
    rows_at_cut = mask_rows(tallied.present, rows_at_cut)
    untapped = shared - tapped

    def pull(cotangent: list[Array]) -> tuple[PyTree, Rows]:
        deltas, rest = cut.pull_trunk(cotangent)
        return deltas, {name: rest[name] for name in untapped}

    deltas, rest_rows = pullbacks(pull, rows_at_cut, num_tasks)
    gramian = _global_gramian(layers, inputs, deltas, total(rest_rows, axis_name), axis_name)

    def backward(weights: Array, present: Array) -> PyTree:
        mixed = combine(weights, mask_rows(present, deltas))
        found = combine(weights, mask_rows(present, rest_rows))
        for name, layer in layers.items():
            delta = _flat(mixed[name], 0)
            gradient = jnp.matmul(_flat(inputs[name], 0).T, delta)
            found[layer.kernel] = gradient.astype(values[layer.kernel].dtype)
            if layer.bias is not None:
                found[layer.bias] = delta.sum(0).astype(values[layer.bias].dtype)
        heads = own if setting.heads == "own" else cut.pull_readout(weights)[0]
        read = dict(zip(names, jax.tree.leaves(heads), strict=True))
        found |= without_nan({name: read[name] for name in names if name not in shared}, present)
        return jax.tree.unflatten(treedef, [found[name] for name in names])

    return Prepared(tallied.losses, tallied.present, backward, cut.aux, gramian)


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
