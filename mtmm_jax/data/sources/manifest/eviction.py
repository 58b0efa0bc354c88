"""Room for decoded files: what was used longest ago goes, of folders that are gone first."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from mtmm_jax.data.sources.manifest.progress import say
from mtmm_jax.devices.machine import readable

SHARE = 0.5
"""Of the disk's free bytes and those of decoded files together, what the latter may take."""
LOCK, ABOUT = "lock", "about"
_NAME = re.compile(r"[0-9a-f]{16}")


def mark_used(column: Path, root: str) -> None:
    """Notes when a column's folder was used, and of which folder of files it is."""
    os.utime(column / LOCK)
    (column / ABOUT).write_text(root, encoding="utf-8")


def make_room(column: Path, limit: int | None = None) -> list[Path]:
    """Deletes folders next to `column` until all of them together are within the limit.

    A folder that another process fills stays. Processes that read a deleted one are not disturbed:
    they have its files open.

    Args:
        column: a folder of shards that stays.
        limit: in bytes; `SHARE` by default.

    Returns:
        What was deleted.
    """
    sizes = {path: _size(path) for path in column.parent.iterdir() if _is_column(path)}
    total = sum(sizes.values())
    if limit is None:
        limit = int(SHARE * (shutil.disk_usage(column).free + total))
    gone, freed = [], 0
    for path in sorted((path for path in sizes if path != column), key=_worth):
        if total - freed <= limit:
            break
        if _delete(path):
            gone.append(path)
            freed += sizes[path]
    if gone:
        say(
            f"deleted {readable(freed)} of decoded files in {column.parent}, those used longest "
            f"ago ({len(gone)} columns), to stay within {readable(limit)}"
        )
    return gone


def _is_column(path: Path) -> bool:
    """Whether this package made the folder: nothing else is deleted."""
    return bool(_NAME.fullmatch(path.name)) and (path / LOCK).is_file() and not path.is_symlink()


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir() if file.is_file())


def _worth(path: Path) -> tuple[bool, float]:
    """The order of eviction: decoded files of a folder that is gone, then those used longest
    ago."""
    try:
        there = Path((path / ABOUT).read_text(encoding="utf-8")).is_dir()
    except (OSError, ValueError):
        there = True
    return there, (path / LOCK).stat().st_mtime


def _delete(path: Path) -> bool:
    try:
        import fcntl
    except ImportError:  # without locks it cannot be known whether somebody fills it
        return False
    try:
        with (path / LOCK).open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path)
    except OSError:
        return False
    return True
