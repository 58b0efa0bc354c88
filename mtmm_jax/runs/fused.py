"""Ensembles of finished runs over a split: evaluated, stored in a folder, opened again."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from mtmm_jax.batch import choose_all
from mtmm_jax.evaluation import restrict
from mtmm_jax.evaluation.split import Results
from mtmm_jax.registry import ConfigError
from mtmm_jax.runs.ensembles import Ensemble, open_runs
from mtmm_jax.runs.plans import claim
from mtmm_jax.runs.votes import Votes, fused_metrics, joined, learn
from mtmm_jax.store.files import finite, read_npz, write_npz
from mtmm_jax.store.workdir import Workdir
from mtmm_jax.training.experiment import build_source
from mtmm_jax.training.results import SPLITS

FILE, PARAMETERS = "ensemble.json", "rules.npz"
FUSED = "fused"  # the column of the fused predictions
TRAINED = ("weighted", "learned")


def sources(
    ensemble: Ensemble, change: Callable[[dict], dict] = dict, trust_paths: bool = False
) -> list[Any]:
    """Each run's data, of which those of the same config are one; `change` makes other values."""
    built: dict[str, Any] = {}
    found = []
    for name, run in zip(ensemble.names, ensemble.runs, strict=True):
        config = change(run.workdir.config())
        run.workdir.check_paths(config, trust_paths)
        key = json.dumps([config["data"], run.workdir.tokenizers()], sort_keys=True)
        if key not in built:
            built[key] = build_source(config, run.workdir)
        if built[key].spec.modalities != run.workdir.spec().modalities:
            raise ConfigError(f"config.data: gives other modalities than those of {name}'s spec")
        found.append(built[key])
    return found


def batches(
    ensemble: Ensemble, found: Sequence[Any], split: str, only: Iterable[str] | None = None
) -> Iterator[list[Any]]:
    """A split's batches, one for each run and all of the same rows."""
    if only is not None:
        known = [m for run in ensemble.runs for m in run.experiment.model.encoders]
        choose_all(only, dict.fromkeys(known), "--only", "modality")
    size = ensemble.runs[0].experiment.config["evaluation"]["batch_size"]
    distinct = {id(source): source for source in found}
    lengths = [source.split_size(split) for source in distinct.values()]
    if len(set(lengths)) > 1:
        raise ConfigError(f"--workdirs: the runs' {split} splits have {lengths} rows, not the same")
    streams = [source.batches(split, size) for source in distinct.values()]
    for several in zip(*streams, strict=True):
        if any(not np.array_equal(several[0]["id"], other["id"]) for other in several):
            raise ConfigError(f"--workdirs: the runs' {split} splits hold other samples")
        seen = [batch if only is None else restrict(batch, only) for batch in several]
        by_source = dict(zip(distinct, seen, strict=True))
        yield [by_source[id(source)] for source in found]


def votes(
    ensemble: Ensemble, found: Sequence[Any], split: str, only: Iterable[str] | None = None
) -> list[Votes]:
    """The runs' predictions for a split, batch by batch."""
    cast = []
    for several in batches(ensemble, found, split, only):
        each = zip(ensemble.voters, ensemble.runs, several, strict=True)
        cast.append(Votes.of([jax.device_get(v(r.variables, b)) for v, r, b in each], several[0]))
    return cast


def results(ensemble: Ensemble, batches: Sequence[Votes]) -> dict[str, Results]:
    """`{"fused" or a run: {task: {metric: value}}}`; a run's own are of the rows it answers."""

    def fused(votes: Votes) -> tuple[dict, dict]:
        there = {task: here.any(1) for task, here in votes.present.items()}
        return ensemble.fuse(ensemble.params, votes.values, votes.present), there

    def alone(i: int, votes: Votes) -> tuple[dict, dict]:
        predictions = {task: ensemble.rebuilt(task, v[:, i]) for task, v in votes.values.items()}
        return predictions, {task: here[:, i] for task, here in votes.present.items()}

    answers = {FUSED: fused}
    answers |= {name: functools.partial(alone, i) for i, name in enumerate(ensemble.names)}
    return {
        name: fused_metrics(ensemble.model, answer, batches) for name, answer in answers.items()
    }


