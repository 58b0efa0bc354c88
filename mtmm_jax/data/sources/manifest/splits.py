"""Splits of rows: by a column, or by shares drawn by hash, class or time."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtmm_jax.data.pipeline.source import SPLITS
from mtmm_jax.data.sources.manifest.bad import BadRows
from mtmm_jax.data.sources.manifest.formats import SPLIT_NAMES
from mtmm_jax.data.sources.manifest.rows import Rows
from mtmm_jax.ranges import Natural
from mtmm_jax.registry import ConfigError, check, choose

RARE = 5
"""Units (rows, or groups) below which a class gives none of them to make up a split's share."""
_OPTIONS = {"seed": Natural, "stratified": str, "group": str, "time": str}


@dataclasses.dataclass(frozen=True)
class SplitOptions:
    """Options of the splits where no column names them.

    Attributes:
        shares: of train, validation and test; they add up to 1.
        seed: of the draw. 0 hashes the name alone, so that splits stay when rows come.
        stratified: a column of classes, each of which is divided by the shares. What a class is too
            small to divide goes to train.
        group: a column whose values never straddle splits.
        time: a column of numbers or ISO dates, in whose order rows are divided: train the
            earliest. Equal times stay together.
    """

    shares: tuple[float, float, float]
    seed: int = 0
    stratified: str | None = None
    group: str | None = None
    time: str | None = None

    @classmethod
    def of(cls, split: Mapping[str, Any], where: str) -> SplitOptions:
        """The options of a config's section, checked."""
        for key, value in split.items():
            choose(key, (*SPLITS, *_OPTIONS), where, "split")
            check(value, _OPTIONS.get(key, float), f"{where}.{key}")
        shares = tuple(float(split.get(name, 0.0)) for name in SPLITS)
        if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            given = {name: split[name] for name in SPLITS if name in split}
            raise ConfigError(f"{where}: the shares {given} do not add up to 1")
        options = {key: split[key] for key in _OPTIONS if key in split}
        if others := [key for key in options if key != "time"] if "time" in options else []:
            raise ConfigError(
                f"{where}.time: not with {', '.join(others)}: the order of time decides alone"
            )
        return cls(shares, **options)  # type: ignore[arg-type]


def assign_splits(
    rows: Rows, split: str | Mapping[str, Any], ids: Sequence[str], bad: BadRows, where: str
) -> np.ndarray:
    """`[N]`: the place of each row's split in `SPLITS`, -1 for none."""
    if isinstance(split, str):
        return _by_column(rows, split, bad, where)
    options = SplitOptions.of(split, where)
    if options.time is not None:
        return _by_time(rows, options, bad, where)
    units = list(ids)
    if options.group is not None:
        groups = rows.column(options.group, f"{where}.group")
        # A group cannot have the name of an id by chance.
        units = [
            id if group is None else f"\0{group}" for id, group in zip(ids, groups, strict=True)
        ]
    drawn = {unit: _place(unit, options.seed) for unit in units}
    ends = np.cumsum(options.shares)[:-1]
    if options.stratified is None:
        return np.searchsorted(ends, [drawn[unit] for unit in units], side="right")
    classes = rows.column(options.stratified, f"{where}.stratified")
    part = _stratified(units, [None if c is None else str(c) for c in classes], drawn, options)
    return np.array([part[unit] for unit in units], np.int64)


def _by_column(rows: Rows, split: str, bad: BadRows, where: str) -> np.ndarray:
    part = np.full(len(rows), -1)
    for row, value in enumerate(rows.column(split, where)):
        if value is None:
            bad.row(row, split, value, "names no split")
        elif str(value).lower() in SPLIT_NAMES:
            part[row] = SPLITS.index(SPLIT_NAMES[str(value).lower()])
        else:
            choices = f"is an unknown split; choices: {', '.join(SPLITS)}"
            bad.structure(row, split, value, choices, "unknown split")
    return part


def _place(name: str, seed: int) -> float:
    """A number in 0..1 that a name and the seed decide."""
    text = f"{seed}:{name}" if seed else name
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) / 2**64


def _stratified(
    units: Sequence[str],
    classes: Sequence[str | None],
    drawn: Mapping[str, float],
    options: SplitOptions,
) -> dict[str, int]:
    """Unit -> split: each class is divided by the shares, rounded down outside of train."""
    seen: dict[str, collections.Counter[str | None]] = collections.defaultdict(collections.Counter)
    for unit, name in zip(units, classes, strict=True):
        seen[unit][name] += 1
    strata: dict[str | None, list[str]] = collections.defaultdict(list)
    for unit in sorted(seen, key=lambda unit: (drawn[unit], unit)):
        strata[seen[unit].most_common(1)[0][0]].append(unit)
    held = [_quota(strata, options.shares[i]) for i in (1, 2)]
    part = dict.fromkeys(seen, 0)
    for name, members in strata.items():
        first = held[0][name]
        part |= dict.fromkeys(members[:first], 1)
        part |= dict.fromkeys(members[first : first + held[1][name]], 2)
    return part


def _quota(strata: Mapping[str | None, Sequence[str]], share: float) -> dict[str | None, int]:
    """The number of units each class gives to a split, the total as near to the share as can be."""
    exact = {name: share * len(members) for name, members in strata.items()}
    quota = {name: math.floor(value + 1e-9) for name, value in exact.items()}
    wanted = round(sum(exact.values())) - sum(quota.values())
    able = [name for name, members in strata.items() if len(members) >= RARE and share > 0]
    able.sort(key=lambda name: (quota[name] - exact[name], -len(strata[name]), str(name)))
    for name in able[:wanted]:
        quota[name] += 1
    return quota


def _by_time(rows: Rows, options: SplitOptions, bad: BadRows, where: str) -> np.ndarray:
    column = options.time or ""
    times: dict[int, float] = {}
    for row, value in enumerate(rows.column(column, f"{where}.time")):
        found = time_of(value)
        if found is None:
            bad.row(row, column, value, "is neither a number nor an ISO date; it orders the rows")
        else:
            times[row] = found
    part = np.full(len(rows), -1)
    order = np.array(sorted(times.values()))
    for row, time in times.items():
        before = np.searchsorted(order, time, side="left") / max(len(order), 1)
        part[row] = np.searchsorted(np.cumsum(options.shares)[:-1] - 1e-9, before, side="right")
    return part


def time_of(value: Any) -> float | None:
    """Seconds of an ISO date or time, or the number itself; None for what is neither."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        found = float(value)
        return found if math.isfinite(found) else None
    except (TypeError, ValueError):
        pass
    try:
        moment = datetime.datetime.fromisoformat(str(value))
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return moment.timestamp()
