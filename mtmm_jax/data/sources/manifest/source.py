"""A folder of files, described row by row by a JSONL or CSV file, as a `Source`."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mtmm_jax.batch import Spec, choose_all
from mtmm_jax.data.pipeline.source import SPLITS, Source
from mtmm_jax.data.sources.manifest.bad import ON_BAD, BadRows
from mtmm_jax.data.sources.manifest.compose import Compose, picture_of
from mtmm_jax.data.sources.manifest.decoded import Decoded, Where
from mtmm_jax.data.sources.manifest.rows import Rows, read_rows
from mtmm_jax.data.sources.manifest.setting import Setting
from mtmm_jax.data.sources.manifest.splits import assign_splits
from mtmm_jax.modalities import Input, column_of
from mtmm_jax.ranges import Natural, Threads
from mtmm_jax.readers.files import Folder
from mtmm_jax.readers.limits import Limits
from mtmm_jax.registry import ConfigError, build, choose, section_of
from mtmm_jax.targets import columns
from mtmm_jax.text import UNITS, Tokenizers

_WHERE = "data.manifest"


def manifest(
    path: str | os.PathLike[str] | Any,
    *,
    modalities: Mapping[str, Any],
    targets: Mapping[str, Any],
    split: str | Mapping[str, Any] = "split",
    id: str = "id",
    on_bad: str = "skip",
    limits: Mapping[str, Any] | Limits | None = None,
    augment: bool = True,
    seed: Natural = 0,
    workers: Threads = 1,
    decoded: Where = None,
    tokenizers: Tokenizers = None,
) -> Source:
    """Examples from the rows of `path`; the files that it names lie in its folder or below.

    Anything may be absent from any row: no key or `null` in JSONL, an empty cell in CSV. What is
    learned (classes, means, tokenizers) is learned from the train split. Rows whose values cannot
    be used are left out of their split; rows whose files cannot be decoded weigh nothing in their
    batches. `source.compose.bad` counts and names both.

    Costs decoding, once if cached. Use it: for your own data, as a CSV or JSONL that names files.
    Not: for millions of files (`packed`).

    Args:
        path: a `.jsonl` (an object a line), a `.csv` or `.tsv` with a header (UTF-8, any usual
            delimiter), a `.parquet`, a folder (`class/file`, or with `metadata.csv`), or columns in
            memory; see `rows.read_rows`.
        modalities: name -> a kind of `modalities.MODALITIES` with its options, such as
            `{"kind": "image", "column": "photo", "size": 64}`. The column is called as the
            modality by default.
        targets: name -> a kind of label (`targets.columns`) with its options.
        split: the column that says train, validation or test, or the share of each, such as
            `{"train": 0.8, "validation": 0.1, "test": 0.1}`: then the hash of the id decides, or
            what `seed`, `stratified`, `group` or `time` next to the shares say
            (`splits.SplitOptions`).
        id: the column that names an example, for shares and reports; the line without one.
        on_bad: "skip", or "stop" to make the first bad row an error that names it.
        limits: what is refused for its size; see `Limits`.
        augment: whether training takes other moments of clips and recordings than evaluation.
        seed: of shuffling and augmentation.
        workers: threads that make batches.
        decoded: where pictures and recordings are kept, decoded once before the first step: a
            folder; None for one below the cache (`$MTMM_JAX_DATA`, else `~/.cache/mtmm_jax`); or
            False to decode files in every epoch.
        tokenizers: given by `data.build`: of some texts, by modality.
    """
    limits = check_limits(limits)
    choose(on_bad, ON_BAD, f"{_WHERE}.on_bad")
    rows = read_rows(path, limits)
    return from_rows(
        rows,
        Folder(rows.base, limits),
        BadRows(rows.path, rows.lines, on_bad),
        limits,
        modalities=modalities,
        targets=targets,
        split=split,
        id=id,
        augment=augment,
        seed=seed,
        workers=workers,
        decoded=decoded,
        tokenizers=tokenizers,
    )


def check_limits(limits: Mapping[str, Any] | Limits | None) -> Limits:
    if isinstance(limits, Limits):
        return limits
    like = "{'file_bytes': 1000000}"
    return Limits(**section_of(limits or {}, Limits, f"{_WHERE}.limits", like))


def from_rows(
    rows: Rows,
    folder: Folder,
    bad: BadRows,
    limits: Limits,
    *,
    modalities: Mapping[str, Any],
    targets: Mapping[str, Any],
    split: str | Mapping[str, Any] = "split",
    id: str = "id",
    augment: bool = True,
    seed: Natural = 0,
    workers: Threads = 1,
    decoded: Where = False,
    name: str = "manifest",
    tokenizers: Tokenizers = None,
) -> Source:
    """The source `manifest` from rows that are read."""
    inputs, labels = kinds_of(modalities, targets)
    store = Decoded(folder, limits, decoded)
    setting = Setting(rows, folder, limits, bad, store)
    for line, reason in rows.broken:
        bad.line(line, reason)
    ids = ids_of(rows, id)
    part = assign_splits(rows, split, ids, bad, f"{_WHERE}.split")
    parsed = {name: kind.parse(setting) for name, kind in inputs.items()}
    answers = {name: kind.parse(setting) for name, kind in labels.items()}
    train = usable_rows(part, bad)["train"]
    if not len(train):
        first = bad.problems[0] if bad.problems else "no row belongs to it"
        bad.structure(None, "", None, f"has no rows for training; {first}", "no training rows")
    ready = fit_inputs(inputs, parsed, setting, train, tokenizers)
    known = {name: kind.fit(answers[name], setting, train) for name, kind in labels.items()}
    columns = {name: kind.at for name, kind in labels.items()}
    compose = Compose(ready, known, columns, bad)
    assets = [part.assets for part in (*ready.values(), *known.values())]
    return Source(
        name=name,
        spec=Spec(
            {name: one.modality for name, one in ready.items()},
            {name: one.target for name, one in known.items()},
        ),
        rows=usable_rows(part, bad),
        compose=compose,
        draws=sum(one.draws for one in ready.values()),
        assets={name: data for part in assets for name, data in part.items()},
        describe=functools.partial(_describe, ids, inputs, parsed),
        picture=picture_of(compose),
        augment=augment,
        seed=seed,
        workers=workers,
        prepare=store.fill,
        raw=lambda chosen: [rows.values[row] for row in chosen],
    )


def kinds_of(
    modalities: Mapping[str, Any], targets: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of modalities and targets, checked."""
    for what, given in (("modalities", modalities), ("targets", targets)):
        if not isinstance(given, Mapping) or (what == "modalities" and not given):
            raise ConfigError(f"{_WHERE}.{what}: {given!r} names none")
    inputs = {
        name: column_of(_origin(spec), name, f"{_WHERE}.modalities.{name}")
        for name, spec in modalities.items()
    }
    labels = {
        name: build(columns(), spec, where=f"{_WHERE}.targets.{name}", own=name)
        for name, spec in targets.items()
    }
    pictures = [name for name, kind in inputs.items() if kind.pictured]
    for name, kind in labels.items():
        choose_all(kind.made_from, inputs, f"{kind.where}.made_from", "modality")
        labels[name] = kind.with_pictures(pictures)
    texts = [kind for kind in inputs.values() if kind.tokenized]
    for key in ("vocabulary", "units"):
        found = {getattr(kind, key) for kind in texts}
        if len(found) > 1:
            raise ConfigError(
                f"{_WHERE}.modalities: texts share one tokenizer; {key} is {sorted(found)}"
            )
    return inputs, labels


