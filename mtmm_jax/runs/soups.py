"""Weight averaging over finished runs: one model out of several of the same form."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax.evaluation import Evaluator
from mtmm_jax.inference.finished import Finished, open_run
from mtmm_jax.model import flatten
from mtmm_jax.registry import ConfigError
from mtmm_jax.store.checkpoints import Checkpoints
from mtmm_jax.store.config import differences
from mtmm_jax.store.files import finite
from mtmm_jax.store.workdir import Workdir
from mtmm_jax.training.loop import evaluation_batches, score
from mtmm_jax.training.results import SPLITS, final_results, save_examples

FILE = "soup.json"


def average(trees: Sequence[Mapping[str, Any]], names: Sequence[str] | None = None) -> Any:
    r"""The mean of each leaf, summed in float64: theta = 1/N sum_n theta_n.

    Paper: Wortsman et al., Model soups, ICML 2022; Izmailov et al., UAI 2018 (SWA).
    Cost: one model at prediction, whatever N is.
    Use it: for runs that began alike and parted late (fine-tuned from one checkpoint, or one run
    continued with several rates): they lie in one basin. Runs from different seeds do not, and
    their average is often worse than each; compare, and see `ensembles`.

    Args:
        trees: variables, all of the same paths, shapes and dtypes.
        names: of the trees, for error messages.
    """
    names = names or [f"tree {i}" for i in range(len(trees))]
    check_alike(trees, names)

    def mean(*leaves: Any) -> np.ndarray:
        first = np.asarray(leaves[0])
        return np.mean([np.asarray(leaf, np.float64) for leaf in leaves], 0).astype(first.dtype)

    return jax.tree.map(mean, *trees)


def check_alike(trees: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    """Raises a `ConfigError` that names the paths in which a tree differs from the first."""
    shapes = [
        {path: f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in flatten(tree).items()}
        for tree in trees
    ]
    for name, own in zip(names[1:], shapes[1:], strict=True):
        if found := differences(shapes[0], own):
            raise ConfigError(
                f"--average: {name} is another model than {names[0]}: {_few(found)}. Averaged are "
                "runs of one architecture; of others, their predictions: --ensemble"
            )


def _few(lines: Sequence[str]) -> str:
    more = f" and {len(lines) - 3} more" if len(lines) > 3 else ""
    return "; ".join(lines[:3]) + more


def _check_data(runs: Sequence[Finished]) -> None:
    """The same numbers must mean the same things: specs and tokenizers."""
    first = runs[0].workdir
    for run in runs[1:]:
        found = differences(first.spec().to_dict(), run.workdir.spec().to_dict())
        if found:
            raise ConfigError(
                f"--average: {run.workdir.path} and {first.path} know other data: {_few(found)}"
            )
        for name in sorted(_assets(first) | _assets(run.workdir)):
            if _assets(first).get(name) != _assets(run.workdir).get(name):
                raise ConfigError(
                    f"--average: {run.workdir.path} and {first.path} have another {name}"
                )


def _assets(workdir: Workdir) -> dict[str, bytes]:
    return workdir.assets()


def soup(
    paths: Sequence[str | Path], folder: Path, trust_paths: bool = False
) -> dict[str, dict[str, Any]]:
    """Averages the best checkpoints of finished runs into a workdir, and evaluates it next to them.

    Running averages of BatchNorm are averaged like parameters; they are not measured anew. The
    optimiser starts afresh, so that what it may keep of the parameters is the average, too. The
    folder opens like any run's (`evaluate`, `predict`); its config is the first run's, and
    `soup.json` names the members.

    Args:
        paths: the runs.
        folder: of the average; one that holds the average of the same runs is done, and its
            results are read.
        trust_paths: as `open_run` has it.

    Returns:
        Split -> {"average": results, run: results}.
    """
    paths = [str(path) for path in paths]
    if len(set(paths)) < 2 or len(set(paths)) < len(paths):
        raise ConfigError(f"--average: {','.join(paths)}: needs two or more different runs")
    runs = [open_run(path) for path in paths]
    variables = average([run.variables for run in runs], paths)
    _check_data(runs)
    workdir = Workdir(Path(folder))
    plan = {
        "members": [os.path.relpath(path, folder) for path in paths],
        "steps": [run.step for run in runs],
    }
    if (workdir.path / FILE).exists():
        record = workdir.read(FILE)
        if found := differences(record["plan"], plan):
            raise ConfigError(f"--workdir: {folder} is another average: {_few(found)}")
        if "results" in record:
            return record["results"]
    elif (workdir.path / "config.json").exists():
        raise ConfigError(f"--workdir: {folder} holds a run; choose a new folder for the average")
    config = {**runs[0].workdir.config(), "devices": 1}
    whole = open_run(paths[0], config, trust_paths=trust_paths)
    experiment = whole.experiment
    workdir.claim(experiment.config, whole.workdir.spec(), _assets(whole.workdir))
    workdir.write(FILE, {"plan": plan})
    results, states = final_results(experiment, variables)
    evaluator = Evaluator(experiment.model)
    tables: dict[str, dict[str, Any]] = {}
    for split in SPLITS:
        tables[split] = {"average": results[split]}
        for path, run in zip(paths, runs, strict=True):
            batches = evaluation_batches(experiment, split)
            tables[split][path] = evaluator.results(run.variables, batches)
    _save(workdir, whole, variables, score(experiment, results["validation"]))
    save_examples(experiment, workdir, states)
    workdir.write("results.json", finite(results))
    workdir.write(FILE, finite({"plan": plan, "results": tables}))
    return tables


def _save(workdir: Workdir, first: Finished, variables: Any, reached: float) -> None:
    """A checkpoint with the averaged variables, at the last step: nothing is left to train."""
    experiment = first.experiment
    theirs = Checkpoints(first.workdir.checkpoints, experiment.config["checkpoint"]["keep"])
    try:
        state, iterator = theirs.restore(first.step, experiment.shapes)
    finally:
        theirs.close()
    variables = jax.tree.map(jnp.asarray, variables)
    state = state.replace(
        step=jnp.asarray(experiment.config["steps"], state.step.dtype),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        optimizer=experiment.optimizer.init(variables["params"]),
    )
    own = Checkpoints(workdir.checkpoints, experiment.config["checkpoint"]["keep"])
    try:
        own.save(state, reached, iterator)
        own.wait()
    finally:
        own.close()
