"""Instance-wise risk minimisation: the samples of a batch are balanced as tasks are.

The Jacobian has a row per sample. Its Gramian comes from ONE backward pass: of a dense layer
`y = x W + b` the gradient of sample i is `x_i^T d_i`, so `<g_i, g_j> = (x_i x_j + 1) (d_i d_j)`;
the balanced gradient is `X^T diag(w) D`, without a second backward pass. This is what torchjd calls
IWRM and does with its autogram engine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mtmm_jax.balancing.base import (
    Array,
    Balancer,
    BalancerState,
    Geometry,
    PyTree,
    Rows,
    combine,
    geometry_of,
    gramian_of,
    largest_entries,
    mask_gramian,
    mask_rows,
    paths_of,
    per_task,
    power_of_two,
    scale_rows,
)
from mtmm_jax.balancing.cut import SharedByAllTasks
from mtmm_jax.balancing.engines import Layer, Prepared, Tapped
from mtmm_jax.balancing.trainer import Balanced, balance
from mtmm_jax.registry import ConfigError

_HIGHEST = jax.lax.Precision.HIGHEST


def instance_value_and_grad(model: Tapped, balancer: Balancer) -> Callable[..., Balanced]:
    """Like `value_and_grad`, for a loss per sample: the tasks are the B samples of the batch.

    Args:
        model: as for engine `"gramian"`, whose readout returns `(losses [B], counts [B], aux)`: a
            sample of count 0 is absent. Samples must not read each other: no batch normalisation,
            no contrastive loss. Parameters outside the tapped layers cost a pullback per sample,
            and a sample that is NaN reaches all their rows: then the step is zero. Where all are
            tapped it is absent, and the others count.
        balancer: of the gramian tier, for `num_tasks = B`.

    Returns:
        `fn(params, state, *args) -> Balanced`. All parameters are balanced, the head's too.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from mtmm_jax import balancing
        >>> def trunk(params, taps, x, y):
        ...     z = x @ params["w"]
        ...     return (z + taps["w"] if taps else z), None, {"w": x}
        >>> def readout(params, copies, aux, x, y):
        ...     return (copies[0][:, 0] - y) ** 2, jnp.ones(len(y)), None
        >>> def layers(params, x, y):
        ...     return {"w": balancing.Layer(jax.ShapeDtypeStruct((len(x), 1), x.dtype), "w", None)}
        >>> balancer = balancing.upgrad(2)
        >>> step = balancing.instance_value_and_grad(
        ...     balancing.Tapped(trunk, readout, layers), balancer)
        >>> params = {"w": jnp.zeros((3, 1))}
        >>> x, y = jnp.eye(2, 3), jnp.array([1.0, -1.0])
        >>> out = step(params, balancer.init(params), x, y)
        >>> out.grads["w"][:, 0].tolist()
        [-1.0, 1.0, 0.0]
    """
    rule = balancer.rule
    if rule.needs == "jacobian" or rule.second_sample:
        raise ConfigError(
            "instance_value_and_grad: the method needs task gradients of the parameters; choose "
            "one of the losses or gramian tier"
        )
    if not isinstance(model, Tapped):
        raise ConfigError("instance_value_and_grad: the model must be a balancing.Tapped")

    def fn(params: PyTree, state: BalancerState, *args: Any) -> Balanced:
        prepared = _prepare(model, params, args)
        if prepared.losses.shape != (balancer.num_tasks,):
            raise ConfigError(
                f"instance_value_and_grad: a balancer of {balancer.num_tasks} tasks, and losses of "
                f"shape {prepared.losses.shape}; it needs one task per sample"
            )
        return balance(balancer, state, prepared, None)

    return fn


def _prepare(model: Tapped, params: PyTree, args: tuple[Any, ...]) -> Prepared:
    names = paths_of(params)
    values = dict(zip(names, jax.tree.leaves(params), strict=True))
    layers: dict[str, Layer] = model.layers(params, *args)
    tapped = {p for x in layers.values() for p in (x.kernel, x.bias) if p is not None}
    rest = {name: values[name] for name in names if name not in tapped}
    taps = {name: jnp.zeros(x.output.shape, x.output.dtype) for name, x in layers.items()}

    def as_params(found: Rows) -> PyTree:
        return jax.tree.unflatten(jax.tree.structure(params), [found[name] for name in names])

    def forward(taps: PyTree, rest: Rows) -> tuple[Array, Any]:
        full = as_params(values | rest)
        shared, trunk_aux, inputs = model.trunk(full, taps, *args)
        copies = SharedByAllTasks(shared)
        sums, counts, aux = model.readout(full, copies, jax.lax.stop_gradient(trunk_aux), *args)
        return sums, (counts, inputs, aux)

    sums, pull, (counts, inputs, aux) = jax.vjp(forward, taps, rest, has_aux=True)
    counted = counts > 0
    scale = jnp.where(counted, 1 / jnp.where(counted, counts, 1), 0)
    losses = jnp.where(counted, sums * scale, 0)
    present = counted & jnp.isfinite(losses)
    cotangent = jnp.where(present, scale, 0).astype(sums.dtype)
    deltas, _ = pull(cotangent)
    rows: Rows = {}
    if rest:
        rows = jax.vmap(lambda ct: pull(ct)[1])(jnp.diag(cotangent))
    largest = largest_entries((deltas, rows))
    finite = present & jnp.isfinite(largest)
    unit = power_of_two(jnp.where(finite, largest, 1))
    deltas, rows = (_near(tree, finite, unit) for tree in (deltas, rows))
    inputs = mask_rows(finite, {name: inputs[name] for name in layers})

    def backward(weights: Array, present: Array) -> PyTree:
        scaled = jnp.where(present, weights * unit.astype(weights.dtype), 0)
        found = combine(scaled, rows)
        for name, layer in layers.items():
            weighted = deltas[name] * per_task(scaled, deltas[name]).astype(deltas[name].dtype)
            flat = weighted.reshape(-1, weighted.shape[-1])
            x = inputs[name].reshape(-1, inputs[name].shape[-1])
            found[layer.kernel] = (x.T @ flat).astype(values[layer.kernel].dtype)
            if layer.bias is not None:
                found[layer.bias] = flat.sum(0).astype(values[layer.bias].dtype)
        return as_params(found)

    gramian = sum(
        _instance_gramian(inputs[name], deltas[name], layer.bias is not None)
        for name, layer in layers.items()
    )
    gramian = gramian + gramian_of(rows) if rows else gramian
    geometry = geometry_of(mask_gramian(finite, gramian), unit.astype(gramian.dtype))
    geometry = Geometry(jnp.where(finite, geometry.norms, jnp.nan), geometry.cosines)
    return Prepared(losses, present, backward, aux, geometry)


def _near(tree: PyTree, finite: Array, unit: Array) -> PyTree:
    """Rows of the finite samples, brought to the order of one."""
    return jax.tree.map(lambda g: scale_rows(1 / unit, g), mask_rows(finite, tree))


def _instance_gramian(inputs: Array, deltas: Array, has_bias: bool) -> Array:
    """`[B, B]` inner products of the samples' gradients of a dense layer, the cheaper of two ways.

    Args:
        inputs: `[B, ..., inputs]`.
        deltas: `[B, ..., features]`.
        has_bias: whether there is a bias.
    """
    size = len(inputs)
    x = inputs.reshape(size, -1, inputs.shape[-1])
    d = deltas.reshape(size, -1, deltas.shape[-1]).astype(x.dtype)
    places, width, features = x.shape[1], x.shape[2], d.shape[2]
    if places**2 * (width + features) <= width * features:
        flat_x, flat_d = (a.reshape(size * places, -1) for a in (x, d))
        similarity = jnp.matmul(flat_x, flat_x.T, precision=_HIGHEST) + (1 if has_bias else 0)
        products = similarity * jnp.matmul(flat_d, flat_d.T, precision=_HIGHEST)
        return products.reshape(size, places, size, places).sum((1, 3))
    rows = {"kernel": jnp.einsum("bti,btf->bif", x, d, precision=_HIGHEST)}
    return gramian_of(rows | ({"bias": d.sum(1)} if has_bias else {}))
