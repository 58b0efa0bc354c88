"""The same models and steps in PyTorch: equal weights, torchjd's autojac and autogram.

Needs `torch` and `torchjd`, installed by the user; nothing else here imports them.
"""

from __future__ import annotations

import copy
import itertools
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mtmm_jax.benchmarks.balancing_models import OUTPUTS, STAGES, WIDTHS

AGGREGATORS = {
    "upgrad": "UPGrad",
    "mgda": "MGDA",
    "cagrad": "CAGrad",
    "pcgrad": "PCGrad",
    "imtl_g": "IMTLG",
    "aligned_mtl": "AlignedMTL",
    "dualproj": "DualProj",
    "conflict_free": "ConFIG",
    "nash": "NashMTL",
}


class _Block(nn.Module):
    def __init__(self, width: int, features: int, stride: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(width, features, 3, stride, 1, bias=False)
        self.b = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.norm_a, self.norm_b = (_norm(features) for _ in range(2))
        self.skip = None
        if stride != 1 or width != features:
            self.skip = nn.Sequential(
                nn.Conv2d(width, features, 1, stride, bias=False), _norm(features)
            )

    def forward(self, x: Any) -> Any:
        y = self.norm_b(self.b(torch.relu(self.norm_a(self.a(x)))))
        return torch.relu(y + (x if self.skip is None else self.skip(x)))


def _norm(features: int) -> nn.Module:
    return nn.BatchNorm2d(features, track_running_stats=False)


def _trunk(name: str) -> nn.Module:
    if name == "mlp":
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(WIDTHS):
            layers += [nn.Linear(a, b), nn.ReLU()]
        return nn.Sequential(*layers)
    blocks, width = [], 64
    for features, stride in STAGES:
        for step in (stride, 1):
            blocks.append(_Block(width, features, step))
            width = features
    stem = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), _norm(64), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _aggregator(method: str, num_tasks: int) -> Any:
    from torchjd import aggregation

    kwargs = {"cagrad": {"c": 0.5}, "nash": {"n_tasks": num_tasks}}.get(method, {})
    return getattr(aggregation, AGGREGATORS[method])(**kwargs)


def steps(trunk: str, method: str, batch: dict[str, np.ndarray]) -> dict[str, Callable[[], None]]:
    """name -> one training step: `equal`, or `autojac` and (where it exists) `autogram`."""
    torch.manual_seed(0)
    num_tasks = len(batch["y"])
    body = _trunk(trunk)
    heads = nn.ModuleList(nn.Linear(WIDTHS[-1], OUTPUTS) for _ in range(num_tasks))
    optimizer = torch.optim.SGD([*body.parameters(), *heads.parameters()], lr=1e-3)
    x = torch.from_numpy(batch["x"])
    x = x if trunk == "mlp" else x.permute(0, 3, 1, 2).contiguous()
    targets = torch.from_numpy(batch["y"])

    def losses(body: nn.Module) -> tuple[list[Any], Any]:
        features = body(x)
        pairs = zip(heads, targets, strict=True)
        return [((h(features) - y) ** 2).mean() for h, y in pairs], features

    def equal() -> None:
        optimizer.zero_grad()
        torch.stack(losses(body)[0]).mean().backward()
        optimizer.step()

    if method == "equal":
        return {"equal": equal}
    from torchjd import autojac

    aggregator = _aggregator(method, num_tasks)

    def by_autojac() -> None:
        optimizer.zero_grad()
        each, features = losses(body)
        autojac.mtl_backward(each, features=features)
        autojac.jac_to_grad(body.parameters(), aggregator)
        optimizer.step()

    found = {"autojac": by_autojac}
    weighting = getattr(aggregator, "gramian_weighting", None)
    if weighting is not None and trunk == "mlp":
        from torchjd.autogram import Engine

        hooked = copy.deepcopy(body)  # the engine's hooks would slow the other steps down
        own = torch.optim.SGD([*hooked.parameters(), *heads.parameters()], lr=1e-3)
        engine = Engine(hooked, batch_dim=None)  # the losses are means over the batch

        def by_autogram() -> None:
            own.zero_grad()
            each = torch.stack(losses(hooked)[0])
            each.backward(weighting(engine.compute_gramian(each)))
            own.step()

        found["autogram"] = by_autogram
    return found


def choose_threads(trunk: str, batch: dict[str, np.ndarray]) -> int:
    """Gives PyTorch the number of threads at which its equal-weight step is fastest just now.

    On a busy machine OpenMP threads that wait for each other can cost it a factor of ten.
    """
    call = steps(trunk, "equal", batch)["equal"]
    cost = {}
    for threads in range(1, (os.cpu_count() or 1) + 1):
        torch.set_num_threads(threads)
        call()
        times = []
        for _ in range(5):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        cost[threads] = sorted(times)[2]
    best = min(cost, key=cost.__getitem__)
    torch.set_num_threads(best)
    return best


def peak_mb(call: Callable[[], None]) -> float:
    """Highest resident memory during a call over that before it, sampled every millisecond."""
    status, done, peak = Path("/proc/self/statm"), threading.Event(), [0]

    def resident() -> int:
        return int(status.read_text().split()[1]) * 4096

    def watch() -> None:
        while not done.is_set():
            peak[0] = max(peak[0], resident())
            time.sleep(0.001)

    before = resident()
    watcher = threading.Thread(target=watch)
    watcher.start()
    call()
    done.set()
    watcher.join()
    return (peak[0] - before) / 2**20
