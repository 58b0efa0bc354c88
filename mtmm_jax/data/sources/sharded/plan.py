"""The plan of a packing before its files are decoded: splits, labels, and learned statistics.

Labels and splits are those of all rows. Tokenizers, means and categories of inputs are learned from
a sample of the training rows, all of them up to `FIT_ROWS`.
"""

from __future__ import annotations

import array
import base64
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtmm_jax.batch import Spec
from mtmm_jax.data.pipeline.source import SPLITS
from mtmm_jax.data.sources.manifest.bad import BadRows, Problem
from mtmm_jax.data.sources.manifest.rows import Rows
from mtmm_jax.data.sources.manifest.setting import Setting
from mtmm_jax.data.sources.manifest.shards import Damaged, Record, open_shard, write_shard
from mtmm_jax.data.sources.manifest.source import (
    check_limits,
    fit_inputs,
    ids_of,
    kinds_of,
    usable_rows,
)
from mtmm_jax.data.sources.manifest.splits import assign_splits
from mtmm_jax.data.sources.sharded.layout import Field, Layout
from mtmm_jax.data.sources.sharded.stream import HeldFolder, Stream, chunk_of
from mtmm_jax.readers.decoder import Decoder
from mtmm_jax.readers.limits import Limits, Unreadable
from mtmm_jax.registry import ConfigError, choose, entry_of
from mtmm_jax.store.files import write
from mtmm_jax.targets.column import Label

