"""Labels for the rows of a manifest by a finished run: of those that it is sure of, and a queue of
the others.

A row comes out as it went in, with a column for each label and one for how sure the run is, so that
the file is a manifest to train on. A label that a row has already is a person's, and stays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mtmm_jax.data.inspect.annotations import write_rows
from mtmm_jax.data.inspect.annotators import UNCERTAINTIES, Consensus
from mtmm_jax.inference.finished import Finished
from mtmm_jax.inference.manifest_batches import ManifestBatches, columns_of, open_manifest
from mtmm_jax.inference.outputs import answers
from mtmm_jax.inference.prediction import absent
from mtmm_jax.modalities import kind_of
from mtmm_jax.ranges import Natural, Share
from mtmm_jax.registry import ConfigError, check, choose, entry_of
from mtmm_jax.tasks.task import Task
from mtmm_jax.tasks.traits import DIGITS


@dataclasses.dataclass(frozen=True)
class Labelled:
    """A manifest, labelled.

    Attributes:
        rows: of the manifest, with labels and confidences.
        queue: the rows most worth a person's look, the most uncertain first.
        counts: column -> how many rows got a label.
        left_out: lines of the manifest that are no rows.
        without: tasks that have a label of the data and cannot give one (`Task.labelling`).
    """

    rows: list[dict[str, Any]]
    queue: list[dict[str, Any]]
    counts: dict[str, int]
    left_out: int
    without: tuple[str, ...] = ()


def label_manifest(
    run: Finished,
    path: Path,
    out: Path,
    *,
    least: float = 0.9,
    ask: int = 50,
    by: str = "entropy",
    size: int = 64,
) -> Labelled:
    """Writes the labelled rows to `out` and the queue for a person next to it, as
    `<out>.ask.jsonl`.

    Args:
        run: what labels.
        path: of the manifest.
        out: a `.jsonl`; in the manifest's folder where rows name files.
        least: how sure the run must be; at 0 everything is labelled, numbers too, of which it
            cannot say how sure it is.
        ask: how many rows to ask about; 0 for none.
        by: uncertainty by "entropy" or "margin", the mean over the labels that a row lacks.
        size: rows at a time.
    """
    _check(run, path, out, least, ask, by)
    manifest = open_manifest(path, run.workdir)
    outputs = _outputs(run, manifest, size)
    found = _labelled(run, manifest, outputs, least)
    queue = _most_uncertain(run, manifest, outputs, ask, by)
    write_rows(out, found.rows)
    if ask:
        write_rows(ask_file(out), queue)
    return dataclasses.replace(found, queue=queue)


def ask_file(out: Path) -> Path:
    """The path of the rows that a person should label."""
    return out.with_name(f"{out.stem}.ask.jsonl")


def _check(run: Finished, path: Path, out: Path, least: float, ask: int, by: str) -> None:
    choose(by, UNCERTAINTIES, "--by", "uncertainty")
    choose(out.suffix.lower(), (".jsonl",), f"--out {out}", "ending")
    check(least, Share, "--least")
    check(ask, Natural, "--ask")
    if out.resolve() == path.resolve():
        raise ConfigError(f"--out: {out} is the manifest itself; choose another name")
    model = run.experiment.model
    files = any(kind_of(model.spec.modalities[name]).files for name in model.encoders)
    if files and out.parent.resolve() != path.parent.resolve():
        raise ConfigError(
            f"--out: {out} is not in the folder of {path}, from which its rows name their files; "
            f"choose {path.parent / out.name}"
        )
    if not _tasks(run):
        raise ConfigError(
            "--label: no task of the run gives labels (tasks.traits.Labelling); it has: "
            f"{', '.join(f'{n} ({t.kind})' for n, t in run.experiment.model.tasks.items())}"
        )


def _tasks(run: Finished) -> dict[str, Task]:
    """Column -> the task that labels it: of several for one label the first."""
    own = columns_of(run.workdir).get("targets", {})
    found: dict[str, Task] = {}
    for name, task in run.experiment.model.tasks.items():
        if task.labelling is not None and name in run.experiment.config["tasks"]:
            entry = entry_of(own.get(task.target, {}))
            found.setdefault(entry.get("column") or task.target, task)
    return found


def _without(run: Finished) -> tuple[str, ...]:
    """The tasks of the config that have a label, which neither they nor others give."""
    given = {task.target for task in _tasks(run).values()}
    model, configs = run.experiment.model, run.experiment.config["tasks"]
    return tuple(
        name
        for name, task in model.tasks.items()
        if name in configs and task.target is not None and task.target not in given
    )


def _outputs(
    run: Finished, manifest: ManifestBatches, size: int
) -> dict[str, dict[str, np.ndarray]]:
    """Column -> output -> `[rows, ...]`; `present` is False where there is no prediction."""
    tasks, count = _tasks(run), len(manifest.rows)
    names = [task.name for task in tasks.values()]
    model = run.experiment.model
    predict = jax.jit(answers(model, run.experiment.config["tasks"], names))
    by_column: dict[str, dict[str, np.ndarray]] = {column: {} for column in tasks}
    for rows, inputs in manifest.batches(size):
        part = jax.device_get(predict(run.variables, {**absent(run, size), **inputs}))
        for column, task in tasks.items():
            for output, values in part[task.name].items():
                whole = by_column[column].setdefault(
                    output, np.zeros((count, *values.shape[1:]), values.dtype)
                )
                whole[rows] = values[: len(rows)]
    bad = np.array([row in manifest.bad for row in range(count)], bool)
    for outputs in by_column.values():
        outputs["present"] = outputs.get("present", np.zeros(count, bool)) & ~bad
    return by_column


def _row(outputs: Mapping[str, np.ndarray], i: int) -> dict[str, Any]:
    return {name: values[i] for name, values in outputs.items()}


def _labelled(
    run: Finished,
    manifest: ManifestBatches,
    by_column: Mapping[str, Mapping[str, Any]],
    least: float,
) -> Labelled:
    rows, tasks = [], _tasks(run)
    counts = dict.fromkeys(tasks, 0)
    for i, given in enumerate(manifest.rows.values):
        row = dict(given)
        for column, task in tasks.items():
            outputs = by_column[column]
            if row.get(column) is not None:
                continue
            row[column], row[f"{column}_confidence"] = None, None
            if not outputs["present"][i]:
                continue
            label, confidence = task.labelling.label(_row(outputs, i))
            if confidence is not None:
                row[f"{column}_confidence"] = round(confidence, DIGITS)
            if (confidence or 0.0) >= least:
                row[column] = label
                counts[column] += 1
        rows.append(row)
    return Labelled(rows, [], counts, len(manifest.rows.broken), _without(run))


def uncertainty(p: np.ndarray, by: str) -> np.ndarray:
    """`[N]` in 0..1 of probabilities `[N, Q, C]`: the mean over the Q questions."""
    return _doubt(p.reshape(-1, p.shape[-1]), by).reshape(p.shape[:2]).mean(1)


def _doubt(p: np.ndarray, by: str) -> np.ndarray:
    """As of votes that came to these probabilities."""
    p = np.asarray(p, np.float64)
    none = np.zeros(len(p), bool)
    return Consensus(p.argmax(1), p, p.mean(0), np.zeros((0, 0, 0)), (), none).uncertainty(by)


def _most_uncertain(
    run: Finished,
    manifest: ManifestBatches,
    by_column: Mapping[str, Mapping[str, Any]],
    count: int,
    by: str,
) -> list[dict[str, Any]]:
    """One list over all labels: a row's uncertainty is the mean over those that it lacks."""
    tasks, values = _tasks(run), manifest.rows.values
    total, labels = np.zeros(len(values)), np.zeros(len(values))
    for column, task in tasks.items():
        if task.labelling.distributions is None:
            continue
        lacks = np.array([row.get(column) is None for row in values], bool)
        open_ = lacks & by_column[column]["present"]
        doubt = np.zeros(len(values))
        if open_.any():
            outputs = {name: values[open_] for name, values in by_column[column].items()}
            doubt[open_] = uncertainty(task.labelling.distributions(outputs), by)
        total, labels = total + doubt, labels + open_
    mean = total / np.maximum(labels, 1)
    order = np.lexsort((-mean.round(9), labels == 0))[: min(count, int((labels > 0).sum()))]
    return [
        {
            **values[i],
            "row": manifest.rows.lines[i],
            "uncertainty": round(float(mean[i]), DIGITS),
            "likely": {
                column: task.labelling.likely(_row(by_column[column], i))
                for column, task in tasks.items()
                if task.labelling.likely is not None
                and by_column[column]["present"][i]
                and values[i].get(column) is None
            },
        }
        for i in order
    ]
