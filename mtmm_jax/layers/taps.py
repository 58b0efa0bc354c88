"""Taps on the Dense layers of any Linen model, for the Gramian engine of `mtmm_jax.balancing`.

tapped_trunk, layers = taps.tap(trunk)     # `trunk` calls `model.apply` inside
losses_fn = balancing.Tapped(tapped_trunk, readout, layers)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

PyTree = Any


class TappedLayer(NamedTuple):
    """As `balancing.Layer`: the pre-activations' shape, the kernel's and the bias' paths."""

    output: jax.ShapeDtypeStruct
    kernel: str
    bias: str | None


def _run(
    trunk: Callable[..., Any], taps: Mapping[str, jax.Array], names: Any, args: tuple[Any, ...]
) -> tuple[Any, list[tuple[str, nn.Dense, jax.Array, jax.Array]]]:
    """Runs `trunk`, adding taps; returns its result and every call of a Dense layer."""
    calls: list[tuple[str, nn.Dense, jax.Array, jax.Array]] = []

    def interceptor(next_fun: Any, call_args: Any, kwargs: Any, context: Any) -> Any:
        output = next_fun(*call_args, **kwargs)
        if not isinstance(context.module, nn.Dense) or context.method_name != "__call__":
            return output
        name = "/".join(context.module.path)
        if names is None or name in names:
            inputs = call_args[0] if call_args else kwargs["inputs"]
            calls.append((name, context.module, inputs, output))
        return output + taps[name] if name in taps else output

    with nn.intercept_methods(interceptor):
        return trunk(*args), calls


def tap(trunk: Callable[..., Any], prefix: str = "") -> tuple[Callable[..., Any], Any]:
    """The `trunk` and `layers` of `balancing.Tapped`, for a trunk that calls Linen modules.

    A Dense layer that is called more than once, or that is not found among the parameters, is not
    tapped and goes by its task gradients. Layers inside `nn.scan`, `nn.vmap` or `nn.remat` cannot
    be tapped.

    Args:
        trunk: `(params, *args) -> (shared, trunk_aux)`, as in `balancing.Split`.
        prefix: what precedes the module's path in the paths of `params`, such as `"model/"`.
    """

    def layers(params: PyTree, *args: Any) -> dict[str, TappedLayer]:
        found: dict[str, list[TappedLayer]] = {}

        def trace(params: PyTree, *args: Any) -> None:
            for name, module, inputs, output in _run(trunk, {}, None, (params, *args))[1]:
                kernel = f"{prefix}{name}/kernel"
                bias = f"{prefix}{name}/bias" if module.use_bias else None
                shape = jax.ShapeDtypeStruct(output.shape, output.dtype)
                found.setdefault(name, []).append(TappedLayer(shape, kernel, bias))
                del inputs

        jax.eval_shape(trace, params, *args)
        known = {
            jax.tree_util.keystr(path, simple=True, separator="/")
            for path, _ in jax.tree_util.tree_leaves_with_path(params)
        }
        return {name: x[0] for name, x in found.items() if len(x) == 1 and x[0].kernel in known}

    def tapped(params: PyTree, taps: Mapping[str, jax.Array], *args: Any) -> tuple[Any, ...]:
        (shared, trunk_aux), calls = _run(trunk, taps, set(taps), (params, *args))
        return shared, trunk_aux, {name: jnp.asarray(inputs) for name, _, inputs, _ in calls}

    return tapped, layers
