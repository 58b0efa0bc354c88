"""The same models and steps in PyTorch: equal weights, torchjd's autojac and autogram.

Needs `torch` and `torchjd`, installed by the user; nothing else here imports them.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from typing import Any

import numpy as np

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler would write two lines a use
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from mtmm_jax.benchmarks.balancing.models import OUTPUTS, STAGES, WIDTHS

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


def engines_of(method: str, trunk: str) -> list[str]:
    """`equal`, or `autojac` and (where it exists) `autogram`; none for a method torchjd has not,
    or has not without a package that is not installed."""
    if method not in AGGREGATORS:
        return ["equal"] if method == "equal" else []
    try:
        weighting = getattr(_aggregator(method, 2), "gramian_weighting", None)
    except ImportError:
        return []
    return ["autojac", *(["autogram"] if weighting is not None and trunk == "mlp" else [])]


def step(trunk: str, method: str, engine: str, batch: dict[str, np.ndarray]) -> Callable[[], None]:
    """One training step with SGD, of a model of its own."""
    torch.manual_seed(0)
    num_tasks = len(batch["y"])
    body = _trunk(trunk)
    heads = nn.ModuleList(nn.Linear(WIDTHS[-1], OUTPUTS) for _ in range(num_tasks))
    optimizer = torch.optim.SGD([*body.parameters(), *heads.parameters()], lr=1e-3)
    x = torch.from_numpy(batch["x"])
    x = x if trunk == "mlp" else x.permute(0, 3, 1, 2).contiguous()
    targets = torch.from_numpy(batch["y"])
    backward = _backward(method, engine, body, num_tasks)

    def run() -> None:
        optimizer.zero_grad()
        features = body(x)
        pairs = zip(heads, targets, strict=True)
        backward([((head(features) - y) ** 2).mean() for head, y in pairs], features)
        optimizer.step()

    return run


def _backward(method: str, engine: str, body: nn.Module, num_tasks: int) -> Callable[..., None]:
    if engine == "equal":
        return lambda losses, features: torch.stack(losses).mean().backward()
    from torchjd import autojac
    from torchjd.autogram import Engine

    aggregator = _aggregator(method, num_tasks)

    def by_autojac(losses: list[Any], features: Any) -> None:
        autojac.mtl_backward(losses, features=features)
        autojac.jac_to_grad(body.parameters(), aggregator)

    if engine == "autojac":
        return by_autojac
    grams = Engine(body, batch_dim=None)  # the losses are means over the batch

    def by_autogram(losses: list[Any], features: Any) -> None:
        del features
        each = torch.stack(losses)
        each.backward(aggregator.gramian_weighting(grams.compute_gramian(each)))

    return by_autogram


def peak_mb(call: Callable[[], None]) -> float:
    """Most bytes of tensors that a call holds at a time on top of what was there before it.

    The last step's gradients go first, so this is the rise from the lowest level, not the level.
    Like XLA's `temp_size_in_bytes` it leaves out what the kernels allocate for themselves.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = lowest = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        lowest = min(lowest, live)
        peak = max(peak, live - lowest)
    return peak / 2**20
