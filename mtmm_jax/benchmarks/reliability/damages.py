"""Single files damaged, one at a time: every command is right, or says in one line what is broken.

    python -m mtmm_jax.benchmarks.reliability.damages --count 200 --json damages.json

Two small finished runs are made (`world.make`): workdirs, checkpoints, decoded pictures, exports,
and in the second packed shards and pretrained weights. Each damage takes a copy of one, changes one
file (a bit flipped, emptied, cut in half, filled with junk, removed) and calls one command that
reads it. A fault is what `calls.fault` says, or other numbers than before with exit code 0 and
without the file's name on stderr.
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
from typing import Any, NamedTuple

from mtmm_jax.benchmarks.reliability import calls
from mtmm_jax.benchmarks.reliability.world import World, make
from mtmm_jax.command import console, guarded
from mtmm_jax.ranges import Count
from mtmm_jax.registry import ConfigError, check, choose


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


class Place(NamedTuple):
    """Files of a world, and the commands that read them; `packed` says of which world."""

    pattern: str
    commands: tuple[str, ...]
    packed: bool = False


PLACES: dict[str, Place] = {
    "config": Place("run/config.json", ("evaluate", "predict", "report", "export", "train")),
    "spec": Place("run/spec.json", ("evaluate", "predict", "report", "export", "train")),
    "assets": Place("run/assets/*", ("predict", "export")),
    "results": Place("run/results.json", ("report", "train", "analyze")),
    "run": Place("run/run.json", ("report", "evaluate", "train")),
    "journal": Place("run/metrics.jsonl", ("report", "train")),
    "examples": Place("run/*.npz", ("report", "predict")),
    "analysis": Place("run/analysis.*", ("report",)),
    "metadata": Place("run/checkpoints/*/*", ("evaluate", "predict", "train")),
    "metrics": Place("run/checkpoints/*/metrics/*", ("evaluate", "train")),
    "tensors": Place("run/checkpoints/*/state/**/*", ("evaluate", "predict", "export")),
    "digests": Place("run/checkpoints/digests/*", ("evaluate", "predict", "train")),
    "decoded": Place("cache/decoded/*/*", ("evaluate", "resume")),
    "export": Place("run.zip", ("exported",)),
    "stopped": Place("stopped/**/*", ("resume",), packed=True),
    "shards": Place("shards/*", ("evaluate", "resume", "analyze"), packed=True),
    "weights": Place("weights/*", ("start", "resume", "evaluate"), packed=True),
    "first bytes": Place("stopped/weights.json", ("resume",), packed=True),
}
"""Kind of file -> where they are, and the commands that read them."""


def numbers(world: World, name: str, found: Mapping[str, Any]) -> Any:
    """The numbers of a command's output that must be the same every time."""
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
    folder = {"resume": world.stopped, "start": world.root / "new"}.get(name, world.run)
    # Remarks may be about how long a batch was waited for.
    kept = json.loads((folder / "results.json").read_text())
    return {key: value for key, value in kept.items() if key not in ("sha256", "signed", "remarks")}


def wrong(
    world: World, name: str, found: Mapping[str, Any], expected: Any, path: Path
) -> str | None:
    """The fault of a command after a damage of `path`; None if there is none."""
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
    world = World(template.root.parent / "copy", template.packed)
    shutil.rmtree(world.root, ignore_errors=True)
    shutil.copytree(template.root, world.root)
    files = sorted(path for path in world.root.glob(PLACES[place].pattern) if path.is_file())
    path, name = draw.choice(files), draw.choice(PLACES[place].commands)
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
    """The numbers of each command on the undamaged world, in the place of the copies."""
    copy = World(world.root.parent / "copy", world.packed)
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


def chosen(count: int, seed: int, places: Sequence[str] = tuple(PLACES)) -> list[tuple[str, str]]:
    """`(place, damage)`, each pair before any a second time."""
    draw, pairs = random.Random(seed), []
    while len(pairs) < count:
        every = [(place, how) for place in places for how in DAMAGES]
        draw.shuffle(every)
        pairs += every
    return pairs[:count]


def run(
    picked: Sequence[tuple[str, str]], seed: int, folder: Path, out: Any = None
) -> list[dict[str, Any]]:
    """One row for each `(place, damage)`."""
    rows, draw = [], random.Random(seed + 1)
    with calls.caller() as call:
        worlds = {
            packed: _template(folder, packed, call)
            for packed in sorted({PLACES[place].packed for place, _ in picked})
        }
        expected = {
            packed: references(world, call, _commands(picked, packed))
            for packed, world in worlds.items()
        }
        for number, (place, how) in enumerate(picked, 1):
            packed = PLACES[place].packed
            rows.append(damage(worlds[packed], place, how, draw, call, expected[packed]))
            if out is not None and rows[-1]["fault"]:
                out.print(str(rows[-1]), soft_wrap=True, highlight=False)
            if out is not None and number % 20 == 0:
                bad = sum(row["fault"] is not None for row in rows)
                out.print(f"{number} of {len(picked)} damages, {bad} faults", highlight=False)
    return rows


def _template(folder: Path, packed: bool, call: Any) -> World:
    """A finished world, made where the copies will lie: its config names its data."""
    made = folder / "copy"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    make(made, call, packed=packed)
    return World(Path(shutil.move(made, folder / ("packed" if packed else "plain"))), packed)


def _commands(picked: Sequence[tuple[str, str]], packed: bool) -> list[str]:
    places = [PLACES[place] for place, _ in picked]
    return sorted({name for place in places if place.packed == packed for name in place.commands})


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts of damages by place and kind, and of their outcomes."""
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
    p.add_argument("--places", help="of these kinds of files only, such as weights,shards")
    p.add_argument("--json", help="a file for what happened")
    arguments = p.parse_args(argv)
    places = arguments.places.split(",") if arguments.places else list(PLACES)
    for place in places:
        choose(place, PLACES, "--places", "kind of file")
    check(arguments.count, Count, "--count")
    out = console()
    with tempfile.TemporaryDirectory() as folder:
        picked = chosen(arguments.count, arguments.seed, places)
        rows = run(picked, arguments.seed, Path(folder), out)
    found = summary(rows)
    for name, value in found.items():
        out.print(f"{name:16} {value}", highlight=False, soft_wrap=True)
    return calls.finish(rows, arguments.json, **{"seed": arguments.seed, **found})


if __name__ == "__main__":
    sys.exit(main())
