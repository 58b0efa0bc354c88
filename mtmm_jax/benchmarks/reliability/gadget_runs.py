"""Hostile workdirs, exports and caches."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from mtmm_jax.benchmarks.reliability.gadget_table import (
    DEEP,
    READERS,
    Payload,
    change_zip,
    gadget,
    objects,
    reseal,
    saved,
    stranger,
)
from mtmm_jax.benchmarks.reliability.world import World
from mtmm_jax.store import files

CALLBACK = "xla_ffi_python_cpu_callback"

# Pickles.


@gadget("report", "predict")
def pickles_in_npz(world: World, canary: Path) -> None:
    for name in ("examples", "gallery", "analysis", "speech"):
        (world.run / f"{name}.npz").write_bytes(saved(objects(canary)))


@gadget("exported")
def pickles_in_an_export(world: World, canary: Path) -> None:
    def change(parts: dict[str, bytes]) -> None:
        parts["parameters.npz"] = saved(objects(canary))

    change_zip(world.exported, change)


@gadget("evaluate", "analyze", "report")
def a_cache_of_pickles_that_the_config_names(world: World, canary: Path) -> None:
    """The attack that worked: `data.data_dir` of a stranger's run, with a pickle in it."""
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
def a_model_that_names_folders(world: World, canary: Path) -> None:
    """Pretrained weights without the sizes that a run keeps; their config is a pipe."""
    folder = world.root / "elsewhere"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"")
    os.mkfifo(folder / "config.json")
    encoder = {"kind": "pretrained", "weights": str(folder)}

    def change(config: dict[str, Any]) -> dict[str, Any]:
        model = config["model"]
        return {**config, "model": {**model, "encoders": {**model["encoders"], "text": encoder}}}

    reseal(world, change)


@gadget(*READERS)
def teachers_and_origins_elsewhere(world: World, canary: Path) -> None:
    folder = world.root / "elsewhere"
    folder.mkdir()
    os.mkfifo(folder / "config.json")
    more = {"teachers": {"workdirs": [str(folder)]}, "init_from": {"workdir": str(folder)}}
    reseal(world, lambda config: {**config, **more})


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

    change_zip(world.exported, change)


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


@gadget("report", "evaluate", "train")
def a_run_json_that_is_none(world: World, canary: Path) -> None:
    content = {
        "finished": "<script>x</script>",
        "rows": [1],
        "versions": 3,
        "present": {"train": 3},
    }
    with stranger(world.root):
        (world.run / "run.json").write_bytes(files.sealed(content))


@gadget("report")
def a_deep_run_json(world: World, canary: Path) -> None:
    (world.run / "run.json").write_text('{"a":' * DEEP + "1" + "}" * DEEP)


@gadget("report", "predict")
def examples_of_other_shapes(world: World, canary: Path) -> None:
    with np.load(world.run / "examples.npz") as found:
        arrays = {name: np.zeros((0, 3, 2), np.float32) for name in found.files}
    arrays |= {"best/../../x/id": np.array([2**40]), f"picture/{canary}": np.zeros(3)}
    for name in ("examples", "gallery"):
        (world.run / f"{name}.npz").write_bytes(saved(arrays))


@gadget("report", "train")
def a_journal_of_markup(world: World, canary: Path) -> None:
    from mtmm_jax.training.logs import _line

    rows = [
        {"step": 10**30, "split": "train", "loss": {"<script>": "x"}},
        {"step": "x", "split": "<b>", "loss": 3},
        {"step": 1, "split": "train", "loss": {"kind": float("inf")}},
    ]
    (world.run / "metrics.jsonl").write_text("".join(_line(row) for row in rows))


@gadget("evaluate", "export", "train")
def checkpoints_of_deep_metadata(world: World, canary: Path) -> None:
    shutil.rmtree(world.run / "checkpoints" / "digests")
    for path in (world.run / "checkpoints").rglob("*METADATA*"):
        path.write_text('{"a":' * DEEP + "1" + "}" * DEEP)


@gadget("evaluate", "resume")
def checkpoints_of_pickles(world: World, canary: Path) -> None:
    for run in (world.run, world.stopped):
        shutil.rmtree(run / "checkpoints" / "digests")
        for path in (run / "checkpoints").rglob("*"):
            if path.is_file():
                path.write_bytes(pickle.dumps(Payload(canary)))


@gadget("evaluate", "train", "resume")
def digests_that_lead_out(world: World, canary: Path) -> None:
    names = {"../../../../../etc/passwd": "0" * 64, "/etc/passwd": "0" * 64, "a\0b": "0" * 64}
    with stranger(world.root):
        for run in (world.run, world.stopped):
            for path in (run / "checkpoints" / "digests").iterdir():
                value = {"step": 4, "score": "x", "files": names}
                path.write_bytes(files.sealed(value))


@gadget("exported")
def an_export_with_huge_headers(world: World, canary: Path) -> None:
    def change(parts: dict[str, bytes]) -> None:
        header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000,), }"
        whole = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as file:
            file.writestr("a.npy", whole)
        parts["parameters.npz"] = buffer.getvalue()

    change_zip(world.exported, change)


@gadget("exported")
def an_export_that_is_deep(world: World, canary: Path) -> None:
    def change(parts: dict[str, bytes]) -> None:
        for name in parts:
            if name.endswith(".json"):
                parts[name] = b'{"a":' * DEEP + b"1" + b"}" * DEEP

    change_zip(world.exported, change)


@gadget("exported")
def an_export_that_calls_back(world: World, canary: Path) -> None:
    """A program that holds a call of Python, which JAX itself would not export."""
    import jax
    from jax import export

    one = jax.ShapeDtypeStruct((4,), "float32")
    program = jax.jit(jax.ffi.ffi_call(CALLBACK, one))
    allowed = [export.DisabledSafetyCheck.custom_call(CALLBACK)]
    code = export.export(program, disabled_checks=allowed)(one).mlir_module_serialized

    def change(parts: dict[str, bytes]) -> None:
        parts["program.mlir"] = code

    change_zip(world.exported, change)
