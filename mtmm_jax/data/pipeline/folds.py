"""K-fold cross-validation of a source: every example outside the test split is held out once."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np

from mtmm_jax.batch import Spec
from mtmm_jax.chance import bits
from mtmm_jax.data.pipeline.labels import look
from mtmm_jax.data.pipeline.source import Source
from mtmm_jax.ranges import Natural, Range
from mtmm_jax.registry import ConfigError, check

Folds = Annotated[int, Range(2, 2**31 - 1)]


def fold_of(ids: np.ndarray, k: Folds, seed: int = 0, where: str = "folds") -> np.ndarray:
    """`[N]`, the fold of each id: its rank among the distinct ids in a random order, modulo k.

    The order is drawn by (seed, id), so rows of one id share a fold, row order does not matter, and
    the folds' sizes differ by one id at most.

    Args:
        ids: `[N]` whole numbers, in any order, repeated or not.
        k: how many folds, from 2 to the number of distinct ids.
        seed: of the order.
        where: the place in the config, for error messages.
    """
    distinct, which = np.unique(ids, return_inverse=True)
    if check(k, Folds, where) > len(distinct):
        raise ConfigError(
            f"{where}: {k!r} is not a number of folds from 2 to {len(distinct)}, the examples"
        )
    order = np.lexsort((distinct, bits(seed, distinct)))
    fold = np.empty(len(distinct), np.int64)
    fold[order] = np.arange(len(distinct)) % k
    return fold[which]


def folds(source: Source, k: Folds, i: Natural, *, seed: int = 0, where: str = "folds") -> Source:
    """The source whose validation split is fold `i` of its train and validation rows.

    The other k - 1 folds are its train split; the test split is the source's own. What the spec
    knows of labels (frequencies, mean, standard deviation) is of the rows trained on. Tokenizers
    and the standardisation of inputs, which look at no label, stay the source's own.

    Cost: one pass over the rows, unaugmented, the first time that a source is folded.

    Args:
        source: whose rows; one that mixes parts (a mixture, `semi`) is refused: its shares would
            change with the fold.
        k: how many folds.
        i: which of them is held out, from 0.
        seed: of who is in which fold, see `fold_of`.
        where: the place in the config, for error messages.
    """
    if source.parts:
        raise ConfigError(
            f"{where}: {source.name} mixes {len(source.parts)} parts, and its validation rows "
            "belong to none of them; fold a source that is not mixed"
        )
    pool = np.concatenate([source.rows["train"], source.rows["validation"]])
    seen = look(dataclasses.replace(source, rows={"train": pool}))
    fold = fold_of(seen.id, k, seed, where)
    if check(i, Natural, where) >= k:
        raise ConfigError(f"{where}: {i!r} is not a fold from 0 to {k - 1}")
    held = fold == i
    out = held[np.searchsorted(seen.rows, pool)]
    left = seen.without(dict.fromkeys(seen.present, held))
    return dataclasses.replace(
        source,
        spec=Spec(source.spec.modalities, left.describe(source.spec.targets)),
        rows={**source.rows, "train": pool[~out], "validation": pool[out]},
    )