def trained(ensemble: Ensemble, batches: Sequence[Votes]) -> Ensemble:
    """With the rules' parameters learned from votes on validation."""
    whole, tasks = joined(batches), ensemble.model.tasks
    params = {
        name: learn(tasks[name], rule, functools.partial(ensemble.rebuilt, name), whole)
        for name, rule in ensemble.rules.items()
    }
    return dataclasses.replace(ensemble, params=params)


def fuse_runs(
    paths: Sequence[str | Path], rule: str, folder: Path, trust_paths: bool = False
) -> dict[str, Any]:
    """Fuses finished runs into a folder that `open_ensemble` opens, and evaluates them.

    Rules with parameters learn them from the validation split, which the runs were not trained on
    (it only chose their checkpoints): the fused metrics of validation then flatter.

    Args:
        paths: the runs' folders.
        rule: of `DECISIONS`.
        folder: of the ensemble; one that holds the same is done, and is read.
        trust_paths: as `open_run` has it.

    Returns:
        What ensemble.json holds: `plan`, `rules` (task -> rule), `left_out`, `results`.
    """
    ensemble = open_runs(paths, rule)
    plan = {
        "members": [os.path.relpath(path, folder) for path in ensemble.names],
        "steps": [run.step for run in ensemble.runs],
        "rule": rule,
    }
    record = claim(Path(folder), FILE, plan)
    if "results" in record:
        return record
    found = sources(ensemble, trust_paths=trust_paths)
    by_split = {split: votes(ensemble, found, split) for split in SPLITS}
    ensemble = trained(ensemble, by_split["validation"])
    flat = traverse_util.flatten_dict(dict(ensemble.params), sep="/")
    write_npz(Path(folder) / PARAMETERS, flat, compressed=False)
    record = {
        "plan": plan,
        "rules": ensemble.used,
        "left_out": dict(ensemble.left_out),
        "results": finite({split: results(ensemble, said) for split, said in by_split.items()}),
    }
    Workdir(Path(folder)).write(FILE, record)
    return record


def remarks(rule: str, used: Mapping[str, str], left_out: Mapping[str, str]) -> list[str]:
    """Remarks on tasks that are fused by another rule than the given one, or not fused."""
    other = [
        f"{task} is fused by {name}: {rule} is not for its kind"
        for task, name in used.items()
        if name != rule
    ]
    return other + [f"{task} is not fused: {reason}" for task, reason in left_out.items()]


def one_of(workdir: str | None, workdirs: str | None, rule: str | None) -> bool:
    """Whether a command gets several runs rather than one; neither or both is refused."""
    if (workdir is None) == (workdirs is None):
        raise ConfigError("--workdir: give one run's folder, or those of several as --workdirs a,b")
    if workdirs is None and rule is not None:
        raise ConfigError("--rule: belongs to --workdirs, several runs fused")
    return workdirs is not None


def open_ensemble(
    paths: Sequence[str | Path], rule: str | None = None, trust_paths: bool = False
) -> Ensemble:
    """From the folder of an ensemble, or from several runs and a rule without parameters."""
    folder = Path(paths[0])
    if len(paths) > 1 or not (folder / FILE).exists():
        rule = rule or "mean"
        if rule in TRAINED:
            raise ConfigError(
                f"--rule: {rule!r} is learned, which python -m mtmm_jax.sweep --ensemble "
                f"{','.join(map(str, paths))} --rule {rule} --workdir FOLDER does; then give "
                "--workdirs FOLDER"
            )
        return open_runs(paths, rule)
    record = Workdir(folder).read(FILE)
    if "results" not in record:
        raise ConfigError(f"--workdirs: {folder} is an ensemble that was not finished")
    own = record["plan"]["rule"]
    if rule not in (None, own):
        raise ConfigError(f"--rule: {rule!r}; the ensemble in {folder} has the rule {own!r}")
    Workdir(folder).check_members(FILE, record["plan"]["members"], trust_paths)
    members = [os.path.normpath(folder / member) for member in record["plan"]["members"]]
    ensemble = open_runs(members, own)
    if [run.step for run in ensemble.runs] != record["plan"]["steps"]:
        raise ConfigError(f"--workdirs: the runs of {folder} were trained on; fuse them again")
    arrays = read_npz(folder / PARAMETERS, "fuse the runs again in a new folder")
    params = traverse_util.unflatten_dict(arrays, sep="/")
    return dataclasses.replace(
        ensemble, params={task: params.get(task, {}) for task in ensemble.rules}
    )
