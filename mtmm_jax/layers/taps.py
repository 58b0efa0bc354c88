"""Taps on the Dense layers of any Linen model, for the Gramian engine of `mtmm_jax.balancing`.

The pair of functions returned here are the two fields of `balancing.Tapped`:

    model_losses = lambda params, batch: ...   # calls `model.apply` inside
    losses_fn = balancing.Tapped(*taps.tap(model_losses))
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
    losses_fn: Callable[..., Any], taps: Mapping[str, jax.Array], names: Any, args: tuple[Any, ...]
) -> tuple[Any, list[tuple[str, nn.Dense, jax.Array, jax.Array]]]:
    """Runs `losses_fn`, adding taps; returns its result and every call of a Dense layer."""
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
        return losses_fn(*args), calls


def tap(losses_fn: Callable[..., Any], prefix: str = "") -> tuple[Callable[..., Any], Any]:
    """The two fields of `balancing.Tapped` for a `losses_fn` that calls Linen modules.

    A Dense layer that is called more than once, or that is not found among the parameters, is not
    tapped and goes by its task gradients. Layers inside `nn.scan`, `nn.vmap` or `nn.remat` cannot
    be tapped: cut the model with `balancing.Split` there.

    Args:
        losses_fn: `(params, *args) -> (sums, counts, aux)`.
        prefix: what precedes the module's path in the paths of `params`, such as `"model/"`.
    """

    def layers(params: PyTree, *args: Any) -> dict[str, TappedLayer]:
        found: dict[str, list[TappedLayer]] = {}

        def trace(params: PyTree, *args: Any) -> None:
            for name, module, inputs, output in _run(losses_fn, {}, None, (params, *args))[1]:
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
        (sums, counts, aux), calls = _run(losses_fn, taps, set(taps), (params, *args))
        return sums, counts, aux, {name: jnp.asarray(inputs) for name, _, inputs, _ in calls}

    return tapped, layers
