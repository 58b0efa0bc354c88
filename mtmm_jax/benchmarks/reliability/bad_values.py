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
import dataclasses
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from mtmm_jax.command import console, guarded
from mtmm_jax.ranges import Count, Range, describe, hints_of, mismatch
from mtmm_jax.registry import check, parameters

SECONDS, BYTES = 10.0, 4 * 10**9
NONSENSE = (
    math.nan, math.inf, -math.inf, True, None, -1, 0, 2.0, 0.5, 10**30, -(10**30), 1e308,
    "nonsense", "", "(", [], [math.nan], {}, {"kind": "nonsense"}, [[["x"]]],
)  # fmt: skip
BASE = {
    "steps": 1,
    "batch_size": 4,
    "data.size": [16, 8, 8],
    "model.fusion": "concat",
    "evaluation.batch_size": 8,
    "evaluation.baselines": False,
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One value at one place.

    Attributes:
        changes: place in the config -> value, the last of which is the one that is tried.
        key: the last part of its place, which a refusal has to name.
        refused: whether it must be; otherwise it may be accepted, and is not trained on.
        wanted: the declared type and range, in words.
    """

    changes: dict[str, Any]
    key: str
    refused: bool
    wanted: str

    @property
    def place(self) -> str:
        return list(self.changes)[-1]

    @property
    def value(self) -> Any:
        return self.changes[self.place]


def outside_and_ends(hint: Any) -> tuple[list[Any], list[Any]]:
    """Values just outside the ranges of a hint, and those at their ends."""
    outside, ends = [], []
    for part in _annotated(hint):
        kind, *rules = typing.get_args(part)
        for rule in rules:
            if isinstance(rule, Range):
                step = 1 if kind is int else max(abs(rule.high), 1.0) * 1e-6
                low, high = (kind(end) for end in (rule.low, rule.high))
                outside += [low - step, high + step]
                outside += [low] * rule.above + [high] * rule.below
                ends += [low] * (not rule.above) + [high] * (not rule.below)
    return [v for v in outside if mismatch(v, hint)], [v for v in ends if not mismatch(v, hint)]


def _annotated(hint: Any) -> Iterator[Any]:
    if typing.get_origin(hint) is Annotated:
        yield hint
    else:
        for part in typing.get_args(hint):
            yield from _annotated(part)


def of_parameter(place: str, hint: Any, around: Mapping[str, Any]) -> Iterator[Case]:
    """The cases of one parameter: `around` is set before it."""
    outside, ends = outside_and_ends(hint)
    key, words = place.rsplit(".", 1)[-1], describe(hint)
    for value in [*outside, *(v for v in NONSENSE if mismatch(v, hint))]:
        yield Case({**around, place: value}, key, True, words)
    for value in ends:
        yield Case({**around, place: value}, key, False, words)


def of_table(
    table: Mapping[str, Any], place: str, beside: Mapping[str, Any] | None = None
) -> Iterator[Case]:
    """The cases of every hyper-parameter of every entry that says its type."""
    for kind, entry in table.items():
        hints = hints_of(entry)
        for name in parameters(entry):
            if name in hints and _known(hints[name]):
                around = {place: {**(beside or {}), "kind": kind}}
                yield from of_parameter(f"{place}.{name}", hints[name], around)


def of_section(settings: type, place: str, given: Mapping[str, Any]) -> Iterator[Case]:
    """The cases of every field of a section's dataclass; `given` are those it needs."""
    for name, hint in hints_of(settings).items():
        if _known(hint) and name != "found":
            around = {place: {k: v for k, v in given.items() if k != name}}
            yield from of_parameter(f"{place}.{name}", hint, around)


def _known(hint: Any) -> bool:
    """Whether a hint refuses some of the nonsense: it is a type, and not only a comment."""
    return any(mismatch(value, hint) for value in NONSENSE)


def cases() -> list[Case]:
    """All cases of all tables, sections and keys."""
    from mtmm_jax import balancing, fusion
    from mtmm_jax.data import SOURCES
    from mtmm_jax.encoders import ENCODERS
    from mtmm_jax.heads import HEADS
    from mtmm_jax.objectives import distillation, relatedness
    from mtmm_jax.objectives.imbalance import IMBALANCE
    from mtmm_jax.objectives.semi import SEMI
    from mtmm_jax.optim import optimizers, pruning, schedules
    from mtmm_jax.sharing import SHARINGS
    from mtmm_jax.store import config
    from mtmm_jax.tasks import REGULARISERS, TASKS
    from mtmm_jax.transfer import init_from, lora, quantising

    found: list[Case] = []
    tables = {
        "data": SOURCES,
        "model.encoders.m1": ENCODERS,
        "model.fusion": fusion.FUSIONS,
        "model.bottleneck.all": fusion.BOTTLENECKS,
        "model.sharing": SHARINGS,
        "tasks.synergy.head": HEADS,
        "tasks.more": TASKS,
        "balancing": balancing.METHODS,
        "optimizer": optimizers.OPTIMIZERS,
        "optimizer.schedule": schedules.SCHEDULES,
        "semi": SEMI,
    }
    for place, table in tables.items():
        found += of_table(table, place)
    unimodal = {"tasks.synergy": {"kind": "classification", "unimodal": True}}
    for case in of_table(IMBALANCE, "optimizer.imbalance", {"task": "synergy"}):
        found.append(dataclasses.replace(case, changes={**unimodal, **case.changes}))
    del REGULARISERS  # a list of entries: the tests of its own build them
    prune = {"share": 0.5, "begin": 0, "end": 1}
    measured = {"steps": 1, "use": "weights"}
    found += of_section(optimizers.Options, "optimizer", {"kind": "adamw"})
    found += of_section(pruning.Settings, "optimizer.prune", prune)
    found += of_section(relatedness.Settings, "relatedness", measured)
    found += of_section(distillation.Settings, "teachers", {"workdirs": ["nowhere"]})
    found += of_section(lora.Settings, "lora", {})
    found += of_section(quantising.Settings, "quantise", {})
    found += of_section(init_from.Settings, "init_from", {"workdir": "nowhere"})
    keys = {**config.KEYS, **config.OPTIONAL_HINTS}
    keys |= {f"{name}.{key}": h for name, own in config.SECTIONS.items() for key, h in own.items()}
    for place, hint in keys.items():
        found += of_parameter(place, hint, {})
    return found


def chosen(count: int, seed: int = 0) -> list[Case]:
    """So many of the cases, drawn by the seed, each parameter before any a second time."""
    by_place: dict[str, list[Case]] = {}
    for case in cases():
        by_place.setdefault(json.dumps([*case.changes, case.wanted]), []).append(case)
    draw = random.Random(seed)
    for own in by_place.values():
        draw.shuffle(own)
    queues = sorted(by_place.values(), key=lambda own: draw.random())
    picked: list[Case] = []
    while len(picked) < count and any(queues):
        for queue in queues:
            if queue and len(picked) < count:
                picked.append(queue.pop())
    return picked


def write_config(case: Case, path: Path) -> None:
    """A config file as a user writes it: the base config, with the changes."""
    lines = [
        "from mtmm_jax import training",
        "nan, inf = float('nan'), float('inf')",
        "def get_config():",
        "    config = training.load('generator').unlock().to_dict()",
        f"    for place, value in {[*BASE.items(), *case.changes.items()]!r}:",
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


def answer(path: str, workdir: str, train: bool) -> dict[str, Any]:
    """What the command does with a config file: its exit code and what it prints as an error."""
    import contextlib
    import io
    import traceback

    from mtmm_jax import training
    from mtmm_jax.train import main

    @guarded
    def only_checked() -> int:
        training.assemble(training.load(path)).check_memory()
        return 0

    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            command = ["--config", path, "--workdir", workdir]
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

    def __init__(self) -> None:
        command = [sys.executable, "-m", "mtmm_jax.benchmarks.reliability.bad_values", "--serve"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
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
            if time.monotonic() - started > seconds or peak > BYTES:
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
        self.process.kill()
        self.process.wait()


def fault(case: Case, found: Mapping[str, Any]) -> str | None:
    """What is wrong with an answer; None where nothing is."""
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
    if found.get("seconds", 0) > SECONDS or found.get("bytes", 0) > BYTES:
        return f"took {found['seconds']} s and {found['bytes'] / 1e9:.1f} GB"
    return None


def run(wanted: Sequence[Case], out: Any = None) -> list[dict[str, Any]]:
    """One row a case, from watched processes."""
    rows, watched, fresh = [], Watched(), True
    with tempfile.TemporaryDirectory() as folder:
        for number, case in enumerate(wanted):
            path, workdir = Path(folder, f"{number}.py"), Path(folder, f"run{number}")
            write_config(case, path)
            # The first case of a process also pays for its imports.
            patience = 10 * SECONDS if fresh else SECONDS + 2
            found = watched.ask(patience, path=str(path), workdir=str(workdir), train=case.refused)
            if fresh:
                found["seconds"] = min(found["seconds"], SECONDS)
            fresh = found["code"] is None
            if fresh:
                watched.close()
                watched = Watched()
            wrong = fault(case, found)
            rows.append(
                {"place": case.place, "around": list(case.changes.values())[:-1],
                 "value": repr(case.value), "wanted": case.wanted, "refused": case.refused,
                 "fault": wrong, **found}
            )  # fmt: skip
            if out is not None and wrong:
                out.print(f"{case.place} = {case.value!r}: {wrong}", markup=False, soft_wrap=True)
            if out is not None and (number + 1) % 50 == 0:
                bad = sum(row["fault"] is not None for row in rows)
                out.print(f"{number + 1} of {len(wanted)} values, {bad} faults")
    watched.close()
    return rows


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(description="Nonsense in configs: each is refused in one line.")
    p.add_argument("--count", type=int, default=500, help="how many values")
    p.add_argument("--seed", type=int, default=0, help="which ones")
    p.add_argument("--out", help="a JSON file for the rows")
    p.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = p.parse_args(argv)
    if arguments.serve:
        serve()
        return 0
    check(arguments.count, Count, "--count")
    out = console()
    wanted = chosen(arguments.count, arguments.seed)
    rows = run(wanted, out)
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(rows, indent=1) + "\n")
    faults = [row for row in rows if row["fault"]]
    seconds = sorted(row["seconds"] for row in rows)
    out.print(
        f"{len(rows)} values of {len(cases())}: {len(faults)} faults; "
        f"{sum(row['code'] == 2 for row in rows)} refused, "
        f"{sum(row['code'] == 0 for row in rows)} accepted; at most {seconds[-1]:.1f} s "
        f"(median {seconds[len(seconds) // 2]:.2f} s) and "
        f"{max(row['bytes'] for row in rows) / 1e9:.1f} GB"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
