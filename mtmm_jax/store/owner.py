"""Whose a run is: a signature by a key of this user, without which paths are not followed.

A run that somebody else made, or that was made under another account or on another machine, is
foreign: it can be read, and the paths in its config (`data.data_dir`, ...) are not opened.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import hmac
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mtmm_jax.registry import ConfigError, short

PATH_KEYS = frozenset(
    ("data_dir", "path", "paths", "folder", "dataset", "tokenizer", "decoded", "workdir",
     "workdirs", "weights", "root", "file", "files", "shards", "from", "manifest")
)  # fmt: skip
"""Keys of a config whose strings are names of files, folders or runs."""


def key_file() -> Path:
    """The key's path: `$MTMM_JAX_KEY`, or below `$XDG_CONFIG_HOME` or `~/.config`."""
    if given := os.environ.get("MTMM_JAX_KEY"):
        return Path(given).expanduser()
    home = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(home).expanduser() / "mtmm_jax" / "key"


def _key() -> bytes | None:
    return _key_at(key_file())


@functools.lru_cache(maxsize=8)
def _key_at(path: Path) -> bytes | None:
    """The key, made where there is none; None where it can be neither read nor written."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        part = path.with_name(f".{secrets.token_hex(8)}")
        if not path.exists():
            handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(secrets.token_hex(32).encode())
            with contextlib.suppress(FileExistsError):  # another process was first
                os.link(part, path)
            part.unlink()
        key = path.read_bytes()
        return key if len(key) >= 32 else None
    return None


def sign(content: bytes) -> str:
    """This user's signature; empty where there is no key."""
    key = _key()
    return "" if key is None else hmac.new(key, content, hashlib.sha256).hexdigest()


def signed(content: bytes, signature: object) -> bool:
    """True if this user signed the content."""
    mine = sign(content)
    return (
        bool(mine)
        and isinstance(signature, str)
        and hmac.compare_digest(mine.encode(), signature.encode(errors="replace"))
    )


def paths_of(config: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """`(place, path)` for the strings of a config that are, or look like, paths."""
    if isinstance(config, Mapping):
        for key, value in config.items():
            place = f"{where}.{key}" if where else str(key)
            named = key in PATH_KEYS
            for text in (value,) if isinstance(value, str) else ():
                if named or "/" in text or "\\" in text or text.startswith("~"):
                    yield place, text
            if named and isinstance(value, list | tuple):
                yield from ((place, text) for text in value if isinstance(text, str))
            yield from paths_of(value, place)
    elif isinstance(config, list | tuple):
        for i, value in enumerate(config):
            yield from paths_of(value, f"{where}[{i}]")


def check_paths(stored: Mapping[str, Any], used: Mapping[str, Any], folder: Path) -> None:
    """Refuses the paths that a foreign run's config would make a command follow.

    Args:
        stored: the sections of its config that would be opened.
        used: the same, with what the command line changed.
        folder: of the run.
    """
    kept = set(paths_of(stored))
    found = [(place, path) for place, path in paths_of(used) if (place, path) in kept]
    if found:
        place, path = found[0]
        more = f" and {len(found) - 1} more paths" if len(found) > 1 else ""
        raise ConfigError(
            f"--workdir: {folder} was not made by this user on this machine, and names "
            f"{place} = {short(path)}{more}, which is not followed; look at its files, then give "
            f"--trust_paths, or another path by --config.{place}=PATH"
        )
