"""The memory and cores there are, and the refusal of what cannot fit, before it is allocated."""

from __future__ import annotations

import math
import os
from typing import Any

from mtmm_jax.registry import ConfigError

_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")


def cores() -> list[int]:
    """The processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def host_bytes() -> int:
    """The memory of this machine, or of the container that the process runs in."""
    try:
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on every system
        return 2**63
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(path) as file:
                found = min(found, int(file.read()))
        except (OSError, ValueError):
            continue
    return found


def device_bytes(device: Any) -> int:
    """The memory of one device; that of the host for a CPU and where it is not known."""
    try:
        stats = device.memory_stats() or {}
    except (AttributeError, RuntimeError):
        stats = {}
    return int(stats.get("bytes_limit") or host_bytes())


def bytes_of(array: Any) -> int:
    """Of an array, or of what has its shape and dtype."""
    return math.prod(array.shape) * array.dtype.itemsize


def readable(count: float) -> str:
    """A number of bytes in a unit that keeps it short."""
    for unit in _UNITS:
        if count < 1000 or unit == _UNITS[-1]:
            return f"{count:.3g} {unit}"
        count /= 1000
    return ""


def refuse_larger(count: float, there: int, where: str, what: str, fix: str) -> None:
    """Raises a `ConfigError` where `what` would take more bytes than there are."""
    if count > there:
        raise ConfigError(
            f"{where}: {what} would take {readable(count)}, and there are {readable(there)}; {fix}"
        )
