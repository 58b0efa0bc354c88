"""SHA-256 of every file of a checkpoint: written after it, by a thread, verified before reading.

    checkpoints/120/...             what Orbax wrote
    checkpoints/digests/120.json    {"files": {path: SHA-256}, "score"}

A checkpoint that a kill left without digests is read as it is; Orbax renames it into place whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from pathlib import Path
from typing import Any

from mtmm_jax.store import files

FOLDER = "digests"
_POLL = 0.02  # seconds between two looks for a checkpoint that is being written


def digest_file(folder: Path, step: int) -> Path:
    return folder / FOLDER / f"{step}.json"


def of_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_folder(folder: Path, most: int | None = None) -> dict[str, str]:
    """Path -> SHA-256 of the files below a folder, of at most so many bytes each."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() or p.is_symlink()):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = "a symbolic link"
        elif most is None or path.stat().st_size <= most:
            found[name] = of_file(path)
    return found


def read(folder: Path, step: int) -> dict[str, Any] | None:
    """The digests of a checkpoint; None if there are none that can be read."""
    path = digest_file(folder, step)
    try:
        found, _ = files.unsealed(files.read_bytes(path), path)
        return found if isinstance(found.get("files"), dict) else None
    except files.Damaged:
        return None


def damage(folder: Path, step: int, most: int | None = None) -> str:
    """The damage of a checkpoint's files in one line; empty if there is none, or no digest.

    Args:
        folder: of the checkpoints.
        step: which one.
        most: bytes of the files that are looked at; all of them by default.
    """
    known = read(folder, step)
    if known is None:
        return ""
    place = folder / str(step)
    try:
        found = of_folder(place, most)
        there = {path.relative_to(place).as_posix() for path in place.rglob("*")}
    except OSError as error:
        return files.reason(error)
    for name, digest in known["files"].items():
        if name not in found:
            if name not in there:
                return f"{name} is missing"
        elif found[name] != digest:
            return f"{name} is not what was written: it has another SHA-256"
    return ""


def forget(folder: Path) -> None:
    """Removes the digests of checkpoints that are gone."""
    for path in (folder / FOLDER).glob("*.json"):
        if path.stem.isdigit() and not (folder / path.stem).is_dir():
            path.unlink(missing_ok=True)


class Hasher:
    """Hashes checkpoints as they come into place, in threads of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._threads: list[tuple[threading.Thread, threading.Event]] = []

    def expect(self, step: int, score: float | None) -> None:
        """A checkpoint is being written: its digests follow as soon as it is in place."""
        over = threading.Event()
        thread = threading.Thread(
            target=self._hash, args=(step, score, over), name=f"digests {step}", daemon=True
        )
        self._threads = [one for one in self._threads if one[0].is_alive()]
        self._threads.append((thread, over))
        thread.start()

    def _hash(self, step: int, score: float | None, over: threading.Event) -> None:
        place = self._folder / str(step)
        while not place.is_dir():
            if over.is_set() and not place.is_dir():
                return
            time.sleep(_POLL)
        # A disk that is full now, or a checkpoint that made room: it stays without digests.
        with contextlib.suppress(OSError):
            value = {"step": step, "score": score, "files": of_folder(place)}
            path = digest_file(self._folder, step)
            path.parent.mkdir(exist_ok=True)
            if place.is_dir():
                files.write(path, files.sealed(value))
            forget(self._folder)

    def wait(self) -> None:
        """Until all that was expected and came is hashed; call it when nothing is being written."""
        for thread, over in self._threads:
            over.set()
            thread.join()
        if self._threads:
            with contextlib.suppress(OSError):
                forget(self._folder)
        self._threads = []
