"""Overhead of the trainer over the step itself: its loop, its start, its checkpoints.

    python -m mtmm_jax.benchmarks.speed.overhead --json overhead.json

loop: the loop with all its logging against a bare `for` around the same step, a few milliseconds
long, on the same batches; windows of both in turns, medians (asked: at most 1.03 times).
start: from the start of the process to the end of the first step of the emoji config, programs out
of the compile cache, a new run and one that resumes (asked: at most 10 s on two cores).
save: the share of time in which saving holds up the loop, every three seconds or so, a tenth of the
    emoji config's interval (asked: at most 5 %).
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from mtmm_jax.benchmarks.speed.first_step import start
from mtmm_jax.command import console, guarded, prepare_jax
from mtmm_jax.ranges import Range
from mtmm_jax.registry import check

WINDOW = 100  # steps of a turn
LOG_EVERY, SAVE_EVERY = 10, 400
SMALL = {
    "model.width": 64,
    "model.fusion": "concat",
    "optimizer.schedule": "constant",  # one program, however many steps
    "optimizer.warmup": 0,
    "evaluation.log_every": LOG_EVERY,
    "evaluation.every": 10**6,
    "checkpoint.every": 10**6,
}
ASKED = {"loop": 1.03, "start": 10.0, "save": 0.05}


class Turns:
    """A source that gives the loop the same few batches over and over, and at the end of each
    window, when all its steps are done, runs the bare loop over as many.

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
        self.given_back: Any = None  # by the loop's last step, which may still be running

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def train(self, *args: Any, **kwargs: Any) -> Turns:
        self._training = self._source.train(*args, **kwargs)
        return self

    def __iter__(self) -> Turns:
        return self

    def __next__(self) -> Any:
        import jax

        if self._given % WINDOW == 0:
            if self._given:
                jax.block_until_ready(self.given_back)
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


def _train(
    experiment: Any, folder: Path, checkpoints: Any, seen: Callable[[Any], None] | None = None
) -> None:
    """The loop as on a terminal, progress bar and meter included, that nobody looks at.

    Args:
        seen: is given what each step gives back.
    """
    from rich.console import Console

    from mtmm_jax.store.workdir import Workdir
    from mtmm_jax.training.loop import train
    from mtmm_jax.training.profiling import Compiles, Meter

    class Seen(Meter):
        def around(self, step: Callable[..., Any], start: int) -> Callable[..., Any]:
            metered = super().around(step, start)

            def traced(state: Any, batch: Any) -> Any:
                out = metered(state, batch)
                if seen is not None:
                    seen(out)
                return out

            return traced

    folder.mkdir(parents=True, exist_ok=True)
    with open(os.devnull, "w") as nowhere, Compiles() as compiles:
        watched = Console(file=nowhere, force_terminal=True, width=120)
        train(experiment, Workdir(folder), checkpoints, watched, Seen(compiles))
    checkpoints.close()


def loop(folder: Path, windows: int, batch_size: int) -> dict[str, Any]:
    """Milliseconds a step, in the loop and without it."""
    import jax

    from mtmm_jax.devices import parallel
    from mtmm_jax.store.checkpoints import Checkpoints

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
    keep = functools.partial(setattr, turns, "given_back")
    _train(with_turns, folder, Checkpoints(folder / "checkpoints"), keep)
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

    from mtmm_jax.store.checkpoints import Checkpoints

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


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m mtmm_jax.benchmarks.speed.overhead",
        description="What the trainer's loop, start and checkpoints cost.",
    )
    p.add_argument("--windows", type=int, default=20, help=f"of {WINDOW} steps (default: 20)")
    p.add_argument("--saves", type=int, default=8, help="checkpoints (default: 8)")
    p.add_argument("--starts", type=int, default=1, help="of each kind (default: 1)")
    p.add_argument("--batch_size", type=int, default=256, help="makes the step longer or shorter")
    p.add_argument("--json", help="a file for the metrics")
    return p


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    for name, least in (("windows", 2), ("saves", 4), ("starts", 1), ("batch_size", 1)):
        check(getattr(options, name), Annotated[int, Range(least, 2**31 - 1)], f"--{name}")
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
        line = f"{row['what']:6} {row['value']:8.3f}  (asked: at most {ASKED[row['what']]})  "
        rest = {key: value for key, value in row.items() if key not in ("what", "value")}
        out.print(line, rest, highlight=False, soft_wrap=True)
    if options.json:
        from mtmm_jax.benchmarks.speed.timing import write_json

        write_json(options.json, rows, settings={"asked": ASKED, "log_every": LOG_EVERY})
    return 0


if __name__ == "__main__":
    sys.exit(main())
