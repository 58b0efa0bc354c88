"""Files that somebody prepared to run code, to lead out of a folder, to hang or to fill the memory.

    python -m mtmm_jax.benchmarks.reliability.gadgets --json gadgets.json

Each gadget is built into a copy of a small finished run, sealed with a stranger's key, and opened
by every command that reads it. A fault is what `calls.fault` says, or that a canary was touched:
code that a gadget holds creates one, and so does a file written through a link or a name.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import shutil
import struct
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtmm_jax.benchmarks.reliability import calls
from mtmm_jax.benchmarks.reliability.world import World, make
from mtmm_jax.command import console, guarded
from mtmm_jax.ranges import Count
from mtmm_jax.registry import check
from mtmm_jax.store import files
from mtmm_jax.store.workdir import FORMAT, stamped

DEEP = 200_000  # levels of nested JSON
GADGETS: dict[str, tuple[Callable[[World, Path], None], tuple[str, ...]]] = {}
"""Name -> what prepares a world and a canary's path, and the commands that read it."""
READERS = ("evaluate", "predict", "report", "export", "analyze")


def gadget(*commands: str) -> Callable[[Any], Any]:
    def add(prepare: Any) -> Any:
        GADGETS[prepare.__name__] = (prepare, commands)
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


def _objects(canary: Path) -> dict[str, Any]:
    return {"a": np.array([Payload(canary)], dtype=object)}


