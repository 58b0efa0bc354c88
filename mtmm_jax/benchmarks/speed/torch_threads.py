"""The number of threads of the PyTorch twins. Imported only by benchmarks with peers."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from mtmm_jax.devices.machine import cores


def choose_threads(call: Callable[[], Any], rounds: int) -> int:
    """Gives PyTorch the number of threads at which a call is fastest just now.

    On a busy machine OpenMP threads that wait for each other can cost it a factor of ten. The
    best time counts: a passing disturbance must not take a thread away for the whole run.
    """
    cost = {}
    for threads in range(1, len(cores()) + 1):
        torch.set_num_threads(threads)
        call()
        times = []
        for _ in range(rounds):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        cost[threads] = min(times)
    best = min(cost, key=cost.__getitem__)
    torch.set_num_threads(best)
    return best
