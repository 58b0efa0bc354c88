"""Disks that are full, small, read-only or not there, and two trainers in one folder.

    python -m mtmm_jax.benchmarks.reliability.disks --json disks.json

Real file systems: a tmpfs of each size is mounted where this user may (root in a container), and
the ordinary command trains into it. A fault is what `calls.fault` says, an error without a way out,
or a run that does not go on from its last good step when there is room.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtmm_jax.benchmarks.reliability import calls
from mtmm_jax.command import console, guarded

STEPS = 150  # of a run on a small disk
SIZES = ("32k", "200k", "1m", "8m")
LONG = "x" * 300
SMALL = {
    "data.size": (64, 16, 16),
    "model.fusion": "concat",
    "batch_size": 16,
    "checkpoint.every": 5,
    "checkpoint.keep": 50,
    "evaluation.every": 1000,
    "evaluation.batch_size": 16,
    "evaluation.log_every": 1,
    "evaluation.baselines": False,
}


def command(workdir: Path, steps: int) -> list[str]:
    """The arguments of a small run."""
    overrides = {**SMALL, "steps": steps}
    changes = [f"--config.{key}={value}" for key, value in overrides.items()]
    return ["--config", "generator", "--workdir", str(workdir), *changes]


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[bool]:
    """A tmpfs in a folder; False where this user may not mount."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True
    )
    try:
        yield done.returncode == 0
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=True)


def _row(case: str, found: Mapping[str, Any], wanted: str = "error: ") -> dict[str, Any]:
    problem = calls.fault(found)
    if problem is None and found["code"] != 0 and wanted not in found["error"]:
        problem = f"does not say {wanted!r}"
    said = calls.shown(found["error"])
    return {"case": case, "code": found["code"], "said": said, "fault": problem}


def small_disk(folder: Path, size: str, call: Any) -> dict[str, Any]:
    """A run that does not fit; then there is room, and the same command resumes."""
    with mounted(folder / "disk", f"size={size}") as can:
        if not can:
            return {"case": f"tmpfs of {size}", "code": None, "said": "cannot mount", "fault": None}
        workdir = folder / "disk" / "run"
        row = _row(f"tmpfs of {size}", call("train", *command(workdir, STEPS)), "No space left")
        saved = _saved(workdir)
        if row["code"] == 2 and not row["fault"]:
            if saved and f"resumes from step {saved[-1]}" not in row["said"]:
                row["fault"] = f"does not name the last good step, {saved[-1]}"
            room = ["mount", "-o", "remount,size=256m", str(folder / "disk")]
            subprocess.run(room, check=True, capture_output=True)
            again = call("train", *command(workdir, STEPS), seconds=600)
            resumed = f"resuming from step {saved[-1]}" if saved else ""
            if again["code"] != 0 or resumed not in again["out"]:
                row["fault"] = f"did not go on: {again['error'][-200:]}"
        row["saved"] = saved
        return row


def _saved(workdir: Path) -> list[int]:
    folder = workdir / "checkpoints"
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(int(path.name) for path in found if path.name.isdigit())


def read_only(folder: Path, call: Any) -> dict[str, Any]:
    """A file system that may not be written to."""
    with mounted(folder / "read_only", "size=1m,ro") as can:
        if not can:
            return {"case": "read-only", "code": None, "said": "cannot mount", "fault": None}
        return _row(
            "read-only", call("train", *command(folder / "read_only" / "run", 5)), "Read-only"
        )


def below_a_file(folder: Path, call: Any) -> dict[str, Any]:
    """A workdir below a file."""
    (folder / "file").write_text("")
    return _row("below a file", call("train", *command(folder / "file" / "run", 5)), "Not a dir")


def too_long(folder: Path, call: Any) -> dict[str, Any]:
    """A name that no file system takes."""
    return _row("too long", call("train", *command(folder / LONG, 5)), "too long")


def no_room_for_the_report(folder: Path, call: Any) -> dict[str, Any]:
    """A finished run whose disk is full when its report is written."""
    with mounted(folder / "report", "size=64m") as can:
        if not can:
            return {"case": "report", "code": None, "said": "cannot mount", "fault": None}
        workdir = folder / "report" / "run"
        call("train", *command(workdir, 5))
        (folder / "report" / "filler").touch()
        with contextlib.suppress(OSError), (folder / "report" / "filler").open("wb") as file:
            while True:
                file.write(bytes(4096))
                file.flush()
        return _row("report", call("report", "--workdir", str(workdir)), "No space left")


def two_trainers(folder: Path, call: Any) -> dict[str, Any]:
    """The second is refused with process, host and start of the first, which continues."""
    workdir = folder / "both"
    words = [sys.executable, "-m", "mtmm_jax.train", *command(workdir, 100_000)]
    first = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        until = time.monotonic() + 300
        while not (workdir / "metrics.jsonl").exists() and time.monotonic() < until:
            if first.poll() is not None:
                break
            time.sleep(0.05)
        found = call("train", *command(workdir, 100_000))
        row = _row(
            "two trainers", found, f"another process trains in {workdir}: process {first.pid}"
        )
        if found["code"] != 2 or first.poll() is not None:
            row["fault"] = row["fault"] or f"code {found['code']}, the first {first.poll()}"
    finally:
        first.kill()
        first.communicate()
    again = call("train", *command(workdir, 100_000), seconds=20)
    if again["code"] is not None:  # it trains, until it is ended
        row["fault"] = row["fault"] or f"a stale lock stops the run: {again['error'][-200:]}"
    return row


CASES: dict[str, Callable[[Path, Any], dict[str, Any]]] = {
    "below a file": below_a_file,
    "too long": too_long,
    "read-only": read_only,
    **{
        f"tmpfs of {size}": lambda folder, call, size=size: small_disk(folder, size, call)
        for size in SIZES
    },
    "report": no_room_for_the_report,
    "two trainers": two_trainers,
}


def run(names: Sequence[str], folder: Path, call: Any, out: Any = None) -> list[dict[str, Any]]:
    """A row a case."""
    rows = []
    for name in names:
        rows.append(CASES[name](folder, call))
        if out is not None:
            out.print(str(rows[-1]), soft_wrap=True, highlight=False)
    return rows


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(
        prog="python -m mtmm_jax.benchmarks.reliability.disks",
        description="Trains onto disks that are full, small, read-only or not there.",
    )
    p.add_argument("--json", help="a file for what happened")
    arguments = p.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder, calls.caller() as call:
        rows = run(list(CASES), Path(folder), call, console())
    return calls.finish(rows, arguments.json, cases=len(rows))


if __name__ == "__main__":
    sys.exit(main())
