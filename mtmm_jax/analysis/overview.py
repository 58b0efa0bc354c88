"""One look at a finished run from all sides: what its modalities give, and what they cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mtmm_jax.analysis import pages
from mtmm_jax.analysis.contribution import contributions, missing_modalities
from mtmm_jax.analysis.cost import step_cost
from mtmm_jax.analysis.intermediates import HeatMap, Known, PatchMap, collect, drawn
from mtmm_jax.analysis.modality_affinity import affinity, pooled_features, suggested_fusion
from mtmm_jax.analysis.selection import labels_of, selection
from mtmm_jax.batch import Batch
from mtmm_jax.devices import parallel
from mtmm_jax.evaluation.robustness import curves, passes, summary
from mtmm_jax.evaluation.subsets import Probe, subset_scores
from mtmm_jax.inference.finished import Finished
from mtmm_jax.inference.prediction import kept_tokenizer
from mtmm_jax.ranges import Count
from mtmm_jax.registry import check
from mtmm_jax.store.files import finite, write_npz
from mtmm_jax.store.workdir import Workdir
from mtmm_jax.text import piece_of
from mtmm_jax.training.experiment import Experiment
from mtmm_jax.training.peaks import against_peak, peak

Advance = Callable[[], Any]
Stage = Callable[[str, int], Advance]
SAMPLES = 8  # whose gates and attention are drawn


def some_batches(experiment: Experiment, split: str, examples: int) -> list[Batch]:
    """Batches of at most so many examples, spread evenly over a split."""
    check(examples, Count, "--examples")
    source = experiment.source
    rows = source.rows[split]
    kept = rows[np.linspace(0, len(rows) - 1, min(examples, len(rows))).round().astype(int)]
    part = dataclasses.replace(source, rows={**source.rows, split: kept})
    return list(part.batches(split, experiment.config["evaluation"]["batch_size"]))


def study(
    run: Finished,
    split: str = "validation",
    examples: int = 512,
    stage: Stage = lambda name, count: lambda: None,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """All analyses of a run, as plain numbers for JSON, and the arrays of its pictures.

    Args:
        run: opened with its data.
        split: whose examples are looked at.
        examples: how many at most.
        stage: called with a stage's name and its number of parts, returns the callback of each
            part.
    """
    experiment, model = run.experiment, run.experiment.model
    batches = some_batches(experiment, split, examples)
    probe = Probe(model, experiment.devices)
    variables = parallel.replicate(run.variables, experiment.devices)
    advance = stage("subsets of the modalities", len(batches) * 2 ** len(model.encoders))
    scores = subset_scores(probe, variables, batches, advance)
    advance = stage("robustness", len(batches) * passes(model))
    found = curves(probe, variables, batches, advance=advance)
    advance = stage("affinity, attention and gates", 2)
    features, present, ids = pooled_features(model, run.variables, batches)
    related = affinity(features, present, ids)
    advance()
    name, reason = suggested_fusion(related)
    inside, arrays = intermediates(run, batches)
    advance()
    advance = stage("cost", 1)
    train = next(experiment.source.batches(split, experiment.config["batch_size"]))
    price = step_cost(experiment, train)
    price |= against_peak(price["step_flops"], price["step_seconds"], peak())
    advance()
    report = {
        "step": run.step,
        "split": split,
        "examples": int(sum((batch["weight"] > 0).sum() for batch in batches)),
        "contribution": contributions(model, scores),
        "subsets": missing_modalities(model, scores),
        "affinity": {**related, "suggestion": {"fusion": name, "reason": reason}},
        "selection": selection(features, present, labels_of(batches, model.spec), model.spec),
        "robustness": summary(model, found),
        "cost": price,
        "intermediates": inside,
    }
    return _plain(report), arrays


def intermediates(
    run: Finished, batches: Sequence[Batch]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The gates and attention of some samples: those that have the most modalities."""
    model = run.experiment.model
    first = batches[0]
    there = np.stack([np.asarray(first["inputs"][m]["present"]) for m in model.encoders]).sum(0)
    whole = np.flatnonzero((there == there.max()) & (first["weight"] > 0))
    rows = np.unique(whole[np.linspace(0, len(whole) - 1, SAMPLES).round().astype(int)])
    inputs = {
        name: {key: np.asarray(leaf)[rows] for key, leaf in entry.items()}
        for name, entry in first["inputs"].items()
    }
    samples = tuple(run.experiment.source.describe(int(i)) for i in first["id"][rows])
    heat, patches = looked_at(run, inputs, samples)
    numbers, arrays = pages.stored(heat, patches)
    for shown in patches:
        if model.spec.modalities[shown.modality].is_a("image"):
            x = np.asarray(inputs[shown.modality]["x"][shown.sample], np.float32)
            arrays[f"picture/{shown.modality}/{shown.sample}"] = np.clip((x + 1) / 2, 0, 1)
    return numbers, arrays


def looked_at(
    run: Finished, inputs: Mapping[str, Any], samples: Sequence[str]
) -> tuple[list[HeatMap], list[PatchMap]]:
    """The gates, weights and attention of some samples, by what a person calls them."""
    model = run.experiment.model
    seen, spans, fused = collect(model, run.variables, {"inputs": inputs})
    words = {
        name: _words(run.workdir, name, inputs[name])
        for name in spans
        if model.spec.modalities[name].is_a("text")
        and spans[name].length == inputs[name]["x"].shape[1]
    }
    return drawn(seen, Known(tuple(samples), words, spans, fused, tuple(model.sharing.tasks)))


def _words(workdir: Workdir, name: str, entry: dict[str, np.ndarray]) -> list[list[str]]:
    """Each row's tokens as written; their ids where the run keeps no tokenizer."""
    mask = entry.get("mask", np.ones(entry["x"].shape, bool))
    mask = mask & entry["present"][:, None]
    tokenizer = kept_tokenizer(workdir, name)

    def word(token: int) -> str:
        return piece_of(tokenizer, token).replace("\u2581", "")

    return [[word(int(i)) for i in x[keep]] for x, keep in zip(entry["x"], mask, strict=True)]


def save_study(workdir: Workdir, report: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Writes `analysis.npz`, then `analysis.json`, which records that both exist."""
    write_npz(workdir.path / pages.ARRAYS, arrays)
    workdir.write(pages.NUMBERS, report)


def _plain(value: Any) -> Any:
    """Numbers as JSON has them: no NaN, no NumPy."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return finite(value.item() if isinstance(value, np.generic) else value)
