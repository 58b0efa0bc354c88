"""Batches of a manifest's rows as inputs of a finished run.

Files, texts and numbers are read as the run's own data were, with what the run learned of them
(tokenizers, means, categories) and nothing learned anew. Anything may be absent from any row.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtmm_jax import registry
from mtmm_jax.data.pipeline.pipes import Pipe
from mtmm_jax.data.sources.manifest.bad import BadRows
from mtmm_jax.data.sources.manifest.compose import Compose
from mtmm_jax.data.sources.manifest.rows import Rows, read_rows
from mtmm_jax.data.sources.manifest.setting import Setting
from mtmm_jax.data.sources.sharded.source import COLUMNS
from mtmm_jax.modalities import Input, Kept, kind_of
from mtmm_jax.readers.files import Folder
from mtmm_jax.readers.limits import Limits, Unreadable
from mtmm_jax.registry import ConfigError
from mtmm_jax.store import files
from mtmm_jax.store.workdir import WAY_OUT, Workdir


@dataclasses.dataclass(frozen=True)
class ManifestBatches:
    """A manifest's rows, batched as inputs of one run.

    Attributes:
        rows: of the manifest.
        compose: rows -> a batch without labels.
        bad: the rows that cannot be used, as far as is known.
        id: the column that names a row.
        absent: modalities of the run that no row has.
    """

    rows: Rows
    compose: Compose
    bad: BadRows
    id: str
    absent: tuple[str, ...]

    @property
    def usable(self) -> np.ndarray:
        """The rows that are not known to be bad."""
        return np.array([row for row in range(len(self.rows)) if row not in self.bad], np.int64)

    def batches(self, size: int) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
        """`(rows, inputs)` in order; inputs always have `size` rows, the last ones repeated, and
        the rows counted are those that can be used."""
        return ((rows, inputs) for rows, (inputs,) in batches_of([self], size))

    def named(self, row: int) -> dict[str, Any]:
        """The line of a row and its id, which is the line where it has none."""
        line = self.rows.lines[row]
        id = self.rows.values[row].get(self.id)
        return {"line": line, "id": line if id is None else id}


def batches_of(
    several: Sequence[ManifestBatches], size: int
) -> Iterator[tuple[np.ndarray, list[dict[str, Any]]]]:
    """`ManifestBatches.batches` of the same manifest for several runs: inputs for each."""
    fine = several[0].usable
    for start in range(0, len(fine), size):
        rows = fine[start : start + size]
        padded = np.pad(rows, (0, size - len(rows)), mode="edge")
        yield rows, [one.compose(padded, None)["inputs"] for one in several]


def open_manifest(path: str | Path, workdir: Workdir, on_bad: str = "skip") -> ManifestBatches:
    """A `.jsonl` or `.csv` as `data.manifest` reads them, for what a run reads.

    Columns are called as the modalities, or as the run's own manifest called them. A table has a
    column for each of its numbers and categories, or in JSONL a list under its own name; a series
    is a list of steps, or the name of a `.csv` or `.npy` file.

    Args:
        path: of the manifest; files that it names lie in its folder or below.
        workdir: of the run.
        on_bad: "skip", or "stop" to make the first bad row an error that names it.
    """
    return open_all(path, [workdir], on_bad)[0]


def open_all(
    path: str | Path, workdirs: Sequence[Workdir], on_bad: str = "skip"
) -> list[ManifestBatches]:
    """One manifest for several runs; a row that is bad for one of them is skipped by all.

    Args:
        path, on_bad: as for `open_manifest`.
        workdirs: of the runs; one that reads no column is not refused if others do.
    """
    limits, path = Limits(), Path(path)
    rows = read_rows(path, limits)
    bad = BadRows(path, rows.lines, on_bad)
    for line, reason in rows.broken:
        bad.line(line, reason)
    setting = Setting(rows, Folder(rows.base, limits), limits, bad)
    found, wanted = [], {}
    for workdir in workdirs:
        id = columns_of(workdir).get("id", "id")
        inputs, absent = _inputs(setting, workdir)
        found.append(ManifestBatches(rows, Compose(inputs, {}, {}, bad), bad, id, tuple(absent)))
        wanted |= dict.fromkeys(absent)
    if not any(one.compose.inputs for one in found):
        raise ConfigError(
            f"--manifest: {path} has no column that the run reads; wanted one or more of: "
            f"{', '.join(wanted)}; it has: {', '.join(sorted(rows.columns)) or 'none'}"
        )
    return found


def read_one(name: str, value: str, workdir: Workdir) -> dict[str, Any]:
    """A value on the command line, such as a table as JSON, as a row of a manifest: a batch of one.

    Args:
        name: of the modality.
        value: what its kind reads (`ModalityKind.row`).
        workdir: of the run.
    """
    kept, where = kept_of(name, workdir), Path(f"--{name}")
    try:
        values = kind_of(kept.modality).row(value, kept)
    except ConfigError:
        raise
    except (Unreadable, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{where}: cannot read {value!r}: {reason}") from error
    rows, limits = Rows(where, [values], [1], frozenset(values)), Limits()
    setting = Setting(rows, Folder(".", limits), limits, BadRows(where, [1], "stop"))
    inputs, _ = _inputs(setting, workdir, only=name)
    if not inputs:
        wanted = ", ".join(kept.modality.names)
        raise ConfigError(f"{where}: {value!r} has none of: {wanted}")
    return Compose(inputs, {}, {}, setting.bad)(np.zeros(1, np.int64), None)["inputs"][name]


def kept_of(name: str, workdir: Workdir) -> Kept:
    """The statistics of a modality that a run keeps."""
    modality = workdir.spec().modalities[name]
    own = columns_of(workdir).get("modalities", {})
    given = registry.entry_of(own.get(name, modality.kind))
    asset = functools.partial(_asset, workdir)
    pipe = (asset("pipes.json") or {}).get(name)
    return Kept(
        name=name,
        modality=modality,
        options=given,
        asset=asset,
        tokenizer=functools.partial(workdir.tokenizer, name),
        pipe=None if pipe is None else functools.partial(_through, pipe),
    )


def columns_of(workdir: Workdir) -> dict[str, Any]:
    """The columns of the run's training manifest: `modalities`, `targets` and `id`, of the config
    or of the packing; empty where its data were no table."""
    data = workdir.section("data")
    return data if data["kind"] == "manifest" else _asset(workdir, COLUMNS) or {}


def _asset(workdir: Workdir, name: str) -> Any:
    if not workdir.has_asset(name):
        return None
    return files.parse(workdir.asset(name), workdir.file(f"assets/{name}"), WAY_OUT)


def _through(pipe: Mapping[str, Any], values: Sequence[Any]) -> dict[str, Any]:
    return Pipe.from_dict(pipe).entry(values, None)


def _inputs(
    setting: Setting, workdir: Workdir, only: str | None = None
) -> tuple[dict[str, Input], list[str]]:
    """The modalities that some row has, ready to be read, and the others' columns."""
    encoders = workdir.section("model", "encoders")
    inputs, absent = {}, []
    for name, modality in workdir.spec().modalities.items():
        if encoders.get(name) is None or only not in (None, name):
            continue
        if None in modality.shape:
            raise ConfigError(
                f"--manifest: the length of {name!r} varies ({list(modality.shape)}); rows of a "
                "manifest are read at a fixed one"
            )
        kept = kept_of(name, workdir)
        found = kind_of(modality).input_of(kept, setting)
        if found is None:
            absent.append(kept.column)
        else:
            inputs[name] = found
    return inputs, absent
