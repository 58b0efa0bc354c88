"""A finished run's predict function as one file that runs without this package.

The program is StableHLO by `jax.export`, from batches of arrays and presence to predictions in the
user's units; `mtmm_jax.inference.exported` reads it back, and the file carries that reader along.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export

from mtmm_jax import paths
from mtmm_jax.batch import Modality, choose_all
from mtmm_jax.inference import exported
from mtmm_jax.inference.finished import Finished
from mtmm_jax.inference.outputs import answers
from mtmm_jax.modalities import kind_of
from mtmm_jax.model import Model, flatten
from mtmm_jax.ranges import Count
from mtmm_jax.registry import ConfigError, check
from mtmm_jax.store.files import sealed, write
from mtmm_jax.store.workdir import stamped
from mtmm_jax.transfer.quantising import Quantised, quantise

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def entries(modalities: Mapping[str, Modality]) -> dict[str, dict[str, tuple[tuple, str]]]:
    """Modality -> what one of its batches holds: key -> `(shape without the batch, dtype)`."""
    found = {}
    for name, modality in modalities.items():
        if None in modality.shape:
            raise ConfigError(
                f"export: the length of {name!r} varies ({list(modality.shape)}); a program needs "
                "fixed ones: give the data a length and train again"
            )
        entry = {"x": (modality.shape, modality.dtype), "present": ((), "bool")}
        if kind_of(modality).mask != "never":
            entry["mask"] = (modality.shape[:1], "bool")
        found[name] = entry
    return found


def export_run(
    run: Finished,
    path: str | Path,
    *,
    rows: int | None = None,
    platforms: Sequence[str] = ("cpu",),
    tasks: Sequence[str] | None = None,
    int8: bool = False,
) -> Path:
    """Writes a run's best predict function, whole or not at all.

    Args:
        run: as `open_run` gives it.
        path: of the file.
        rows: of a batch; any number by default.
        platforms: that it is to run on.
        tasks: those to tell; all by default.
        int8: whether kernels and embeddings are kept in eight bits (`transfer.quantising`): about
            a quarter of the parameters' bytes, and float32 again once they are read.
    """
    path, model = Path(path), run.experiment.model
    check(rows, Count | None, "--batch")
    choose_all(platforms, PLATFORMS, "--platforms", "platform")
    if not platforms:
        raise ConfigError(f"--platforms: is empty; choices: {', '.join(PLATFORMS)}")
    if path.is_dir() or not path.parent.is_dir():
        raise ConfigError(f"--out: {path} is a folder, or its folder does not exist")
    model, variables = plain(model, run.variables)
    predict = answers(model, run.experiment.config["tasks"], tasks)
    read = {name: model.spec.modalities[name] for name in model.encoders}
    flat = {f"{m}:{key}": leaf for m, e in entries(read).items() for key, leaf in e.items()}
    leaves, tree = jax.tree.flatten(variables)
    (size,) = export.symbolic_shape("b") if rows is None else (rows,)

    def program(params: Any, values: Any) -> list[jax.Array]:
        inputs: dict[str, Any] = {}
        for name, value in zip(flat, values, strict=True):
            modality, _, key = name.rpartition(":")
            inputs.setdefault(modality, {})[key] = value
        outputs = predict(jax.tree.unflatten(tree, params), inputs)
        outputs = {
            f"{task}:{key}": x for task, found in outputs.items() for key, x in found.items()
        }
        names[:] = outputs
        return list(outputs.values())

    names: list[str] = []
    shapes = [jax.ShapeDtypeStruct((size, *shape), dtype) for shape, dtype in flat.values()]
    stated = [jax.ShapeDtypeStruct(np.shape(x), x.dtype) for x in leaves]
    try:
        made = export.export(jax.jit(program), platforms=list(platforms))(stated, shapes)
    except ConfigError:
        raise
    except Exception as error:  # what JAX cannot trace or lower, it says in many classes
        hint = "" if rows else "; a program for batches of one size may do: --batch N"
        reason = str(error).strip().splitlines()[0][:300]
        raise ConfigError(f"export: {type(error).__name__}: {reason}{hint}") from error
    about = {
        "format": 2 if int8 else 1,
        "rows": rows,
        "step": run.step,
        "platforms": list(made.platforms),
        "calling_convention_version": made.calling_convention_version,
        "kept": list(made.module_kept_var_idx),
        "jax": jax.__version__,
        "parameters": list(paths.leaves(variables)),  # in the order of the program
        "inputs": [
            {"name": name, "shape": list(shape), "dtype": dtype}
            for name, (shape, dtype) in flat.items()
        ],
        "outputs": [
            {"name": name, "shape": list(aval.shape[1:]), "dtype": aval.dtype.name}
            for name, aval in zip(names, made.out_avals, strict=True)
        ],
        "tasks": _described(model, names),
    }
    parameters = io.BytesIO()
    np.savez(parameters, **_stored(variables, int8))
    parts = {
        "program.json": json.dumps(about, indent=1).encode(),
        "program.mlir": made.mlir_module_serialized,
        "parameters.npz": parameters.getvalue(),
        "load.py": inspect.getsource(exported).encode(),
        **_kept(run),
    }
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in parts.items():
            # Without a date: the same run gives the same bytes.
            file.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    write(path, whole.getvalue())
    return path


def plain(model: Model, variables: Mapping[str, Any]) -> tuple[Model, dict[str, Any]]:
    """The model without rewrites and what its modules read: LoRA merged, weights rounded."""
    if not model.rewrites:
        return model, variables
    read = jax.jit(model.read)(variables)
    rooms = [rewrite.room for rewrite in model.rewrites]
    params = {room: tree for room, tree in read["params"].items() if room not in rooms}
    return dataclasses.replace(model, rewrites=()), {**read, "params": params}


def _stored(variables: Mapping[str, Any], int8: bool) -> dict[str, np.ndarray]:
    """Path -> array; of a quantised one `path` and `path:scale`."""
    found = {path: np.asarray(leaf) for path, leaf in flatten(variables).items()}
    if int8:
        for path, leaf in flatten(quantise(variables["params"])).items():
            if isinstance(leaf, Quantised):
                found[f"params/{path}"] = np.asarray(leaf.values)
                found[f"params/{path}:scale"] = np.asarray(leaf.scale)
    return found


def _kept(run: Finished) -> dict[str, bytes]:
    """The part of a workdir that reading a manifest needs: spec, assets, config."""
    in_workdir = (run.workdir.path / "config.json").exists()
    assets = run.workdir.assets() if in_workdir else {}
    parts = {f"assets/{name}": content for name, content in assets.items()}
    parts["spec.json"] = sealed(run.experiment.model.spec.to_dict())
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in parts.items()}
    parts["config.json"] = sealed(stamped(_reading(run.experiment.config), digests))
    return parts


def _reading(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of a config what reads rows and writes answers: not where the data were, nor how it was
    trained."""
    data = config["data"]
    known = {key: data[key] for key in ("kind", "modalities", "id") if key in data}
    encoders = {"encoders": config["model"]["encoders"]}
    return {"data": known, "model": encoders, "tasks": config["tasks"]}


def _described(model: Model, names: Sequence[str]) -> dict[str, Any]:
    described: dict[str, Any] = {}
    for name in names:
        task, _, output = name.rpartition(":")
        one = model.tasks[task]
        label = None if one.target is None else model.spec.targets[one.target]
        entry = described.setdefault(
            task,
            {
                "kind": one.kind,
                "reads": list(one.reads),
                "target": one.target,
                "classes": [] if label is None else list(label.classes),
                "outputs": [],
            },
        )
        entry["outputs"].append(output)
    return described
