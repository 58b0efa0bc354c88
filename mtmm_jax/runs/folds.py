"""Static task weights chosen by cross-validation, then one run with the best ones."""

from __future__ import annotations

import dataclasses
import itertools
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from mtmm_jax.data.pipeline.folds import folds
from mtmm_jax.data.pipeline.source import Source
from mtmm_jax.model import build
from mtmm_jax.registry import ConfigError, entry_of
from mtmm_jax.runs.fronts import MEAN, Outcome, outcome, ranked, score, shown
from mtmm_jax.runs.plans import claim
from mtmm_jax.store.checkpoints import Checkpoints
from mtmm_jax.store.files import finite
from mtmm_jax.store.workdir import Workdir
from mtmm_jax.training.experiment import Experiment, assemble
from mtmm_jax.training.logs import read_journal
from mtmm_jax.training.loop import train

FILE = "cv.json"

Candidates = dict[str, tuple[float, ...]]
Fit = Callable[[Experiment, Path], Any]


def read_weights(option: str, text: str) -> tuple[float, ...]:
    """`1,1,2` -> numbers of 0 or more."""
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"{option}: {text!r} is no list of numbers such as 1,1,2") from error
    if not all(math.isfinite(w) and w >= 0 for w in found):
        raise ConfigError(f"{option}: {text!r}: weights are numbers of 0 or more")
    return found


def candidates(weights: Sequence[str], grid: str | None, tasks: Sequence[str]) -> Candidates:
    """The weight vectors to compare, each of mean 1, by names such as `1-0.5-1.5`.

    Only the ratios of weights matter to what is compared: a common factor is a learning rate.

    Args:
        weights: vectors as text, a number for each task.
        grid: values as text; every combination of them for all tasks but the first, which has 1.
        tasks: the names of the tasks.
    """
    vectors = []
    for text in weights:
        vector = read_weights("--weights", text)
        if len(vector) != len(tasks):
            raise ConfigError(
                f"--weights: {text!r} has {len(vector)} numbers; the {len(tasks)} tasks are: "
                f"{', '.join(tasks)}"
            )
        vectors.append(vector)
    if grid is not None:
        values = read_weights("--grid", grid)
        if len(tasks) < 2:
            raise ConfigError(f"--grid: {tasks[0]!r} is the only task; there is nothing to weigh")
        vectors += [(1.0, *rest) for rest in itertools.product(values, repeat=len(tasks) - 1)]
    if not vectors:
        raise ConfigError("--cv: needs candidates: --weights 1,1,2 (repeated), or --grid 0.5,1,2")
    found: Candidates = {}
    for vector in vectors:
        if not sum(vector) > 0:
            raise ConfigError(f"--weights: {','.join(map(str, vector))}: all are 0")
        mean = sum(vector) / len(vector)
        normal = tuple(w / mean for w in vector)
        found.setdefault("-".join(f"{w:.4g}" for w in normal), normal)
    return found


def weighted_config(config: Mapping[str, Any], weights: Sequence[float]) -> dict[str, Any]:
    """The config with other static weights; all else of `balancing` stays."""
    kind = config["balancing"]
    section = entry_of(kind)
    if section.get("kind") != "static":
        raise ConfigError(
            f"config.balancing.kind: {section.get('kind')!r} chooses weights itself; --cv chooses "
            "those of 'static': add --config.balancing=static"
        )
    return {**config, "balancing": {**section, "weights": list(weights)}}


def fold_experiment(
    experiment: Experiment, source: Source, k: int, i: int, seed: int
) -> Experiment:
    """The experiment on fold `i`; labels are standardised by what the fold trains on.

    It trains to the last step: where to stop would be chosen by the rows that it is scored on.
    """
    part = folds(source, k, i, seed=seed, where="--cv")
    config = experiment.config
    model = build(config["model"], config["tasks"], part.spec)
    config = {**config, "stopping": None}
    return dataclasses.replace(experiment, config=config, source=part, model=model)


def run_fold(experiment: Experiment, workdir: Workdir, out: Any) -> dict[str, Any]:
    """Trains on one fold; the metrics of its last step, on what was held out.

    No checkpoint is chosen by the rows that the metrics are of, and none stays: of a fold only its
    metrics and its journal are kept. A fold that was stopped resumes.
    """
    source, config = experiment.source, experiment.config
    workdir.claim(config, source.spec, source.assets)
    checkpoints = Checkpoints(workdir.checkpoints, config["checkpoint"]["keep"])
    try:
        train(experiment, workdir, checkpoints, out)
    finally:
        checkpoints.close()
    records = [r for r in read_journal(workdir.metrics) if r["split"] == "validation"]
    reached = outcome(experiment.model, records[-1])
    shutil.rmtree(workdir.checkpoints)
    return finite(dataclasses.asdict(reached))


