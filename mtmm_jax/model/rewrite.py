"""Parameters that are learned in another form than the one that modules read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

PyTree = Any
REWRITES = ("lora",)  # rooms whose leaves stand under the paths of what they change


class Rewrite(NamedTuple):
    """What stands between the learned parameters and the modules, such as W + s B A.

    Attributes:
        room: where its own parameters are kept, beside `encoders`, `fusion` and the others.
        init: `(key, params) -> its own parameters`, a tree under the paths of what they change;
            empty where it has none.
        apply: `params -> params` as modules read them; pure, and differentiable.
    """

    room: str
    init: Callable[[jax.Array, PyTree], PyTree]
    apply: Callable[[PyTree], PyTree]
