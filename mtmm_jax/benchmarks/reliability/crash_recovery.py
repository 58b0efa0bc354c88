"""A run killed over and over, at any moment, beside the same run left alone.

    python -m mtmm_jax.benchmarks.reliability.crash_recovery --kills 50 --workdir runs/kills

Each life is the ordinary command, ended by SIGKILL at a random time after its first step, in the
middle of saving as often as it happens; the next one goes on. Asked: no finished checkpoint is lost
or unreadable, and the last state and all losses are those of the run left alone, to the bit. Rows:
one a life, with the step that it went on from, the last that it told, and whether it was saving.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtmm_jax.command import console, guarded
from mtmm_jax.ranges import Count
from mtmm_jax.registry import ConfigError, check

EVERY, KEEP = 5, 2
STEPS_A_LIFE = 15
SECONDS = 2.0  # a life after its first step, at most
OVERRIDES = {
    "batch_size": 32,
    "data.size": (512, 64, 64),
    "model.fusion": "concat",
    "checkpoint.every": EVERY,
    "checkpoint.keep": KEEP,
    "evaluation.every": 20 * EVERY,
    "evaluation.batch_size": 64,
    "evaluation.log_every": 1,
    "evaluation.baselines": False,
}
PATIENCE = 300  # seconds for a life's first step


@dataclasses.dataclass
class Run:
    """One run of the small config in a folder."""

    folder: Path
    steps: int

    @property
    def journal(self) -> Path:
        return self.folder / "metrics.jsonl"

    def start(self) -> subprocess.Popen[bytes]:
        overrides = {**OVERRIDES, "steps": self.steps}
        command = [sys.executable, "-m", "mtmm_jax.train", "--config", "generator"]
        command += ["--workdir", str(self.folder)]
        command += [f"--config.{key}={value}" for key, value in overrides.items()]
        with self._said.open("wb") as out:
            return subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)

    @property
    def _said(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.txt")

    def finished(self) -> list[int]:
        """The checkpoints that bear their final name."""
        folder = self.folder / "checkpoints"
        found = folder.iterdir() if folder.exists() else ()
        return sorted(int(path.name) for path in found if path.name.isdigit())

    def saving(self) -> bool:
        return any((self.folder / "checkpoints").glob("*tmp*"))

    def resumed(self) -> int:
        """What the last life said that it goes on from."""
        found = re.search(r"resuming from step (\d+)", self._said.read_text())
        return int(found[1]) if found else 0

    def told(self) -> int:
        """The last step in the journal; 0 where there is none."""
        lines = self.journal.read_bytes().splitlines() if self.journal.exists() else []
        steps = [int(m[1]) for line in lines[-2:] if (m := re.match(rb'{"step": (\d+)', line))]
        return steps[-1] if steps else 0

    def wait(self, process: subprocess.Popen[bytes]) -> None:
        """Until it ends by itself, and well."""
        if process.wait():
            raise ConfigError(f"--workdir: {self.folder} ended with an error: {self.last_words()}")

    def last_words(self) -> str:
        return (self._said.read_text().strip().splitlines() or ["nothing was said"])[-1]


def life(run: Run, seconds: float) -> dict[str, Any]:
    """Starts a run, and kills it `seconds` after its first step, unless it has ended by then."""
    before, began = run.finished(), time.monotonic()
    written = run.journal.stat().st_ino if run.journal.exists() else None
    process = run.start()
    try:
        while process.poll() is None:
            # A life begins with a journal of its own, without what was told after the checkpoint.
            there = run.journal.exists() and run.journal.stat().st_ino != written
            if there and run.told() > max(before, default=0):
                break
            if time.monotonic() - began > PATIENCE:
                raise ConfigError(f"--workdir: no step in {PATIENCE} s: {run.last_words()}")
            time.sleep(0.002)
        first = time.monotonic() - began
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
    finally:
        process.kill()
        code = process.wait()
    if code > 0:
        raise ConfigError(f"--workdir: {run.folder} ended with an error: {run.last_words()}")
    now = run.finished()
    return {
        "killed": code < 0,
        "found": before,
        "resumed": run.resumed(),
        "told": run.told(),
        "left": now,
        "saving": run.saving(),
        "lost": lost(before, now, run.resumed()),
        "seconds_to_first_step": round(first, 2),
        "seconds_after": round(seconds, 3),
    }


def lost(before: Sequence[int], now: Sequence[int], resumed: int) -> list[int]:
    """The finished checkpoints that a life did not find, or that are gone with fewer than `KEEP`
    later ones in their place."""
    unseen = [step for step in before if step > resumed]
    gone = [s for s in before if s not in now and sum(other > s for other in now) < KEEP]
    return sorted({*unseen, *gone})


def compare(killed: Run, whole: Run) -> dict[str, Any]:
    """The last states and all losses of two runs, to the bit."""
    import jax

    from mtmm_jax import training
    from mtmm_jax.store.checkpoints import Checkpoints
    from mtmm_jax.store.workdir import Workdir

    states = []
    for run in (killed, whole):
        experiment = training.assemble(Workdir(run.folder).config())
        checkpoints = Checkpoints(run.folder / "checkpoints", KEEP)
        states.append(checkpoints.restore(run.steps, experiment.shapes)[0])
        checkpoints.close()
    leaves = [
        {jax.tree_util.keystr(path): np.asarray(x) for path, x in found}
        for found in map(jax.tree_util.tree_leaves_with_path, states)
    ]
    different = [p for p, x in leaves[0].items() if x.tobytes() != leaves[1][p].tobytes()]
    return {
        "arrays": len(leaves[0]),
        "different_arrays": different,
        "same_losses": _losses(killed) == _losses(whole),
        "steps_told": len(_losses(killed)),
    }


def _losses(run: Run) -> list[tuple[int, Mapping[str, float]]]:
    records = map(json.loads, run.journal.read_text().splitlines())
    return [(r["step"], r["loss"]) for r in records if r["split"] == "train"]


def summary(lives: Sequence[Mapping[str, Any]], compared: Mapping[str, Any]) -> dict[str, Any]:
    killed = [row for row in lives if row["killed"]]
    return {
        "kills": len(killed),
        "while_saving": sum(row["saving"] for row in killed),
        "lost_checkpoints": sum(len(row["lost"]) for row in lives),
        "median_seconds_to_first_step": float(
            np.median([row["seconds_to_first_step"] for row in lives])
        ),
        **compared,
    }


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m mtmm_jax.benchmarks.reliability.crash_recovery",
        description="Kills a small run at random moments, and compares it with one left alone.",
    )
    p.add_argument("--kills", type=int, default=50, help="how many (default: 50)")
    p.add_argument("--workdir", required=True, help="a new folder for both runs")
    p.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    p.add_argument("--json", help="a file for what happened")
    return p


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    check(options.kills, Count, "--kills")
    folder = Path(options.workdir)
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"--workdir: {folder} is not empty; choose a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    steps = STEPS_A_LIFE * options.kills
    killed, whole = Run(folder / "killed", steps), Run(folder / "whole", steps)

    from rich.progress import track

    out = console()
    out.print(f"{steps} steps, a checkpoint every {EVERY}: left alone first", highlight=False)
    whole.wait(whole.start())
    chance, lives = np.random.default_rng(options.seed), []
    for _ in track(range(options.kills), description="kills", console=out):
        lives.append(life(killed, chance.uniform(0, SECONDS)))
        if not lives[-1]["killed"]:
            break
    if lives[-1]["killed"]:
        lives.append(life(killed, PATIENCE + steps))
    told = summary(lives, compare(killed, whole))
    for name, value in told.items():
        out.print(f"{name:28} {value}", highlight=False, markup=False, soft_wrap=True)
    if options.json:
        from mtmm_jax.benchmarks.speed.timing import write_json

        settings = {"steps": steps, "seed": options.seed, "every": EVERY, "keep": KEEP, **told}
        write_json(options.json, lives, settings=settings)
    fine = told["same_losses"] and not told["different_arrays"] and not told["lost_checkpoints"]
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
