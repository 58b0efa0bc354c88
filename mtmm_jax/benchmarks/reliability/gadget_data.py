"""Hostile weights, packs, tars, manifests and prepared data sets."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from mtmm_jax.benchmarks.reliability.gadget_table import DEEP, Payload, gadget, objects
from mtmm_jax.benchmarks.reliability.world import World

# Files of weights.


@gadget("weights")
def weights_with_a_huge_header(world: World, canary: Path) -> None:
    (world.root / "w.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")


@gadget("weights")
def weights_with_a_deep_header(world: World, canary: Path) -> None:
    deep = b'{"a":' * DEEP + b"1" + b"}" * DEEP
    (world.root / "w.safetensors").write_bytes(struct.pack("<Q", len(deep)) + deep)


@gadget("weights")
def weights_that_are_a_pickle(world: World, canary: Path) -> None:
    (world.root / "w.safetensors").write_bytes(pickle.dumps(Payload(canary)))


@gadget("weights")
def weights_of_negative_places(world: World, canary: Path) -> None:
    head = {"w": {"dtype": "F32", "shape": [2**40, -1], "data_offsets": [-4, 2**70]}}
    header = json.dumps(head).encode()
    (world.root / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)


# Folders of weights that a config names.


def _without_sums(world: World) -> Path:
    folder = world.root / "weights"
    (folder / "SHA256SUMS").unlink()
    return folder


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@gadget("start", "resume", packed=True)
def weights_with_code_of_their_own(world: World, canary: Path) -> None:
    """What other libraries run or unpickle: `auto_map`, a module, `pytorch_model.bin`."""
    folder = _without_sums(world)
    code = f"import os\nos.mkdir({str(canary)!r})\n"
    for name in ("modeling_evil.py", "__init__.py", "conftest.py", "config.py"):
        (folder / name).write_text(code)
    _edit(folder / "config.json", auto_map={"AutoModel": "modeling_evil.Evil"})
    for name in ("pytorch_model.bin", "training_args.bin", "model.pkl"):
        (folder / name).write_bytes(pickle.dumps(Payload(canary)))


@gadget("start", packed=True)
def weights_of_a_billion_layers(world: World, canary: Path) -> None:
    _edit(_without_sums(world) / "config.json", num_hidden_layers=10**9)


@gadget("start", packed=True)
def weights_of_huge_layers(world: World, canary: Path) -> None:
    _edit(_without_sums(world) / "config.json", hidden_size=2**40, intermediate_size=2**62)


@gadget("start", packed=True)
def weights_with_a_deep_config(world: World, canary: Path) -> None:
    (_without_sums(world) / "config.json").write_text('{"a":' * DEEP + "1" + "}" * DEEP)


@gadget("start", packed=True)
def weights_whose_index_leads_out(world: World, canary: Path) -> None:
    names = ["../../../../etc/passwd", "/etc/passwd", str(canary)]
    index = {"weight_map": {f"w{i}": name for i, name in enumerate(names)}}
    path = _without_sums(world) / "model.safetensors.index.json"
    path.write_text(json.dumps(index))


@gadget("start", packed=True)
def weights_whose_tokenizer_tracks_back(world: World, canary: Path) -> None:
    split = {"type": "Split", "pattern": {"Regex": "(\\w*)*\\d"}, "behavior": "Isolated"}
    _edit(_without_sums(world) / "tokenizer.json", pre_tokenizer={**split, "invert": False})


@gadget("start", packed=True)
def weights_whose_tokenizer_is_huge(world: World, canary: Path) -> None:
    _edit(_without_sums(world) / "tokenizer.json", added_tokens=["x" * 2**27])


@gadget("start", packed=True)
def weights_that_are_pipes(world: World, canary: Path) -> None:
    folder = _without_sums(world)
    for name in ("tokenizer.json", "SHA256SUMS"):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)


@gadget("start", packed=True)
def sums_that_are_endless(world: World, canary: Path) -> None:
    path = _without_sums(world) / "SHA256SUMS"
    path.symlink_to("/dev/zero")


# Packs.


def _reseal_pack(world: World, **changes: Any) -> None:
    """The header of a pack with other values, and the digest that fits."""
    path = world.root / "shards" / "pack.json"
    header = {**json.loads(path.read_text())["header"], **changes}
    body = json.dumps(header, sort_keys=True)
    sealed = {"sha256": hashlib.sha256(body.encode()).hexdigest(), "header": header}
    path.write_text(json.dumps(sealed))


def _reseal_index(path: Path, change: Any) -> None:
    body = json.loads(path.read_text())
    body.pop("index_sha256")
    change(body)
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({**body, "index_sha256": digest}))


@gadget("start", "evaluate", packed=True)
def a_pack_of_huge_numbers(world: World, canary: Path) -> None:
    _reseal_pack(world, rows=10**15, shard_rows=10**15)


@gadget("start", "evaluate", packed=True)
def a_pack_of_object_arrays(world: World, canary: Path) -> None:
    _reseal_pack(world, fields=[["a", "O", [2]], ["b", "|V99999999999", [10**9]]])


@gadget("start", "evaluate", packed=True)
def a_pack_that_is_none(world: World, canary: Path) -> None:
    _reseal_pack(world, spec=[], fields={}, assets=3, description=None)


@gadget("start", packed=True)
def a_pack_with_assets_that_lead_out(world: World, canary: Path) -> None:
    path = world.root / "shards" / "pack.json"
    assets = json.loads(path.read_text())["header"]["assets"]
    more = {f"../../{canary.name}": "eA==", f"../../../{canary.name}": "eA==", str(canary): "eA=="}
    _reseal_pack(world, assets={**assets, **more})


@gadget("start", "evaluate", packed=True)
def a_deep_pack(world: World, canary: Path) -> None:
    (world.root / "shards" / "pack.json").write_text('{"a":' * DEEP + "1" + "}" * DEEP)


@gadget("start", "evaluate", packed=True)
def shards_of_other_places(world: World, canary: Path) -> None:
    def change(body: dict[str, Any]) -> None:
        for record in body["records"].values():
            record["offset"], record["shape"] = -8, [2**62, 4]

    for path in (world.root / "shards").glob("rows-*.json"):
        _reseal_index(path, change)


@gadget("start", "evaluate", packed=True)
def shards_of_objects(world: World, canary: Path) -> None:
    def change(body: dict[str, Any]) -> None:
        for record in body["records"].values():
            record["dtype"] = "object"

    for path in (world.root / "shards").glob("*.json"):
        if path.name != "pack.json":
            _reseal_index(path, change)


@gadget("start", "evaluate", packed=True)
def shards_that_are_links(world: World, canary: Path) -> None:
    for path in (world.root / "shards").glob("rows-*.bin"):
        path.unlink()
        path.symlink_to("/dev/zero")


# Tables and archives.


def _tar(path: Path, members: dict[str, bytes], *links: tuple[str, bytes, str]) -> None:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, kind, target in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)


@gadget("pack", "check")
def a_tar_that_slips(world: World, canary: Path) -> None:
    names = (f"../../{canary.name}", f"../../../{canary.name}", str(canary), "../a")
    members = {f"{name}.txt": b"red" for name in names} | {f"{n}.cls": b"a" for n in names}
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE)
    links = [(f"l{i}.txt", kind, "/etc/passwd") for i, kind in enumerate(kinds)]
    _tar(world.root / "evil.tar", members, *links)


@gadget("pack", "pack pictures", "check")
def a_tar_of_pickles(world: World, canary: Path) -> None:
    array, zipped = io.BytesIO(), io.BytesIO()
    np.save(array, objects(canary)["a"], allow_pickle=True)
    np.savez(zipped, **objects(canary))
    raw = pickle.dumps(Payload(canary))
    data = {"img.npy": array.getvalue(), "npz": zipped.getvalue(), "pkl": raw, "pth": raw}
    data["txt"] = b"red"
    members = {f"{i}.{end}": content for i in range(4) for end, content in data.items()}
    _tar(world.root / "evil.tar", members | {f"{i}.cls": b"a" for i in range(4)})


@gadget("pack", "check")
def a_tar_with_a_huge_header(world: World, canary: Path) -> None:
    """An extended header of a name that unpacks to 12 GB, in a few megabytes."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 12 * 2**30
    part = gzip.compress(bytes(2**28))
    with (world.root / "evil.tar.gz").open("wb") as file:
        file.write(gzip.compress(info.tobuf(tarfile.GNU_FORMAT)))
        for _ in range(48):
            file.write(part)


