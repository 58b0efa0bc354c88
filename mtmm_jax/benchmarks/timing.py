"""Timing side by side in one run, and the machine it was measured on, without its name."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax


def interleaved(calls: Mapping[str, Callable[[], Any]], seconds: float = 2.0) -> dict[str, float]:
    """Median milliseconds of each call, taken in turns so that drift hits all of them alike.

    Args:
        calls: name -> a call that returns when its work is done.
        seconds: how long to measure each, at least five times.
    """
    cost = {}
    for name, call in calls.items():
        call()  # compiles
        start = time.perf_counter()
        call()
        cost[name] = time.perf_counter() - start
    times: dict[str, list[float]] = {name: [] for name in calls}
    rounds = max(5, min(200, int(seconds * len(calls) / max(sum(cost.values()), 1e-6))))
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    return {
        "processor": model or platform.machine(),
        "cores": os.cpu_count(),
        "devices": [device.device_kind for device in jax.devices()],
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


def write_json(path: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows and machine as one JSON document."""
    Path(path).write_text(json.dumps({"machine": machine(), "rows": list(rows)}, indent=1) + "\n")
