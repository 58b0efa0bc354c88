"""Ways to run a recipe: short, in a folder, as an ensemble, with weights by cross-validation.

Each way gives rows `{"seed", "test": {task: headline}, "metric": {task: its name}, "smaller":
[tasks where less is better], "all", ...}`; `trivial` is the `test` of predictions that look at
nothing.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtmm_jax.benchmarks.tables.result_table import alone
from mtmm_jax.command import console

WEIGHTS = ("1,1,1,1,1", "1,10,1,1,1", "1,3,1,1,3")  # compared by cross-validation
FOLDS = 2


@dataclasses.dataclass(frozen=True)
class TrainingRun:
    """One training, or several that make one result.

    Attributes:
        config: its name.
        changes: overrides of the command line, without their `--config.`.
        how: short (no folder), fit (an ordinary run), cv (weights by cross-validation), or the rule
            by which the predictions of `members` are fused.
        members: the configs of an ensemble.
        after: the run that it begins from; with it and `teachers` all have folders (fit).
        teachers: the runs whose predictions are distilled.
        without: also tested without each of these modalities; "*": each of all.
        zero_shot: the class labels that are also predicted by the nearest name, with a retrieval
            task.
    """

    config: str
    changes: tuple[str, ...] = ()
    how: str = "short"
    members: tuple[str, ...] = ()
    after: TrainingRun | None = None
    teachers: tuple[TrainingRun, ...] = ()
    without: tuple[str, ...] = ()
    zero_shot: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of the recipe."""
        return f"independent_{self.how}" if self.members else self.config

    def folder(self, steps: int, seed: int) -> Path:
        """Of one training, below that of all."""
        description = " ".join(
            word for run in (self, *self.before) for word in (run.name, *run.changes)
        )
        return Path("_".join((*re.findall(r"\w+", description), str(steps)))) / str(seed)

    @property
    def before(self) -> tuple[TrainingRun, ...]:
        """The runs that must have ended when it starts."""
        return ((self.after,) if self.after else ()) + self.teachers


def config_of(run: TrainingRun, steps: int | None = None) -> Any:
    """The config of a run, with fewer steps if `steps` is given."""
    from mtmm_jax import training

    overrides = [f"--config.{change}" for change in run.changes]
    if steps is not None:
        overrides += [f"--config.steps={steps}"]
    return training.apply_overrides(training.load(run.config), overrides)


def key_of(run: TrainingRun, steps: int | None = None) -> dict[str, Any]:
    """The key of a run's rows in the JSON file."""
    return {
        "config": run.name,
        "changes": list(run.changes),
        "how": run.how,
        "after": run.after and [run.after.config, *run.after.changes],
        "teachers": [[one.config, *one.changes] for one in run.teachers] or None,
        "steps": config_of(run, steps).steps,
    }


def short(run: TrainingRun, seeds: Sequence[int], steps: int | None) -> Iterator[dict[str, Any]]:
    """Trained without a folder, one compile for all seeds."""
    from mtmm_jax.benchmarks.tables.short_runs import ShortRun

    trained = ShortRun(config_of(run, steps))
    names = tuple(trained.experiment.model.encoders)
    trivial = _trivial(trained.experiment)
    hidden = names if run.without == ("*",) else run.without
    for seed in seeds:
        started = time.monotonic()
        variables = trained.train(seed)
        row = _row(trained.experiment.model, trained.evaluate(variables, "test"))
        for name in hidden:
            left = [other for other in names if other != name]
            metrics = trained.evaluate(variables, "test", left)
            row.setdefault("without", {})[name] = _row(trained.experiment.model, metrics)["test"]
        for target in run.zero_shot:
            row["test"][f"{target}, zero-shot"] = round(
                zero_shot(trained.experiment, variables, target), 4
            )
            row["metric"][f"{target}, zero-shot"] = "accuracy"
        yield {**row, **trivial, "seed": seed, "seconds": _since(started)}


def _since(started: float) -> float:
    return round(time.monotonic() - started, 1)


def _row(model: Any, results: Mapping[str, Any]) -> dict[str, Any]:
    """Every task's headline and its name, its secondary metrics; all metrics."""
    from mtmm_jax.store.files import finite

    metrics = finite({name: dict(results[name]) for name in model.tasks})
    test, metric = {}, {}
    for name, task in model.tasks.items():
        test[name], metric[name] = metrics[name][task.headline], task.headline
        others = [f for f in metrics[name] if f in task.secondary and f != task.headline]
        test |= {f"{name}, {other}": metrics[name][other] for other in others}
        metric |= {f"{name}, {other}": "" for other in others}
    smaller = [name for name, task in model.tasks.items() if task.smaller_is_better]
    return {"test": test, "metric": metric, "smaller": smaller, "all": metrics}


def _trivial(experiment: Any) -> dict[str, Any]:
    """Metrics of trivial predictions: the commonest class, the mean, one vector."""
    from mtmm_jax.evaluation import trivial_results
    from mtmm_jax.training.loop import evaluation_batches

    metrics = trivial_results(experiment.model, evaluation_batches(experiment, "test"))
    return {"trivial": _row(experiment.model, metrics)["test"]}


