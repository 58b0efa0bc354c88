"""What long benchmarks share: rows in a JSON file, run where they are missing, and their options.

Several processes may fill one file, each with other rows (`--only`, `--seeds`).
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtmm_jax.benchmarks.timing import write_json
from mtmm_jax.command import console
from mtmm_jax.registry import ConfigError, choose


class Board:
    """The rows so far, in a JSON file that is whole at every moment; None: in memory alone."""

    def __init__(self, path: str | None) -> None:
        self.path = Path(path) if path else None
        self.rows: list[dict[str, Any]] = []
        self._read()

    def _read(self) -> None:
        if self.path and self.path.exists():
            self.rows = json.loads(self.path.read_text())["rows"]

    def find(self, **wanted: Any) -> list[dict[str, Any]]:
        return [r for r in self.rows if all(r.get(k) == v for k, v in wanted.items())]

    def left(self, seeds: Sequence[int], **wanted: Any) -> list[int]:
        """The seeds that no such row has yet, whoever wrote it."""
        self._read()
        return [seed for seed in seeds if not self.find(**wanted, seed=seed)]

    def fill(
        self,
        title: str,
        key: Mapping[str, Any],
        seeds: Sequence[int],
        rows: Callable[[list[int]], Iterable[Mapping[str, Any]]],
    ) -> None:
        """Adds the rows that `rows(seeds that are left)` gives one by one, each with the key."""
        if left := self.left(seeds, **key):
            console().print(title, highlight=False)
            for row in rows(left):
                self.add({**key, **row})

    def add(self, row: Mapping[str, Any], instead: Sequence[Mapping[str, Any]] = ()) -> None:
        """One more row, in place of some."""
        with _alone(self.path):
            self._read()
            self.rows = [known for known in self.rows if known not in instead] + [dict(row)]
            if self.path:
                write_json(self.path, self.rows)


@contextlib.contextmanager
def _alone(path: Path | None) -> Iterator[None]:
    """No other process writes in the file's folder meanwhile."""
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def arguments(
    command: str,
    about: str,
    *,
    only: str | None = None,
    quick: int | str | None = None,
    seeds: str = "0,1,2",
    config_flags: bool = False,
) -> argparse.ArgumentParser:
    """The options of a command that fills a board.

    Args:
        command: its module.
        about: the first line of its help.
        only: what --only says of itself; None: there is no such option.
        quick: the steps of a --quick run, or what --quick says of itself; None: there is none.
        seeds: the default.
        config_flags: whether the config's values may be set as well.
    """
    told = "Values of the config are set by --config.section.key=value, as in training."
    p = argparse.ArgumentParser(
        prog=f"python -m mtmm_jax.benchmarks.{command}",
        description=about,
        epilog=told if config_flags else None,
    )
    p.add_argument("--json", help="rows are kept here; those that stand in it are not run again")
    p.add_argument("--seeds", default=seeds, help=f"such as 0,1,2 (default: {seeds})")
    if only:
        p.add_argument("--only", help=only.replace("%", "%%"))  # argparse formats it
    if quick:
        told = quick if isinstance(quick, str) else f"{quick} steps and one seed: does it run?"
        p.add_argument("--quick", action="store_true", help=told)
    return p


def seeds_of(text: str, quick: bool = False) -> list[int]:
    """The seeds of a list such as 0,1,2; the first alone if it is to be quick."""
    try:
        return [int(seed) for seed in text.split(",")][: 1 if quick else None]
    except ValueError as error:
        raise ConfigError(f"--seeds: {text!r} is no list such as 0,1,2") from error


def names_of(text: str | None, known: Collection[str], noun: str) -> list[str]:
    """What --only chose; all where it was not given. A comma may be part of a name."""
    if not text:
        return list(known)
    found, parts = [], [part.strip() for part in text.split(",")]
    while parts:
        fits = [n for n in range(len(parts), 0, -1) if ", ".join(parts[:n]) in known]
        n = fits[0] if fits else 1
        found.append(choose(", ".join(parts[:n]), known, "--only", noun))
        parts = parts[n:]
    return found


def spread(values: Sequence[float | None]) -> str:
    """Mean and standard deviation of what is known."""
    known = [v for v in values if v is not None]
    return f"{np.mean(known):.3f} ± {np.std(known):.3f}" if known else "-"
