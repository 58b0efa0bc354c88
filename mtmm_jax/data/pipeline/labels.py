"""Learning from few labels: some are hidden, whole classes are held out, and batches hold a fixed
share of what has one.

All look once through the training rows, composing each without augmentation: which rows have a
label is not known otherwise. It is remembered for as long as the source lives.
"""

from __future__ import annotations

import dataclasses
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import jax
import numpy as np

from mtmm_jax.batch import Batch, Spec, Target, choose_all
from mtmm_jax.chance import bits
from mtmm_jax.data.pipeline.mixing import fixed, webster
from mtmm_jax.data.pipeline.source import Source
from mtmm_jax.ranges import Count, PositiveShare, Share
from mtmm_jax.registry import ConfigError, check, choose

_CHUNK = 256  # rows composed at a time

Shares = Mapping[str, Share]
HeldOut = Mapping[str, Count | Sequence[str]]
Compose = Callable[[np.ndarray, np.ndarray | None], Batch]


@dataclasses.dataclass(frozen=True)
class Seen:
    """The labels of the training rows.

    Attributes:
        rows: `[N]`, distinct and in order.
        id: `[N]` whom each row shows.
        present: target -> `[N]` bool.
        y: target -> the labels of the rows that have one, of kinds that are `kept`.
    """

    rows: np.ndarray
    id: np.ndarray
    present: Mapping[str, np.ndarray]
    y: Mapping[str, Any]

    def without(self, gone: Mapping[str, np.ndarray]) -> Seen:
        """With some labels taken away, `[N]` bool for each target concerned."""
        present = {t: here & ~gone[t] if t in gone else here for t, here in self.present.items()}
        y = {t: _take(y, present[t][self.present[t]]) for t, y in self.y.items()}
        return Seen(self.rows, self.id, present, y)

    def describe(self, targets: Mapping[str, Target]) -> dict[str, Target]:
        """The targets with the statistics of these labels, where labels are kept."""
        return {
            name: target.described_by(self.y[name]) if name in self.y else target
            for name, target in targets.items()
        }


def _take(y: Any, keep: np.ndarray) -> Any:
    return jax.tree.map(lambda leaf: leaf[keep], y)


_SEEN: WeakKeyDictionary[Compose, Seen] = WeakKeyDictionary()


def look(source: Source) -> Seen:
    """A mask of the training rows' labels: one pass over them, made at the first call."""
    rows = np.unique(source.rows["train"])
    seen = _SEEN.get(source.compose)
    if seen is None or not np.array_equal(seen.rows, rows):
        print(
            f"looking through the {len(rows):,} training rows of {source.name} for labels (once)",
            file=sys.stderr,
        )
        seen = _SEEN[source.compose] = _look(source, rows)
    return seen


def _look(source: Source, rows: np.ndarray) -> Seen:
    ids, present = [], {target: [] for target in source.spec.targets}
    y = {name: [] for name, target in source.spec.targets.items() if target.traits.kept}
    for start in range(0, len(rows), _CHUNK):
        batch = source.compose(rows[start : start + _CHUNK], None)
        ids.append(batch["id"])
        for name in present:
            entry = batch["targets"].get(name)
            here = np.zeros(len(batch["id"]), bool) if entry is None else entry["present"]
            present[name].append(here)
            if name in y and here.any():
                y[name].append(_take(jax.tree.map(np.asarray, entry["y"]), here))
    return Seen(
        rows,
        np.concatenate(ids),
        {name: np.concatenate(parts) for name, parts in present.items()},
        {
            name: jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
            if parts
            else source.spec.targets[name].blank(0)
            for name, parts in y.items()
        },
    )


