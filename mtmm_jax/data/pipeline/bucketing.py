"""Lengths in a few sizes: batches are cut to what they hold, and a step is traced once for each.

Text, series and video of varying length come padded to the longest there may be. Cut to the
smallest of a few listed lengths that holds the batch, they cost less, and a jitted step sees no
more shapes than there are combinations of listed lengths.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mtmm_jax.batch import Batch, Spec
from mtmm_jax.data.pipeline.source import Source
from mtmm_jax.ranges import Size
from mtmm_jax.registry import ConfigError, check, choose

_CHUNK = 256  # rows composed at a time
_LONG = ("x", "mask", "positions")  # what has the length as its second axis

Edges = Mapping[str, Sequence[Size]]
Lengths = Callable[[np.ndarray], Mapping[str, np.ndarray]]


def edges_for(
    lengths: Sequence[int] | np.ndarray, count: int, batch_size: int = 1
) -> tuple[int, ...]:
    """At most `count` bucket lengths with the least padding on average, the longest included.

    With a `batch_size` of 1 this is the padding of rows each in its own bucket. With more it is
    that of batches drawn at random, where the longest row decides for all. Exact, by dynamic
    programming over the U distinct lengths in O(count U^2).

    Args:
        lengths: of the examples, as they are distributed.
        count: of buckets.
        batch_size: rows that must share a bucket.
    """
    lengths = np.asarray(lengths)
    if lengths.ndim != 1 or not len(lengths) or count < 1 or batch_size < 1:
        raise ConfigError(
            f"edges_for: {count} buckets of {list(lengths.shape)} lengths in batches of "
            f"{batch_size}; needs a list of lengths and numbers from 1 upwards"
        )
    values, counts = np.unique(np.maximum(lengths, 1), return_counts=True)
    # below[j]: the chance that the longest of a batch is among the first j lengths.
    below = np.append(0.0, np.cumsum(counts) / len(lengths)) ** batch_size
    count = min(count, len(values))
    # cost[j]: of the batches whose longest is among the first j lengths; one more bucket a turn.
    cost = np.append(0.0, below[1:] * values)
    starts = []
    for _ in range(count - 1):
        best, start = cost.copy(), np.zeros(len(cost), np.int64)
        for j in range(1, len(cost)):
            through = cost[:j] + (below[j] - below[:j]) * values[j - 1]
            start[j] = through.argmin()
            best[j] = through[start[j]]
        cost = best
        starts.append(start)
    edges, j = [], len(values)
    for start in reversed(starts):
        edges.append(int(values[j - 1]))
        j = int(start[j])
        if j == 0:
            break
    if j:
        edges.append(int(values[j - 1]))
    return tuple(reversed(edges))


def used(entry: Mapping[str, Any]) -> np.ndarray:
    """`[B]` how much of a modality each row of a batch uses: up to its last unmasked place."""
    mask = np.asarray(entry["mask"]) & np.asarray(entry["present"])[:, None]
    return np.where(mask.any(1), mask.shape[1] - mask[:, ::-1].argmax(1), 0)


def lengths(source: Source, modality: str, split: str = "train") -> np.ndarray:
    """`[N]` the result of `used` for each row of a split, composed without augmentation."""
    choose(modality, _masked(source), f"data.{source.name}", "modality with a mask")
    rows = source.rows[choose(split, source.rows, f"data.{source.name}", "split")]
    found = measure(source, (modality,))
    parts = [found(rows[i : i + _CHUNK])[modality] for i in range(0, len(rows), _CHUNK)]
    return np.concatenate(parts)


def measure(source: Source, modalities: Sequence[str]) -> Lengths:
    """`rows -> {modality: [B]}`: how long each row is, composed without augmentation once."""
    known: dict[int, tuple[int, ...]] = {}

    def of(rows: np.ndarray) -> dict[str, np.ndarray]:
        new = np.array([row for row in dict.fromkeys(rows.tolist()) if row not in known], np.int64)
        if len(new):
            inputs = source.compose(new, None)["inputs"]
            nothing = np.zeros(len(new), np.int64)
            columns = [used(inputs[m]) if m in inputs else nothing for m in modalities]
            known.update(zip(new.tolist(), np.stack(columns, 1).tolist(), strict=True))
        table = np.array([known[row] for row in rows.tolist()])
        return dict(zip(modalities, table.T, strict=True))

    return of


def bucket(
    source: Source,
    edges: Edges,
    lengths: Lengths | None = None,
    where: str = "data.bucket",
) -> Source:
    """The same source, its batches cut to the smallest listed length that holds every row of them.

    Only masked places are cut. A batch longer than the last listed length keeps the whole, which
    is one more bucket; where the source has no whole (its batches vary already) batches are also
    filled up to a listed length, and longer ones are refused. The spec says that the length varies.

    Hosts that share a batch must cut it alike: each cuts to the longest row of the whole batch, as
    `lengths` has them.

    Args:
        source: with modalities that have a mask.
        edges: modality -> lengths, from short to long, such as `edges_for` finds.
        lengths: rows -> their lengths, for batches in shards; `measure` by default, which composes
            every row once. Augmentation may shorten a row, but not lengthen it.
        where: the place in the config, for error messages.
    """
    if not check(edges, Edges, where):
        raise ConfigError(f"{where}: {edges!r}; needs lengths for each modality by name")
    masked, sizes = _masked(source), {}
    modalities = dict(source.spec.modalities)
    for name, listed in edges.items():
        choose(name, masked, where, "modality with a mask")
        whole = modalities[name].shape[0]
        sizes[name] = _sizes(listed, whole, f"{where}.{name}")
        shape = (None, *modalities[name].shape[1:])
        modalities[name] = dataclasses.replace(modalities[name], shape=shape)
    cut = _Cutting(source.finish, sizes, lengths or measure(source, tuple(sizes)), where)
    spec = Spec(modalities, source.spec.targets)
    return dataclasses.replace(source, spec=spec, finish=cut)


@dataclasses.dataclass(frozen=True, eq=False)
class _Cutting:
    """`bucket` as a transform of a finished batch; `rows` are those of the global one."""

    before: Callable[[Batch, np.ndarray], Batch]
    sizes: Mapping[str, tuple[int, ...]]
    lengths: Lengths
    where: str

    def __call__(self, batch: Batch, rows: np.ndarray) -> Batch:
        batch = self.before(batch, rows)
        shared = len(rows) > len(batch["id"])
        agreed = self.lengths(rows) if shared else {}
        inputs = dict(batch["inputs"])
        for name in self.sizes.keys() & inputs.keys():
            entry = inputs[name]
            own = int(used(entry).max(initial=0))
            longest = int(np.max(agreed[name], initial=0)) if shared else own
            size = self._bucket(name, longest)
            if own > size:
                raise ConfigError(
                    f"{self.where}.{name}: a row has length {own} where its batch was measured to "
                    f"have {longest}: augmentation lengthens it; give `lengths` that allow for it"
                )
            long = {key: _fit(entry[key], size) for key in _LONG if key in entry}
            inputs[name] = {**entry, **long}
        return {**batch, "inputs": inputs}

    def _bucket(self, name: str, length: int) -> int:
        sizes = self.sizes[name]
        place = bisect.bisect_left(sizes, length)
        if place == len(sizes):
            raise ConfigError(f"{self.where}.{name}: a row has length {length}; listed: {sizes}")
        return sizes[place]


def _masked(source: Source) -> list[str]:
    """The modalities that have a mask, by one row of each part."""
    rows = [source.compose(part[:1], None)["inputs"] for part in source.train_parts]
    return [name for inputs in rows for name, entry in inputs.items() if "mask" in entry]


def _sizes(listed: Sequence[int], whole: int | None, where: str) -> tuple[int, ...]:
    """The listed lengths, and the whole."""
    if not listed or list(listed) != sorted(set(listed)):
        raise ConfigError(f"{where}: {listed!r}; needs positive lengths from short to long")
    sizes = tuple(listed)
    return sizes if whole is None else (*(n for n in sizes if n < whole), whole)


def _fit(leaf: Any, size: int) -> Any:
    """Cut or filled up with zeros along the second axis."""

    def fit(x: np.ndarray) -> np.ndarray:
        if x.shape[1] < size:
            return np.pad(x, [(0, 0), (0, size - x.shape[1]), *[(0, 0)] * (x.ndim - 2)])
        return np.ascontiguousarray(x[:, :size])

    return jax.tree.map(fit, leaf)
