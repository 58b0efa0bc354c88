"""Chunks of a table -> shards: files decoded, rows laid out, what is bad named."""

from __future__ import annotations

import dataclasses
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtmm_jax.data.sources.manifest.bad import BadRows, Problem
from mtmm_jax.data.sources.manifest.compose import Compose
from mtmm_jax.data.sources.manifest.setting import Setting
from mtmm_jax.data.sources.manifest.shards import Record, write_shard
from mtmm_jax.data.sources.manifest.source import check_limits, kinds_of
from mtmm_jax.data.sources.sharded.frozen import Keeping, inputs_of
from mtmm_jax.data.sources.sharded.layout import Decoded
from mtmm_jax.data.sources.sharded.plan import Plan, load_plan
from mtmm_jax.data.sources.sharded.stream import Chunk, HeldFolder, Stream, open_stream
from mtmm_jax.modalities import Input
from mtmm_jax.registry import ConfigError
from mtmm_jax.targets.column import Label

_TOGETHER = 128  # rows composed at once


@dataclasses.dataclass(frozen=True)
class Packed:
    """A chunk, decoded.

    Attributes:
        records: `[R]` of the layout's dtype.
        words: of each row.
        files: of each row: modality -> its decoded file.
        problems: of rows that cannot be used.
    """

    records: np.ndarray
    words: list[bytes]
    files: list[dict[str, Decoded]]
    problems: list[Problem]


def pack_chunk(plan: Plan, chunk: Chunk, folder: HeldFolder, path: Path | None = None) -> Packed:
    """Decodes the files of a chunk; rows that cannot be used belong to no split.

    Args:
        path: of the table in problems; its name by default.
    """
    folder.held = chunk.held
    path = path or Path(plan.header["table"])
    bad = BadRows.collecting(path, chunk.lines)
    keeping, limits = Keeping(), check_limits(plan.description.get("limits"))
    columns = frozenset(plan.header["columns"])
    setting = Setting(chunk.rows(path, columns), folder, limits, bad, keeping)
    inputs = inputs_of(plan, setting, list(plan.spec.modalities))
    here = slice(chunk.first, chunk.first + len(chunk))
    records = np.zeros(len(chunk), plan.layout.dtype)
    records["part"] = plan.part[here]
    labels = _labels(plan, setting, here)
    compose = Compose(_remembering(inputs, keeping), labels, {n: n for n in labels}, bad)
    files: list[dict[str, Decoded]] = [{} for _ in range(len(chunk))]
    usable = np.array([r for r in np.flatnonzero(records["part"] >= 0) if r not in bad], np.int64)
    for start in range(0, len(usable), _TOGETHER):
        rows = usable[start : start + _TOGETHER]
        for fields, values in _fields(compose(rows, None)):
            if fields in records.dtype.names:
                records[fields][rows] = values
        for name, row, file in compose.inputs.files:
            files[row][name] = file
        compose.inputs.files.clear()
    for row in range(len(chunk)):
        if row in bad:
            records["part"][row], files[row] = -1, {}
    return Packed(records, _words(plan, chunk), files, bad.problems)


class _Inputs(dict[str, Input]):
    """Inputs whose decoded files are kept with the rows that they belong to."""

    files: list[tuple[str, int, Decoded]]


def _remembering(inputs: Mapping[str, Input], keeping: Keeping) -> _Inputs:
    found = _Inputs()
    found.files = []
    for name, one in inputs.items():
        batch = _batch_of(name, one, keeping, found)
        found[name] = dataclasses.replace(one, batch=batch)
    return found


def _batch_of(name: str, one: Input, keeping: Keeping, found: _Inputs) -> Callable[..., Any]:
    def batch(rows: np.ndarray, chance: Any, attempt: Any) -> Any:
        def noting(column: str, cells: Any, decode: Callable[[Any, int], Any]) -> list[Any]:
            def read(value: Any, i: int) -> Any:
                keeping.files.clear()
                out = decode(value, i)
                found.files += [(name, int(rows[i]), file) for _, file in keeping.files[:1]]
                return out

            return attempt(column, cells, read)

        return one.batch(rows, chance, noting)

    return batch


