"""Vectors of texts by a frozen encoder, in batches of texts of about one length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax
import numpy as np

from mtmm_jax.encoders.backbones.folder import WeightsFolder
from mtmm_jax.encoders.backbones.pooling import pooling_of
from mtmm_jax.encoders.backbones.pretrained import load
from mtmm_jax.registry import ConfigError
from mtmm_jax.text import encode_with_mask, read_tokenizer

_TOKENS = 2048  # of a batch, padding included
_STEPS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


def vectors(
    folder: str, texts: Sequence[str], *, length: int | None = None, where: str = "vectors"
) -> np.ndarray:
    """`[N, D]` float32: one vector of each text, pooled as the folder's `modules.json` says.

    Texts are sorted by length and padded to one of a few, so that little is computed on padding and
    a program is compiled for each of these lengths only.

    Args:
        folder: of the weights.
        texts: any number; an empty one is the vector of the special tokens alone.
        length: the most tokens, special ones included; by default what the folder says.
        where: the place, for errors.
    """
    found = WeightsFolder.at(folder, where)
    pooling = pooling_of(found, where)
    tokenizer = read_tokenizer(found.tokenizer(where))
    module, variables = load(folder, where)
    most = min(length or pooling.length or module.length, module.length)
    if length is not None and length > module.length:
        raise ConfigError(f"{where}.length: {length} is more than the {module.length} positions")
    ids, mask = encode_with_mask(tokenizer, texts, None)
    if ids.shape[1] > most:
        ids, mask = encode_with_mask(tokenizer, texts, most)
    if len(ids) and ids.max() >= module.vocabulary:
        raise ConfigError(
            f"{where}: {folder!r} has embeddings of {module.vocabulary} tokens, and its tokenizer "
            f"gives id {ids.max()}"
        )
    run = jax.jit(lambda variables, entry: pooling(module.apply(variables, entry)))
    out = np.zeros((len(texts), module.features * len(pooling.modes)), np.float32)
    for rows, width in _batches(mask.sum(1), most):
        size = _size(width)
        chosen = np.resize(rows, size)  # the last batch repeats its rows
        own = min(width, ids.shape[1])
        x = np.full((size, width), 0, np.int32)
        keep = np.zeros((size, width), bool)
        x[:, :own], keep[:, :own] = ids[chosen, :own], mask[chosen, :own]
        entry = {"x": x, "mask": keep, "present": keep.any(1)}
        out[rows] = np.asarray(run(variables, entry))[: len(rows)]
    return out


def _size(width: int) -> int:
    return max(_TOKENS // width, 1)


def _batches(counts: np.ndarray, most: int) -> Iterator[tuple[np.ndarray, int]]:
    """Rows of about one length, and the length that they are padded to."""
    steps = np.array([*(step for step in _STEPS if step < most), most])
    step = np.searchsorted(steps, counts)
    for i, width in enumerate(steps.tolist()):
        rows = np.flatnonzero(step == i)
        for start in range(0, len(rows), _size(width)):
            yield rows[start : start + _size(width)], width
