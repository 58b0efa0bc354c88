"""SHA-256 of the files of a folder of weights, compared with a list of them where there is one.

A `.safetensors` file has no checksum of its own. Where `SHA256SUMS` lies next to it (`sha256sum * >
SHA256SUMS`), every file that is read is compared with it before.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from mtmm_jax.registry import ConfigError
from mtmm_jax.store import digests
from mtmm_jax.store.files import Damaged, read_bytes

SUMS = "SHA256SUMS"
_BYTES = 2**20  # of a list
_LINE = re.compile(r"([0-9a-fA-F]{64})  ?\*?(?:\./)?(.+)")


def check_sums(paths: Iterable[Path], where: str) -> None:
    """Compares files with the `SHA256SUMS` next to each, where there is one.

    Raises:
        ConfigError: where a file has another SHA-256, or the list cannot be read.
    """
    for path in paths:
        expected = _listed(path.parent / SUMS, where).get(path.name)
        if expected is not None and path.is_file() and digests.of_file(path) != expected:
            raise ConfigError(
                f"{where}: {path} has another SHA-256 than {SUMS} next to it says; fetch it "
                f"again, or remove {SUMS} if the file was changed on purpose"
            )


def _listed(path: Path, where: str) -> dict[str, str]:
    """Name -> SHA-256; nothing where there is no list."""
    if not path.exists():
        return {}
    try:
        lines = read_bytes(path.resolve(), limit=_BYTES).decode().splitlines()
    except (Damaged, UnicodeDecodeError) as error:
        raise ConfigError(f"{where}: {path} cannot be read: {error}") from error
    found = [_LINE.fullmatch(line) for line in lines if line.strip()]
    if not found or None in found:
        raise ConfigError(
            f"{where}: {path} is no list of `SHA-256  name`; fetch it again, or remove it"
        )
    return {line[2]: line[1].lower() for line in found}
