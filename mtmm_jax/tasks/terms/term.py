"""The interface of an auxiliary loss: the values it may read, and what it returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mtmm_jax.batch import Tokens
from mtmm_jax.registry import ConfigError

Term = tuple[jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True)
class View:
    """The inputs of a regulariser, in one step, on one device.

    Attributes:
        params: the model's, by room.
        tokens: what crosses the cut, by read: a modality, "fused".
        predictions: by task.
        present: `[B]` bool by task: everything that it reads is there.
        axis_name: the devices' axis, or None.
        targets: of the batch, by name, as `{"y": ..., "present": [B]}`.
    """

    params: Mapping[str, Any]
    tokens: Mapping[str, Tokens]
    predictions: Mapping[str, Any]
    present: Mapping[str, jax.Array]
    axis_name: str | None = None
    targets: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Regulariser:
    """One term.

    Attributes:
        reads: the tokens that must cross the cut for it.
        tasks: those whose predictions it looks at.
        term: `View -> (sum, count)`, which add over devices.
        paths: of the parameters that it looks at.
        targets: the labels that it reads.
    """

    term: Callable[[View], Term]
    reads: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()


def two(names: Sequence[str], where: str) -> tuple[str, str]:
    """The two different names of `between`, checked."""
    if isinstance(names, str) or len(names) != 2 or names[0] == names[1]:
        raise ConfigError(f"{where}.between: {names!r} are not two different names")
    return tuple(names)


def count_of(there: jax.Array) -> jax.Array:
    """The number of rows there are, as the count of a term."""
    return there.sum().astype(jnp.float32)
