"""A small finished run with everything that a run has: what is damaged and attacked.

Texts, tables and pictures of a manifest, two tasks, two checkpoints, an analysis, an export, and
a cache of decoded pictures; a copy that is to be resumed from its first checkpoint. In another form
its rows come from packed shards, and a pretrained encoder reads its texts.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mtmm_jax.benchmarks.reliability.small_weights import write_weights
from mtmm_jax.registry import ConfigError

WORDS = ("red", "green", "blue", "round", "square", "small", "large")
KINDS = ("a", "b", "c")


@dataclasses.dataclass(frozen=True)
class World:
    """Folders of one small run: all below `root`, which may be copied.

    Attributes:
        root: of the folders.
        packed: whether its rows are in shards, and its text encoder is pretrained.
    """

    root: Path
    packed: bool = False

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def stopped(self) -> Path:
        """The same run after its first checkpoint."""
        return self.root / "stopped"

    @property
    def manifest(self) -> Path:
        return self.root / "data" / "rows.jsonl"

    @property
    def exported(self) -> Path:
        return self.root / "run.zip"

    @property
    def environment(self) -> dict[str, str]:
        """Variables under which commands use this world's caches only."""
        return {"MTMM_JAX_DATA": str(self.root / "cache")}

    @property
    def commands(self) -> dict[str, tuple[str, ...]]:
        """Name -> command and arguments; all but `train` read the run only."""
        run, asked = str(self.run), str(self.root / "asked.jsonl")
        train = ("train", "--config", str(self.root / "config.py"), "--workdir")
        return {
            "evaluate": ("evaluate", "--workdir", run, "--json"),
            "predict": ("predict", "--workdir", run, "--text", "red square", "--json"),
            "report": ("report", "--workdir", run),
            "export": ("export", "--workdir", run, "--out", str(self.root / "again.zip")),
            "analyze": ("analyze", "--workdir", run, "--examples", "8"),
            "exported": ("predict", "--exported", str(self.exported), "--manifest", asked,
                         "--out", str(self.root / "predictions.jsonl")),
            "train": (*train, run),
            "resume": (*train, str(self.stopped)),
            "start": (*train, str(self.root / "new")),
        }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Names:
    """The names of modalities, tasks, classes and files in a world."""

    text: str = "text"
    table: str = "table"
    image: str = "image"
    task: str = "kind"
    number: str = "size"
    classes: tuple[str, ...] = KINDS
    words: tuple[str, ...] = WORDS
    files: str = "picture"


def write_data(world: World, names: Names, rows: int = 24, seed: int = 0) -> None:
    """The manifest, its pictures, the rows to ask about, and the config file."""
    chance = np.random.default_rng(seed)
    folder = world.manifest.parent
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(rows):
        picture = chance.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(picture).save(folder / f"{names.files}{i}.png")
        line = {
            "id": i,
            names.text: " ".join(chance.choice(names.words, 3)),
            "x": float(chance.normal()),
            "y": float(chance.normal()),
            names.image: f"{names.files}{i}.png",
            f"label {names.task}": names.classes[i % len(names.classes)],
            f"label {names.number}": float(chance.normal()),
            "split": "train" if i < rows // 2 else "validation" if i % 2 else "test",
        }
        lines.append(line)
    world.manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    asked = [{key: line[key] for key in ("id", names.text, "x", "y")} for line in lines[:4]]
    (world.root / "asked.jsonl").write_text("".join(json.dumps(line) + "\n" for line in asked))
    own = config(world, names)
    if world.packed:
        write_weights(world.root / "weights", names.words)
        own["model"]["encoders"][names.text] = {
            "kind": "pretrained",
            "weights": os.fspath(world.root / "weights"),
        }
        (world.root / "pack.py").write_text(_CONFIG.format(own))
        own = {**own, "data": {"kind": "packed", "path": os.fspath(world.root / "shards")}}
    (world.root / "config.py").write_text(_CONFIG.format(own))


_CONFIG = """from ml_collections import ConfigDict


def get_config():
    return ConfigDict({!r})
"""


def config(world: World, names: Names) -> dict[str, Any]:
    """A config of four steps, as it stands in the file."""
    return {
        "seed": 0,
        "steps": 4,
        "batch_size": 4,
        "devices": 1,
        "data": {
            "kind": "manifest",
            "path": os.fspath(world.manifest),
            "modalities": {
                names.text: {"kind": "text", "length": 4, "vocabulary": 60},
                names.table: {"kind": "table", "columns": ["x", "y"]},
                names.image: {"kind": "image", "size": 8},
            },
            "targets": {
                names.task: {"kind": "class", "column": f"label {names.task}"},
                names.number: {"kind": "number", "column": f"label {names.number}"},
            },
        },
        "model": {
            "width": 8,
            "encoders": {
                names.text: {"kind": "text_bag"},
                names.table: {"kind": "table_mlp"},
                names.image: {"kind": "image_mlp"},
            },
            "fusion": {"kind": "concat"},
            "sharing": "hard",
        },
        "tasks": {
            names.task: {"kind": "classification"},
            names.number: {"kind": "regression"},
        },
        "balancing": {"kind": "equal"},
        "optimizer": {"kind": "sgd", "learning_rate": 0.05},
        "checkpoint": {"every": 2, "keep": 2, "best": "mean"},
        "evaluation": {"every": 2, "batch_size": 4, "log_every": 1, "baselines": False},
    }


def make(
    root: Path, call: Any, names: Names = Names(), analysed: bool = True, packed: bool = False
) -> World:
    """A finished world in a new folder.

    Args:
        root: the folder.
        call: a `calls.Caller`.
        names: of its parts.
        analysed: whether it also has an analysis, an export and a stopped copy.
        packed: as in `World`.
    """
    world = World(root, packed)
    write_data(world, names)
    (root / "cache").mkdir()
    wanted = ("train", "analyze", "export") if analysed else ("train",)
    commands = [world.commands[name] for name in wanted]
    if packed:
        where = ("--config", str(root / "pack.py"), "--out", str(root / "shards"))
        commands.insert(0, ("data.pack", str(world.manifest), *where, "--workers", "1"))
    for command, *arguments in commands:
        found = call(command, *arguments, seconds=300, **world.environment)
        if found["code"] != 0:
            raise ConfigError(f"world: {command}: {found['error'].strip() or found['out'][-300:]}")
    if analysed:
        (root / "again.zip").replace(world.exported)
        _stop(world)
    return world


def _stop(world: World) -> None:
    """Copies the run as it was after its first checkpoint, but for its journal, which is longer."""
    shutil.copytree(world.run, world.stopped)
    last = max((world.stopped / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
    shutil.rmtree(last)
    (world.stopped / "checkpoints" / "digests" / f"{last.name}.json").unlink()
    for pattern in ("results.json", "run.json", "analysis.*", "*.npz", "*.html"):
        for path in world.stopped.glob(pattern):
            path.unlink()
