"""The folder of one run: what stands in it, and writes that are whole or not there."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

import mtmm_jax
from mtmm_jax.batch import Spec
from mtmm_jax.registry import ConfigError
from mtmm_jax.store.config import OPTIONAL, differences

FORMAT = 2
"""Of a workdir. It grows when what stands in config.json, spec.json or a checkpoint changes."""

# Values that may differ when a run goes on: they do not change what is learned.
FREE = ("devices", "data.decoded", "evaluation.log_every", *OPTIONAL)


@dataclasses.dataclass(frozen=True)
class Workdir:
    """config.json, spec.json, assets/, checkpoints/, metrics.jsonl, results.json, report.html.

    After `analyze` also analysis.json and analysis.npz; relatedness.json, wandb.json, profile/ and
    diverged/ where they were asked for or came to be.
    """

    path: Path

    @classmethod
    def at(cls, path: str | Path) -> Workdir:
        """The workdir of a run that has begun."""
        if not Path(path).is_dir():
            raise ConfigError(f"--workdir: no folder {str(path)!r}")
        return cls(Path(path))

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def results(self) -> Path:
        return self.path / "results.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def diverged(self) -> Path:
        """The batches that were not finite, see `training.faults`."""
        return self.path / "diverged"

    @property
    def examples(self) -> Path:
        return self.path / "examples.npz"

    @property
    def gallery(self) -> Path:
        return self.path / "gallery.npz"

    def claim(self, config: Mapping[str, Any], spec: Spec, assets: Mapping[str, bytes]) -> bool:
        """Makes the folder this run's own, or finds that it already is.

        Returns:
            Whether the run was begun before.

        Raises:
            ConfigError: if it holds another config's run, or files that are no run's.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"--workdir: {self.path} is a file, not a folder")
        stored = self.path / "config.json"
        if stored.exists():
            found = differences(self.config(), json.loads(json.dumps(config)))
            found = [line for line in found if not line.startswith(FREE)]
            if found:
                more = f" and {len(found) - 3} more" if len(found) > 3 else ""
                raise ConfigError(
                    f"--workdir: {self.path} holds the run of another config: "
                    f"{'; '.join(found[:3])}{more}. Choose another folder, or the same config"
                )
            return True
        if self.path.exists() and any(self.path.iterdir()):
            raise ConfigError(
                f"--workdir: {self.path} is not empty and holds no run; choose a new folder"
            )
        (self.path / "assets").mkdir(parents=True, exist_ok=True)
        for name, content in assets.items():
            write(self.path / "assets" / name, content)
        self.write("spec.json", spec.to_dict())
        self.write("config.json", stamped(config))  # last: it marks the folder as a run's
        return False

    def config(self) -> dict[str, Any]:
        """The run's config, of a folder of this version's format; any other is refused."""
        config = self.read("config.json")
        found, by = config.pop("format", 1), config.pop("written_by", "0.1.0")
        if found != FORMAT:
            raise ConfigError(
                f"--workdir: {self.path} has format {found}, written by mtmm_jax {by}; mtmm_jax "
                f"{mtmm_jax.__version__} reads format {FORMAT}. Open it with mtmm_jax {by}, or "
                "train in a new folder"
            )
        return config

    def read(self, name: str) -> Any:
        path = self.path / name
        if not path.exists():
            raise ConfigError(f"--workdir: {self.path} holds no finished run: no {name} in it")
        try:
            return json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise ConfigError(f"--workdir: {path} is not JSON: {error}") from error

    def write(self, name: str, value: Any) -> None:
        write(self.path / name, (json.dumps(value, indent=1) + "\n").encode())

    def spec(self) -> Spec:
        return Spec.from_dict(self.read("spec.json"))

    def asset(self, name: str) -> bytes:
        path = self.path / "assets" / name
        if not path.exists():
            raise ConfigError(
                f"--workdir: {path} is missing; is the folder a copy of part of a run?"
            )
        return path.read_bytes()

    def tokenizer(self, modality: str) -> bytes:
        """The tokenizer of one text modality: its own, or that of all texts."""
        own = f"{modality}.tokenizer.json"
        exists = (self.path / "assets" / own).exists()
        return self.asset(own if exists else "tokenizer.json")

    def tokenizers(self) -> dict[str, str]:
        """Modality -> `tokenizer.json`, of the texts whose tokenizer the folder keeps."""
        found = {}
        for name, modality in self.spec().modalities.items():
            if modality.is_a("text"):
                with contextlib.suppress(ConfigError):
                    found[name] = self.tokenizer(name).decode()
        return found


def stamped(config: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json holds: the config, the format, and the version that wrote it."""
    return {"format": FORMAT, "written_by": mtmm_jax.__version__, **config}


def write(path: Path, content: bytes) -> None:
    """Writes a file so that it is whole or not there, whatever happens meanwhile."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@contextlib.contextmanager
def writing(folder: Path, then: str = "") -> Iterator[None]:
    """Says a full disk, or one that may not be written to, in one line.

    One of several processes is alone with it, and keeps the error as it is, so that it ends at once
    (`processes.together`).

    Args:
        folder: what is written to.
        then: what the user may do when there is room.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        # TensorStore, below the checkpoints, hands the system's error over as words.
        full = isinstance(error, OSError) and error.errno in FULL
        number = next((n for n in FULL if f"os_error_code='{n}'" in str(error)), None)
        if not (full or number) or jax.process_count() > 1:
            raise
        reason = os.strerror(number or error.errno)
        raise ConfigError(
            f"--workdir: cannot write to {folder}: {reason}. {then}".rstrip()
        ) from error