def _saved(arrays: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _change(path: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    """A zip with other members."""
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    change(parts)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in parts.items():
            file.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)


# Pickles.


@gadget("report", "predict")
def pickles_in_npz(world: World, canary: Path) -> None:
    for name in ("examples", "gallery", "analysis", "speech"):
        (world.run / f"{name}.npz").write_bytes(_saved(_objects(canary)))


@gadget("exported")
def pickles_in_an_export(world: World, canary: Path) -> None:
    def change(parts: dict[str, bytes]) -> None:
        parts["parameters.npz"] = _saved(_objects(canary))

    _change(world.exported, change)


@gadget("evaluate", "analyze", "report")
def a_cache_of_pickles_that_the_config_names(world: World, canary: Path) -> None:
    """The attack that worked: `data.data_dir` of a stranger's run, with a pickle in it."""
    import pickle

    from mtmm_jax.data.sources import packed

    builder = packed._ROOM / "vowels" / "vowels_dataset_builder.py"
    digest = packed.digest([*packed.assets("vowels"), builder])
    made = packed.digest(sorted(packed._ROOM.parent.rglob("*.py")))
    folder = world.root / "evil" / f"vowels-{digest}"
    folder.mkdir(parents=True)
    for name in (f"made-{made}.pickle", f"made-{made}.npz", f"made-{made}.json"):
        (folder / name).write_bytes(pickle.dumps(Payload(canary)))
    data = {"kind": "vowels", "data_dir": str(world.root / "evil")}
    reseal(world, lambda config: {**config, "data": data})


@gadget("trusted")
def a_cache_of_pickles_that_is_trusted(world: World, canary: Path) -> None:
    """Even with `--trust_paths` nothing of it is run: it is made again."""
    a_cache_of_pickles_that_the_config_names(world, canary)


# Paths.


@gadget("evaluate", "analyze")
def a_config_that_names_files(world: World, canary: Path) -> None:
    def change(config: dict[str, Any]) -> dict[str, Any]:
        return {**config, "data": {**config["data"], "path": "/etc/passwd"}}

    reseal(world, change)


@gadget(*READERS)
def assets_that_lead_out(world: World, canary: Path) -> None:
    names = {f"assets____{up}{canary.name}": b"x" for up in ("../", "../../", "../../../")}
    reseal(world, **names, **{f"{canary}": b"x"})


@gadget(*READERS)
def modalities_and_tasks_that_lead_out(world: World, canary: Path) -> None:
    out = f"../../../{canary.name}"

    def spec(stored: dict[str, Any]) -> dict[str, Any]:
        return {**stored, "modalities": {out: stored["modalities"]["text"], **stored["modalities"]}}

    def config(stored: dict[str, Any]) -> dict[str, Any]:
        tasks = {out: {"kind": "classification", "target": "kind"}, **stored["tasks"]}
        return {**stored, "tasks": tasks}

    reseal(world, config, spec)


def _link(path: Path, target: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


@gadget(*READERS)
def links_instead_of_files(world: World, canary: Path) -> None:
    for name in ("results.json", "metrics.jsonl", "examples.npz", "analysis.json"):
        _link(world.run / name, Path("/etc/passwd"))
    _link(world.run / "report.html", canary)


@gadget("report")
def a_report_that_is_a_link(world: World, canary: Path) -> None:
    _link(world.run / "report.html", canary)


@gadget("evaluate", "export")
def a_checkpoint_of_links(world: World, canary: Path) -> None:
    for path in sorted((world.run / "checkpoints" / "4").rglob("*"))[:40]:
        if path.is_file():
            copy = world.root / "elsewhere" / path.relative_to(world.run)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, copy)
            path.symlink_to(copy)


@gadget(*READERS)
def a_link_instead_of_the_config(world: World, canary: Path) -> None:
    _link(world.run / "config.json", Path("/etc/passwd"))


@gadget(*READERS)
def assets_in_another_folder(world: World, canary: Path) -> None:
    shutil.copytree(world.run / "assets", world.root / "elsewhere")
    _link(world.run / "assets", world.root / "elsewhere")


@gadget("train")
def a_workdir_of_links_to_write_through(world: World, canary: Path) -> None:
    shutil.rmtree(world.run)
    world.run.mkdir()
    for name in ("config.json", "spec.json", "metrics.jsonl", ".lock.json", "results.json"):
        (world.run / name).symlink_to(canary)


@gadget("exported")
def a_zip_that_slips(world: World, canary: Path) -> None:
    def change(parts: dict[str, bytes]) -> None:
        for name in (f"assets/../../../../{canary.name}", f"assets/{canary}", str(canary)):
            parts[name] = b"x"
        parts["load.py"] = f"import os; os.mkdir({str(canary)!r})".encode()

    _change(world.exported, change)


@gadget("exported")
def a_zip_with_a_link(world: World, canary: Path) -> None:
    with zipfile.ZipFile(world.exported, "a") as file:
        info = zipfile.ZipInfo("assets/link")
        info.external_attr = 0o120777 << 16
        file.writestr(info, "/etc/passwd")


# Size and depth.


@gadget("exported")
def a_zip_bomb(world: World, canary: Path) -> None:
    with zipfile.ZipFile(world.exported, "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("assets/bomb", bytes(2**28))
        for i in range(8):
            file.writestr(f"assets/bomb{i}", bytes(2**26))
    data = bytearray(world.exported.read_bytes())
    at = data.rfind(b"PK\x01\x02")  # the last member says that it unpacks to 4 GB
    data[at + 24 : at + 28] = struct.pack("<I", 2**32 - 2)
    world.exported.write_bytes(data)


@gadget(*READERS)
def deep_json(world: World, canary: Path) -> None:
    deep = '{"a":' * DEEP + "1" + "}" * DEEP
    for name in ("results.json", "analysis.json", "spec.json", "metrics.jsonl"):
        (world.run / name).write_text(deep)


@gadget(*READERS)
def a_deep_config(world: World, canary: Path) -> None:
    (world.run / "config.json").write_text('{"a":' * DEEP + "1" + "}" * DEEP)


@gadget("report", "predict")
def arrays_with_huge_headers(world: World, canary: Path) -> None:
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (10**15,), }"
    header = header.replace(b"10**15", b"1" + b"0" * 15)
    whole = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    for name in ("examples", "gallery", "analysis"):
        with zipfile.ZipFile(world.run / f"{name}.npz", "w") as file:
            file.writestr("a.npy", whole)


@gadget(*READERS)
def a_spec_of_huge_shapes(world: World, canary: Path) -> None:
    def spec(stored: dict[str, Any]) -> dict[str, Any]:
        stored["modalities"]["table"]["shape"] = [10**12]
        return stored

    reseal(world, spec=spec)


@gadget(*READERS)
def a_huge_model(world: World, canary: Path) -> None:
    def config(stored: dict[str, Any]) -> dict[str, Any]:
        return {**stored, "model": {**stored["model"], "width": 2**14}}

    reseal(world, config)


@gadget(*READERS)
def a_spec_that_is_none(world: World, canary: Path) -> None:
    reseal(world, spec=lambda stored: {"modalities": [1], "targets": {"kind": {"zz": 1}}})


@gadget(*READERS)
def a_config_that_is_none(world: World, canary: Path) -> None:
    reseal(world, lambda stored: {"data": 3})


@gadget(*READERS)
def results_that_are_none(world: World, canary: Path) -> None:
    with stranger(world.root):
        for value, name in (({"test": 3}, "results.json"), ({"step": "x"}, "analysis.json")):
            (world.run / name).write_bytes(files.sealed(value))


@gadget("predict", "export")
def a_tokenizer_that_tracks_back(world: World, canary: Path) -> None:
    name = next(p.name for p in (world.run / "assets").glob("*tokenizer.json"))
    stored = json.loads((world.run / "assets" / name).read_text())
    pattern = {"Regex": "(\\w*)*\\d"}
    stored["pre_tokenizer"] = {
        "type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False,
    }  # fmt: skip
    reseal(world, **{f"assets__{name}": json.dumps(stored).encode()})


# What is no file.


@gadget(*READERS)
def pipes(world: World, canary: Path) -> None:
    for name in ("results.json", "metrics.jsonl", "examples.npz", "spec.json"):
        (world.run / name).unlink(missing_ok=True)
        os.mkfifo(world.run / name)


@gadget(*READERS)
def folders_instead_of_files(world: World, canary: Path) -> None:
    for name in ("results.json", "metrics.jsonl", "spec.json"):
        (world.run / name).unlink(missing_ok=True)
        (world.run / name).mkdir()


@gadget("weights")
def weights_with_a_huge_header(world: World, canary: Path) -> None:
    (world.root / "w.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")


@gadget("weights")
def weights_with_a_deep_header(world: World, canary: Path) -> None:
    deep = b'{"a":' * DEEP + b"1" + b"}" * DEEP
    (world.root / "w.safetensors").write_bytes(struct.pack("<Q", len(deep)) + deep)


@gadget("weights")
def weights_that_are_a_pickle(world: World, canary: Path) -> None:
    import pickle

    (world.root / "w.safetensors").write_bytes(pickle.dumps(Payload(canary)))


@gadget("weights")
def weights_of_negative_places(world: World, canary: Path) -> None:
    head = {"w": {"dtype": "F32", "shape": [2**40, -1], "data_offsets": [-4, 2**70]}}
    header = json.dumps(head).encode()
    (world.root / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)


def commands(world: World) -> dict[str, tuple[str, ...]]:
    """Those of the world, and two that only gadgets need."""
    weights = {"weights": str(world.root / "w.safetensors"), "at": "encoders/text"}
    bert = {"kind": "bert", "preset": "minilm"}
    loading = ("--config", str(world.root / "config.py"), "--workdir", str(world.root / "new"))
    changes = (f"--config.model.encoders.text={bert}", f"--config.init_from={weights}")
    return {
        **world.commands,
        "trusted": (*world.commands["evaluate"], "--trust_paths"),
        "weights": ("train", *loading, *changes),
    }


def attack(whole: World, name: str, call: Any) -> list[dict[str, Any]]:
    """A row for each command that reads the gadget."""
    prepare, wanted = GADGETS[name]
    rows = []
    for command in wanted:
        world = World(whole.root.with_name("copy"))
        shutil.rmtree(world.root, ignore_errors=True)
        shutil.copytree(whole.root, world.root)
        canary = world.root.parent / "canary"
        prepare(world, canary)
        before = _around(world)
        word, *arguments = commands(world)[command]
        found = call(word, *arguments, seconds=60, **world.environment)
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
        place = folder / "copy"
        place.mkdir()
        make(place, call)
        whole = World(Path(shutil.move(place, folder / "whole")))
        for name in names:
            rows += attack(whole, name, call)
            for row in rows[-len(GADGETS[name][1]) :]:
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
    p.add_argument("--json", help="a file for what happened")
    arguments = p.parse_args(argv)
    check(arguments.count, Count, "--count")
    out = console()
    with tempfile.TemporaryDirectory() as folder:
        rows = run(list(GADGETS)[: arguments.count], Path(folder), out)
    faults = sum(row["fault"] is not None for row in rows)
    out.print(f"{len(GADGETS)} gadgets, {len(rows)} calls, {faults} faults", highlight=False)
    settings = {
        "gadgets": len({row["gadget"] for row in rows}),
        "calls": len(rows),
        "refused": sum(row["code"] == 2 for row in rows),
        "format": FORMAT,
    }
    return calls.finish(rows, arguments.json, **settings)


if __name__ == "__main__":
    sys.exit(main())
