"""The end of a run: every split, each modality alone, the trivial predictor, report examples."""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import numpy as np

import mtmm_jax
from mtmm_jax.data.pipeline.source import Source, split_sizes
from mtmm_jax.devices import parallel
from mtmm_jax.devices.machine import cores
from mtmm_jax.evaluation import (
    Evaluator,
    certainty,
    extremes,
    gallery,
    skills,
    trivial_states,
)
from mtmm_jax.evaluation.split import EXTREMES, compute
from mtmm_jax.model import Model
from mtmm_jax.store.files import finite, write_npz
from mtmm_jax.store.workdir import Workdir
from mtmm_jax.training.experiment import Experiment
from mtmm_jax.training.logs import read_journal
from mtmm_jax.training.loop import evaluation_batches
from mtmm_jax.training.remarks import Findings, remarks, step_times, waiting_share
from mtmm_jax.training.step_metrics import waiting_advice
from mtmm_jax.training.stopping import Progress

RUN = "run.json"
"""When, where and with what a run was trained, and what it cost."""
LOOKED = 128  # rows of a split whose modalities are counted
_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")
SPLITS = ("validation", "test")
FORMAT = 2
"""Of results.json; 1, which had no number, held the splits and the baselines alone."""


def final_results(experiment: Experiment, variables: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The content of `results.json`, and each split's metric states.

    Returns:
        `{"format", split: {task: {metric: value}}, "baselines": {name: {split: ...}}, "intervals":
        ..., "skill": {split: {task: skill}}}`. "intervals" has the shape of all the rest, and
        where that has a value, how many examples it is of and its 95 % interval
        (`evaluation.intervals`). "baselines" and "skill" are there if the config evaluates them.
    """
    evaluator = Evaluator(experiment.model, experiment.devices)
    variables = parallel.replicate(variables, experiment.devices)
    model, states = experiment.model, {}
    results: dict[str, Any] = {"format": FORMAT, "intervals": {}}
    for split in SPLITS:
        states[split] = evaluator.states(variables, evaluation_batches(experiment, split))
        _add(model, results, (split,), states[split])
        if experiment.config["evaluation"]["baselines"]:
            batches = evaluation_batches(experiment, split)
            _add(model, results, ("baselines", "trivial", split), trivial_states(model, batches))
            for name in model.encoders:
                batches = evaluation_batches(experiment, split)
                found = evaluator.states(variables, batches, only=[name])
                _add(model, results, ("baselines", f"only {name}", split), found)
            trivial = results["baselines"]["trivial"][split]
            results.setdefault("skill", {})[split] = skills(model, results[split], trivial)
    if any(task.space is not None for task in experiment.model.tasks.values()):
        states["train"] = evaluator.states(variables, evaluation_batches(experiment, "train"))
    return results, states


def add_remarks(experiment: Experiment, workdir: Workdir, results: dict[str, Any]) -> None:
    """Puts plain sentences about the run, which has all its other results, under "remarks"."""
    tasks, config = experiment.model.tasks, experiment.config
    found = Findings(
        results=results,
        headlines={name: task.headline for name, task in tasks.items()},
        smaller=frozenset(name for name, task in tasks.items() if task.smaller_is_better),
        waited=waiting_share(read_journal(workdir.metrics)),
        advice=waiting_advice(experiment.source, config["data"]),
    )
    results["remarks"] = remarks(found)


def _add(model: Model, results: dict[str, Any], place: Sequence[str], states: Any) -> None:
    """Puts metrics at a place of the results, and at the same place of the intervals these."""
    for whole, part in (
        (results, compute(model, states)),
        (results["intervals"], certainty(model, states)),
    ):
        *above, last = place
        for key in above:
            whole = whole.setdefault(key, {})
        whole[last] = part


def course(
    experiment: Experiment, progress: Progress, best_step: int, last_step: int
) -> dict[str, Any]:
    """The course of training: its length, the checkpoint that counts, and what chose it.

    Args:
        experiment: the run.
        progress: of the validation score, up to the end.
        best_step: of the checkpoint that is evaluated.
        last_step: of training; fewer than the config's steps where it was stopped.
    """
    steps = experiment.config["steps"]
    return {
        "steps": steps,
        "last_step": last_step,
        "stopped_early": last_step < steps,
        "best_step": best_step,
        "score": experiment.config["checkpoint"]["best"],
        "best_score": progress.best,
        "improved_at": progress.step,
        "evaluations_since": progress.stale,
    }


def save_examples(experiment: Experiment, workdir: Workdir, states: Any, pictures: int = 6) -> None:
    """Writes the report's inputs (confusion counts, retrieval answers) and the gallery of
    `predict`."""
    arrays: dict[str, np.ndarray] = {}
    source = experiment.source
    for name, task in experiment.model.tasks.items():
        drawn = task.drawing(states["test"][name], pictures)
        arrays |= {f"{key}/{name}": array for key, array in drawn.items()}
    ids = {int(i) for k, v in arrays.items() if k.startswith(("query", "answer")) for i in v.flat}
    for i in sorted(ids):
        arrays[f"picture/{i}"] = source.picture(i)
        arrays[f"name/{i}"] = np.asarray(source.describe(i))
    write_npz(workdir.examples, arrays | _best_and_worst(experiment, states["test"][EXTREMES]))
    write_npz(workdir.gallery, gallery.build(experiment.model, states.values(), source.describe))


def _best_and_worst(experiment: Experiment, ends: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The test rows that each task does best and worst: their inputs, labels and predictions."""
    arrays: dict[str, np.ndarray] = {}
    for name, state in ends.items():
        decode = experiment.model.tasks[name].decode
        for end, kept in state.items():
            real = np.flatnonzero(kept["id"] >= 0)
            rows = [jax.tree.map(lambda x, i=i: np.asarray(x)[i], kept) for i in real]
            arrays[f"{end}/{name}/id"] = np.asarray(kept["id"])[real]
            arrays[f"{end}/{name}/loss"] = np.asarray(kept["loss"])[real]
            arrays[f"{end}/{name}/y"] = np.asarray(kept["y"])[real]
            decoded = [json.dumps(finite(decode(row["prediction"]))) for row in rows]
            arrays[f"{end}/{name}/predicted"] = np.array(decoded, str)
    ids = {int(i) for key, value in arrays.items() if key.endswith("/id") for i in value}
    size = experiment.config["evaluation"]["batch_size"]
    for i, batch in extremes.inputs_of(experiment.source, "test", ids, size).items():
        arrays[f"row/{i}/name"] = np.asarray(experiment.source.describe(i))
        for modality, entry in batch["inputs"].items():
            if entry["present"][0]:
                for key in ("x", "mask"):
                    if key in entry:
                        arrays[f"row/{i}/{modality}/{key}"] = entry[key][0]
    return arrays


def comparison(results: dict[str, Any], split: str) -> dict[str, Any]:
    """Columns of the table at the end: the model, each modality alone, the trivial predictor, and
    the linear models. Of `results["intervals"]` the same columns, but for the linear ones."""
    columns = {"all modalities": results[split]}
    by_task = (results.get("linear") or {"results": {}})["results"].get(split, {})
    if by_task:  # the last of a task's linear models reads all of its modalities
        columns["linear"] = {task: [*own.values()][-1] for task, own in by_task.items()}
    for name, by_split in sorted(results.get("baselines", {}).items()):
        columns[name] = by_split[split]
    return columns


def facts(experiment: Experiment, workdir: Workdir, seconds: float) -> dict[str, Any]:
    """The content of `RUN`.

    Args:
        experiment: the run.
        workdir: of its journal, which knows how long the steps took, also before it was resumed.
        seconds: since the command was started.
    """
    device = jax.devices()[0]
    return {
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "step_seconds": round(sum(s for _, s in step_times(read_journal(workdir.metrics))), 1),
        "device": f"{jax.device_count()} x {device.device_kind}",
        "cores": len(cores()),
        "processes": jax.process_count(),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(experiment.shapes.params)),
        "rows": split_sizes(experiment.source),
        "present": _presence(experiment.source),
        "versions": {
            "mtmm_jax": mtmm_jax.__version__,
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in _PACKAGES},
        },
    }


def _presence(source: Source) -> dict[str, dict[str, float]]:
    """Split -> modality -> the share of at most `LOOKED` of its rows that have it."""
    found: dict[str, dict[str, float]] = {}
    for split, rows in source.rows.items():
        chosen = np.asarray(rows)[np.linspace(0, len(rows) - 1, min(len(rows), LOOKED)).astype(int)]
        counts = dict.fromkeys(source.spec.modalities, 0)
        for start in range(0, len(chosen), 32):
            batch = source.compose(chosen[start : start + 32], None)
            for name, entry in batch["inputs"].items():
                counts[name] += int(np.sum(entry["present"]))
        if len(chosen):
            found[split] = {name: count / len(chosen) for name, count in counts.items()}
    return found
