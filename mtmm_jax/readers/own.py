"""A single file that its user named, such as on the command line; limits are wider than usual."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from mtmm_jax.readers.limits import Limits, Unreadable
from mtmm_jax.registry import ConfigError

OWN = Limits(file_bytes=2**30, pixels=178_000_000, seconds=7200.0)
_T = TypeVar("_T")


def read_own(
    path: str | os.PathLike[str],
    what: str,
    accepted: str,
    decode: Callable[[Path], _T],
    folder: bool = False,
) -> _T:
    """The file, decoded; a `ConfigError` that names it where that fails."""
    where = Path(path).expanduser()
    try:
        if not where.exists():
            raise Unreadable("does not exist")
        if where.is_dir() and not folder:
            raise Unreadable("is a folder")
        return decode(where)
    except (Unreadable, OSError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{what}: cannot read {where}: {reason}; accepted: {accepted}") from error


def own_bytes(where: Path) -> bytes:
    OWN.check("file_bytes", where.stat().st_size, "bytes")
    return where.read_bytes()
