"""The table of hostile files, and what they are made with."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mtmm_jax.benchmarks.reliability.world import World
from mtmm_jax.store import files
from mtmm_jax.store.workdir import stamped

DEEP = 200_000  # levels of nested JSON


class Gadget(NamedTuple):
    """A change made to a world, and the commands that read it.

    Attributes:
        prepare: takes the world and the path of the canary.
        commands: names in `gadgets.commands`.
        packed: as of `World`.
    """

    prepare: Callable[[World, Path], None]
    commands: tuple[str, ...]
    packed: bool = False


GADGETS: dict[str, Gadget] = {}
READERS = ("evaluate", "predict", "report", "export", "analyze")


def gadget(*commands: str, packed: bool = False) -> Callable[[Any], Any]:
    """Adds a function to `GADGETS`."""

    def add(prepare: Any) -> Any:
        GADGETS[prepare.__name__] = Gadget(prepare, commands, packed)
        return prepare

    return add


class Payload:
    """Creates the canary when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self._canary),)


@contextlib.contextmanager
def stranger(folder: Path) -> Iterator[None]:
    """Seals by another key."""
    before = os.environ.get("MTMM_JAX_KEY")
    os.environ["MTMM_JAX_KEY"] = str(folder / "stranger.key")
    try:
        yield
    finally:
        os.environ.pop("MTMM_JAX_KEY")
        if before is not None:
            os.environ["MTMM_JAX_KEY"] = before


def config_of(world: World) -> dict[str, Any]:
    stored = json.loads((world.run / "config.json").read_text())
    head = (files.DIGEST, files.SIGNATURE, "format", "written_by", "files")
    return {key: value for key, value in stored.items() if key not in head}


def reseal(world: World, config: Any = None, spec: Any = None, **more: bytes) -> None:
    """The run with another config, spec or assets, with digests that fit, by a stranger."""
    parts = {f"assets/{p.name}": p.read_bytes() for p in (world.run / "assets").iterdir()}
    parts |= {name.replace("__", "/"): content for name, content in more.items()}
    stored = json.loads((world.run / "spec.json").read_text())
    for key in (files.DIGEST, files.SIGNATURE):
        stored.pop(key)
    with stranger(world.root):
        parts["spec.json"] = files.sealed(stored if spec is None else spec(stored))
        digests = {name: hashlib.sha256(part).hexdigest() for name, part in parts.items()}
        whole = stamped(config_of(world) if config is None else config(config_of(world)), digests)
        (world.run / "config.json").write_bytes(files.sealed(whole))
    for name, part in parts.items():
        with contextlib.suppress(OSError):
            (world.run / name).write_bytes(part)


def objects(canary: Path) -> dict[str, Any]:
    return {"a": np.array([Payload(canary)], dtype=object)}


def saved(arrays: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def change_zip(path: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    """A zip with other members."""
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    change(parts)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in parts.items():
            file.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