@gadget("pack", "check")
def a_tar_of_bombs(world: World, canary: Path) -> None:
    deep = b'{"a":' * DEEP + b"1" + b"}" * DEEP
    members = {"0.json": deep, "1.json": b'{"text": "red", "cls": "a"}', "2.txt": bytes(2**28)}
    _tar(world.root / "evil.tar.gz", members)


@gadget("start", "check manifest")
def a_manifest_that_leads_out(world: World, canary: Path) -> None:
    (world.manifest.parent / "link.png").symlink_to("/etc/passwd")
    os.mkfifo(world.manifest.parent / "pipe.png")
    files = ["/etc/passwd", "../../../../../etc/passwd", "link.png", "pipe.png", "/dev/zero",
             "file:///etc/passwd", "http://127.0.0.1:1/x.png", "~/x", "a\0b.png",
             "|touch x"]  # fmt: skip
    lines = [json.loads(line) for line in world.manifest.read_text().splitlines()]
    for line, name in zip(lines, files, strict=False):
        line["image"] = name
    world.manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))


@gadget("start", "check manifest")
def a_manifest_of_pickles(world: World, canary: Path) -> None:
    """Pictures that are arrays of objects, pickles and archives."""
    folder = world.manifest.parent
    with (folder / "a.npy").open("wb") as file:
        np.save(file, objects(canary)["a"], allow_pickle=True)
    np.savez(folder / "b.npz", **objects(canary))
    (folder / "c.png").write_bytes(pickle.dumps(Payload(canary)))
    with zipfile.ZipFile(folder / "d.png", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(f"../../../{canary.name}", bytes(2**26))
    names = ["a.npy", "b.npz", "c.png", "d.png"]
    lines = [json.loads(line) for line in world.manifest.read_text().splitlines()]
    for i, line in enumerate(lines):
        line["image"] = names[i % 4] if i < 8 else line["image"]
    world.manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))


@gadget("start", "check manifest")
def a_deep_manifest(world: World, canary: Path) -> None:
    with world.manifest.open("a") as file:
        file.write('{"a":' * DEEP + "1" + "}" * DEEP + "\n")
        file.write('{"x": ' + "9" * 10**6 + "}\n")


@gadget("prepared")
def prepared_data_that_name_code(world: World, canary: Path) -> None:
    """A folder of TFDS whose features are classes of other modules, and whose records are none."""
    folder = world.root / "prepared" / "1.0.0"
    folder.mkdir(parents=True)
    split = {"name": "train", "shardLengths": ["4"], "numBytes": "64",
             "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"}  # fmt: skip
    info = {"name": "evil", "version": "1.0.0", "fileFormat": "array_record", "splits": [split]}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    content = {"json": json.dumps(f"mkdir {canary}")}
    feature = {"pythonClassName": "os.system", "jsonFeature": content}
    top = {"pythonClassName": "subprocess.Popen", "featuresDict": {"features": {"x": feature}}}
    (folder / "features.json").write_text(json.dumps(top))
    name = "evil-train.array_record-00000-of-00001"
    (folder / name).write_bytes(pickle.dumps(Payload(canary)) * 20)
