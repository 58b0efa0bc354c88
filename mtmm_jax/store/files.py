"""Files of runs: one atomic writer, and one reader that turns any damage into one line.

JSON carries its SHA-256 and a signature (`store.owner`); NPZ has the checksums of its zip.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import re
import secrets
import stat
import threading
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mtmm_jax.registry import ConfigError
from mtmm_jax.store import owner

DIGEST, SIGNATURE = "sha256", "signed"
JSON_BYTES, FILE_BYTES = 2**27, 2**33
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_READ = os.O_RDONLY | _NOFOLLOW | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOFOLLOW | getattr(os, "O_BINARY", 0)


class Damaged(ConfigError):
    """A file is not what was written; the message names it and what to do."""


def write(path: Path, content: bytes) -> None:
    """Writes a file so that it is whole or not there, whatever happens meanwhile."""
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with os.fdopen(os.open(part, _NEW, 0o666), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        _sync_folder(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    """Makes a rename last through a power cut, where the file system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read_bytes(path: Path, way_out: str = "", limit: int = FILE_BYTES) -> bytes:
    """The bytes of a regular file that is not a link.

    Args:
        path: of the file.
        way_out: what the user can do about a damaged one.
        limit: of its size.
    """
    try:
        handle = os.open(path, _READ)
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) in (errno.ELOOP, errno.EMLINK):
            raise damaged(path, "is a symbolic link, which is not followed", way_out) from error
        raise damaged(path, f"cannot be read: {reason(error)}", way_out) from error
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise damaged(path, "is no regular file", way_out)
        if status.st_size > limit:
            raise damaged(path, f"has {status.st_size:,} bytes, over {limit:,}", way_out)
        with os.fdopen(os.dup(handle), "rb") as file:
            return file.read(limit + 1)
    except OSError as error:
        raise damaged(path, f"cannot be read: {reason(error)}", way_out) from error
    finally:
        os.close(handle)


def damaged(path: Path, what: str, way_out: str = "") -> Damaged:
    """The error of a file, as one line."""
    return Damaged(f"{path}: {what}{f'; {way_out}' if way_out else ''}")


def reason(error: BaseException) -> str:
    """Why, in one short line."""
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(words).split())[:200]


@contextlib.contextmanager
def understood(path: Path, way_out: str = "") -> Iterator[None]:
    """Content of the wrong structure as one line that names the file."""
    try:
        yield
    except ConfigError:
        raise
    except (
        ValueError, KeyError, TypeError, AttributeError, IndexError, LookupError, OverflowError,
        RecursionError, MemoryError, EOFError, zipfile.BadZipFile, NotImplementedError,
    ) as error:  # fmt: skip
        what = f"does not hold what mtmm_jax writes ({type(error).__name__}: {reason(error)[:100]})"
        raise damaged(path, what, way_out) from error


def sealed(value: Mapping[str, Any]) -> bytes:
    """A mapping as JSON with its digest and this user's signature."""
    plain = json.loads(json.dumps(value))
    content = _canonical(plain)
    head = {DIGEST: hashlib.sha256(content).hexdigest(), SIGNATURE: owner.sign(content)}
    return (json.dumps({**head, **plain}, indent=1) + "\n").encode()


def unsealed(data: bytes, path: Path, way_out: str = "") -> tuple[dict[str, Any], bool]:
    """`(value, own)`: what `sealed` wrote, and whether this user wrote it; `Damaged` otherwise."""
    value = parse(data, path, way_out)
    if not isinstance(value, dict):
        raise damaged(path, f"is {type(value).__name__}, not an object", way_out)
    digest, signature = value.pop(DIGEST, None), value.pop(SIGNATURE, "")
    content = _canonical(value)
    if digest != hashlib.sha256(content).hexdigest():
        what = "has no SHA-256" if digest is None else "has another SHA-256 than its content"
        raise damaged(path, f"is not what was written: it {what}", way_out)
    return value, owner.signed(content, signature)


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def finite(value: Any) -> Any:
    """NaN as None: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def parse(data: bytes, path: Path, way_out: str = "") -> Any:
    """JSON, or `Damaged`."""
    try:
        return json.loads(data.decode())
    except (ValueError, RecursionError, MemoryError) as error:
        what = "is nested too deeply" if isinstance(error, RecursionError) else reason(error)
        raise damaged(path, f"is not JSON: {what}", way_out) from error


def read_npz(path: Path, way_out: str = "") -> dict[str, np.ndarray]:
    """The arrays of an NPZ file; objects, which would be pickles, are refused."""
    return npz(read_bytes(path, way_out), path, way_out)


def npz(data: bytes, path: Path, way_out: str = "") -> dict[str, np.ndarray]:
    """The arrays of the bytes of an NPZ file; `path` is for messages."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as members:
            size = sum(member.file_size for member in members.infolist())
        if size > FILE_BYTES:
            raise damaged(path, f"would unpack to {size:,} bytes, over {FILE_BYTES:,}", way_out)
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except ConfigError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy's header parser raise many classes
        raise damaged(path, f"is no NPZ file: {reason(error)[:120]}", way_out) from error


def write_npz(path: Path, arrays: Mapping[str, Any], compressed: bool = True) -> None:
    """Writes arrays as one NPZ file."""
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
    write(path, buffer.getvalue())


def file_name(name: str) -> str:
    """A name of a task, a modality or a figure as the name of a file: no folder, no surprise.

    >>> file_name("category"), file_name("../x")
    ('category', '.._x-2a48be4b')
    """
    plain = re.sub(r"[^\w.-]", "_", str(name).replace(" ", "_"), flags=re.ASCII)[:80]
    if plain.strip("._") and not plain.startswith((".", "-")) and plain == name.replace(" ", "_"):
        return plain
    digest = hashlib.sha256(str(name).encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{plain.lstrip('.-_') or 'name'}-{digest}"


DISK_ERRORS = tuple(
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EROFS", "ENAMETOOLONG", "ENOTDIR", "EACCES", "EPERM",
                 "ESTALE", "EIO", "EFBIG", "ELOOP", "ENOENT", "EISDIR", "EMFILE", "ENFILE")
    if hasattr(errno, name)
)  # fmt: skip


def disk_error(error: BaseException | None) -> str:
    """The system's refusal that caused an error; empty if another cause.

    TensorStore and Orbax, below the checkpoints, hand the system's error over as words.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            return os.strerror(error.errno)
        for number in map(int, re.findall(r"os_error_code='(\d+)'", str(error))):
            if number in DISK_ERRORS:
                return os.strerror(number)
        error = error.__cause__ or error.__context__
    return ""


@contextlib.contextmanager
def _quiet_threads() -> Iterator[None]:
    """Threads of libraries that write (TensorBoard's) do not print a traceback about the disk: the
    next write of this thread fails of the same."""
    before = threading.excepthook

    def hook(arguments: Any) -> None:
        if not disk_error(arguments.exc_value):
            before(arguments)

    threading.excepthook = hook
    try:
        yield
    finally:
        if threading.excepthook is hook:
            threading.excepthook = before


@contextlib.contextmanager
def writing(folder: Path, then: str = "") -> Iterator[None]:
    """Turns a disk that is full, or may not be written to, into one line.

    One of several processes is alone with it, and keeps the error as it is, so that it ends at once
    (`processes.together`).

    Args:
        folder: what is written to.
        then: what the user may do when there is room.
    """
    try:
        with _quiet_threads():
            yield
    except ConfigError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        found = disk_error(error)
        if not found or jax.process_count() > 1:
            raise
        raise ConfigError(
            f"--workdir: cannot write to {folder}: {found}. {then}".rstrip()
        ) from error
