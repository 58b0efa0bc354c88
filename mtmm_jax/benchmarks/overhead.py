"""What the trainer costs beside the step itself: its loop, its start, its checkpoints.

    python -m mtmm_jax.benchmarks.overhead --json overhead.json

loop: the loop with all its logging against a bare `for` around the same step, a few milliseconds
long, on the same batches; windows of both in turns, medians (asked: at most 1.03 times).
start: from the start of the process to the end of the first step of the emoji config, programs out
of the compile cache, a new run and one that goes on (asked: at most 10 s on two cores).
save: the share of time in which saving holds up the loop (asked: at most 5 %).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mtmm_jax.command import console, guarded, prepare_jax
from mtmm_jax.registry import ConfigError

WINDOW = 100  # steps of a turn
LOG_EVERY, SAVE_EVERY = 10, 100
SMALL = {
    "model.width": 64,
    "model.fusion": "concat",
    "optimizer.schedule": "constant",  # one program, however many steps
    "optimizer.warmup": 0,
    "evaluation.log_every": LOG_EVERY,
    "evaluation.every": 10**6,
    "checkpoint.every": 10**6,
}
STARTED = ("--config", "emoji")
ASKED = {"loop": 1.03, "start": 10.0, "save": 0.05}


class Turns:
    """A source that gives the loop the same few batches over and over, and at the end of each
    window, when everything is done and told, runs the bare loop over as many.

    Args:
        source: of the experiment.
        batches: what both are given.
        bare: does one window of steps.
    """

    def __init__(self, source: Any, batches: Sequence[Any], bare: Callable[[], None]) -> None:
        self._source, self._batches, self._bare = source, batches, bare
        self.loop: list[float] = []
        self.alone: list[float] = []
        self._given, self._began = 0, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def train(self, *args: Any, **kwargs: Any) -> Turns:
        self._training = self._source.train(*args, **kwargs)
        return self

    def __iter__(self) -> Turns:
        return self

    def __next__(self) -> Any:
        if self._given % WINDOW == 0:
            if self._given:
                self.loop.append((time.perf_counter() - self._began) / WINDOW)
            now = time.perf_counter()
            self._bare()
            self._began = time.perf_counter()
            self.alone.append((self._began - now) / WINDOW)
        self._given += 1
        return self._batches[self._given % len(self._batches)]

    @property
    def epochs(self) -> tuple[float, ...]:
        return self._training.epochs

    @property
    def shares(self) -> tuple[float, ...]:
        return self._training.shares

    def observe(self, scores: Any) -> None:
        self._training.observe(scores)

    def get_state(self) -> dict[str, Any]:
        return self._training.get_state()


def _small(**changes: Any) -> Any:
    from mtmm_jax import training

    overrides = [f"--config.{key}={value}" for key, value in {**SMALL, **changes}.items()]
    return training.assemble(training.apply_overrides(training.load("generator"), overrides))


def _train(experiment: Any, folder: Path, checkpoints: Any) -> None:
    """The loop as on a terminal, progress bar included, that nobody looks at."""
    from rich.console import Console

    from mtmm_jax.training.loop import train
    from mtmm_jax.training.workdir import Workdir

    folder.mkdir(parents=True, exist_ok=True)
    with open(os.devnull, "w") as nowhere:
        watched = Console(file=nowhere, force_terminal=True, width=120)
        train(experiment, Workdir(folder), checkpoints, watched)
    checkpoints.close()


def loop(folder: Path, windows: int, batch_size: int) -> dict[str, Any]:
    """Milliseconds a step, in the loop and without it."""
    import jax

    from mtmm_jax import parallel
    from mtmm_jax.training.checkpoints import Checkpoints

    experiment = _small(steps=WINDOW * (windows + 1), batch_size=batch_size)
    iterator = experiment.source.train(experiment.config["batch_size"])
    batches = [next(iterator) for _ in range(8)]
    step, state = parallel.wrap(experiment.step(), 1), experiment.init()
    state, _ = step(state, batches[0])

    def bare() -> None:
        nonlocal state
        for i in range(WINDOW):
            state, _ = step(state, batches[i % len(batches)])
        jax.block_until_ready(state)

    turns = Turns(experiment.source, batches, bare)
    with_turns = dataclasses.replace(experiment, source=turns)
    _train(with_turns, folder, Checkpoints(folder / "checkpoints"))
    pairs = list(zip(turns.loop, turns.alone, strict=False))[1:]  # the first one compiles
    inside, alone = (1e3 * statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    return {
        "what": "loop",
        "windows": len(pairs),
        "loop_ms": round(inside, 3),
        "bare_ms": round(alone, 3),
        "value": round(ratio, 4),
    }


def save(folder: Path, saves: int, batch_size: int) -> dict[str, Any]:
    """The share of time that saving holds up the loop; waiting for the step is none of it."""
    import jax

    from mtmm_jax.training.checkpoints import Checkpoints

    spans: list[tuple[float, float]] = []

    class Timed(Checkpoints):
        def save(self, state: Any, *rest: Any) -> None:
            jax.block_until_ready(state)
            began = time.perf_counter()
            super().save(state, *rest)
            spans.append((began, time.perf_counter()))

    steps = SAVE_EVERY * (saves + 1)
    experiment = _small(
        **{"steps": steps, "batch_size": batch_size, "checkpoint.every": SAVE_EVERY}
    )
    _train(experiment, folder, Timed(folder / "checkpoints"))
    # The first save compiles its copy; the last one comes after the validation.
    kept = spans[1:-1]
    blocked = [end - began for began, end in kept[:-1]]
    whole = kept[-1][0] - kept[0][0]
    return {
        "what": "save",
        "saves": len(blocked),
        "steps_between": SAVE_EVERY,
        "seconds_between": round(whole / len(blocked), 3),
        "save_ms": round(1e3 * statistics.median(blocked), 2),
        "value": round(sum(blocked) / whole, 4),
    }


class _Done(Exception):
    """The first step is over, and saved."""


def first_step(folder: str, began: float) -> None:
    """In a process of its own: the train command up to its second step, with a clock in its parts.

    Writes `spans.json`, the seconds of each part, into the folder.
    """
    spans = {"interpreter, command": time.time() - began}
    prepare_jax()
    import jax

    from mtmm_jax import analysis, parallel, train, training
    from mtmm_jax.training import checkpoints, experiment, finished, loop

    del analysis, finished, loop
    spans["imports"] = time.time() - began - sum(spans.values())
    events: dict[str, float] = {}
    names = {
        "/jax/core/compile/jaxpr_trace_duration": "tracing",
        "/jax/core/compile/jaxpr_to_mlir_module_duration": "lowering",
        "/jax/core/compile/backend_compile_duration": "compiling or cache",
    }

    def note(event: str, seconds: float, **_: Any) -> None:
        if event in names:
            events[names[event]] = events.get(names[event], 0.0) + seconds

    jax.monitoring.register_event_duration_secs_listener(note)
    running: list[float] = []  # seconds that inner parts have told already

    def timed(owner: Any, name: str, part: str) -> None:
        inner = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            running.append(0.0)
            try:
                return inner(*args, **kwargs)
            finally:
                took = time.perf_counter() - start
                spans[part] = spans.get(part, 0.0) + took - running.pop()
                if running:
                    running[-1] += took

        setattr(owner, name, call)

    timed(experiment.data, "build", "data")
    timed(training, "assemble", "assembling")
    timed(train, "describe", "shapes and tables")
    timed(checkpoints.Checkpoints, "__init__", "checkpointer")
    timed(checkpoints.Checkpoints, "restore", "restoring")
    timed(experiment.Experiment, "init", "initialising")
    wrap = parallel.wrap

    def wrapped(step: Any, devices: Any, **options: Any) -> Any:
        inner, calls = wrap(step, devices, **options), []

        def call(state: Any, batch: Any) -> Any:
            if calls:
                raise _Done
            calls.append(1)
            before, start = dict(events), time.perf_counter()
            out = jax.block_until_ready(inner(state, batch))
            took = time.perf_counter() - start
            parts = {f"step: {key}": events[key] - before.get(key, 0.0) for key in events}
            spans.update(parts, **{"step: the rest": took - sum(parts.values())})
            total = time.time() - began
            spans["the rest"] = total - sum(spans.values())
            told = {"seconds": total, "spans": spans, "events": events}
            Path(folder, "spans.json").write_text(json.dumps(told))
            return out

        return call

    parallel.wrap = wrapped
    try:
        train.main([*STARTED, "--workdir", folder, "--config.checkpoint.every=1"])
    except _Done:
        return


def start(folder: Path, repeats: int) -> list[dict[str, Any]]:
    """Medians over starts of a new run and of one that goes on."""
    found: dict[str, list[dict[str, Any]]] = {"new": [], "going on": []}
    for i in range(repeats + 1):
        for told in found.values():
            run = folder / str(i)
            command = [sys.executable, "-m", "mtmm_jax.benchmarks.overhead", "--first_step"]
            began = time.time()
            done = subprocess.run(
                [*command, str(run), str(began)], capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise RuntimeError(f"a start failed: {done.stderr[-2000:]}")
            if i:  # the first one fills the compile cache
                told.append(json.loads((run / "spans.json").read_text()))
    rows = []
    for kind, told in found.items():
        told.sort(key=lambda one: one["seconds"])
        middle = told[len(told) // 2]
        rows.append(
            {
                "what": "start",
                "run": kind,
                "repeats": repeats,
                "value": round(middle["seconds"], 2),
                "parts": {name: round(value, 2) for name, value in middle["spans"].items()},
                "programs": {name: round(value, 2) for name, value in middle["events"].items()},
            }
        )
    return rows


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m mtmm_jax.benchmarks.overhead",
        description="What the trainer's loop, start and checkpoints cost.",
    )
    p.add_argument("--windows", type=int, default=20, help=f"of {WINDOW} steps (default: 20)")
    p.add_argument("--saves", type=int, default=10, help="checkpoints (default: 10)")
    p.add_argument("--starts", type=int, default=1, help="of each kind (default: 1)")
    p.add_argument("--batch_size", type=int, default=256, help="makes the step longer or shorter")
    p.add_argument("--json", help="a file for the figures")
    p.add_argument("--first_step", nargs=2, help=argparse.SUPPRESS)  # of the processes it starts
    return p


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    if options.first_step:
        first_step(options.first_step[0], float(options.first_step[1]))
        return 0
    for name, least in (("windows", 2), ("saves", 4), ("starts", 1), ("batch_size", 1)):
        if getattr(options, name) < least:
            raise ConfigError(
                f"--{name}: {getattr(options, name)} is not a number from {least} upwards"
            )
    prepare_jax()
    out, batch = console(), options.batch_size
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rows: list[dict[str, Any]] = []
        for name, measure in (
            ("loop", lambda: [loop(folder / "loop", options.windows, batch)]),
            ("save", lambda: [save(folder / "save", options.saves, batch)]),
            ("start", lambda: start(folder, options.starts)),
        ):
            with out.status(name):
                rows += measure()
    for row in rows:
        said = f"{row['what']:6} {row['value']:8.3f}  (asked: at most {ASKED[row['what']]})  "
        rest = {key: value for key, value in row.items() if key not in ("what", "value")}
        out.print(said, rest, highlight=False, soft_wrap=True)
    if options.json:
        from mtmm_jax.benchmarks.timing import write_json

        write_json(options.json, rows, settings={"asked": ASKED, "log_every": LOG_EVERY})
    return 0


if __name__ == "__main__":
    sys.exit(main())
