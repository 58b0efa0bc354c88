"""Reads what `mtmm_jax.export` wrote. Stands alone: JAX and NumPy, none of the model's code.

    model = load("emoji.zip")
    answers = model.predict({"image": {"x": pictures, "present": np.ones(4, bool)}})
    answers["category"]["probability"]      # [4, classes], names in model.tasks["category"]

The file is a zip: `program.mlir` (StableHLO), `program.json` (what goes in and comes out),
`parameters.npz`, `spec.json`, `assets/` and, as `load.py`, this very module. Parameters of eight
bits (`NAME` int8, `NAME:scale` float32) become float32 as they are read: the file is smaller, the
program the same.
"""

from __future__ import annotations

import dataclasses
import io
import json
import re
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

BYTES, ASSET_BYTES = 2**34, 2**26
"""Of all members of a file, unpacked, and of one of its assets."""
RATIO = 100  # of a file's members to the file, from 256 MB on: weights do not shrink like that


class Exported(NamedTuple):
    """A program with its parameters, and what is needed to feed it.

    Attributes:
        predict: `{modality: {"x", "mask"?, "present"?}}` -> `{task: {output: [B, ...]}}`. What is
            left out is absent (a modality), everything (a mask) or everyone (present).
        tasks: task -> kind, reads, classes and outputs.
        spec: modalities and targets, as the data had them.
        assets: name -> bytes, such as tokenizers.
        rows: of a batch; None for any number.
    """

    predict: Callable[[Mapping[str, Any]], dict[str, dict[str, np.ndarray]]]
    tasks: dict[str, Any]
    spec: dict[str, Any]
    assets: dict[str, bytes]
    rows: int | None


def load(path: Any) -> Exported:
    """Opens an exported file; compiles at the first prediction, and once a batch size."""
    try:
        parts = _parts(path)
        about, spec = (json.loads(parts[f"{name}.json"]) for name in ("program", "spec"))
        code, stored = parts["program.mlir"], _arrays(parts["parameters.npz"])
        params = [jnp.asarray(_parameter(stored, name)) for name in about["parameters"]]
        spec = {key: spec[key] for key in ("modalities", "targets")}
    except OSError:
        raise
    except Exception as error:  # zip, zlib, JSON and NumPy raise many classes
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"{path}: is no exported run, or damaged: {reason}") from error
    names = [name for name in parts if name.startswith("assets/")]
    assets = {name.removeprefix("assets/"): parts[name] for name in names}
    (size,) = export.symbolic_shape("b") if about["rows"] is None else (about["rows"],)

    def shapes(entries: list[dict[str, Any]]) -> list[jax.ShapeDtypeStruct]:
        return [jax.ShapeDtypeStruct((size, *e["shape"]), e["dtype"]) for e in entries]

    # A stranger of the same signature, given the stored program for its own: JAX's way to read its
    # own format asks for a package more.
    zeros = jax.jit(lambda *_: [jnp.zeros(o.shape, o.dtype) for o in shapes(about["outputs"])])
    like = export.export(zeros, platforms=about["platforms"])(params, shapes(about["inputs"]))
    same = {"calling_convention_version": about["calling_convention_version"]}
    kept = tuple(about["kept"])
    program = dataclasses.replace(
        like, mlir_module_serialized=code, module_kept_var_idx=kept, **same
    )
    _check_calls(program.mlir_module())
    call = jax.jit(program.call)

    def predict(inputs: Mapping[str, Any]) -> dict[str, dict[str, np.ndarray]]:
        flat = _flat(inputs, about["inputs"], about["rows"])
        found: dict[str, dict[str, np.ndarray]] = {}
        for entry, value in zip(about["outputs"], call(params, flat), strict=True):
            task, _, output = entry["name"].rpartition(":")
            found.setdefault(task, {})[output] = np.asarray(value)
        return found

    return Exported(predict, about["tasks"], spec, assets, about["rows"])


def _check_calls(text: str) -> None:
    """Refuses a program that would call back into the Python that runs it."""
    for name in re.findall(r'custom_call\s*@([\w.]+)|call_target_name\s*=\s*"([^"]+)"', text):
        if "callback" in "".join(name) or "python" in "".join(name):
            raise ValueError(f"the program calls {''.join(name)!r}, which is code of its reader")


def _parts(path: Any) -> dict[str, bytes]:
    """The members by name, each against its checksum; no more than `BYTES` of them, unpacked."""
    with zipfile.ZipFile(path) as file:
        members = file.infolist()
        size = sum(member.file_size for member in members)
        packed = sum(member.compress_size for member in members)
        if size > BYTES or size > max(RATIO * packed, 2**28):
            raise ValueError(f"would unpack to {size:,} bytes")
        for member in members:
            if member.filename.startswith("assets/") and member.file_size > ASSET_BYTES:
                raise ValueError(f"{member.filename} has {member.file_size:,} bytes")
        return {member.filename: file.read(member) for member in file.infolist()}


def _arrays(data: bytes) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        if sum(member.file_size for member in file.infolist()) > BYTES:
            raise ValueError(f"has parameters of over {BYTES:,} bytes")
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _parameter(stored: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    values, scale = stored[name], f"{name}:scale"
    return values.astype(np.float32) * stored[scale] if scale in stored else values


def _flat(
    inputs: Mapping[str, Any], entries: list[dict[str, Any]], rows: int | None
) -> list[np.ndarray]:
    """The inputs in the program's order, what is left out filled in; a `ValueError` names what is
    wrong."""
    known = sorted({entry["name"].rpartition(":")[0] for entry in entries})
    for name, given in inputs.items():
        if name not in known:
            raise ValueError(f"inputs: unknown modality {name!r}; choices: {', '.join(known)}")
        keys = [
            e["name"].rpartition(":")[2] for e in entries if e["name"].rpartition(":")[0] == name
        ]
        for key in given:
            if key not in keys:
                raise ValueError(f"inputs.{name}: unknown key {key!r}; choices: {', '.join(keys)}")
        if "x" not in given:
            raise ValueError(f"inputs.{name}: has no 'x'")
    sizes = {name: np.shape(given["x"])[0] for name, given in inputs.items()}
    if len(set(sizes.values())) != 1:
        raise ValueError(f"inputs: needs one number of rows for all modalities, not {sizes}")
    size = next(iter(sizes.values()))
    if rows is not None and size != rows:
        raise ValueError(f"inputs: {size} rows; this file was exported for batches of {rows}")
    flat = []
    for entry in entries:
        name, _, key = entry["name"].rpartition(":")
        shape = (size, *entry["shape"])
        if key in inputs.get(name, {}):
            value = np.asarray(inputs[name][key])
        else:
            value = np.full(shape, name in inputs and key != "x", entry["dtype"])
        if value.shape != shape or value.dtype.name != entry["dtype"]:
            raise ValueError(
                f"inputs.{name}.{key}: is {value.dtype.name}{list(value.shape)}; needs "
                f"{entry['dtype']}{list(shape)}"
            )
        flat.append(value)
    return flat
