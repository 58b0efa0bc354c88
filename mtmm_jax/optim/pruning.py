"""Pruning while training: a growing share of the weights is set to zero, and stays there.

    config.optimizer.prune = {"share": 0.7, "begin": 100, "end": 700, "every": 50}

A zero takes as much memory and time as any other number: what pruning makes smaller is a
compressed file, and `structured`, whose channels are zero as a whole, a network that is built anew
without them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtmm_jax.paths import by_path, leaves, matrices, some_regexes
from mtmm_jax.ranges import Between, Count, Natural, Regexes
from mtmm_jax.registry import ConfigError, section_of

PyTree = Any
KINDS = ("magnitude", "structured")
SCOPES = ("global", "layer")


@dataclasses.dataclass(frozen=True)
class PruneSettings:
    """`config.optimizer.prune`.

    Attributes:
        kind: "magnitude", the smallest weights one by one; "structured", the output channels
            (columns of a kernel, with their biases) of the smallest L2 norm as a whole.
        share: of the weights (magnitude) or channels (structured) that are zero at the end.
        begin, end, every: the updates after which the share grows, see `share_at`.
        on: regexes of the kernels; leaves of one dimension are passed over.
        scope: whether weights are compared over all kernels, or within each.
    """

    share: Between
    begin: Natural
    end: Count
    kind: Literal[KINDS] = "magnitude"
    every: Count = 10
    on: Regexes = (r".*/kernel",)
    scope: Literal[SCOPES] = "global"


def read(section: Any, steps: int, where: str = "optimizer.prune") -> PruneSettings | None:
    """The section, checked against the length of the run; None where there is none."""
    if section is None:
        return None
    given = section_of(section, PruneSettings, where, "{'share': 0.7, 'begin': 100, 'end': 700}")
    if "on" in given:
        given["on"] = some_regexes(given["on"], f"{where}.on")
    settings = PruneSettings(**given)
    if not settings.begin < settings.end <= steps:
        raise ConfigError(
            f"{where}: begin {settings.begin}, end {settings.end}: needs begin < end <= steps, "
            f"{steps}"
        )
    return settings


def share_at(settings: PruneSettings, step: Any) -> Any:
    """s_t = s (1 - (1 - (t - begin) / (end - begin))^3) after update t: fast while much is
    redundant, slow towards the end (Zhu, Gupta 2017)."""
    span = settings.end - settings.begin
    left = 1.0 - jnp.clip((jnp.asarray(step) - settings.begin).astype(jnp.float32) / span, 0.0, 1.0)
    return settings.share * (1.0 - left**3)


class PruneState(NamedTuple):
    """The number of updates so far, and by path the mask of the weights that are left."""

    steps: jax.Array
    masks: dict[str, jax.Array]


def prune(
    settings: PruneSettings, frozen: Callable[[PyTree], PyTree] | None = None
) -> optax.GradientTransformationExtraArgs:
    """Makes updates end in zero where weights are pruned: `u <- -p`, so that `p + u` is exactly 0.

    Every `every` updates from `begin` to `end`, and at `end`, the smallest weights after the update
    are taken out until the share is `share_at`; pruned ones are the smallest there are and stay.
    Stands last in a chain, where updates are what is added. Magnitude: Zhu, Gupta (2017); by the
    norm of whole filters: Li et al. (2017), of which one in each kernel always stays.

    Costs a bool a weight, and a sort of all weights now and then. Use it: before compressing a
    file, or to see how much of a model is needed. Compared over all kernels (`global`) it keeps
    more accuracy than a share of each, and may leave little of one; norms of channels are then
    divided by the root of the number of their weights.

    Args:
        settings: of `read`.
        frozen: parameters -> tree of bools: what is not pruned, as it does not move.
    """

    def chosen(params: PyTree) -> dict[str, jax.Array]:
        found = matrices(settings.on, params, "optimizer.prune.on")
        still = {} if frozen is None else leaves(frozen(params))
        left = {path: leaf for path, leaf in found.items() if not still.get(path, False)}
        if not left:
            raise ConfigError(f"optimizer.prune.on: {list(settings.on)} matches frozen leaves only")
        return left

    def init(params: PyTree) -> PruneState:
        flat = leaves(params)
        masks = {path: jnp.ones(leaf.shape, bool) for path, leaf in chosen(params).items()}
        if settings.kind == "structured":
            biases = [p for p in map(_bias, masks) if p in flat and p not in masks]
            masks |= {path: jnp.ones(flat[path].shape, bool) for path in biases}
        return PruneState(jnp.zeros((), jnp.int32), masks)

    def update(updates: PyTree, state: PruneState, params: PyTree, **extra: Any):
        del extra
        steps, old = state.steps + 1, leaves(params)
        moved = {path: old[path] + u for path, u in leaves(updates).items() if path in state.masks}
        kept = {path: jnp.where(mask, moved[path], 0) for path, mask in state.masks.items()}
        since = steps - settings.begin
        due = (since >= 0) & (steps <= settings.end)
        due &= (since % settings.every == 0) | (steps == settings.end)
        share = share_at(settings, steps)
        masks = jax.lax.cond(
            due, lambda: _masks(settings, kept, share, state.masks), lambda: state.masks
        )

        def one(path: str, u: jax.Array) -> jax.Array:
            return jnp.where(masks[path], u, -old[path].astype(u.dtype)) if path in masks else u

        return by_path(one, updates), PruneState(steps, masks)

    return optax.GradientTransformationExtraArgs(init, update)


def _bias(path: str) -> str:
    return f"{path.rpartition('/')[0]}/bias"


def _masks(
    settings: PruneSettings,
    weights: Mapping[str, jax.Array],
    share: Any,
    old: Mapping[str, jax.Array],
) -> dict[str, jax.Array]:
    """Path -> bool: all but the smallest share."""
    kernels = {path: w for path, w in weights.items() if w.ndim > 1}
    if settings.kind == "magnitude":
        sizes = {path: jnp.abs(w).ravel() for path, w in kernels.items()}
    else:
        sizes = {path: _norms(w, settings.scope) for path, w in kernels.items()}
    if settings.scope == "layer":
        left = {path: _all_but(size, share) for path, size in sizes.items()}
    else:
        ends = np.cumsum([size.size for size in sizes.values()])[:-1]
        whole = _all_but(jnp.concatenate(list(sizes.values())), share)
        left = dict(zip(sizes, jnp.split(whole, ends), strict=True))
    if settings.kind == "magnitude":
        return {path: mask.reshape(kernels[path].shape) for path, mask in left.items()}
    # Channels of a layer: the strongest stays, those that went never come back.
    left = {p: mask | (jnp.arange(mask.size) == sizes[p].argmax()) for p, mask in left.items()}
    masks = {p: jnp.broadcast_to(mask, kernels[p].shape) & old[p] for p, mask in left.items()}
    biases = {
        _bias(path): mask & old[_bias(path)] for path, mask in left.items() if _bias(path) in old
    }
    return {path: {**masks, **biases}[path] for path in old}


def _norms(weights: jax.Array, scope: str) -> jax.Array:
    """The L2 norm of each output channel, the last axis; to be compared globally, its mean root."""
    matrix = weights.reshape(-1, weights.shape[-1])
    norms = jnp.sqrt(jnp.square(matrix).sum(0))
    return norms / matrix.shape[0] ** 0.5 if scope == "global" else norms


def _all_but(sizes: jax.Array, share: Any) -> jax.Array:
    """Bool: not among the `floor(share n)` smallest; of equal ones the first go first."""
    count = jnp.floor(share * sizes.size + 1e-4).astype(jnp.int32)
    order = jnp.argsort(sizes, stable=True)
    return jnp.zeros(sizes.shape, bool).at[order].set(jnp.arange(sizes.size) >= count)


def zeros(params: PyTree, on: Sequence[str] = (r".*/kernel",)) -> dict[str, tuple[int, int]]:
    """Room (the first part of the path) -> how many of its chosen weights are zero, of how many."""
    found: dict[str, tuple[int, int]] = {}
    for path, leaf in matrices(on, params, "zeros.on").items():
        room = path.partition("/")[0]
        none, total = found.get(room, (0, 0))
        none += leaf.size - int(jax.device_get(jnp.count_nonzero(leaf)))
        found[room] = none, total + leaf.size
    return found


def sparsity_line(params: PyTree, settings: PruneSettings) -> str:
    """The share of zeros by room, in a line."""
    found = zeros(params, settings.on)
    whole = tuple(sum(column) for column in zip(*found.values(), strict=True))
    parts = {**found, "all": whole}
    return "zeros  " + "  ".join(f"{room} {100 * a / n:.1f}%" for room, (a, n) in parts.items())
