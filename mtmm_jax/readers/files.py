"""Files under one folder, and no others: a manifest from elsewhere cannot name what is outside."""

from __future__ import annotations

import errno
import functools
import os
import re
import stat

from mtmm_jax.readers.limits import Limits, Unreadable

_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_FLAGS = (
    os.O_RDONLY
    | _NOFOLLOW
    | getattr(os, "O_NONBLOCK", 0)  # a named pipe would be waited for
    | getattr(os, "O_BINARY", 0)
)


def check_path(name: object) -> str:
    """The name of a file as a manifest may write it: relative, and not upwards."""
    if not isinstance(name, str):
        raise Unreadable(f"is {_kind(name)}, not the path of a file")
    if not name or len(name) > 1024 or "\0" in name:
        raise Unreadable("is no path: empty, over 1,024 characters or with a null character")
    if name[0] in "/\\" or re.match(r"[A-Za-z]:", name):
        raise Unreadable("is absolute; wanted a path relative to the manifest", "outside")
    if ".." in re.split(r"[/\\]", name):
        raise Unreadable("leaves the manifest's folder by '..'", "outside")
    return name


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", bool: "true or false", int: "a number"}
    return names.get(type(value), f"a {type(value).__name__}")


class Folder:
    """Reads whole files under `root`, following no link out of it."""

    def __init__(self, root: str | os.PathLike[str], limits: Limits) -> None:
        self.root = os.path.realpath(root)
        self._inside = self.root.rstrip(os.sep) + os.sep
        self._limits = limits
        self._parent = functools.lru_cache(maxsize=2**16)(self._real)

    def read(self, name: str, limit: str = "file_bytes") -> bytes:
        """The bytes of a file that passed `check_path`, unless they are more than the limit."""
        head, tail = os.path.split(name)
        try:
            handle = self._open(os.path.join(self._parent(head), tail))
            try:
                status = os.fstat(handle)
                if not stat.S_ISREG(status.st_mode):
                    found = "a folder" if stat.S_ISDIR(status.st_mode) else "a device or a pipe"
                    raise Unreadable(f"is {found}", "undecodable")
                self._limits.check(limit, status.st_size, "bytes")
                return _all(handle, status.st_size)
            finally:
                os.close(handle)
        except (OSError, UnicodeError) as error:
            raise _unreadable(error) from error

    def stat(self, name: str) -> tuple[int, int]:
        """Bytes and time of change, in nanoseconds, of a file, or of a folder and all in it.

        The time is the later one of the content's and the inode's, which no program can set back: a
        file that was rewritten with the same size and time is a changed one.
        """
        head, tail = os.path.split(name)
        try:
            path = os.path.join(self._parent(head), tail)
            found = [os.stat(path)]
            if stat.S_ISDIR(found[0].st_mode):
                with os.scandir(path) as entries:
                    found += [entry.stat() for entry in entries]
        except (OSError, UnicodeError) as error:
            raise _unreadable(error) from error
        times = (max(one.st_mtime_ns, one.st_ctime_ns) for one in found)
        return sum(one.st_size for one in found), max(times)

    def is_folder(self, name: str) -> bool:
        try:
            return os.path.isdir(self._parent(name))
        except (OSError, UnicodeError) as error:
            raise _unreadable(error) from error

    def names(self, name: str) -> list[str]:
        """The names in a folder."""
        try:
            found = []
            with os.scandir(self._parent(name)) as entries:
                for entry in entries:
                    found.append(entry.name)
                    self._limits.check("frames", len(found), "files in it")
            return found
        except (OSError, UnicodeError) as error:
            raise _unreadable(error) from error

    def _real(self, name: str) -> str:
        real = os.path.realpath(os.path.join(self.root, name))
        if real != self.root and not real.startswith(self._inside):
            raise Unreadable("leaves the manifest's folder by a symbolic link", "outside")
        return real

    def _open(self, path: str) -> int:
        try:
            if not _NOFOLLOW and os.path.islink(path):
                raise OSError(errno.ELOOP, "is a link")
            return os.open(path, _FLAGS)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.EMLINK):
                raise
        return os.open(self._real(path), _FLAGS)


def _all(handle: int, size: int) -> bytes:
    data = os.read(handle, size)
    while len(data) < size:  # one call reads at most 2 GiB, and less of some file systems
        more = os.read(handle, size - len(data))
        if not more:
            break
        data += more
    return data


def _unreadable(error: Exception) -> Unreadable:
    if isinstance(error, FileNotFoundError):
        return Unreadable("does not exist", "missing")
    return Unreadable(getattr(error, "strerror", None) or str(error), "missing")
