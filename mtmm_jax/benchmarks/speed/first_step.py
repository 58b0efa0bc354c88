"""From the start of a process to the end of a run's first step, part by part; for `overhead`."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from mtmm_jax.command import prepare_jax

STARTED = ("--config", "emoji")


class _Done(Exception):
    """The first step is over, and saved."""


def first_step(folder: str, began: float) -> None:
    """In a process of its own: the train command up to its second step, with a clock in its parts.

    Writes `spans.json`, the seconds of each part, into the folder.
    """
    spans = {"interpreter, command": time.time() - began}
    prepare_jax()
    import jax

    from mtmm_jax import train, training
    from mtmm_jax.devices import parallel
    from mtmm_jax.inference import finished
    from mtmm_jax.store import checkpoints
    from mtmm_jax.training import experiment, loop

    del finished, loop
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
    running: list[float] = []  # seconds already counted by inner spans

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
    timed(experiment.Experiment, "start", "initialising")
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
            record = {"seconds": total, "spans": spans, "events": events}
            Path(folder, "spans.json").write_text(json.dumps(record))
            return out

        return call

    parallel.wrap = wrapped
    try:
        train.main([*STARTED, "--workdir", folder, "--config.checkpoint.every=1"])
    except _Done:
        return


def start(folder: Path, repeats: int) -> list[dict[str, Any]]:
    """Medians over starts of a new run and of one that resumes."""
    found: dict[str, list[dict[str, Any]]] = {"new": [], "resumed": []}
    for i in range(repeats + 1):
        for records in found.values():
            run = folder / str(i)
            command = [sys.executable, "-m", "mtmm_jax.benchmarks.speed.first_step"]
            began = time.time()
            done = subprocess.run(
                [*command, str(run), str(began)], capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise RuntimeError(f"a start failed: {done.stderr[-2000:]}")
            if i:  # the first one fills the compile cache
                records.append(json.loads((run / "spans.json").read_text()))
    rows = []
    for kind, records in found.items():
        records.sort(key=lambda one: one["seconds"])
        middle = records[len(records) // 2]
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


if __name__ == "__main__":
    first_step(sys.argv[1], float(sys.argv[2]))
