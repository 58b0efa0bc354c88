"""What the digests of checkpoints cost: how long `save` blocks training, with them and without.

    python -m mtmm_jax.benchmarks.speed.saving --megabytes 100 --json saving.json

Saves of one state in turns, with the thread that hashes and without it; each ends before the next
begins. `blocking` is the time until `save` returns, which a training step waits for; `whole` the
time until the checkpoint, and with digests these, are in place. The ratio of medians comes with a
bootstrap interval over the rounds, which is wide on a busy machine; `share` is not: the part of one
blocking save that is spent on digests, measured inside of it.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mtmm_jax.benchmarks.speed.timing import write_json
from mtmm_jax.command import console, guarded, prepare_jax
from mtmm_jax.ranges import Count
from mtmm_jax.registry import check
from mtmm_jax.store.checkpoints import Checkpoints
from mtmm_jax.store.digests import Hasher

ARRAYS = 24  # of the state, all of one size
_DRAWS = 2000


class State(NamedTuple):
    """What `Checkpoints.save` needs of a training state."""

    step: Any
    params: dict[str, Any]


def state_of(megabytes: int, step: int = 0) -> State:
    """So many megabytes of float32 parameters."""
    import jax.numpy as jnp

    rows = max(megabytes * 2**20 // (4 * 256 * ARRAYS), 1)
    chance = np.random.default_rng(0)
    drawn = {f"w{i}": chance.normal(size=(rows, 256)).astype(np.float32) for i in range(ARRAYS)}
    return State(jnp.asarray(step), {name: jnp.asarray(x) for name, x in drawn.items()})


class _NoHasher:
    """Stands for `digests.Hasher`."""

    def expect(self, step: int, score: float | None) -> None:
        del step, score

    def wait(self) -> None:
        pass


class _TimedHasher(Hasher):
    """Knows how long the last `expect` took, which `save` waits for."""

    seconds = 0.0

    def expect(self, step: int, score: float | None) -> None:
        began = time.perf_counter()
        super().expect(step, score)
        self.seconds = time.perf_counter() - began


def saved(checkpoints: Checkpoints, state: State) -> tuple[float, float]:
    """Seconds until `save` returns, and until all is in place."""
    began = time.perf_counter()
    checkpoints.save(state, None, {"step": int(state.step)})
    blocking = time.perf_counter() - began
    checkpoints.wait()
    return blocking, time.perf_counter() - began


def measure(megabytes: int, rounds: int, folder: Path) -> list[dict[str, float]]:
    """One row for each round: seconds with digests and without, which of them first in turns."""
    both = {name: Checkpoints(folder / name, keep=1) for name in ("digests", "none")}
    both["none"]._hasher = _NoHasher()
    both["digests"]._hasher = hasher = _TimedHasher(folder / "digests")
    rows, first = [], state_of(megabytes)
    for number in range(rounds + 1):
        state = first._replace(step=first.step + number + 1)
        row = {}
        for name in list(both)[:: 1 if number % 2 else -1]:
            row[f"{name}_blocking"], row[f"{name}_whole"] = saved(both[name], state)
        row["share"] = hasher.seconds / row["digests_blocking"]
        rows.append({key: round(value, 6) for key, value in row.items()})
    for checkpoints in both.values():
        checkpoints.close()
    return rows[1:]  # the first save starts threads and compiles the copy


def ratio(rows: Sequence[dict[str, float]], part: str) -> tuple[float, float, float]:
    """Of the median with digests to that without; and its 95 % interval over the rounds."""
    pairs = np.array([[row[f"digests_{part}"], row[f"none_{part}"]] for row in rows])
    chance = np.random.default_rng(0)
    drawn = pairs[chance.integers(len(pairs), size=(_DRAWS, len(pairs)))]
    medians = np.median(drawn, axis=1)
    low, high = np.percentile(medians[:, 0] / medians[:, 1], [2.5, 97.5])
    with_, without = np.median(pairs, axis=0)
    return float(with_ / without), float(low), float(high)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m mtmm_jax.benchmarks.speed.saving",
        description="Times saves with digests and without, in turns.",
    )
    p.add_argument("--megabytes", type=int, default=100, help="of parameters (default: 100)")
    p.add_argument("--rounds", type=int, default=30, help="saves of each (default: 30)")
    p.add_argument("--json", help="the file to write")
    return p


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    for name in ("megabytes", "rounds"):
        check(getattr(options, name), Count, f"--{name}")
    prepare_jax()
    logging.getLogger("absl").setLevel(logging.ERROR)  # it warns of each wait for a save
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(options.megabytes, options.rounds, Path(folder))
    found: dict[str, Any] = {"megabytes": options.megabytes, "rounds": options.rounds}
    for part in ("blocking", "whole"):
        found[f"{part}_ratio"], *interval = (round(x, 4) for x in ratio(rows, part))
        found[f"{part}_interval"] = interval
        for name in ("digests", "none"):
            found[f"{name}_{part}"] = float(np.median([row[f"{name}_{part}"] for row in rows]))
    shares = [row["share"] for row in rows]
    found |= {"median_share": float(np.median(shares)), "largest_share": max(shares)}
    out = console()
    for name, value in found.items():
        out.print(f"{name:20} {value}", highlight=False)
    if options.json:
        write_json(options.json, rows, settings=found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
