"""Nonsense in a config, one value at a time: every refusal is one line, exit code 2, and quick.

    python -m mtmm_jax.benchmarks.reliability.bad_values --count 500 --out bad_values.json

Values come from the declared types and ranges: for each hyper-parameter of each table's entries and
for each key of the config those just outside its range, its largest ones, and a list of nonsense.
Each goes through the ordinary command, in a process that is watched from outside: how long it
takes, how much memory it holds, whether a workdir was claimed. A value that must be refused and is
not, a traceback, a second line, a hang or too much memory is a fault.

Values at the ends of a range must be accepted or refused in one line; they are not trained on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtmm_jax.benchmarks.reliability.bad_value_cases import Case, cases, chosen
from mtmm_jax.command import console, guarded
from mtmm_jax.ranges import Count
from mtmm_jax.registry import check

SECONDS, BYTES = 10.0, 4 * 10**9
BUILT = 3 * SECONDS
"""For values that may be accepted: they are assembled, which takes its time."""
SERVE = (sys.executable, "-m", "mtmm_jax.benchmarks.reliability.bad_values", "--serve")
BASE = {
    "steps": 1,
    "batch_size": 4,
    "data.size": [16, 8, 8],
    "model.fusion": "concat",
    "evaluation.batch_size": 8,
    "evaluation.baselines": False,
}


def write_config(case: Case, path: Path) -> list[str]:
    """A config file as a user writes it: the base config, with the changes. Returns the overrides
    that belong to it."""
    changes, overrides = dict(case.changes), []
    if case.overrides:
        overrides = [f"--config.{case.place}={changes.pop(case.place)!r}"]
        if not case.place.endswith(case.key):  # an entry of a list, which a base config lacks
            changes[case.place] = []
    lines = [
        "from mtmm_jax import training",
        "nan, inf = float('nan'), float('inf')",
        "def get_config():",
        "    config = training.load('generator').unlock().to_dict()",
        f"    for place, value in {[*BASE.items(), *changes.items()]!r}:",
        "        *parents, last = place.split('.')",
        "        node = config",
        "        for key in parents:",
        "            if not isinstance(node.get(key), dict):",
        "                node[key] = {}",
        "            node = node[key]",
        "        node[last] = value",
        "    from ml_collections import ConfigDict",
        "    return ConfigDict(config)",
    ]
    path.write_text("\n".join(lines) + "\n")
    return overrides


def answer(path: str, overrides: Sequence[str], workdir: str, train: bool) -> dict[str, Any]:
    """The command's exit code for a config file and what it prints as an error."""
    import contextlib
    import io
    import traceback

    from mtmm_jax import training
    from mtmm_jax.train import main

    @guarded
    def only_checked() -> int:
        config = training.apply_overrides(training.load(path), overrides)
        training.assemble(config).check_memory()
        return 0

    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            command = ["--config", path, "--workdir", workdir, *overrides]
            code = main(command) if train else only_checked()
        except BaseException:
            traceback.print_exc(limit=-4)
            code = 1
    return {"code": code, "error": errors.getvalue(), "claimed": os.path.exists(workdir)}


def serve() -> None:
    """Answers one case a line, until the input ends; its own output is kept for the answers."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps(answer(**json.loads(line))), file=out, flush=True)


class Watched:
    """A process that answers cases, ended when one takes too long or too much memory."""

    def __init__(self, command: Sequence[str] = SERVE, most: int = BYTES) -> None:
        self.most = most
        self.process = subprocess.Popen(
            list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True,
        )  # fmt: skip

    def ask(self, seconds: float, **case: Any) -> dict[str, Any]:
        """The answer, with the seconds that it took and the most memory that was held."""
        started, peak, found = time.monotonic(), 0, []
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(case) + "\n")
        self.process.stdin.flush()
        reader = threading.Thread(
            target=lambda: found.append(self.process.stdout.readline()), daemon=True
        )
        reader.start()
        while reader.is_alive():
            reader.join(0.02)
            peak = max(peak, self.memory())
            if time.monotonic() - started > seconds or peak > self.most:
                self.process.kill()
                reader.join()
        took = {"seconds": round(time.monotonic() - started, 2), "bytes": peak}
        if not found or not found[0].strip():
            return {"code": None, "error": "no answer", "claimed": False, **took}
        return {**json.loads(found[0]), **took}

    def memory(self) -> int:
        """Resident bytes; 0 where the system does not tell."""
        try:
            with open(f"/proc/{self.process.pid}/statm") as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, IndexError):
            return 0

    def close(self) -> None:
        """Ends the process."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        self.process.kill()
        self.process.wait()


