"""A run killed over and over, at any moment, compared with the same run left alone.

    python -m mtmm_jax.benchmarks.reliability.crash_recovery --kills 50 --workdir runs/kills
    ... --kills 20 --processes 2 --seconds 5 --workdir runs/kills_of_two

Each life is the ordinary command, ended by SIGKILL at a random time after its first step, in the
middle of saving as often as it happens; the next one resumes. Of several processes a random one is
killed, and the others must end by themselves and name it. Required: no finished checkpoint is lost
or unreadable, and the last state and all losses are those of the run left alone, to the bit. Rows:
one a life, with the step that it resumed from, the last in its journal, and whether it was saving.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import re
import socket
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
SECONDS = 2.0  # a life after its first step, at most; several processes need more for some steps
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
PATIENCE = 600  # seconds for a life's first step
TIMEOUT = 300  # devices.timeout of several processes; one that is killed is noticed long before
SLACK = 160  # seconds until the others have ended: heartbeats are missed after 100


@dataclasses.dataclass
class TrainedRun:
    """One run of the small config in a folder, by one process or several."""

    folder: Path
    steps: int
    processes: int = 1

    @property
    def journal(self) -> Path:
        return self.folder / "metrics.jsonl"

    def start(self) -> list[subprocess.Popen[bytes]]:
        overrides = {**OVERRIDES, "steps": self.steps}
        command = [sys.executable, "-m", "mtmm_jax.train", "--config", "generator"]
        command += ["--workdir", str(self.folder)]
        if self.processes > 1:
            overrides["devices"] = {"kind": "mesh", "timeout": TIMEOUT}
            command += ["--coordinator", f"127.0.0.1:{_free_port()}"]
            command += ["--processes", str(self.processes)]
        command += [f"--config.{key}={value}" for key, value in overrides.items()]
        started = []
        for i in range(self.processes):
            own = ["--process", str(i)] if self.processes > 1 else []
            with self._output(i).open("wb") as out:
                started.append(
                    subprocess.Popen(
                        command + own, stdout=out, stderr=subprocess.STDOUT, env=_environment()
                    )
                )
        return started

    def _output(self, process: int = 0) -> Path:
        return self.folder.with_name(f"{self.folder.name}_{process}.txt")

    def finished(self) -> list[int]:
        """The checkpoints that bear their final name."""
        folder = self.folder / "checkpoints"
        found = folder.iterdir() if folder.exists() else ()
        return sorted(int(path.name) for path in found if path.name.isdigit())

    def saving(self) -> bool:
        return any((self.folder / "checkpoints").glob("*tmp*"))

    def resumed(self) -> int:
        """The step that the last life resumed from, as it printed."""
        found = re.search(r"resuming from step (\d+)", self._output().read_text(errors="replace"))
        return int(found[1]) if found else 0

    def reported(self) -> int:
        """The last step in the journal; 0 where there is none."""
        lines = self.journal.read_bytes().splitlines() if self.journal.exists() else []
        steps = [int(m[1]) for line in lines[-2:] if (m := re.match(rb'{"step": (\d+)', line))]
        return steps[-1] if steps else 0

    def wait(self, started: Sequence[subprocess.Popen[bytes]]) -> None:
        """Until all processes end, and well."""
        try:
            codes = [process.wait() for process in started]
            if any(codes):
                raise ConfigError(f"--workdir: {self.folder} ended with an error: {self.words()}")
        finally:
            for process in started:
                process.kill()

    def words(self, process: int = 0) -> str:
        """The last line that a process printed."""
        lines = self._output(process).read_text(errors="replace").strip().splitlines()
        return (lines or ["nothing was printed"])[-1]

    def named(self, victim: int) -> bool:
        """Whether each other process printed one line of error that names the victim."""
        others = [self._output(i).read_text(errors="replace") for i in range(self.processes)]
        return all(f"process {victim}" in text for i, text in enumerate(others) if i != victim)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _environment() -> dict[str, str]:
    """CPU processes, one device each, that may join over TCP."""
    own = {"JAX_PLATFORMS": "cpu", "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
    return {**os.environ, **own}


def life(run: TrainedRun, seconds: float, victim: int = 0) -> dict[str, Any]:
    """Starts a run, and kills one of its processes `seconds` after the first step, unless it has
    ended by then."""
    before = run.finished()
    started = run.start()
    try:
        first = _until_a_step(run, started[victim], max(before, default=0))
        killed = _kill(started[victim], seconds)
        saving, others = run.saving(), _others(run, started, victim, killed)
    finally:
        for process in started:
            process.kill()
            process.wait()
    if not killed and any(process.returncode for process in started):
        raise ConfigError(f"--workdir: {run.folder} ended with an error: {run.words()}")
    now = run.finished()
    return {
        "killed": killed,
        "victim": victim,
        "found": before,
        "resumed": run.resumed(),
        "reported": run.reported(),
        "left": now,
        "saving": saving,
        "lost": lost(before, now, run.resumed()),
        **others,
        "seconds_to_first_step": round(first, 2),
        "seconds_after": round(seconds, 3),
    }


def _until_a_step(run: TrainedRun, process: subprocess.Popen[bytes], last: int) -> float:
    """Waits for a step after `last`, or the end; returns how long that took."""
    began = time.monotonic()
    written = run.journal.stat().st_ino if run.journal.exists() else None
    while process.poll() is None:
        # A life begins with a new journal, without what was written after the checkpoint.
        there = run.journal.exists() and run.journal.stat().st_ino != written
        if there and run.reported() > last:
            break
        if time.monotonic() - began > PATIENCE:
            raise ConfigError(f"--workdir: no step in {PATIENCE} s: {run.words()}")
        time.sleep(0.002)
    return time.monotonic() - began


def _kill(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Kills a process after some time; False where it has ended before."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
    return process.wait() < 0


def _others(
    run: TrainedRun, started: Sequence[subprocess.Popen[bytes]], victim: int, killed: bool
) -> dict[str, Any]:
    """The exit codes of the other processes, and the seconds until they ended by themselves."""
    began, others = time.monotonic(), [p for i, p in enumerate(started) if i != victim]
    try:
        codes = [process.wait(SLACK if killed else PATIENCE) for process in others]
    except subprocess.TimeoutExpired as error:
        raise ConfigError(
            f"--workdir: {run.folder}: process {victim} was killed, and another did not end in "
            f"{error.timeout:g} s"
        ) from error
    if not others or not killed:
        return {}
    seconds = round(time.monotonic() - began, 1)
    return {"codes": codes, "named": run.named(victim), "seconds_to_end": seconds}


def lost(before: Sequence[int], now: Sequence[int], resumed: int) -> list[int]:
    """The finished checkpoints that a life did not find, or that are gone with fewer than `KEEP`
    later ones in their place."""
    unseen = [step for step in before if step > resumed]
    gone = [s for s in before if s not in now and sum(other > s for other in now) < KEEP]
    return sorted({*unseen, *gone})


def compare(killed: TrainedRun, whole: TrainedRun) -> dict[str, Any]:
    """The last states and all losses of two runs, to the bit."""
    import jax

    from mtmm_jax import training
    from mtmm_jax.store.checkpoints import Checkpoints
    from mtmm_jax.store.workdir import Workdir

    states = []
    for run in (killed, whole):
        experiment = training.assemble({**Workdir(run.folder).config(), "devices": 1})
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
        "steps_reported": len(_losses(killed)),
    }


def _losses(run: TrainedRun) -> list[tuple[int, Mapping[str, float]]]:
    records = map(json.loads, run.journal.read_text().splitlines())
    return [(r["step"], r["loss"]) for r in records if r["split"] == "train"]


def summary(lives: Sequence[Mapping[str, Any]], compared: Mapping[str, Any]) -> dict[str, Any]:
    killed = [row for row in lives if row["killed"]]
    several = [row for row in killed if "codes" in row]
    found: dict[str, Any] = {
        "kills": len(killed),
        "while_saving": sum(row["saving"] for row in killed),
        "lost_checkpoints": sum(len(row["lost"]) for row in lives),
        "median_seconds_to_first_step": float(
            np.median([row["seconds_to_first_step"] for row in lives])
        ),
    }
    if several:
        found["named_the_killed"] = sum(row["named"] for row in several)
        found["most_seconds_to_end"] = max(row["seconds_to_end"] for row in several)
    return {**found, **compared}


def keep(
    path: str, processes: int, lives: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]
) -> None:
    """Writes the lives of a run; those of runs by another number of processes stay in the file."""
    from mtmm_jax.benchmarks.speed.timing import write_json

    before: dict[str, Any] = {"rows": [], "settings": {}}
    if Path(path).exists():
        before = json.loads(Path(path).read_text())
    rows = [row for row in before["rows"] if row["processes"] != processes]
    rows += [{"processes": processes, **row} for row in lives]
    about = {**before["settings"], f"processes {processes}": dict(settings)}
    write_json(path, rows, settings=about)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m mtmm_jax.benchmarks.reliability.crash_recovery",
        description="Kills a small run at random moments, and compares it with one left alone.",
    )
    p.add_argument("--kills", type=int, default=50, help="how many (default: 50)")
    p.add_argument("--workdir", required=True, help="a new folder for both runs")
    p.add_argument("--processes", type=int, default=1, help="that train together (default: 1)")
    p.add_argument(
        "--seconds", type=float, default=SECONDS, help=f"of a life, at most (default: {SECONDS:g})"
    )
    p.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    p.add_argument("--json", help="a file for what happened")
    return p


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    check(options.kills, Count, "--kills")
    check(options.processes, Count, "--processes")
    folder = Path(options.workdir)
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"--workdir: {folder} is not empty; choose a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    count, longer = options.processes, math.ceil(options.seconds / SECONDS)
    steps = STEPS_A_LIFE * options.kills * longer
    killed, whole = (TrainedRun(folder / name, steps, count) for name in ("killed", "whole"))

    out = console()
    out.print(f"{steps} steps, a checkpoint every {EVERY}: left alone first", highlight=False)
    whole.wait(whole.start())
    chance, lives = np.random.default_rng(options.seed), []
    for number in range(options.kills):
        lives.append(life(killed, chance.uniform(0, options.seconds), int(chance.integers(count))))
        out.print(f"life {number + 1} of {options.kills}: {lives[-1]}", highlight=False)
        if not lives[-1]["killed"]:
            break
    if lives[-1]["killed"]:
        lives.append(life(killed, PATIENCE + steps))
    found = summary(lives, compare(killed, whole))
    for name, value in found.items():
        out.print(f"{name:36} {value}", highlight=False, markup=False, soft_wrap=True)
    if options.json:
        settings = {"steps": steps, "seed": options.seed, "every": EVERY, "keep": KEEP}
        keep(options.json, count, lives, {**settings, "seconds": options.seconds, **found})
    faults = (
        not found["same_losses"],
        found["different_arrays"],
        found["lost_checkpoints"],
        not all(row.get("named", True) for row in lives if row["killed"]),
    )
    return int(any(faults))


if __name__ == "__main__":
    sys.exit(main())
