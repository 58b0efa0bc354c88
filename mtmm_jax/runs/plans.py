"""A sweep's plan: which values are tried, under which names, and the file that remembers it."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mtmm_jax.chance import uniform
from mtmm_jax.ranges import Count
from mtmm_jax.registry import ConfigError, check
from mtmm_jax.store import lock
from mtmm_jax.store.config import apply_overrides, as_dict, differences, mutable
from mtmm_jax.store.workdir import FREE, Workdir

_LONGEST = 120  # characters of a folder's name


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run of a sweep: the name of its folder, and config key -> value as text."""

    name: str
    changes: Mapping[str, str]

    @property
    def overrides(self) -> list[str]:
        """As the training command takes them."""
        return [f"--config.{key}={text}" for key, text in self.changes.items()]


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, drawn evenly or, with `log`, evenly in their logarithm.

    Where both ends are whole numbers, so are the draws.
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def at(self, u: float) -> str:
        """The number at the share `u` in [0, 1) of the way, as text."""
        high = self.high + 1 if self.whole else self.high  # each whole number has its stretch
        even = self.low + u * (high - self.low)
        value = self.low * (high / self.low) ** u if self.log else even
        return str(min(math.floor(value), round(self.high))) if self.whole else f"{value:.4g}"


def read_choices(option: str, text: str) -> tuple[str, list[str]]:
    """`key=a,b,c` -> the key and its values; commas in brackets and quotes do not part them."""
    key, sign, values = text.partition("=")
    if not sign or not re.fullmatch(r"[\w.+-]+", key):
        raise ConfigError(f"{option}: {text!r} is not like optimizer.learning_rate=1e-3,3e-3")
    parts = [part.strip() for part in _parted(values, option)]
    if not all(parts):
        raise ConfigError(f"{option}: {text!r} has an empty value")
    if len(set(parts)) < len(parts):
        raise ConfigError(f"{option}: {text!r} names a value twice")
    return key, parts


def _parted(text: str, option: str) -> list[str]:
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        if letter == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    if depth or quote:
        raise ConfigError(f"{option}: {text!r} has a bracket or a quote that is not closed")
    return parts


def read_range(option: str, text: str, log: bool) -> tuple[str, Range]:
    """`key=low:high` -> the key and its range."""
    match = re.fullmatch(r"([\w.+-]+)=([^:]+):([^:]+)", text)
    try:
        ends = [float(end) for end in match.groups()[1:]] if match else []
    except ValueError:
        ends = []
    if not match or not ends or not all(map(math.isfinite, ends)):
        raise ConfigError(f"{option}: {text!r} is not like optimizer.learning_rate=1e-4:1e-2")
    whole = all(re.fullmatch(r"[+-]?\d+", end.strip()) for end in match.groups()[1:])
    low, high = ends
    if not low < high or (log and low <= 0):
        raise ConfigError(
            f"{option}: {text!r}: needs low < high" + (", both above 0" if log else "")
        )
    return match[1], Range(low, high, log, whole)