def hide(source: Source, shares: Shares, seed: int = 0, where: str = "data.hide") -> Source:
    """The same source with only a share of the training labels; validation and test stay.

    Who keeps a label is drawn by id: all rows of one id share a fate, and a smaller share keeps
    some of those that a larger one keeps. Of a class label each class keeps the same share, exact
    but for rounding (so that a rare class may lose all). What the spec knows of the label
    (frequencies, mean, standard deviation) is then known from the kept ones only.

    Args:
        source: whose labels.
        shares: target -> the share of its labelled ids that keep it, 0 to 1.
        seed: of the draw.
        where: the place in the config, for error messages.
    """
    check(shares, Shares, where)
    choose_all(shares, source.spec.targets, where, "target")
    seen = look(source)
    gone = {
        target: seen.present[target]
        & ~_kept(seen, target, source.spec.targets[target], share, seed)
        for target, share in shares.items()
    }
    for target, share in shares.items():
        if share and not (seen.present[target] & ~gone[target]).any():
            count = len(np.unique(seen.id[seen.present[target]]))
            raise ConfigError(f"{where}.{target}: {share} of {count} labelled ids is none of them")
    compose = _Hiding(source.compose, {t: seen.rows[rows] for t, rows in gone.items()})
    left = _SEEN[compose] = seen.without(gone)
    hidden = {name: source.spec.targets[name] for name in shares}
    spec = Spec(source.spec.modalities, {**source.spec.targets, **left.describe(hidden)})
    return dataclasses.replace(source, spec=spec, compose=compose)


HELD_OUT = "held_out"  # the split of the training rows that training never sees


def held_out(
    source: Source,
    classes: HeldOut,
    seed: int = 0,
    where: str = "data.held_out",
) -> Source:
    """The same source without the training rows of some classes: not one of their pictures, names
    or sounds is trained on.

    Their training rows are the split `held_out`; validation and test stay, those classes' rows
    included. The classes keep their places in the spec, with a frequency of 0, and all statistics
    of labels are those of the rows that are left. A model with a retrieval task can still name
    what it never saw (`evaluation.zero_shot`).

    Args:
        source: whose rows; one that mixes parts already is refused.
        classes: class label -> the names of the classes, or how many are drawn.
        seed: of that draw, among the classes that have training rows.
        where: the place in the config, for error messages.
    """
    if not check(classes, HeldOut, where):
        raise ConfigError(f"{where}: {classes!r}; needs classes, or their number, for each target")
    if source.parts:
        raise ConfigError(f"{where}: {source.name} mixes {len(source.parts)} parts already")
    for target in classes:
        choose(target, source.spec.targets, where, "target")
        about = source.spec.targets[target]
        if not about.traits.discrete:
            raise ConfigError(
                f"{where}.{target}: is a {about.kind!r} label; only classes are held out"
            )
        _check_held(classes[target], about.classes, f"{where}.{target}")
    seen = look(source)
    gone = np.zeros(len(seen.rows), bool)
    for target, given in classes.items():
        own = seen.present[target]
        y = source.spec.targets[target].traits.value(seen.y[target])
        names = source.spec.targets[target].classes
        chosen = _held_classes(names, np.unique(y), given, seed, f"{where}.{target}")
        gone[own] |= np.isin(y, [names.index(name) for name in chosen])
    if gone.all():
        raise ConfigError(f"{where}: no training row is left")
    left = Seen(
        seen.rows[~gone],
        seen.id[~gone],
        {name: here[~gone] for name, here in seen.present.items()},
        {name: _take(y, ~gone[seen.present[name]]) for name, y in seen.y.items()},
    )
    train = source.rows["train"]
    out = _among(train, seen.rows[gone])
    compose = _Hiding(source.compose, {})  # of its own, by which what was seen is remembered
    _SEEN[compose] = left
    return dataclasses.replace(
        source,
        spec=Spec(source.spec.modalities, left.describe(source.spec.targets)),
        rows={**source.rows, "train": train[~out], HELD_OUT: train[out]},
        compose=compose,
    )


def _check_held(given: int | Sequence[str], names: Sequence[str], where: str) -> None:
    """The checks that need no rows."""
    if not given:
        raise ConfigError(f"{where}: {given!r} is neither a list of classes nor their number")
    if isinstance(given, int):
        if given >= len(names):
            raise ConfigError(f"{where}: {given} of {len(names)} classes; needs 1 or more, not all")
    else:
        for name in given:
            choose(name, names, where, "class")


