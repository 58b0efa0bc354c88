"""Files that somebody prepared to run code, to lead out of a folder, to hang or to fill the memory.

    python -m mtmm_jax.benchmarks.reliability.gadgets --json gadgets.json

Each gadget is built into a copy of a small finished run, sealed with a stranger's key, and opened
by every command that reads it. A fault is what `calls.fault` says, or that a canary was touched:
code that a gadget holds creates one, and so does a file written through a link or a name.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtmm_jax.benchmarks.reliability import calls, gadget_data, gadget_runs
from mtmm_jax.benchmarks.reliability.gadget_table import GADGETS
from mtmm_jax.benchmarks.reliability.world import World, make
from mtmm_jax.command import console, guarded
from mtmm_jax.ranges import Count
from mtmm_jax.registry import check
from mtmm_jax.store.workdir import FORMAT

CHECK = "data.inspect.check"
TABLES = (gadget_runs, gadget_data)  # which fill `GADGETS`


def commands(world: World) -> dict[str, tuple[str, ...]]:
    """Those of the world, and those that only gadgets need."""
    weights = {"weights": str(world.root / "w.safetensors"), "at": "encoders/text"}
    bert = {"kind": "bert", "preset": "minilm"}
    train = world.commands["start"]
    changes = (f"--config.model.encoders.text={bert}", f"--config.init_from={weights}")
    tar = next((str(path) for path in world.root.glob("evil.tar*")), "")
    table = (tar, "--label", "cls")
    out = ("--out", str(world.root / "packed"), "--workers", "1")
    prepared = {"kind": "tfds", "dataset": str(world.root / "prepared" / "1.0.0")}
    prepared |= {"modalities": {"text": {"feature": "x"}}, "targets": {"kind": {"feature": "x"}}}
    return {
        **world.commands,
        "trusted": (*world.commands["evaluate"], "--trust_paths"),
        "weights": (*train, *changes),
        "pack": ("data.pack", *table, "--modality", "text=text", *out),
        "pack pictures": ("data.pack", *table, "--modality", "img=image", *out),
        "check": (CHECK, *table, "--modality", "text=text"),
        "check manifest": (CHECK, str(world.manifest)),
        "prepared": (*train, f"--config.data={prepared}"),
    }


def attack(whole: World, name: str, call: Any) -> list[dict[str, Any]]:
    """A row for each command that reads the gadget."""
    rows = []
    for command in GADGETS[name].commands:
        world = World(whole.root.parent / "copy", whole.packed)
        shutil.rmtree(world.root, ignore_errors=True)
        shutil.copytree(whole.root, world.root)
        canary = world.root.parent / "canary"
        GADGETS[name].prepare(world, canary)
        before = _around(world)
        word, *arguments = commands(world)[command]
        found = call(word, *arguments, seconds=60, **world.environment)
        if word == CHECK and found["code"] == 1:  # it has found bad rows
            found["code"] = 0
        problem = calls.fault(found)
        if new := _around(world) - before:
            problem = f"wrote {', '.join(sorted(new))}"
            for path in new:
                shutil.rmtree(world.root.parent / path, ignore_errors=True)
        rows.append(
            {
                "gadget": name,
                "command": command,
                "code": found["code"],
                "said": calls.shown(found["error"].replace(str(world.root), "")),
                "seconds": found["seconds"],
                "gigabytes": round(found["bytes"] / 1e9, 2),
                "fault": problem,
            }
        )
    return rows


def _around(world: World) -> set[str]:
    return {path.name for path in world.root.parent.iterdir()}


def run(names: Sequence[str], folder: Path, out: Any = None) -> list[dict[str, Any]]:
    """The rows of these gadgets."""
    rows: list[dict[str, Any]] = []
    with calls.caller() as call:
        worlds = {}
        for packed in sorted({GADGETS[name].packed for name in names}):
            place = folder / "copy"
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            make(place, call, packed=packed)
            worlds[packed] = World(Path(shutil.move(place, folder / f"whole_{packed}")), packed)
        for name in names:
            found = attack(worlds[GADGETS[name].packed], name, call)
            rows += found
            for row in found:
                if out is not None and row["fault"]:
                    out.print(str(row), soft_wrap=True, highlight=False)
    return rows


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(
        prog="python -m mtmm_jax.benchmarks.reliability.gadgets",
        description="Prepares hostile files of every kind, and opens them with every command.",
    )
    p.add_argument("--count", type=int, default=len(GADGETS), help="how many (default: all)")
    p.add_argument("--names", help="only those whose names contain this")
    p.add_argument("--json", help="a file for what happened")
    arguments = p.parse_args(argv)
    check(arguments.count, Count, "--count")
    out = console()
    with tempfile.TemporaryDirectory() as folder:
        names = [name for name in GADGETS if (arguments.names or "") in name]
        rows = run(names[: arguments.count], Path(folder), out)
    faults = sum(row["fault"] is not None for row in rows)
    out.print(f"{len(names)} gadgets, {len(rows)} calls, {faults} faults", highlight=False)
    settings = {
        "gadgets": len({row["gadget"] for row in rows}),
        "calls": len(rows),
        "refused": sum(row["code"] == 2 for row in rows),
        "format": FORMAT,
    }
    return calls.finish(rows, arguments.json, **settings)


if __name__ == "__main__":
    sys.exit(main())