VERSION = 1
KEYS = ("modalities", "targets", "split", "id", "limits", "on_bad")
FIT_ROWS = 2**16
_PROBE = 24  # rows that are decoded to see how large they become
_SHARD_BYTES, _LEAST, _MOST = 2**25, 16, 8192  # bytes and rows of a shard
_NAMED = 1000  # problems of rows that are kept in words
_KNOWN = 4096  # different values of a column of which one copy is kept
Progress = Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class Plan:
    """The plan of a packing, used by its writers and by every reader.

    Attributes:
        header: JSON: version, rows, shard_rows, digest of table and options, description, columns,
            fields, decoded, placed, draws, assets, spec, fitted_on, problems.
        part: `[N]` int8: the place of each row's split in `SPLITS`, -1 for none.
        labels: target -> `{leaf: [N, ...]}`, "present" among them.
    """

    header: dict[str, Any]
    part: np.ndarray
    labels: dict[str, dict[str, np.ndarray]]

    @property
    def rows(self) -> int:
        return self.header["rows"]

    @property
    def shard_rows(self) -> int:
        return self.header["shard_rows"]

    @property
    def shards(self) -> int:
        return -(-self.rows // self.shard_rows)

    @property
    def spec(self) -> Spec:
        return Spec.from_dict(self.header["spec"])

    @property
    def layout(self) -> Layout:
        fields = tuple((name, dtype, tuple(shape)) for name, dtype, shape in self.header["fields"])
        return Layout(fields, tuple(self.header["decoded"]))

    @property
    def assets(self) -> dict[str, bytes]:
        return {name: base64.b64decode(text) for name, text in self.header["assets"].items()}

    @property
    def description(self) -> dict[str, Any]:
        return self.header["description"]

    def path(self, out: Path, shard: int) -> Path:
        """Of a shard's index."""
        return out / f"rows-{shard:06d}.json"

    def missing(self, out: Path) -> list[int]:
        """The shards that are not there yet."""
        there = {path.name for path in out.glob("rows-*.json")}
        return [n for n in range(self.shards) if self.path(out, n).name not in there]


def digest_of(
    stream: Stream, description: Mapping[str, Any], tokenizers: Mapping[str, str] | None = None
) -> str:
    """Of a table and of how it is read; `tokenizers` as of `make_plan`."""
    about = {"version": VERSION, "table": stream.digest(), **description}
    if tokenizers:
        about["tokenizers"] = dict(tokenizers)
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()


def save_plan(out: Path, plan: Plan) -> None:
    arrays = {"part": plan.part}
    for name, leaves in plan.labels.items():
        arrays |= {f"{name}/{leaf}": value for leaf, value in leaves.items()}
    write_shard(out, {name: Record((0, 0)) for name in arrays}, list(arrays.values()), "plan")
    body = json.dumps(plan.header, sort_keys=True)
    sealed = {"sha256": hashlib.sha256(body.encode()).hexdigest(), "header": plan.header}
    write(out / "pack.json", json.dumps(sealed, indent=1).encode())


def read_header(out: Path) -> dict[str, Any]:
    """The description of a pack; undamaged JSON, or a `ConfigError`."""
    path = out / "pack.json"
    try:
        sealed = json.loads(path.read_bytes())
        header, written = sealed["header"], sealed["sha256"]
        body = json.dumps(header, sort_keys=True).encode()
    except FileNotFoundError as error:
        raise ConfigError(
            f"{out}: holds no packed rows (pack.json); make them with "
            f"python -m mtmm_jax.data.pack TABLE --out {out}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}; pack the table again") from error
    if hashlib.sha256(body).hexdigest() != written:
        raise ConfigError(f"{path}: is not what was written; pack the table into another folder")
    if header["version"] != VERSION:
        raise ConfigError(f"{path}: has version {header['version']}, not {VERSION}; pack it again")
    return header


def load_plan(out: Path) -> Plan:
    """The plan of a packing that began."""
    header = read_header(out)
    try:
        shard = open_shard(out / "plan.json")
    except Damaged as error:
        raise ConfigError(f"{out / 'plan.json'}: {error}; pack into another folder") from error
    labels: dict[str, dict[str, np.ndarray]] = {name: {} for name in header["spec"]["targets"]}
    for name, record in shard.records.items():
        if name != "part":
            target, leaf = name.rsplit("/", 1)
            labels[target][leaf] = shard.array(record)
    return Plan(header, shard.array(shard.records["part"]), labels)


@dataclasses.dataclass(frozen=True)
class Columns:
    """Some columns of all rows of a table: what labels and splits are read from.

    Attributes:
        path, lines, columns, broken: as of `Rows`.
        cells: column -> the value of every row.
    """

    path: Path
    lines: Sequence[int]
    columns: frozenset[str]
    cells: Mapping[str, list[Any]]
    broken: list[tuple[int, str]] = dataclasses.field(default_factory=list)

    def __len__(self) -> int:
        return len(self.lines)

    def column(self, name: str, where: str) -> list[Any]:
        choose(name, self.columns, where, f"column of {self.path}")
        return self.cells[name]


@dataclasses.dataclass(frozen=True)
class BadAt:
    """`BadRows` for some of the rows, which have other numbers here."""

    bad: BadRows
    places: Sequence[int]

    @property
    def on_bad(self) -> str:
        return self.bad.on_bad

    def row(self, row: int, *args: Any) -> None:
        self.bad.row(self.places[row], *args)

    def structure(self, row: int | None, *args: Any) -> None:
        self.bad.structure(None if row is None else self.places[row], *args)

    def note(self, row: int | None, *args: Any, **kwargs: Any) -> None:
        self.bad.note(None if row is None else self.places[row], *args, **kwargs)

    def __contains__(self, row: int) -> bool:
        return self.places[row] in self.bad


class Recorder:
    """Stands for a store of decoded files, and notes which modalities would use one."""

    def __init__(self) -> None:
        self.name = ""
        self.decoders: dict[str, Decoder] = {}

    def once(self, column: str, cells: Sequence[Any], decoder: Decoder) -> Callable[[str], Any]:
        self.decoders[self.name] = decoder
        return decoder.now


class Sample:
    """Rows evenly spread over a table of unknown length: all of them up to `2 * least`."""

    def __init__(self, least: int) -> None:
        self.least, self.stride = least, 1
        self.rows: list[tuple[int, int, dict[str, Any], dict[str, bytes]]] = []

    def wants(self, place: int) -> bool:
        return place % self.stride == 0

    def add(self, place: int, line: int, row: dict[str, Any], held: dict[str, bytes]) -> None:
        self.rows.append((place, line, row, held))
        if len(self.rows) > 2 * self.least:
            self.stride *= 2
            self.rows = self.rows[::2]

    @property
    def held(self) -> dict[str, bytes]:
        return {name: data for *_, held in self.rows for name, data in held.items()}


@dataclasses.dataclass(frozen=True)
class Survey:
    """The result of one pass over a table."""

    columns: Columns
    sample: Sample
    broken: dict[int, str]


def reading_options(description: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a description that concern reading a table; all others are left out."""
    found = {key: description[key] for key in KEYS if description.get(key) is not None}
    return {"targets": {}, **json.loads(json.dumps(found, default=dataclasses.asdict))}


def make_plan(
    stream: Stream,
    description: Mapping[str, Any],
    collect: bool = False,
    progress: Progress = lambda done: None,
    tokenizers: Mapping[str, str] | None = None,
) -> tuple[Plan, BadRows]:
    """Reads every row once, and of files only what the inputs are fitted to.

    Args:
        stream: the table.
        description: the arguments of `manifest` that say what its columns are.
        collect: whether all that is wrong is kept and nothing raised.
        progress: given the number of rows read, now and then.
        tokenizers: as of `manifest.source.fit_inputs`.
    """
    description = reading_options(description)
    limits = check_limits(description.get("limits"))
    inputs, labels = kinds_of(description["modalities"], description["targets"])
    folder = HeldFolder(stream.root, limits)
    decoded, size = _probe(stream, inputs, folder, limits)
    split, id = description.get("split", "split"), description.get("id", "id")
    needed = {id, *(kind.at for kind in labels.values()), *_columns_of(split)}
    survey = read_columns(stream, needed, decoded, progress)
    on_bad = description.get("on_bad", "skip")
    lines = survey.columns.lines
    bad = BadRows.collecting(stream.path, lines) if collect else BadRows(stream.path, lines, on_bad)
    for place, reason in survey.broken.items():
        bad.row(place, "", None, Unreadable(reason, "broken row"))
    rows = survey.columns
    ids = ids_of(rows, id)
    part = assign_splits(rows, split, ids, bad, "data.packed.split")
    places = [place for place, *_ in survey.sample.rows]
    sample = Rows(
        stream.path,
        [row for _, _, row, _ in survey.sample.rows],
        [line for _, line, _, _ in survey.sample.rows],
        rows.columns,
        root=stream.root,
    )
    recorder, folder.held = Recorder(), survey.sample.held
    of_sample = Setting(sample, folder, limits, BadAt(bad, places), recorder)
    of_all = Setting(rows, folder, limits, bad)
    parsed = {name: kind.parse(of_sample) for name, kind in inputs.items()}
    answers = {name: kind.parse(of_all) for name, kind in labels.items()}
    train = usable_rows(part, bad)["train"]
    if not len(train):
        first = bad.problems[0] if bad.problems else "no row belongs to it"
        bad.structure(None, "", None, f"has no rows for training; {first}", "no training rows")
    seen = np.flatnonzero(np.isin(places, train))
    begin = functools.partial(setattr, recorder, "name")
    ready = fit_inputs(inputs, parsed, of_sample, seen, tokenizers, begin)
    known = {name: kind.fit(answers[name], of_all, train) for name, kind in labels.items()}
    fine = usable_rows(part, bad)
    final = np.full(len(rows), -1, np.int8)
    for i, name in enumerate(SPLITS):
        final[fine[name]] = i
    assets = {
        name: base64.b64encode(data).decode()
        for one in (*ready.values(), *known.values())
        for name, data in one.assets.items()
    }
    fields = [
        *(field for n, one in ready.items() if n not in recorder.decoders for field in _x(n, one)),
        *(field for name, label in known.items() for field in _y(name, label)),
    ]
    spec = Spec(
        {name: one.modality for name, one in ready.items()},
        {name: one.target for name, one in known.items()},
    )
    header = {
        "version": VERSION,
        "rows": len(rows),
        "shard_rows": _rows_of_shard(size + Layout(tuple(fields), ()).dtype.itemsize),
        "digest": digest_of(stream, description, tokenizers),
        "table": stream.path.name,
        "description": description,
        "columns": sorted(rows.columns),
        "fields": fields,
        "decoded": list(recorder.decoders),
        "placed": [name for name, label in known.items() if label.place is not None],
        "draws": {name: one.draws for name, one in ready.items()},
        "assets": assets,
        "spec": spec.to_dict(),
        "fitted_on": [len(seen), len(train)],
        "bad": len(bad),
        "problems": [dataclasses.asdict(problem) for problem in bad.problems[:_NAMED]],
    }
    header = json.loads(json.dumps(header))
    return Plan(header, final, {n: _leaves(k) for n, k in known.items()}), bad


def read_columns(
    stream: Stream, needed: set[str], decoded: Collection[str], progress: Progress
) -> Survey:
    """The needed columns of all rows, and a sample of rows with all columns.

    Args:
        decoded: columns whose bytes are not kept, as they are decoded later.
    """
    cells: dict[str, list[Any]] = {name: [] for name in needed}
    copies: dict[str, dict[Any, Any]] = {name: {} for name in needed}
    lines, columns, broken = array.array("q"), set(), {}
    sample = Sample(FIT_ROWS // 2)
    for place, (line, row) in enumerate(stream.entries(without=decoded)):
        lines.append(line)
        if isinstance(row, str):
            broken[place], row = row, {}
        columns.update(row)
        for name in needed:
            value = row.get(name)
            if isinstance(value, str):
                copy = copies[name].get(value)
                if copy is None and len(copies[name]) < _KNOWN:
                    copies[name][value] = value
                value = value if copy is None else copy
            cells[name].append(value)
        if sample.wants(place) and place not in broken:
            chunk = chunk_of([(place, (line, row))])
            sample.add(place, line, chunk.values[0], chunk.held)
        if place % 1000 == 999:
            progress(place + 1)
    table = Columns(stream.path, lines, frozenset(columns), cells)
    return Survey(table, sample, broken)


def _columns_of(split: str | Mapping[str, Any]) -> set[str]:
    if isinstance(split, str):
        return {split}
    return {split[key] for key in ("stratified", "group", "time") if split.get(key)}


def _probe(
    stream: Stream, inputs: Mapping[str, Any], folder: HeldFolder, limits: Limits
) -> tuple[dict[str, str], int]:
    """The columns of files that are decoded once, and the bytes of a row: the larger of what is
    read and what is kept of it."""
    chunk = next(stream.chunks(_PROBE), None)
    if chunk is None:
        raise ConfigError(f"table {stream.path}: has no rows")
    folder.held = chunk.held
    columns = frozenset(key for row in chunk.values if isinstance(row, dict) for key in row)
    scratch = BadRows.collecting(stream.path, chunk.lines)
    recorder, sizes = Recorder(), [0]
    setting = Setting(chunk.rows(stream.path, columns), folder, limits, scratch, recorder)
    found: dict[str, str] = {}
    for recorder.name, kind in inputs.items():
        try:
            cells = kind.parse(setting)
            kind.fit(cells, setting, np.arange(len(chunk)), _ANY_TOKENIZER)
        except Exception:  # too few rows to fit it to; what is wrong is found with all of them
            continue
        decoder = recorder.decoders.get(recorder.name)
        if decoder is not None:
            found[kind.at] = recorder.name
            sizes.append(max([_packed_size(decoder, name) for name in cells if name], default=0))
    raw = sum(map(len, chunk.held.values())) // max(len(chunk), 1)
    return found, max(sum(sizes), raw)


_ANY_TOKENIZER = (
    '{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": '
    'null, "pre_tokenizer": null, "post_processor": null, "decoder": null, "model": {"type": '
    '"WordLevel", "vocab": {"[PAD]": 0, "[UNK]": 1}, "unk_token": "[UNK]"}}'
)


def _packed_size(decoder: Decoder, name: str) -> int:
    try:
        value = decoder.decode(name)
    except Unreadable:
        return 0
    return 0 if value is None else decoder.pack(value)[1].nbytes


def _rows_of_shard(row_bytes: int) -> int:
    fitting = max(1, _SHARD_BYTES // max(row_bytes, 1))
    return int(min(max(2 ** (fitting.bit_length() - 1), _LEAST), _MOST))


def _x(name: str, one: Any) -> Iterator[Field]:
    """The fields of an input, from a batch of one."""
    nothing = lambda column, cells, decode: [None]  # noqa: E731
    entry, _ = one.batch(np.zeros(1, np.int64), None, nothing)
    if one.draws:
        raise ConfigError(f"pack: {name} is drawn at random and not decoded once; pack the others")
    for key, value in entry.items():
        yield f"inputs/{name}/{key}", value.dtype.str, tuple(value.shape[1:])


def _y(name: str, label: Label) -> Iterator[Field]:
    for leaf, value in _leaves(label).items():
        yield f"targets/{name}/{leaf}", value.dtype.str, tuple(value.shape[1:])


def _leaves(label: Label) -> dict[str, np.ndarray]:
    """A label's arrays by name; that of a label of one array is called `y`."""
    if isinstance(label.y, Mapping):
        return {**{f"y.{leaf}": value for leaf, value in label.y.items()}, "present": label.known}
    return {"y": label.y, "present": label.known}


def problems_of(header: Mapping[str, Any]) -> list[Problem]:
    """The problems found while planning."""
    return [Problem(**fields) for fields in header["problems"]]


def columns_of(description: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The options of a modality, its kind among them."""
    return entry_of(description["modalities"][name])