def _labels(plan: Plan, setting: Setting, here: slice) -> dict[str, Label]:
    """The labels of a chunk, as the plan has them; places in a picture are worked out."""
    _, kinds = kinds_of(plan.description["modalities"], plan.description["targets"])
    found = {}
    for name, target in plan.spec.targets.items():
        leaves = {leaf: np.asarray(value[here]) for leaf, value in plan.labels[name].items()}
        known = leaves.pop("present")
        y = leaves["y"] if "y" in leaves else {k.removeprefix("y."): v for k, v in leaves.items()}
        label = Label(target, y, known)
        if name in plan.header["placed"]:
            scratch = BadRows.collecting(setting.rows.path, setting.rows.lines)
            aside = dataclasses.replace(setting, bad=scratch)
            fitted = kinds[name].fit(kinds[name].parse(aside), aside, np.arange(len(known)))
            label = dataclasses.replace(label, of=fitted.of, place=fitted.place)
        found[name] = label
    return found


def _fields(batch: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    for name, entry in batch["inputs"].items():
        for key, value in entry.items():
            yield f"inputs/{name}/{key}", value
    for name, entry in batch["targets"].items():
        yield f"targets/{name}/present", entry["present"]
        if isinstance(entry["y"], Mapping):
            for leaf, value in entry["y"].items():
                yield f"targets/{name}/y.{leaf}", value
        else:
            yield f"targets/{name}/y", entry["y"]


def _words(plan: Plan, chunk: Chunk) -> list[bytes]:
    """The id of each row, and its first text that stands in the table."""
    inputs, _ = kinds_of(plan.description["modalities"], {})
    column, found = plan.description.get("id", "id"), []
    for line, row in zip(chunk.lines, chunk.values, strict=True):
        row = {} if isinstance(row, str) else row
        id = row.get(column)
        text = str(line) if id is None else str(id)[:200]
        for kind in inputs.values():
            cell = row.get(kind.at)
            words = kind.describe(cell) if isinstance(cell, str) else ""
            if words:
                text = f"{text}: {words[:200]}"
                break
        found.append(text.encode(errors="replace"))
    return found


def pack_part(out: Path, table: str, shards: Sequence[int], parent: int | None = None) -> int:
    """Writes those shards of a packing whose plan is in `out`. Returns how many it wrote.

    Args:
        out: the folder.
        table: the path of the table.
        shards: their numbers.
        parent: the process without which this one ends.
    """
    plan = load_plan(out)
    stream = open_stream(table, check_limits(plan.description.get("limits")))
    return pack_shards(out, plan, stream, shards, parent)


def pack_shards(
    out: Path,
    plan: Plan,
    stream: Stream,
    shards: Sequence[int],
    parent: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> int:
    """Writes those shards. Returns how many it wrote."""
    wanted, count = set(shards), 0
    if not wanted:
        return 0
    folder = HeldFolder(stream.root, stream.limits)
    for chunk in stream.chunks(plan.shard_rows, wanted.__contains__):
        if parent is not None and os.getppid() != parent:
            break
        number = chunk.first // plan.shard_rows
        packed = pack_chunk(plan, chunk, folder)
        if packed.problems and plan.description.get("on_bad") == "stop":
            raise ConfigError(str(packed.problems[0]))
        rows, blobs = plan.layout.seal(packed.records, packed.words, packed.files)
        records = {
            "rows": Record(
                (0, 0), {"problems": [dataclasses.asdict(one) for one in packed.problems]}
            ),
            "part": Record((0, 0), {"crc": zlib.crc32(packed.records["part"].tobytes())}),
            "blobs": Record((0, 0)),
        }
        arrays = [rows, packed.records["part"], blobs]
        write_shard(out, records, arrays, plan.path(out, number).stem)
        wanted.discard(number)
        count += 1
        progress(count)
        if not wanted:
            break
    return count