def limit(case: Case) -> float:
    """Seconds that a value may take."""
    return SECONDS if case.refused else BUILT


def fault(case: Case, found: Mapping[str, Any]) -> str | None:
    """The fault of an answer; None if there is none."""
    lines = found["error"].strip().splitlines()
    if found["code"] is None:
        return f"no answer after {found['seconds']} s and {found['bytes'] / 1e9:.1f} GB"
    if found["code"] not in (0, 2):
        return f"exit code {found['code']}: {lines[-1] if lines else ''}"
    if found["code"] == 0:
        return "was accepted" if case.refused else None
    if len(lines) != 1:
        return f"{len(lines)} lines: {lines[:2]}"
    if case.refused and case.key not in lines[0]:
        return f"does not name {case.key!r}: {lines[0]}"
    if found["claimed"]:
        return f"claimed a workdir: {lines[0]}"
    if found.get("seconds", 0) > limit(case) or found.get("bytes", 0) > BYTES:
        return f"took {found['seconds']} s and {found['bytes'] / 1e9:.1f} GB"
    return None


def run(wanted: Sequence[Case], out: Any = None) -> list[dict[str, Any]]:
    """One row a case, from watched processes."""
    rows, watched, fresh = [], Watched(), True
    with tempfile.TemporaryDirectory() as folder:
        for number, case in enumerate(wanted):
            path, workdir = Path(folder, f"{number}.py"), Path(folder, f"run{number}")
            overrides = write_config(case, path)
            # The first case of a process also pays for its imports.
            patience = 10 * SECONDS if fresh else limit(case) + 2
            found = watched.ask(
                patience,
                path=str(path),
                overrides=overrides,
                workdir=str(workdir),
                train=case.refused,
            )
            if fresh:
                found["seconds"] = min(found["seconds"], SECONDS)
            fresh = found["code"] is None
            if fresh:
                watched.close()
                watched = Watched()
            wrong = fault(case, found)
            rows.append(
                {
                    "place": case.place,
                    "around": list(case.changes.values())[:-1],
                    "value": repr(case.value),
                    "wanted": case.wanted,
                    "refused": case.refused,
                    "overrides": overrides,
                    "fault": wrong,
                    **found,
                }
            )
            if out is not None and wrong:
                out.print(f"{case.place} = {case.value!r}: {wrong}", markup=False, soft_wrap=True)
            if out is not None and (number + 1) % 50 == 0:
                bad = sum(row["fault"] is not None for row in rows)
                out.print(f"{number + 1} of {len(wanted)} values, {bad} faults")
    watched.close()
    return rows


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Counts of refused, accepted and faulty values; the longest and the largest."""
    seconds = sorted(row["seconds"] for row in rows)
    return {
        "refused": sum(row["code"] == 2 for row in rows),
        "accepted": sum(row["code"] == 0 for row in rows),
        "overrides": sum(bool(row["overrides"]) for row in rows),
        "faults": sum(row["fault"] is not None for row in rows),
        "seconds": seconds[-1],
        "median_seconds": seconds[len(seconds) // 2],
        "gigabytes": round(max(row["bytes"] for row in rows) / 1e9, 1),
    }


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(description="Nonsense in configs: each is refused in one line.")
    p.add_argument("--count", type=int, default=500, help="how many values")
    p.add_argument("--seed", type=int, default=0, help="which ones")
    p.add_argument("--out", help="a JSON file for the counts and the faults")
    p.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = p.parse_args(argv)
    if arguments.serve:
        serve()
        return 0
    check(arguments.count, Count, "--count")
    out = console()
    wanted = chosen(arguments.count, arguments.seed)
    rows = run(wanted, out)
    faults = [row for row in rows if row["fault"]]
    found = summary(rows)
    if arguments.out:
        from mtmm_jax.benchmarks.speed.timing import write_json

        settings = {"count": len(rows), "seed": arguments.seed, "of": len(cases()), **found}
        write_json(arguments.out, faults, settings=settings)
    out.print(
        f"{len(rows)} values of {len(cases())}: {found['faults']} faults; {found['refused']} "
        f"refused, {found['accepted']} accepted; at most {found['seconds']:.1f} s (median "
        f"{found['median_seconds']:.2f} s) and {found['gigabytes']:.1f} GB"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
