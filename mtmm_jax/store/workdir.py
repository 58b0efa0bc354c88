"""The folder of one run: what stands in it, who may write it, and how it is read back."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import mtmm_jax
from mtmm_jax.batch import Spec
from mtmm_jax.registry import ConfigError
from mtmm_jax.store import files, lock, owner
from mtmm_jax.store.config import OPTIONAL, differences
from mtmm_jax.store.files import damaged, understood, write, writing

FORMAT = 3
"""Of a workdir. It grows when what stands in config.json, spec.json or a checkpoint changes."""

# Values that may differ when a run resumes: they do not change what is learned.
FREE = ("devices", "data.decoded", "evaluation.log_every", *OPTIONAL)

WAY_OUT = "take the file from a copy of the run, or train in a new folder"
OPENED = ("data", "teachers")
"""The sections of a config whose paths are opened when a run is evaluated on its data."""


@dataclasses.dataclass(frozen=True)
class Workdir:
    """config.json, spec.json, assets/, checkpoints/, metrics.jsonl, results.json, run.json,
    examples.npz, report.html.

    After `analyze` also analysis.json and analysis.npz; weights.json of a run with pretrained
    encoders; relatedness.json, wandb.json, profile/ and diverged/ where they were asked for or came
    to be.
    """

    path: Path

    @classmethod
    def at(cls, path: str | Path) -> Workdir:
        """The workdir of a run that was started."""
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

    @property
    def started(self) -> bool:
        """True if there is a run, be it damaged."""
        return os.path.lexists(self.path / "config.json")

    def lock(self) -> Any:
        """Holds the folder for one trainer; see `store.lock`."""
        if not self.started:
            self._check_free()
        return lock.locked(self.path)

    def claim(self, config: Mapping[str, Any], spec: Spec, assets: Mapping[str, bytes]) -> bool:
        """Makes the folder this run's own, or finds that it already is.

        Returns:
            Whether the run was started before.

        Raises:
            ConfigError: if it holds another config's run, or files that are no run's.
        """
        with writing(self.path, "Choose a folder that can be written to"):
            return self._claim(config, spec, assets)

    def _claim(self, config: Mapping[str, Any], spec: Spec, assets: Mapping[str, bytes]) -> bool:
        if self.started:
            found = differences(self.config(), json.loads(json.dumps(config)))
            found = [line for line in found if not line.startswith(FREE)]
            if found:
                more = f" and {len(found) - 3} more" if len(found) > 3 else ""
                raise ConfigError(
                    f"--workdir: {self.path} holds the run of another config: "
                    f"{'; '.join(found[:3])}{more}. Choose another folder, or the same config"
                )
            self._mend_assets(assets)
            return True
        self._check_free()
        (self.path / "assets").mkdir(parents=True, exist_ok=True)
        contents = {f"assets/{name}": content for name, content in assets.items()}
        contents["spec.json"] = files.sealed(spec.to_dict())
        for name, content in contents.items():
            write(self.file(name), content)
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        # Last: it marks the folder as a run's.
        self.write("config.json", stamped(config, digests))
        return False

    def _mend_assets(self, assets: Mapping[str, bytes]) -> None:
        """Refuses data that give other assets (tokenizers, columns) than those of the run; writes
        again what is damaged or missing, with a line on stderr."""
        kept = self._config()[1]
        for name, content in sorted(assets.items()):
            digest = kept.get(f"assets/{name}")
            if digest != hashlib.sha256(content).hexdigest():
                what = "which this run began without" if digest is None else "not that of this run"
                raise ConfigError(
                    f"--workdir: the data of {self.path} changed: they give a {name}, {what}; "
                    "bring the data back, or train in a new folder"
                )
            try:
                self.asset(name)
            except ConfigError:
                path = self.file(f"assets/{name}")
                print(f"{path}: was damaged or missing; it is written again", file=sys.stderr)
                path.parent.mkdir(exist_ok=True)
                write(path, content)

    def _check_free(self) -> None:
        """Refuses a folder with anything in it but what a killed `claim` left."""
        with writing(self.path, "Choose a folder that can be written to"):
            if not os.path.lexists(self.path):
                return
            if not self.path.is_dir():
                raise ConfigError(f"--workdir: {self.path} is a file, not a folder")
            there = {path.name for path in self.path.iterdir() if path.suffix != ".part"}
        if not there <= {"assets", "spec.json", *lock.FILES}:
            raise ConfigError(
                f"--workdir: {self.path} is not empty and holds no run; choose a new folder"
            )

    def config(self) -> dict[str, Any]:
        """The run's config, of a folder of this version's format; any other is refused."""
        return self._config()[0]

    def section(self, *keys: str) -> dict[str, Any]:
        """A section of the config; `Damaged` where it has none."""
        found: Any = self.config()
        for key in keys:
            found = found.get(key) if isinstance(found, Mapping) else None
        if not isinstance(found, Mapping):
            raise damaged(self.path / "config.json", f"has no section {'.'.join(keys)}", WAY_OUT)
        return dict(found)

    def _config(self) -> tuple[dict[str, Any], dict[str, str], bool]:
        """The config, the digests of what was written with it, and whether this user did."""
        path = self._existing("config.json")
        data = files.read_bytes(path, WAY_OUT, files.JSON_BYTES)
        stamp = files.parse(data, path, WAY_OUT)
        found = stamp.get("format", 1) if isinstance(stamp, dict) else FORMAT
        if found != FORMAT:
            by = stamp.get("written_by", "0.1.0")
            raise ConfigError(
                f"--workdir: {self.path} has format {found}, written by mtmm_jax {by}; mtmm_jax "
                f"{mtmm_jax.__version__} reads format {FORMAT}. Open it with mtmm_jax {by}, or "
                "train in a new folder"
            )
        config, own = files.unsealed(data, path, WAY_OUT)
        digests = config.pop("files", None)
        for key in ("format", "written_by"):
            config.pop(key, None)
        if not isinstance(digests, dict):
            raise damaged(path, "has no digests of the files written with it", WAY_OUT)
        return config, digests, own

    def check_paths(self, config: Mapping[str, Any], trusted: bool) -> None:
        """Refuses paths of a foreign run's config; see `store.owner`.

        Args:
            config: as it will be used: the stored one, with changes.
            trusted: `--trust_paths`.
        """
        stored, _, own = self._config()
        if not own and not trusted:
            sections = [{key: of[key] for key in OPENED if key in of} for of in (stored, config)]
            owner.check_paths(*sections, self.path)

    def file(self, name: str) -> Path:
        """The path of a file in the folder; a name that leads out of it is refused."""
        path = self.path / name
        inside = os.path.realpath(self.path)
        parent = os.path.realpath(path.parent)
        if "\0" in name or (parent != inside and not parent.startswith(inside + os.sep)):
            raise ConfigError(f"--workdir: {name!r} leads out of {self.path}")
        return path

    def _existing(self, name: str) -> Path:
        path = self.file(name)
        if not os.path.lexists(path):
            raise ConfigError(f"--workdir: {self.path} holds no finished run: no {name} in it")
        return path

    def read(self, name: str) -> Any:
        """The content that `write` wrote; raises `Damaged` if it is anything else."""
        path = self._existing(name)
        data = files.read_bytes(path, "", files.JSON_BYTES)
        return files.unsealed(data, path, _remake(path))[0]

    def check_members(self, name: str, members: Any, trusted: bool) -> None:
        """Refuses the runs that a foreign file of several runs names, as `check_paths` does."""
        path = self._existing(name)
        if not files.unsealed(files.read_bytes(path), path)[1] and not trusted:
            owner.check_paths({"workdirs": members}, {"workdirs": members}, self.path)

    def write(self, name: str, value: Mapping[str, Any]) -> None:
        write(self.file(name), files.sealed(value))

    def arrays(self, path: Path) -> dict[str, np.ndarray]:
        """The arrays of an NPZ file of the folder; none where it does not exist."""
        if not os.path.lexists(path):
            return {}
        return files.read_npz(self.file(str(path.relative_to(self.path))), _remake(path))

    def spec(self) -> Spec:
        path = self._existing("spec.json")
        value, _ = files.unsealed(self._written("spec.json"), path, WAY_OUT)
        with understood(path, WAY_OUT):
            return Spec.from_dict(value)

    def asset(self, name: str) -> bytes:
        path = self.file(f"assets/{name}")
        if not os.path.lexists(path):
            raise ConfigError(
                f"--workdir: {path} is missing; is the folder a copy of part of a run?"
            )
        return self._written(f"assets/{name}")

    def assets(self) -> dict[str, bytes]:
        """All files that `predict` needs, by name."""
        names = [name.removeprefix("assets/") for name in self._config()[1]]
        return {name: self.asset(name) for name in sorted(names) if name != "spec.json"}

    def _written(self, name: str) -> bytes:
        """The bytes that `claim` wrote, checked."""
        path, digests = self.file(name), self._config()[1]
        data = files.read_bytes(path, WAY_OUT)
        if hashlib.sha256(data).hexdigest() != digests.get(name):
            raise damaged(path, "is not what was written: it has another SHA-256", WAY_OUT)
        return data

    def has_asset(self, name: str) -> bool:
        """True if the run kept such a file, be it there or not."""
        return f"assets/{name}" in self._config()[1]

    def tokenizer(self, modality: str) -> bytes:
        """The tokenizer of one text modality: its own, or that of all texts."""
        own = f"{modality}.tokenizer.json"
        return self.asset(own if self.has_asset(own) else "tokenizer.json")

    def tokenizers(self) -> dict[str, str]:
        """Modality -> `tokenizer.json`, of the texts whose tokenizer the folder keeps."""
        found = {}
        for name, modality in self.spec().modalities.items():
            kept = self.has_asset(f"{name}.tokenizer.json") or self.has_asset("tokenizer.json")
            if modality.is_a("text") and kept:
                found[name] = self.tokenizer(name).decode()
        return found


def _remake(path: Path) -> str:
    """The advice that makes a damaged file of a run again."""
    by = {
        "results.json": "remove it, and mtmm_jax.train with the same config writes it again",
        "examples.npz": "remove it and results.json, and mtmm_jax.train writes them again",
        "gallery.npz": "remove it and results.json, and mtmm_jax.train writes them again",
        "analysis.json": "remove it, and mtmm_jax.analyze writes it again",
        "analysis.npz": "remove it and analysis.json, and mtmm_jax.analyze writes them again",
        "speech.npz": "remove it, and mtmm_jax.report writes it again",
    }
    return by.get(path.name, f"remove it to continue without it, or {WAY_OUT}")


def stamped(config: Mapping[str, Any], digests: Mapping[str, str]) -> dict[str, Any]:
    """The content of config.json next to its digest: the config, the format, the version that wrote
    it, and the SHA-256 of the files that were written with it."""
    stamp = {"format": FORMAT, "written_by": mtmm_jax.__version__, "files": dict(digests)}
    return {**stamp, **config}