def fit(
    run: TrainingRun, seeds: Sequence[int], steps: int | None, folder: Path
) -> Iterator[dict[str, Any]]:
    """Ordinary runs in folders of their own, which resume where they stopped."""
    for seed in seeds:
        finish(run.before, seed, steps, folder)
        started = time.monotonic()
        experiment, metrics = _trained(run, seed, steps, folder)
        row = _row(experiment.model, metrics["test"]) | {"parameters": experiment.parameters}
        yield {**row, **_trivial(experiment), "seed": seed, "seconds": _since(started)}


def finish(runs: Iterable[TrainingRun], seed: int, steps: int | None, folder: Path) -> None:
    """Trains runs, and first what they need; what ended before is found in its folder."""
    for run in runs:
        finish(run.before, seed, steps, folder)
        _trained(run, seed, steps, folder)


def _trained(run: TrainingRun, seed: int, steps: int | None, folder: Path) -> tuple[Any, Any]:
    """A run whose `before` have ended: the experiment and its results."""
    from mtmm_jax import training
    from mtmm_jax.train import fit as train

    config = own_config(run, seed, steps, folder)
    experiment, place = training.assemble(config), folder / run.folder(config.steps, seed)
    with alone(place):  # another process may need the same run
        return experiment, train(experiment, place)


def own_config(run: TrainingRun, seed: int, steps: int | None, folder: Path) -> Any:
    """The config of a run in a folder, with those of the runs that it needs."""
    config = config_of(run, steps)
    config.seed = seed
    config.evaluation.baselines = False

    def place(of: TrainingRun) -> str:
        return str(folder / of.folder(config_of(of, steps).steps, seed))

    with config.unlocked(), config.ignore_type():
        if run.after:
            config.init_from = {**(config.init_from or {}), "workdir": place(run.after)}
        if run.teachers:
            config.teachers.workdirs = [place(one) for one in run.teachers]
    return config


def ensemble(
    run: TrainingRun, seeds: Sequence[int], steps: int | None, folder: Path
) -> Iterator[dict[str, Any]]:
    """Train every member alone, fuse their predictions; each member's metrics are kept too."""
    from mtmm_jax import training
    from mtmm_jax.runs import fused

    for seed in seeds:
        started = time.monotonic()
        finish(map(TrainingRun, run.members), seed, steps, folder)
        experiment = training.assemble(own_config(run, seed, steps, folder))
        total = experiment.config["steps"]
        paths = [folder / TrainingRun(member).folder(total, seed) for member in run.members]
        fused_run = fused.fuse_runs(paths, run.how, folder / run.folder(total, seed))
        test = dict(fused_run["results"]["test"])
        row = _row(experiment.model, test.pop(fused.FUSED))
        singles = zip(run.members, test.values(), strict=True)
        row["members"] = {name: _row(experiment.model, one)["test"] for name, one in singles}
        yield {**row, **_trivial(experiment), "seed": seed, "seconds": _since(started)}


def cross_validated(
    run: TrainingRun, seeds: Sequence[int], steps: int | None, folder: Path
) -> Iterator[dict[str, Any]]:
    """The best of `WEIGHTS` over `FOLDS` folds, trained on the whole train split."""
    from mtmm_jax import training
    from mtmm_jax.runs import folds
    from mtmm_jax.runs.fronts import MEAN
    from mtmm_jax.train import fit as train

    for seed in seeds:
        started, config = time.monotonic(), own_config(run, seed, steps, folder)
        experiment = training.assemble(config)
        place = folder / run.folder(config.steps, seed)
        found = folds.candidates(WEIGHTS, None, tuple(experiment.model.tasks))
        plain = experiment.config
        source, out = experiment.source, console()
        record = folds.cross_validate(plain, source, place, FOLDS, found, seed, out)
        best = folds.winner(record)
        metrics = folds.retrain(record, best, MEAN, place, train)
        row = _row(experiment.model, metrics["test"]) | {"weights": best}
        yield {**row, **_trivial(experiment), "seed": seed, "seconds": _since(started)}


def zero_shot(experiment: Any, variables: Any, target: str, split: str = "test") -> float:
    """The share of pictures whose class is the one of the nearest name.

    A class is predicted by its name alone, as a text: no label was trained on. The model needs a
    task that embeds "image" and "text", and the data a tokenizer.
    """
    from mtmm_jax.evaluation.spaces import embedded, embedder, named, space_of
    from mtmm_jax.evaluation.zero_shot import nearest

    model, source = experiment.model, experiment.source
    task, read, words = space_of(model, "image")
    embed = embedder(model, task)
    names = [name.replace("-", " ") for name in source.spec.targets[target].classes]
    classes = named(embed, variables, source, words, names)
    batches = source.batches(split, experiment.config["evaluation"]["batch_size"])
    vectors, y = embedded(embed, variables, batches, read, target)
    return float((nearest(vectors, classes, np.ones(len(names), bool)) == y).mean())


def rows_of(
    run: TrainingRun, seeds: Sequence[int], steps: int | None, folder: Path
) -> Iterator[dict[str, Any]]:
    """The metrics of a run, one row a seed."""
    if run.how == "short":
        return short(run, seeds, steps)
    way = {"fit": fit, "cv": cross_validated}.get(run.how, ensemble)
    return way(run, seeds, steps, folder)
