"""The end of a run: every split, each modality alone, the trivial predictor, report examples."""

from __future__ import annotations

from typing import Any

import numpy as np

from mtmm_jax.devices import parallel
from mtmm_jax.evaluation import Evaluator, gallery, trivial_results
from mtmm_jax.evaluation.split import compute
from mtmm_jax.store.files import write_npz
from mtmm_jax.store.workdir import Workdir
from mtmm_jax.training.experiment import Experiment
from mtmm_jax.training.loop import evaluation_batches

SPLITS = ("validation", "test")


def final_results(experiment: Experiment, variables: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """`{split: {task: {figure: value}}, "baselines": {...}}`, and each split's metric states."""
    evaluator = Evaluator(experiment.model, experiment.devices)
    variables = parallel.replicate(variables, experiment.devices)
    results: dict[str, Any] = {}
    states: dict[str, Any] = {}
    baselines: dict[str, Any] = {"trivial": {}}
    for split in SPLITS:
        states[split] = evaluator.states(variables, evaluation_batches(experiment, split))
        results[split] = compute(experiment.model, states[split])
        if experiment.config["evaluation"]["baselines"]:
            baselines["trivial"][split] = trivial_results(
                experiment.model, evaluation_batches(experiment, split)
            )
            for modality in experiment.model.encoders:
                baselines.setdefault(f"only {modality}", {})[split] = evaluator.results(
                    variables, evaluation_batches(experiment, split), only=[modality]
                )
    if experiment.config["evaluation"]["baselines"]:
        results["baselines"] = baselines
    if any(task.space is not None for task in experiment.model.tasks.values()):
        states["train"] = evaluator.states(variables, evaluation_batches(experiment, "train"))
    return results, states


def save_examples(experiment: Experiment, workdir: Workdir, states: Any, pictures: int = 6) -> None:
    """What the report draws from (confusion counts, retrieval answers) and `predict` looks up."""
    arrays: dict[str, np.ndarray] = {}
    source = experiment.source
    for name, task in experiment.model.tasks.items():
        drawn = task.drawing(states["test"][name], pictures)
        arrays |= {f"{key}/{name}": array for key, array in drawn.items()}
    ids = {int(i) for k, v in arrays.items() if k.startswith(("query", "answer")) for i in v.flat}
    for i in sorted(ids):
        arrays[f"picture/{i}"] = source.picture(i)
        arrays[f"name/{i}"] = np.asarray(source.describe(i))
    write_npz(workdir.examples, arrays)
    write_npz(workdir.gallery, gallery.build(experiment.model, states.values(), source.describe))


def comparison(results: dict[str, Any], split: str) -> dict[str, Any]:
    """Columns of the table at the end: the model, each modality alone, the trivial predictor, and
    the linear models."""
    columns = {"all modalities": results[split]}
    by_task = (results.get("linear") or {"results": {}})["results"].get(split, {})
    if by_task:  # the last of a task's linear models reads all of its modalities
        columns["linear"] = {task: [*own.values()][-1] for task, own in by_task.items()}
    for name, by_split in sorted(results.get("baselines", {}).items()):
        columns[name] = by_split[split]
    return columns


def finite(value: Any) -> Any:
    """NaN as None: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value
