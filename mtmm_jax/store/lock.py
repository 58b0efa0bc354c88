"""One writer at a time in a folder: a lock that a killed process lets go of."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mtmm_jax.registry import ConfigError
from mtmm_jax.store.files import write, writing

LOCK, HOLDER = ".lock", ".lock.json"
FILES = (LOCK, HOLDER)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[str]:
    """Holds the lock of a folder, which is made; yields a line about a stale lock, or "".

    The lock is the system's (`flock`, by `filelock`), which ends with its process however that
    ends; what the process wrote about itself stays, and is how a stale lock is known.

    Raises:
        ConfigError: where another process holds it, with its process id, host and start.
    """
    from filelock import FileLock, Timeout

    with writing(folder, "Choose a folder that can be written to"):
        if os.path.lexists(folder) and not folder.is_dir():
            raise ConfigError(f"--workdir: {folder} is a file, not a folder")
        made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        before = _holder(folder)
        lock = FileLock(folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise ConfigError(
                f"--workdir: another process trains in {folder}: {_words(_holder(folder))}; wait "
                "for it, stop it, or choose another folder"
            ) from error
    stale = ""
    try:
        if before:
            stale = f"{_words(before)} ended without finishing; its lock is taken over"
        about = {"pid": os.getpid(), "host": socket.gethostname(), "since": _now()}
        with writing(folder, "Make room, and the same command begins anew"):
            write(folder / HOLDER, json.dumps(about).encode())
        yield stale
    finally:
        with contextlib.suppress(OSError):
            (folder / HOLDER).unlink(missing_ok=True)
        lock.release()
        with contextlib.suppress(OSError):
            if made and {path.name for path in folder.iterdir()} <= set(FILES):
                (folder / LOCK).unlink(missing_ok=True)  # nothing was started: leave no trace
                folder.rmdir()


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


def _holder(folder: Path) -> dict[str, Any]:
    """The record of the lock's holder, or of the last one that did not let go."""
    try:
        found = json.loads((folder / HOLDER).read_bytes()[:4096])
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError, RecursionError):
        return {}


def _words(holder: dict[str, Any]) -> str:
    pid, host, since = (str(holder.get(key, "?"))[:64] for key in ("pid", "host", "since"))
    return f"process {pid} on {host} since {since}"
