"""Shared parts of long benchmarks: rows in a JSON file, run where they are missing, and options.

Several processes may fill one file: on one machine each takes what none has in hand, so that a
command started twice, or with `--jobs 2`, is done in half the time.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtmm_jax.benchmarks.speed.timing import write_json
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
        """Adds the rows that `rows(seeds that are left)` gives one by one, each with the key;
        none where another process is at it."""
        with self._claim(key) as mine:
            if mine and (left := self.left(seeds, **key)):
                console().print(title, highlight=False)
                for row in rows(left):
                    self.add({**key, **row})

    @contextlib.contextmanager
    def _claim(self, key: Mapping[str, Any]) -> Iterator[bool]:
        """Whether no other process of this machine works at the rows of this key."""
        if self.path is None:
            yield True
            return
        name = zlib.crc32(str(self.path.resolve()).encode())
        byte = zlib.crc32(json.dumps(key, sort_keys=True).encode())
        place = Path(tempfile.gettempdir(), f"mtmm_jax_{os.getuid()}_{name}.lock")
        with place.open("a") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
            except OSError:
                yield False
            else:
                yield True  # the lock ends with the file, or with the process

    @contextlib.contextmanager
    def helped(self, module: str, argv: Sequence[str] | None, jobs: int) -> Iterator[None]:
        """Next to the block, which fills the board, `jobs` - 1 more processes of the same command;
        then the board has the rows of all."""
        if jobs < 1:
            raise ConfigError(f"--jobs: {jobs} is below 1")
        if jobs > 1 and self.path is None:
            raise ConfigError(f"--jobs {jobs}: processes share their rows by a file, give --json")
        given = sys.argv[1:] if argv is None else argv
        command = [sys.executable, "-m", module, *given, "--jobs", "1"]
        others = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(jobs - 1)]
        try:
            yield
        except BaseException:
            for other in others:
                other.terminate()
            raise
        finally:
            codes = [other.wait() for other in others]
        if any(codes):
            raise RuntimeError(f"one of --jobs {jobs} ended with code {max(codes, key=abs)}")
        self._read()

    def add(self, row: Mapping[str, Any], instead: Sequence[Mapping[str, Any]] = ()) -> None:
        """One more row, in place of some."""
        with alone(self.path and self.path.parent):
            self._read()
            self.rows = [known for known in self.rows if known not in instead] + [dict(row)]
            if self.path:
                write_json(self.path, self.rows)


@contextlib.contextmanager
def alone(folder: Path | None) -> Iterator[None]:
    """No other process is in such a block with the same folder; None: there is nothing to share."""
    if folder is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def arguments(
    command: str,
    about: str,
    *,
    only: str | None = None,
    quick: int | str | None = None,
    seeds: str = "0,1,2",
    jobs: bool = False,
    config_flags: bool = False,
) -> argparse.ArgumentParser:
    """The options of a command that fills a board.

    Args:
        command: its module.
        about: the first line of its help.
        only: the help of --only; None: there is no such option.
        quick: the steps of a --quick run, or the help of --quick; None: there is none.
        seeds: the default.
        jobs: whether there is --jobs, for `Board.helped`.
        config_flags: whether the config's values may be set as well.
    """
    about_flags = "Values of the config are set by --config.section.key=value, as in training."
    p = argparse.ArgumentParser(
        prog=f"python -m mtmm_jax.benchmarks.{command}",
        description=about,
        epilog=about_flags if config_flags else None,
    )
    p.add_argument("--json", help="rows are kept here; those that stand in it are not run again")
    p.add_argument("--seeds", default=seeds, help=f"such as 0,1,2 (default: {seeds})")
    if only:
        p.add_argument("--only", help=only.replace("%", "%%"))  # argparse formats it
    if jobs:
        p.add_argument("--jobs", type=int, default=1, help="runs at once (default: 1)")
    if quick:
        about_flags = (
            quick if isinstance(quick, str) else f"{quick} steps and one seed: does it run?"
        )
        p.add_argument("--quick", action="store_true", help=about_flags)
    return p


def seeds_of(text: str, quick: bool = False) -> list[int]:
    """The seeds of a list such as 0,1,2; the first alone if it is to be quick."""
    try:
        return [int(seed) for seed in text.split(",")][: 1 if quick else None]
    except ValueError as error:
        raise ConfigError(f"--seeds: {text!r} is no list such as 0,1,2") from error


def names_of(text: str | None, known: Collection[str], noun: str) -> list[str]:
    """The names given by --only; all where it is not given. A comma may be part of a name."""
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