def grid(choices: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """Every combination, the last key changing fastest."""
    return [dict(zip(choices, row, strict=True)) for row in itertools.product(*choices.values())]


def drawn(
    choices: Mapping[str, Sequence[str]], ranges: Mapping[str, Range], number: int, seed: int
) -> list[dict[str, str]]:
    """`number` different combinations at random; draw j depends on (seed, j) only, so that a
    longer sweep begins with the trials of a shorter one.

    Random search beats a grid where few of many values matter (Bergstra & Bengio, JMLR 2012).
    """
    most = math.prod(len(values) for values in choices.values())
    if not ranges and number > most:
        raise ConfigError(f"--random: {number}; there are {most} combinations of --set")
    check(number, Count, "--random")
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for changes in itertools.islice(_draws(choices, ranges, seed), 1000 * number):
        found.setdefault(tuple(changes.values()), changes)
        if len(found) == number:
            return list(found.values())
    raise ConfigError(f"--random: {number}; the ranges hold only {len(found)} different values")


def _draws(
    choices: Mapping[str, Sequence[str]], ranges: Mapping[str, Range], seed: int
) -> Iterator[dict[str, str]]:
    for j in itertools.count():
        shares = iter(uniform(len(choices) + len(ranges), seed, j).tolist())
        picked = {key: values[int(next(shares) * len(values))] for key, values in choices.items()}
        yield picked | {key: span.at(next(shares)) for key, span in ranges.items()}


def named(combinations: Sequence[Mapping[str, str]]) -> list[Trial]:
    """Trials with the numbers and changes in their names: `02-learning_rate=3e-3-fusion=concat`."""
    keys = list(combinations[0]) if combinations else []
    short = {key: _short(key, keys) for key in keys}
    digits = max(2, len(str(len(combinations))))
    trials = []
    for number, changes in enumerate(combinations, start=1):
        name = "-".join(f"{short[key]}={text}" for key, text in changes.items())
        name = re.sub(r"[^\w.+=-]+", "_", name)[:_LONGEST].strip("_.")
        trials.append(Trial(f"{number:0{digits}d}-{name}", dict(changes)))
    return trials


def _short(key: str, keys: Sequence[str]) -> str:
    """The shortest end of a config key that no other key ends in; `kind` is said of its section."""
    parts = key.removesuffix(".kind").split(".")
    others = [other.removesuffix(".kind").split(".") for other in keys if other != key]
    for length in range(1, len(parts) + 1):
        if all(other[-length:] != parts[-length:] for other in others):
            return ".".join(parts[-length:])
    return key


def config_of(base: Mapping[str, Any], trial: Trial) -> ConfigDict:
    """The base config with a trial's values."""
    return apply_overrides(mutable(base), trial.overrides)


def plan_of(base: ConfigDict, trials: Sequence[Trial]) -> dict[str, Any]:
    """The plan that `claim` keeps. Keys that no config has and values of a wrong type are refused
    here, before anything is run."""
    plain = as_dict(base)
    for trial in trials:
        config_of(plain, trial)
    return {"config": plain, "trials": {trial.name: dict(trial.changes) for trial in trials}}


@contextlib.contextmanager
def held(folder: Path, name: str) -> Iterator[str]:
    """Holds the folder of a plan for one process; yields a line about a stale lock, or "".

    Args:
        folder: of all runs of the plan.
        name: of the file that remembers it.
    """
    _check(folder, name)
    with lock.locked(folder) as stale:
        yield stale


def _check(folder: Path, name: str) -> None:
    """Refuses what is no folder, or one of something else."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--workdir: {folder} is a file, not a folder")
    there = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if name not in there and there - set(lock.FILES):
        raise ConfigError(
            f"--workdir: {folder} is not empty and has no {name}; choose a new folder"
        )


def claim(folder: Path, name: str, plan: Mapping[str, Any]) -> dict[str, Any]:
    """Makes a folder this plan's own, or finds that it already is.

    Args:
        folder: of all runs of the plan.
        name: of the file that remembers it, such as sweep.json.
        plan: plain values; `devices` and how often logs are written may differ.

    Returns:
        What the file holds: the plan, and whatever was recorded besides.
    """
    plan = json.loads(json.dumps(plan))
    _check(folder, name)
    if not (folder / name).exists():
        folder.mkdir(parents=True, exist_ok=True)
        Workdir(folder).write(name, {"plan": plan})
        return {"plan": plan}
    record = Workdir(folder).read(name)
    free = tuple(f"config.{key}" for key in FREE)
    found = [line for line in differences(record["plan"], plan) if not line.startswith(free)]
    if found:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise ConfigError(
            f"--workdir: {folder} holds another plan: {'; '.join(found[:3])}{more}. Choose "
            "another folder, or the same plan"
        )
    return record