def _held_classes(
    names: Sequence[str], known: np.ndarray, given: Any, seed: int, where: str
) -> list[str]:
    """The classes that are meant, checked, or drawn of the known ones."""
    if isinstance(given, int):
        if given >= len(known):
            raise ConfigError(f"{where}: {given} of {len(known)} classes; needs 1 or more, not all")
        hashed = np.array([zlib.crc32(names[k].encode()) for k in known])
        return [names[k] for k in known[np.argsort(bits(seed, hashed), kind="stable")[:given]]]
    return list(given)


def _kept(seen: Seen, name: str, target: Target, share: float, seed: int) -> np.ndarray:
    """`[N]` bool: the rows whose id is among those that keep the label."""
    labelled = seen.present[name]
    ids, first = np.unique(seen.id[labelled], return_index=True)
    stratum = np.zeros(len(ids), np.int64)
    if target.traits.discrete and np.ndim(seen.y[name]) == 1:  # not a probability per class
        _, stratum = np.unique(seen.y[name][first], return_inverse=True)
    key = bits(seed, zlib.crc32(name.encode()), ids)
    order = np.lexsort((key, stratum))
    sizes = np.bincount(stratum)
    rank = np.empty(len(ids), np.int64)
    rank[order] = np.arange(len(ids)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    quota = webster(sizes / max(len(ids), 1), round(share * len(ids))) if len(ids) else sizes
    return np.isin(seen.id, ids[rank < quota[stratum]])


@dataclasses.dataclass(frozen=True, eq=False)  # an identity: the labels seen are kept by it
class _Hiding:
    """Composes, and takes away the labels of some rows (in order), values included."""

    compose: Compose
    rows: Mapping[str, np.ndarray]

    def __call__(self, rows: np.ndarray, chance: np.ndarray | None) -> Batch:
        batch = self.compose(rows, chance)
        targets = dict(batch["targets"])
        for name in self.rows.keys() & targets.keys():
            gone = _among(rows, self.rows[name])
            y = jax.tree.map(lambda leaf, gone=gone: _blank(leaf, gone), targets[name]["y"])
            targets[name] = {"y": y, "present": targets[name]["present"] & ~gone}
        return {**batch, "targets": targets}


def _among(values: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """Whether each value is one of some in order: cheap for few of many."""
    if not len(ordered):
        return np.zeros(len(values), bool)
    return ordered[np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)] == values


def _blank(leaf: np.ndarray, gone: np.ndarray) -> np.ndarray:
    return np.where(gone.reshape(-1, *[1] * (leaf.ndim - 1)), np.zeros((), leaf.dtype), leaf)


@dataclasses.dataclass(frozen=True)
class LabelledShare:
    """The section `data.semi`."""

    target: str
    labelled: PositiveShare = 0.5


def semi(
    source: Source, target: str, labelled: PositiveShare = 0.5, where: str = "data.semi"
) -> Source:
    """The same source with a fixed share of labelled rows in each training batch.

    Labelled and unlabelled rows are two parts of the train split, each gone through in its own
    epochs: of few labels each is seen often.

    Args:
        source: whose rows; one that mixes parts already is refused.
        target: the label that counts.
        labelled: the share of each batch that has it, above 0; 1: only rows that have it.
        where: the place in the config, for error messages.
    """
    choose(target, source.spec.targets, f"{where}.target", "target")
    check(labelled, PositiveShare, f"{where}.labelled")
    if source.parts:
        raise ConfigError(f"{where}: {source.name} mixes {len(source.parts)} parts already")
    seen = look(source)
    train = source.rows["train"]
    here = _among(train, seen.rows[seen.present[target]])
    for rows, what in ((here, "a"), (~here, "no")):
        if not rows.any() and (labelled < 1 or what == "a"):
            raise ConfigError(
                f"{where}.target: of {len(train)} training rows none has {what} {target!r} label; "
                "`hide` takes labels away"
            )
    if labelled == 1:
        return dataclasses.replace(source, rows={**source.rows, "train": train[here]})
    others = {name: entry for name, entry in source.spec.targets.items() if name != target}
    return dataclasses.replace(
        source,
        parts=(train[here], train[~here]),
        mixing=fixed((labelled, 1 - labelled)),
        carries=(source.spec, Spec(source.spec.modalities, others)),
    )
