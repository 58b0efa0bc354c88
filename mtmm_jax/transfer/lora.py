"""LoRA: kernels that stay, and a product of two thin matrices next to each that is learned.

    config.lora = {"rank": 4, "alpha": 8.0, "on": ["encoders/text/.*/(query|value)/kernel"]}

Its parameters stand in a room of their own, under the path of the kernel that they change:
`lora/encoders/text/block1/attention/query/kernel/{a, b}`.

A kernel has one pair of thin matrices, whoever reads it. So there is LoRA for a modality (kernels
of its encoder), and for a task where the kernels are the task's own (those of the sharing
`separate`, with `optimizer.freeze` for the kernels themselves). There is none for a task over a
shared encoder: each task would need its own pass through it. The sharing `adapter` corrects what a
shared encoder gives for each task (configs/sharing/isolated_features.py).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from mtmm_jax.assembly import Parts
from mtmm_jax.keys import fold_in_name
from mtmm_jax.model import Rewrite, flatten
from mtmm_jax.paths import matrices, some_regexes
from mtmm_jax.ranges import Positive, Regexes, Size
from mtmm_jax.registry import section_of

PyTree = Any
ROOM = "lora"
HEADED = ("query", "key", "value")  # their kernels of three dimensions are [D, heads, D / heads]
ATTENTION = r"(encoders|fusion)/.*/(query|key|value|out)/kernel"
_FROZEN = r"(encoders|fusion)/.*"
_FROZEN_BUT_NORMS = r"(encoders|fusion)/(?!.*norm[^/]*/[^/]*$).*"


@dataclasses.dataclass(frozen=True)
class LoraSettings:
    """`config.lora`.

    Attributes:
        rank: r, the inner size.
        alpha: what is added is `alpha / r` times the product, so that r may change and the learning
            rate stay.
        on: regexes of the kernels, of two dimensions or more.
        freeze: whether everything else under `encoders` and `fusion` stays as it is.
        norms: with `freeze`: whether norms learn all the same.
    """

    rank: Size = 4
    alpha: Positive = 8.0
    on: Regexes = (ATTENTION,)
    freeze: bool = True
    norms: bool = False

    @property
    def frozen(self) -> tuple[str, ...]:
        """Regexes for `optimizer.freeze`."""
        if not self.freeze:
            return ()
        return (_FROZEN_BUT_NORMS if self.norms else _FROZEN,)


def read(section: Any, where: str = "lora") -> LoraSettings | None:
    """The section, checked; None where there is none."""
    if section is None:
        return None
    given = section_of(section, LoraSettings, where, "{'rank': 4}")
    if "on" in given:
        given["on"] = some_regexes(given["on"], f"{where}.on")
    settings = LoraSettings(**given)
    return settings


def extend(section: Any, parts: Parts) -> Parts:
    """The extension `lora`."""
    settings = read(section)
    parts = parts.add_rewrite(rewrite(settings))
    return parts.replace(freeze=(*parts.freeze, *settings.frozen))


def sides(path: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """`(inputs, outputs)` of a kernel as one matrix.

    Dense `[in, out]`; convolutions `[.., in, out]`, with all that a patch holds as inputs;
    `[D, heads, D / heads]` of query, key and value with all heads as outputs, and
    `[heads, D / heads, D]` of their `out` with all heads as inputs.
    """
    parts = path.split("/")
    if len(shape) == 3 and len(parts) > 1 and parts[-2] in HEADED:
        return shape[0], shape[1] * shape[2]
    return math.prod(shape[:-1]), shape[-1]


def init(settings: LoraSettings, key: jax.Array, params: PyTree) -> PyTree:
    """`{path of the kernel: {"a": [in, r], "b": [r, out]}}` as a tree: A normal of variance 1 / in,
    B zero, float32. Keys come from the paths."""
    own: dict[str, Any] = {}
    for path, kernel in matrices(settings.on, params, f"{ROOM}.on").items():
        rows, columns = sides(path, kernel.shape)
        draw = fold_in_name(key, path)
        own[f"{path}/a"] = jax.random.normal(draw, (rows, settings.rank), jnp.float32) * rows**-0.5
        own[f"{path}/b"] = jnp.zeros((settings.rank, columns), jnp.float32)
    return traverse_util.unflatten_dict(own, sep="/")


def changed(settings: LoraSettings, params: PyTree, own: PyTree, sign: float = 1.0) -> PyTree:
    """`W + sign (alpha / r) A B` of every kernel that `own` has a place for; the rest as it is."""
    flat, thin = flatten(params), flatten(own)
    scale = sign * settings.alpha / settings.rank
    for path in (name.removesuffix("/a") for name in thin if name.endswith("/a")):
        a, b = thin[f"{path}/a"], thin[f"{path}/b"]
        product = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
        delta = (scale * product).reshape(flat[path].shape)
        flat[path] = flat[path] + delta.astype(flat[path].dtype)
    return traverse_util.unflatten_dict(flat, sep="/")


def merge(params: PyTree, settings: LoraSettings) -> PyTree:
    """The parameters of the plain model that computes the same: W + (alpha / r) A B, no `lora`.

    Give the result to a model without `lora`: it has the plain model's size and speed.
    """
    rest = {room: tree for room, tree in params.items() if room != ROOM}
    return changed(settings, rest, params[ROOM]) if ROOM in params else rest


def unmerge(params: PyTree, own: PyTree, settings: LoraSettings) -> PyTree:
    """The parameters before `merge`: `own` taken out of the merged kernels, and put next to
    them."""
    return {**changed(settings, params, own, -1.0), ROOM: own}


def rewrite(settings: LoraSettings) -> Rewrite:
    """W + (alpha / r) A B in the place of W, with A normal and B zero at the start, so that the
    model begins as it was (Hu et al. 2021, LoRA).

    Costs r (in + out) parameters a kernel, with their optimiser state, and the product, r in out
    multiplications a kernel and pass; nothing once merged. Use it: to tune a large pretrained
    encoder, one set of thin matrices for each purpose. Not: where all of the model learns anyway,
    or the kernel is hardly wider than r.
    """

    def apply(params: PyTree) -> PyTree:
        return merge(params, settings)

    return Rewrite(ROOM, lambda key, params: init(settings, key, params), apply)
