"""Weights in eight bits: rounded after training, or during it (quantisation-aware).

    small = quantise(params)                       # Quantised(int8, scale) in the place of matrices
    params = dequantise(small)                     # float32 again, each within half a scale
    config.quantise = {"bits": 8, "on": [".*/kernel"]}         # quantisation-aware training

What runs in int8: nothing. Weights are int8 where they are kept (`mtmm_jax.export --int8`), and
float32 from the moment they are read, so the file is smaller and the program the same. A product of
int8 by int8 into int32, with activations rounded as they come, was slower on a CPU of two cores
than that of float32: .42 ms against .26 for 128 x 128 x 128, 15.6 against 5.6 for 512
(`python -m mtmm_jax.benchmarks.studies.smaller --only products`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import traverse_util

from mtmm_jax.assembly import Parts
from mtmm_jax.model import Rewrite, flatten
from mtmm_jax.paths import matches, matrices, regexes, some_regexes
from mtmm_jax.ranges import Bits, Regexes
from mtmm_jax.registry import section_of

PyTree = Any
MATRICES = (r".*/kernel", r".*/embedding", r".*/recurrent")


class Quantised(NamedTuple):
    """`values * scale` stands for a matrix: int8, and float32 of the same rank, one a channel."""

    values: jax.Array
    scale: jax.Array


@dataclasses.dataclass(frozen=True)
class QuantiseSettings:
    """`config.quantise`.

    Attributes:
        bits: 2 to 8: whole numbers from -(2^(bits - 1) - 1) upwards, as many on either side of 0.
        on: regexes of the matrices.
    """

    bits: Bits = 8
    on: Regexes = (r".*/kernel",)


def read(section: Any, where: str = "quantise") -> QuantiseSettings | None:
    """The section, checked; None where there is none."""
    if section is None:
        return None
    given = section_of(section, QuantiseSettings, where, "{'bits': 8}")
    if "on" in given:
        given["on"] = some_regexes(given["on"], f"{where}.on")
    settings = QuantiseSettings(**given)
    return settings


def extend(section: Any, parts: Parts) -> Parts:
    """The extension `quantise`."""
    return parts.add_rewrite(rewrite(read(section)))


def scales(path: str, weights: jax.Array, bits: int = 8) -> jax.Array:
    """`max |w| / (2^(bits - 1) - 1)` of each output channel, the last axis; of an embedding's each
    row, which is what is looked up. A channel of zeros has scale 1."""
    channel = 0 if path.endswith("/embedding") or path == "embedding" else weights.ndim - 1
    others = tuple(axis for axis in range(weights.ndim) if axis != channel)
    most = jnp.abs(weights.astype(jnp.float32)).max(others, keepdims=True)
    return jnp.where(most > 0, most / (2 ** (bits - 1) - 1), 1.0)


def rounded(weights: jax.Array, scale: jax.Array, bits: int = 8) -> jax.Array:
    """The nearest whole number to `w / s`, as float32."""
    most = float(2 ** (bits - 1) - 1)
    return jnp.clip(jnp.round(weights.astype(jnp.float32) / scale), -most, most)


def quantise(params: PyTree, on: Sequence[str] | None = None, bits: int = 8) -> PyTree:
    """`params` with a `Quantised` in the place of each matrix that a regex of `on` matches.

    q = round(w / s), so that |w - q s| <= s / 2: symmetric, one scale an output channel (Jacob et
    al. 2018; per channel: Krishnamoorthi 2018). Everything else stays float32. Use it: to keep or
    send a trained model. Where a point of accuracy is lost by it, train with `rewrite`.

    Args:
        params: the learned parameters, without rooms of rewrites.
        on: regexes, of which each must match; by default kernels, embeddings and recurrent
            matrices, as far as there are any.
        bits: 2 to 8.
    """
    if on is None:
        chosen = [p for p, x in flatten(params).items() if x.ndim > 1 and matches(MATRICES, p)]
    else:
        chosen = list(matrices(regexes(on, "quantise.on"), params, "quantise.on"))
    flat = flatten(params)
    for path in chosen:
        scale = scales(path, flat[path], bits)
        flat[path] = Quantised(rounded(flat[path], scale, bits).astype(jnp.int8), scale)
    return traverse_util.unflatten_dict(flat, sep="/")


def dequantise(params: PyTree) -> PyTree:
    """q s as float32 in the place of every `Quantised`."""

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, Quantised):
            return leaf
        return jnp.asarray(leaf.values).astype(jnp.float32) * leaf.scale

    return jax.tree.map(one, params, is_leaf=lambda leaf: isinstance(leaf, Quantised))


def product(x: jax.Array, weights: Quantised) -> jax.Array:
    """`x @ W` of int8 by int8 into int32, `x` rounded by its own largest number, as a layer would
    have to. Nothing runs so; it is here to be timed."""
    scale = jnp.abs(x).max() / 127
    q = rounded(x, scale).astype(jnp.int8)
    sums = jax.lax.dot_general(
        q, weights.values, (((1,), (0,)), ((), ())), preferred_element_type=jnp.int32
    )
    return sums.astype(jnp.float32) * (scale * weights.scale)


def straight_through(path: str, weights: jax.Array, bits: int = 8) -> jax.Array:
    """q s forwards, w backwards: the gradient passes the rounding as if it were not there (Bengio,
    Leonard, Courville 2013)."""
    scale = scales(path, weights, bits)
    near = (rounded(weights, scale, bits) * scale).astype(weights.dtype)
    return weights + jax.lax.stop_gradient(near - weights)


def rewrite(settings: QuantiseSettings) -> Rewrite:
    """Rounds the weights that modules read and not those that are learned: quantisation-aware
    training (Jacob et al. 2018, arXiv:1712.05877), weights only.

    Costs a pass over the weights each time that they are read. Use it: for few bits, or where
    rounding after training costs too much. The model is evaluated as rounded, too, so its metrics
    are those of the int8 file.
    """

    def apply(params: PyTree) -> PyTree:
        flat = flatten(params)
        for path, weights in matrices(settings.on, params, "quantise.on").items():
            flat[path] = straight_through(path, weights, settings.bits)
        return traverse_util.unflatten_dict(flat, sep="/")

    return Rewrite("quantise", lambda key, params: {}, apply)
