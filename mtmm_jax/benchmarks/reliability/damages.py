"""Single files damaged, one at a time: every command is right, or says in one line what is broken.

    python -m mtmm_jax.benchmarks.reliability.damages --count 200 --json damages.json

A small finished run is made (`world.make`): workdir, checkpoints, decoded pictures, an export, and
prepared data. Each damage takes a copy of it, changes one file (one bit flipped, emptied, cut in
half, filled with junk, removed) and calls one command that reads it. A fault is what `calls.fault`
says, or other numbers than before with exit code 0 and nothing on stderr.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtmm_jax.benchmarks.reliability import calls
from mtmm_jax.benchmarks.reliability.world import World, make
from mtmm_jax.command import console, guarded
from mtmm_jax.ranges import Count
from mtmm_jax.registry import ConfigError, check


def _flip(data: bytes, draw: random.Random) -> bytes:
    if not data:
        return b"\0"
    at = draw.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]


DAMAGES: dict[str, Callable[[bytes, random.Random], bytes | None]] = {
    "flip": _flip,
    "empty": lambda data, draw: b"",
    "half": lambda data, draw: data[: len(data) // 2],
    "junk": lambda data, draw: draw.randbytes(max(len(data), 8)),
    "gone": lambda data, draw: None,
}
"""What is made of the bytes of a file; None removes it."""

PLACES: dict[str, tuple[str, tuple[str, ...]]] = {
    "config": ("run/config.json", ("evaluate", "predict", "report", "export", "train")),
    "spec": ("run/spec.json", ("evaluate", "predict", "report", "export", "train")),
    "assets": ("run/assets/*", ("predict", "export")),
    "results": ("run/results.json", ("report", "train", "analyze")),
    "journal": ("run/metrics.jsonl", ("report", "train")),
    "examples": ("run/*.npz", ("report", "predict")),
    "analysis": ("run/analysis.*", ("report",)),
    "metadata": ("run/checkpoints/*/*", ("evaluate", "predict", "train")),
    "metrics": ("run/checkpoints/*/metrics/*", ("evaluate", "train")),
    "tensors": ("run/checkpoints/*/state/**/*", ("evaluate", "predict", "export")),
    "digests": ("run/checkpoints/digests/*", ("evaluate", "predict", "train")),
    "decoded": ("cache/decoded/*/*", ("evaluate",)),
    "export": ("run.zip", ("exported",)),
}
"""Kind of file -> where they are, and the commands that read them."""


def numbers(world: World, name: str, found: Mapping[str, Any]) -> Any:
    """What a command is for, as far as it must be the same every time."""
    if found["code"] != 0:
        return None
    if name in ("evaluate", "predict"):
        return json.loads(found["out"])
    if name == "report":
        return (world.run / "report.html").read_text()
    if name == "exported":
        return (world.root / "predictions.jsonl").read_text()
    if name == "export":
        with zipfile.ZipFile(world.root / "again.zip") as file:
            # The program is named after what was traced before it in the process.
            return {name: file.read(name) for name in file.namelist() if name != "program.mlir"}
    if name == "analyze":
        kept = json.loads((world.run / "analysis.json").read_text())
        return {key: kept[key] for key in ("contribution", "subsets", "affinity", "robustness")}
    return (world.run / "results.json").read_text()


def wrong(
    world: World, name: str, found: Mapping[str, Any], expected: Any, path: Path
) -> str | None:
    """What is wrong with a command after a damage of `path`; None where nothing is."""
    if problem := calls.fault(found):
        return problem
    if found["code"] == 0:
        try:
            same = numbers(world, name, found) == expected
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            return f"exit code 0 without its output: {error}"
        if not same and path.name not in found["error"]:
            return "other numbers with exit code 0, and the file is not named"
    return None


def damage(
    template: World,
    place: str,
    how: str,
    draw: random.Random,
    call: Any,
    expected: Mapping[str, Any],
) -> dict[str, Any]:
    """One file of a fresh copy damaged, one command called."""
    world = World(template.root.with_name("copy"))
    shutil.rmtree(world.root, ignore_errors=True)
    shutil.copytree(template.root, world.root)
    pattern, names = PLACES[place]
    files = sorted(path for path in world.root.glob(pattern) if path.is_file())
    path, name = draw.choice(files), draw.choice(names)
    made = DAMAGES[how](path.read_bytes(), draw)
    path.unlink()
    if made is not None:
        path.write_bytes(made)
    command, *arguments = world.commands[name]
    found = call(command, *arguments, **world.environment)
    problem = wrong(world, name, found, expected[name], path)
    said = found["error"].replace(str(world.root), "").strip()
    return {
        "place": place,
        "file": path.relative_to(world.root).as_posix(),
        "damage": how,
        "command": name,
        "code": found["code"],
        "said": re.sub(r"[0-9a-f]{32}", "...", said)[-300:],
        "seconds": found["seconds"],
        "fault": problem,
    }


def references(world: World, call: Any, names: Sequence[str]) -> dict[str, Any]:
    """The numbers of each command on the undamaged world, asked in the place of the copies."""
    copy = World(world.root.with_name("copy"))
    expected = {}
    for name in names:
        shutil.rmtree(copy.root, ignore_errors=True)
        shutil.copytree(world.root, copy.root)
        command, *arguments = copy.commands[name]
        found = call(command, *arguments, seconds=300, **copy.environment)
        if found["code"] != 0 or calls.fault(found):
            raise ConfigError(f"world: {name}, undamaged: {found['error'][-300:]}")
        expected[name] = numbers(copy, name, found)
    return expected


def chosen(count: int, seed: int) -> list[tuple[str, str]]:
    """`(place, damage)`, each pair before any a second time."""
    draw, pairs = random.Random(seed), []
    while len(pairs) < count:
        every = [(place, how) for place in PLACES for how in DAMAGES]
        draw.shuffle(every)
        pairs += every
    return pairs[:count]


def run(count: int, seed: int, folder: Path, out: Any = None) -> list[dict[str, Any]]:
    """One row a damage."""
    picked, rows = chosen(count, seed), []
    draw = random.Random(seed + 1)
    names = sorted({name for place, _ in picked for name in PLACES[place][1]})
    template = World(folder / "copy")
    with calls.caller() as call:
        template.root.mkdir()
        # Made where the copies will lie: its config names its manifest.
        template = make(template.root, call)
        whole = World(shutil.move(template.root, folder / "whole"))
        expected = references(whole, call, names)
        for number, (place, how) in enumerate(picked, 1):
            rows.append(damage(whole, place, how, draw, call, expected))
            if out is not None and rows[-1]["fault"]:
                out.print(str(rows[-1]), soft_wrap=True, highlight=False)
            if out is not None and number % 20 == 0:
                bad = sum(row["fault"] is not None for row in rows)
                out.print(f"{number} of {count} damages, {bad} faults", highlight=False)
    return rows


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many there were of what, and what came of them."""
    return {
        "damages": len(rows),
        "faults": sum(row["fault"] is not None for row in rows),
        "refused": sum(row["code"] == 2 for row in rows),
        "mended": sum(row["code"] == 0 and bool(row["said"]) for row in rows),
        "without_effect": sum(row["code"] == 0 and not row["said"] for row in rows),
        "by_place": dict(Counter(row["place"] for row in rows)),
        "by_damage": dict(Counter(row["damage"] for row in rows)),
    }


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(
        prog="python -m mtmm_jax.benchmarks.reliability.damages",
        description="Damages single files of a run, and calls the commands that read them.",
    )
    p.add_argument("--count", type=int, default=200, help="how many damages (default: 200)")
    p.add_argument("--seed", type=int, default=0, help="which ones (default: 0)")
    p.add_argument("--json", help="a file for what happened")
    arguments = p.parse_args(argv)
    check(arguments.count, Count, "--count")
    out = console()
    with tempfile.TemporaryDirectory() as folder:
        rows = run(arguments.count, arguments.seed, Path(folder), out)
    found = summary(rows)
    for name, value in found.items():
        out.print(f"{name:16} {value}", highlight=False, soft_wrap=True)
    return calls.finish(rows, arguments.json, **{"seed": arguments.seed, **found})


if __name__ == "__main__":
    sys.exit(main())
