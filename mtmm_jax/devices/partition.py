"""Partition rules: regexes over paths that place dimensions of parameters on axes of a mesh.

The first rule whose regex matches a parameter's whole path decides. Tensor parallelism by columns,
then rows, is that of Shoeybi et al. (2019, Megatron-LM); dividing everything else over the devices
that share a batch is that of Rajbhandari et al. (2020, ZeRO).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jax.sharding import PartitionSpec

from mtmm_jax.ranges import Regex
from mtmm_jax.registry import ConfigError, check, choose

AXES = ("data", "fsdp", "tensor")
Rules = Sequence[tuple[Regex, str | Sequence[str | Sequence[str] | None] | None]]


class PartitionRule(NamedTuple):
    """The mesh axes of the parameters whose paths match a pattern.

    Attributes:
        pattern: a regex that the whole path matches, such as `encoders/text/.*/kernel`.
        axes: for each dimension an axis, several, or None; or one axis by name, for the largest
            dimension that divides over it (whole, if none does); or None, whole on every device.
    """

    pattern: str
    axes: str | tuple[Any, ...] | None


DEFAULT_RULES = (
    PartitionRule(r".*/(query|key|value|up)/kernel", ("fsdp", "tensor")),
    PartitionRule(r".*/(query|key|value|up)/bias", ("tensor",)),
    PartitionRule(r".*/(out|down)/kernel", ("tensor", "fsdp")),
    PartitionRule(r".*", "fsdp"),
)
"""Attention and feed-forward layers split by heads and hidden units, so that one sum over `tensor`
after each `out` and `down` is enough; everything else by its largest dimension over `fsdp`. A
dimension that does not divide stays whole, and a pattern takes only kernels of its own rank."""


def read_rules(rules: Rules, where: str) -> tuple[PartitionRule, ...]:
    """`[[regex, axes], ...]` of a config, checked."""
    if not check(rules, Rules, where):
        raise ConfigError(f"{where}: {rules!r}; needs pairs of a regex and its axes")
    read = []
    for i, pair in enumerate(rules):
        at = f"{where}[{i}]"
        pattern, axes = pair
        if isinstance(axes, list | tuple):
            axes = tuple(tuple(a) if isinstance(a, list | tuple) else a for a in axes)
        names = [name for entry in _dimensions(axes) for name in entry]
        for name in names:
            choose(name, AXES, at, "axis")
        if len(set(names)) < len(names):
            raise ConfigError(f"{at}: {pair[1]!r} has an axis twice")
        read.append(PartitionRule(pattern, axes))
    return tuple(read)


def _dimensions(axes: Any) -> list[tuple[str, ...]]:
    """The axes of each dimension, as tuples."""
    entries = (axes,) if axes is None or isinstance(axes, str) else axes
    return [() if e is None else (e,) if isinstance(e, str) else tuple(e) for e in entries]


def partition(
    shapes: Mapping[str, tuple[int, ...]],
    rules: Sequence[PartitionRule],
    sizes: Mapping[str, int],
    where: str = "devices.rules",
    *,
    strict: bool = True,
) -> dict[str, tuple[PartitionRule, PartitionSpec]]:
    """The first rule that matches each parameter, and what it makes of its shape.

    Args:
        shapes: path -> shape.
        rules: in order.
        sizes: of the mesh's axes.
        where: the place in the config.
        strict: whether a parameter without a rule, a rule without a parameter and a dimension that
            does not divide are errors; otherwise such dimensions stay whole.
    """
    found: dict[str, tuple[PartitionRule, PartitionSpec]] = {}
    for path, shape in shapes.items():
        for rule in rules:
            fits = strict or not isinstance(rule.axes, tuple) or len(rule.axes) == len(shape)
            if fits and re.fullmatch(rule.pattern, path):
                found[path] = rule, _spec(rule, path, shape, sizes, where, strict)
                break
        else:
            raise ConfigError(
                f"{where}: no rule matches {path} {list(shape)}; add one, such as ['.*', null]"
            )
    used = {rule for rule, _ in found.values()}
    for rule in rules if strict else ():
        if rule not in used:
            seen = any(re.fullmatch(rule.pattern, path) for path in shapes)
            why = "comes after rules that match all that it does" if seen else "matches nothing"
            raise ConfigError(f"{where}: {rule.pattern!r} {why}; the paths: {_some(shapes)}")
    return found


def _some(paths: Mapping[str, Any]) -> str:
    shown = list(paths)[:8]
    return ", ".join(shown) + (f" and {len(paths) - 8} more" if len(paths) > 8 else "")


def _spec(
    rule: PartitionRule,
    path: str,
    shape: tuple[int, ...],
    sizes: Mapping[str, int],
    where: str,
    strict: bool,
) -> PartitionSpec:
    if rule.axes is None:
        return PartitionSpec()
    if isinstance(rule.axes, str):
        parts = sizes[rule.axes]
        fitting = [i for i, n in enumerate(shape) if n % parts == 0 and n]
        if parts == 1 or not fitting:
            return PartitionSpec()
        largest = max(fitting, key=lambda i: shape[i])
        return PartitionSpec(*[None] * largest, rule.axes)
    if len(rule.axes) != len(shape):
        raise ConfigError(
            f"{where}: {rule.pattern!r} names {len(rule.axes)} dimensions; {path} is {list(shape)}"
        )
    entries: list[Any] = []
    for size, names in zip(shape, _dimensions(rule.axes), strict=True):
        names = tuple(name for name in names if sizes[name] > 1)
        parts = math.prod(sizes[name] for name in names)
        if size % parts and strict:
            raise ConfigError(
                f"{where}: {rule.pattern!r} divides {path} {list(shape)} over {parts} devices "
                f"({', '.join(names)}); {size} does not divide"
            )
        whole = not names or size % parts
        entries.append(None if whole else names[0] if len(names) == 1 else names)
    while entries and entries[-1] is None:
        entries.pop()
    return PartitionSpec(*entries)
