"""Mixup: neighbours in a batch are blended into each other, inputs and labels alike.

Rows 2j and 2j + 1 form a pair. Each becomes `w * itself + (1 - w) * its neighbour`, with its own
`w ~ Beta(a, a)`. Pairs, not a shuffled batch, so that a batch made in shards of even size is the
batch made whole. On the host it wraps a source; inside jit it takes a batch and keys.

Paper: Zhang et al., mixup: Beyond Empirical Risk Minimization, ICLR 2018.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax.batch import Batch, Target
from mtmm_jax.data.pipeline.augment_jit import uniform
from mtmm_jax.data.pipeline.source import Source
from mtmm_jax.data.transforms.augment import per_row
from mtmm_jax.ranges import Range
from mtmm_jax.registry import check

Concentration = Annotated[float, Range(1e-3, 1e4)]
_POINTS = 2**12  # at which the quantiles of the weights are known


@functools.cache
def beta_quantiles(alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Levels from 0 to 1, densest at the ends, and the quantiles of Beta(alpha, alpha) there."""
    from scipy.special import betaincinv  # slow to import

    levels = np.sin(np.linspace(0, np.pi / 2, _POINTS + 1)) ** 2
    return levels.astype(np.float32), betaincinv(alpha, alpha, levels).astype(np.float32)


def weights(u: Any, alpha: float) -> Any:
    """Uniform numbers -> numbers from Beta(alpha, alpha), by linear interpolation of quantiles."""
    xp = u.__array_namespace__()
    levels, quantiles = (xp.asarray(values) for values in beta_quantiles(alpha))
    return xp.interp(u, levels, quantiles).astype(u.dtype)


def blend(batch: Batch, w: Any, targets: Mapping[str, Target]) -> Batch:
    """A batch with each row blended into its neighbour.

    Mixed are inputs of floats and labels whose kind is `mixable` (classes, which become a
    probability each, numbers, sets of classes), each where both rows have it. A mask becomes that
    of either row.
    All else stays: tokens, boxes, ids, weights, the last row of an odd batch, and the labels of
    rows none of whose inputs could be mixed.

    Args:
        batch: of NumPy or of JAX arrays.
        w: `[B]`, the share of itself that each row keeps.
        targets: of the spec.
    """
    xp = w.__array_namespace__()
    size = w.shape[0]
    other = xp.arange(size) ^ 1
    paired = other < size
    other = xp.where(paired, other, xp.arange(size))

    def mixed(values: Any, both: Any) -> Any:
        share = per_row(w, values).astype(values.dtype)
        blended = share * values + (1 - share) * values[other]
        return xp.where(per_row(both, values), blended, values)

    inputs, moved = {}, xp.zeros(size, dtype=bool)
    for name, entry in batch["inputs"].items():
        both = entry["present"] & entry["present"][other] & paired
        values = xp.asarray(entry["x"])
        if not xp.issubdtype(values.dtype, xp.floating):
            inputs[name] = entry
            continue
        moved = moved | both
        inputs[name] = {**entry, "x": mixed(values, both)}
        if "mask" in entry:
            mask = entry["mask"]
            real = mask.reshape(mask.shape + (1,) * (values.ndim - 2))
            silent = xp.where(real, values, xp.zeros_like(values))
            either = xp.where(both[:, None], mask | mask[other], mask)
            blended = xp.where(per_row(both, values), mixed(silent, both), values)
            inputs[name] = {**entry, "x": blended, "mask": either}
    labels = {}
    for name, entry in batch["targets"].items():
        mixable = targets[name].traits.mixable
        if mixable is None:
            labels[name] = entry
            continue
        y = mixable(targets[name], xp.asarray(entry["y"]))
        both = entry["present"] & entry["present"][other] & moved
        labels[name] = {**entry, "y": mixed(y, both)}
    return {**batch, "inputs": inputs, "targets": labels}


def mixup(source: Source, alpha: Concentration = 0.2, where: str = "data.mixup") -> Source:
    """A source whose training batches are mixed; evaluation sees the plain ones."""
    check(alpha, Concentration, where)

    def compose(rows: np.ndarray, chance: np.ndarray | None) -> Batch:
        if chance is None:
            return source.compose(rows, None)
        own = chance[:, :-1] if source.draws else None  # a source without chance gets none
        batch = source.compose(rows, own)
        return blend(batch, weights(chance[:, -1], alpha), source.spec.targets)

    return dataclasses.replace(source, compose=compose, draws=source.draws + 1)


def mixup_jit(
    keys: jax.Array, batch: Batch, targets: Mapping[str, Target], alpha: Concentration = 0.2
) -> Batch:
    """The same inside jit, with a key for each row (`augment_jit.example_keys`)."""
    check(alpha, Concentration, "mixup.alpha")
    batch = jax.tree.map(jnp.asarray, batch)
    return blend(batch, weights(uniform(keys, 1)[:, 0], alpha), targets)
