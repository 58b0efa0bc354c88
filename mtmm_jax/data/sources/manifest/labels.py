"""A label of every row, and the names of classes."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mtmm_jax.batch import Target
from mtmm_jax.readers.cells import Setting
from mtmm_jax.registry import ConfigError

_SHOWN = 20


@dataclasses.dataclass(frozen=True)
class Label:
    """A target of every row of a manifest.

    Attributes:
        target: for the spec.
        y: a pytree of `[N, ...]`.
        known: `[N]` bool.
        of: the picture that `place` needs, for boxes.
        place: `(y, pictures)` of a batch -> y, and for each example why it is bad, or None.
        assets: files that prediction needs.
    """

    target: Target
    y: Any
    known: np.ndarray
    of: str | None = None
    place: Callable[[Any, Sequence[Any]], tuple[Any, list[str | None]]] | None = None
    assets: Mapping[str, bytes] = dataclasses.field(default_factory=dict)


def check_classes(classes: Sequence[str] | int | None, where: str) -> tuple[str, ...]:
    """The classes that the options name; `n` are called 0 to n - 1; none if none are named."""
    if classes is None:
        return ()
    if isinstance(classes, int) and not isinstance(classes, bool):
        classes = range(classes)
    names = () if isinstance(classes, str | bool) else tuple(str(name) for name in classes)
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"{where}.classes: {classes!r} are no different names, nor their number")
    return names


def index(at: Mapping[str, int], name: str, setting: Setting, row: int, column: str) -> int:
    """Of a class; one that is not there is an error, whatever `on_bad` says."""
    if name in at:
        return at[name]
    close = difflib.get_close_matches(name, at, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    more = f" and {len(at) - _SHOWN} more" if len(at) > _SHOWN else ""
    shown = ", ".join(list(at)[:_SHOWN]) or "none"
    setting.bad.structure(
        row, column, name, f"is an unknown class{hint}; choices: {shown}{more}", "unknown class"
    )
    return 0


def frequencies(counts: Mapping[str, int], classes: Sequence[str], total: int) -> tuple[float, ...]:
    return tuple(counts.get(name, 0) / max(total, 1) for name in classes)
