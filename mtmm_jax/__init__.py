"""Multi-task, multi-modal learning in JAX.

The folders are the steps in the order in which data meets them:
data -> encoders -> fusion -> sharing -> heads -> tasks -> balancing -> training -> inference.
Sub-packages load when first used, so that `import mtmm_jax` costs next to nothing.
"""

import importlib
from typing import Any

from mtmm_jax import moved as _moved

_moved.install()

__version__ = "0.3.0"

_ROOMS = (
    "analysis",
    "balancing",
    "batch",
    "benchmarks",
    "data",
    "devices",
    "encoders",
    "evaluation",
    "fusion",
    "heads",
    "inference",
    "keys",
    "layers",
    "model",
    "objectives",
    "optim",
    "own_data",
    "paths",
    "registry",
    "runs",
    "sharing",
    "store",
    "tasks",
    "text",
    "training",
    "transfer",
)


def __getattr__(name: str) -> Any:
    if name == "fit":
        return importlib.import_module("mtmm_jax.own_data").fit
    if name in _ROOMS:
        return importlib.import_module(f"mtmm_jax.{name}")
    raise AttributeError(f"module 'mtmm_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_ROOMS, "fit"]