def _origin(spec: Any) -> Any:
    """`from` is no name that Python lets a parameter have."""
    if not isinstance(spec, Mapping) or "from" not in spec:
        return spec
    return {"origin" if key == "from" else key: value for key, value in spec.items()}


def ids_of(rows: Rows, column: str) -> list[str]:
    """The name of each row: that of the column, or its line."""
    if column == "id" and column not in rows.columns:
        return [str(line) for line in rows.lines]
    found = rows.column(column, f"{_WHERE}.id")
    return [
        str(line) if value is None else str(value)[:200]
        for line, value in zip(rows.lines, found, strict=True)
    ]


def usable_rows(part: np.ndarray, bad: BadRows) -> dict[str, np.ndarray]:
    """Split -> the rows in it that are not known to be bad."""
    fine = np.array([row not in bad for row in range(len(part))], bool)
    return {split: np.flatnonzero((part == i) & fine) for i, split in enumerate(SPLITS)}


def fit_inputs(
    inputs: Mapping[str, Any],
    parsed: Mapping[str, Any],
    setting: Setting,
    train: np.ndarray,
    tokenizers: Tokenizers = None,
    begin: Callable[[str], None] = lambda name: None,
) -> dict[str, Input]:
    """The inputs, fitted to the train split.

    Args:
        inputs: name -> column.
        parsed: name -> its cells.
        setting: of the table.
        train: its rows that inputs are fitted to.
        tokenizers: modality -> the `tokenizer.json` in whose ids its texts are, of those that have
            one; the others share one that is made of their words.
        begin: given the name of each input before it is fitted.
    """
    given = {name: text for name, text in (tokenizers or {}).items() if name in inputs}
    trained = {name: kind for name, kind in inputs.items() if name not in given}
    tokenizer = _shared_tokenizer(trained, parsed, setting, train)
    ready = {}
    for name, kind in inputs.items():
        begin(name)
        ready[name] = kind.fit(parsed[name], setting, train, given.get(name, tokenizer))
    for name, text in given.items():
        setting.some(inputs[name].at, parsed[name], train)
        own = {f"{name}.tokenizer.json": text.encode()}
        ready[name] = dataclasses.replace(ready[name], assets=own)
    return ready


def _shared_tokenizer(
    inputs: Mapping[str, Any], parsed: Mapping[str, Any], setting: Setting, train: np.ndarray
) -> str:
    """The `tokenizer.json` that all texts of a manifest share; empty where it has none."""
    readers = {name: kind for name, kind in inputs.items() if kind.tokenized}
    if not readers:
        return ""
    texts = [
        text for name, kind in readers.items() for text in kind.texts(parsed[name], setting, train)
    ]
    like = next(iter(readers.values()))
    return UNITS[like.units](texts, like.vocabulary)


def _describe(
    ids: Sequence[str], inputs: Mapping[str, Any], parsed: Mapping[str, Any], id: int
) -> str:
    """The id, and the first text that stands in the manifest."""
    for name, kind in inputs.items():
        # The cells of a table are one list for each column.
        words = kind.describe(parsed[name][id]) if len(parsed[name]) == len(ids) else ""
        if words:
            return f"{ids[id]}: {words[:200]}"
    return ids[id]
