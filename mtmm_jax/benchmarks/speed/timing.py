"""Timing side by side in one run, and the machine it was measured on, without its name."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from mtmm_jax.devices.machine import cores
from mtmm_jax.store.files import write


def interleaved(
    calls: Mapping[Any, Callable[[], Any]], seconds: float = 2.0, warm: bool = False
) -> dict[Any, float]:
    """Median milliseconds of each call, taken in turns so that drift hits all of them alike.

    Args:
        calls: name -> a call that returns when its work is done.
        seconds: how long to measure each, at least five times.
        warm: before each timed call below 0.2 s, the same call untimed: threads of the call before
            come to rest, its own are awake, as when it runs over and over.
    """
    cost = {}
    for name, call in calls.items():
        call()  # compiles
        start = time.perf_counter()
        call()
        cost[name] = time.perf_counter() - start
    for name, call in calls.items():
        for _ in range(min(20, int(seconds / max(cost[name], 1e-6)))):
            call()  # a process's first steps are slower: memory is asked for and mapped
    times: dict[str, list[float]] = {name: [] for name in calls}
    rounds = max(5, min(200, int(seconds * len(calls) / max(sum(cost.values()), 1e-6))))
    for _ in range(rounds):
        for name, call in calls.items():
            if warm and cost[name] < 0.2:
                call()
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}


def machine() -> dict[str, Any]:
    """A description of the machine: CPU, devices, versions."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    return {
        "processor": model or platform.machine(),
        "cores": len(cores()),
        "devices": [device.device_kind for device in jax.devices()],
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


def write_json(
    path: str | Path,
    rows: Sequence[Mapping[str, Any]],
    machine_block: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Rows and machine as one JSON document, which is whole at every moment."""
    block = machine() if machine_block is None else machine_block
    document = {"machine": block, **({"settings": settings} if settings else {}), "rows": rows}
    write(Path(path), (json.dumps(document, indent=1) + "\n").encode())