def cross_validate(
    config: Mapping[str, Any],
    source: Source,
    folder: Path,
    k: int,
    found: Candidates,
    seed: int,
    out: Any,
) -> dict[str, Any]:
    """Every candidate on every fold, resumed from the state in `cv.json`.

    Args:
        config: plain, with static weights.
        source: of that config.
        folder: of all runs and of cv.json.
        k, seed: as in `data.pipeline.folds`.
        found: the candidates.
        out: a console.

    Returns:
        What cv.json holds: `plan`, `scores` (candidate -> fold -> metrics), and `failed`.
    """
    plan = {"config": config, "folds": k, "seed": seed, "candidates": found}
    for weights in found.values():
        weighted_config(config, weights)
    folds(source, k, 0, seed=seed, where="--cv")  # refused before anything is written
    record = {"scores": {}, **claim(folder, FILE, plan)}
    record["failed"] = {}
    for (name, weights), i in itertools.product(found.items(), range(k)):
        done = record["scores"].setdefault(name, {})
        if str(i) in done or name in record["failed"]:
            continue
        out.print(f"weights {name}, fold {i + 1} of {k}", style="bold")
        workdir = Workdir(folder / "folds" / name / str(i))
        try:
            whole = assemble(weighted_config(config, weights))
            done[str(i)] = run_fold(fold_experiment(whole, source, k, i, seed), workdir, out)
        except ConfigError as error:
            record["failed"][name] = f"fold {i + 1}: {error}"
            out.print(f"weights {name}, fold {i + 1}: {error}", markup=False)
        Workdir(folder).write(FILE, record)
    return record


def fold_scores(record: Mapping[str, Any], by: str = MEAN) -> dict[str, list[float]]:
    """Candidate -> its score in each fold, of those that went through all of them."""
    found = {}
    for name, done in record["scores"].items():
        if len(done) < record["plan"]["folds"]:
            continue
        found[name] = [
            score(outcome, tuple(outcome.merits), by) for outcome in _outcomes(record, name)
        ]
    return found


def _outcomes(record: Mapping[str, Any], name: str) -> list[Outcome]:
    """A candidate's folds, as they were before JSON."""

    def known(values: Mapping[str, float | None]) -> dict[str, float]:
        return {task: np.nan if value is None else value for task, value in values.items()}

    folds_of = (record["scores"][name][str(i)] for i in range(record["plan"]["folds"]))
    return [Outcome(known(f["metrics"]), f["names"], known(f["merits"])) for f in folds_of]


def winner(record: Mapping[str, Any], by: str = MEAN) -> str:
    """The candidate of the best mean score over the folds; equals: the first."""
    means = {name: float(np.mean(scores)) for name, scores in fold_scores(record, by).items()}
    if not means:
        reasons = "; ".join(f"{name}: {why}" for name, why in record["failed"].items())
        raise ConfigError(f"--cv: no candidate went through all folds: {reasons}")
    return ranked(means)[0]


def table(record: Mapping[str, Any], by: str = MEAN) -> Table:
    """A line for each candidate, the best first: mean ± standard deviation over the folds."""
    k, scores = record["plan"]["folds"], fold_scores(record, by)
    names = ranked({name: float(np.mean(values)) for name, values in scores.items()})
    heads = _outcomes(record, names[0])[0].names if names else {}
    out = Table(title=f"held-out metrics, {k} folds: mean ± standard deviation; score: {by}")
    out.add_column("weights")
    for column in ("score", *(f"{task} {metric}" for task, metric in heads.items())):
        out.add_column(column, justify="right")
    for name in names:
        outcomes = _outcomes(record, name)
        metrics = [_spread([fold.metrics[task] for fold in outcomes]) for task in heads]
        out.add_row(name, _spread(scores[name]), *metrics)
    return out


def _moments(values: Sequence[float]) -> dict[str, float]:
    known = np.where(np.isfinite(values), values, np.nan)
    return {"mean": float(known.mean()), "std": float(known.std())}


def _spread(values: Sequence[float]) -> str:
    moments = _moments(values)
    return f"{shown(moments['mean'])} ± {shown(moments['std'])}"


def retrain(
    record: Mapping[str, Any], name: str, by: str, folder: Path, fit: Fit
) -> dict[str, Any]:
    """An ordinary run with the winner's weights in `folder/winner`, its results returned.

    It trains on the ordinary train split and keeps the checkpoint that is best on the ordinary
    validation split: a checkpoint can only be chosen by rows that were not trained on, and its
    test metrics compare with those of any other run.
    """
    plan = record["plan"]
    summary = {
        candidate: {
            "score": _moments(scores),
            "metrics": {
                task: _moments([fold.metrics[task] for fold in _outcomes(record, candidate)])
                for task in _outcomes(record, candidate)[0].metrics
            },
        }
        for candidate, scores in fold_scores(record, by).items()
    }
    chosen = {"by": by, "winner": name, "table": summary}
    Workdir(folder).write(FILE, finite({**record, **chosen}))
    config = weighted_config(plan["config"], plan["candidates"][name])
    return fit(assemble(config), folder / "winner")
