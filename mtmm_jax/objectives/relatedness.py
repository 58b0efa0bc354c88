"""Task affinities measured before training, and weights or groups made from them.

`config.relatedness` = {"steps": 20, "use": "both", "groups": 2}: a model like that of the run is
trained for some steps on one device, and on each batch every task shows what its step does to the
others' losses (`balancing.affinity.measured_affinity`, on the encoders and fusions). The run itself
then begins anew, with

    affinity  A[j, k] = Z[j, k] / max_k |Z[j, k]|,  Z the mean over the steps   (`relative`)
    weights   w_k = K s_k^(1/T) / sum_i s_i^(1/T),  s_k = sum_j max(A[j, k], 0)  (`static_weights`)
    groups    of the highest mean over j of A[j, k], k with j in its group     (`best_groups`)

so that a task counts by what it does for all, and stands with those that help it. The tasks of a
group share everything; those of different groups share encoders and fusions, and each group has
its own sharing stage (`objectives.grouping`); all in one group: the model stays as it is. What was
found stands in the run's config, under `found`, and holds whenever the run resumes or is opened;
`relatedness.json` has the matrices besides.

Task affinity groupings: Fifty et al. (2021); branches by affinity: Vandenhende et al. (2020).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from mtmm_jax import registry
from mtmm_jax.assembly import Parts
from mtmm_jax.balancing.affinity import best_groups, measured_affinity, relative, static_weights
from mtmm_jax.devices import parallel, processes
from mtmm_jax.model import Model, shared_parameters
from mtmm_jax.objectives.grouping import groupable, grouped
from mtmm_jax.ranges import Count, LayersOrZero, Positive, Several
from mtmm_jax.registry import ConfigError
from mtmm_jax.store.workdir import Workdir

FILE = "relatedness.json"
MEASURES = ("lookahead", "cosines")
WHERE = "relatedness"


@dataclasses.dataclass(frozen=True)
class RelatednessSettings:
    """`config.relatedness`.

    Attributes:
        steps: how many batches are measured, and trained on meanwhile.
        use: "weights", "grouping" or "both".
        measure: which affinity is used; both are reported. "lookahead" (what a step takes off a
            loss) or "cosines" of the gradients.
        learning_rate: of the look-ahead's plain gradient step; one so long that a task's own step
            raises its loss measures nothing, and is reported.
        temperature: T of the weights; large makes them equal, small favours the most helpful.
        groups: there are at most so many.
        layers: Dense -> GELU layers that a group has before its own copy of `model.sharing`.
        found: what was measured, written by `begin`: `{"weights": ..., "groups": ...}`.
    """

    steps: Count
    use: Literal["weights", "grouping", "both"]
    measure: Literal["lookahead", "cosines"] = "lookahead"
    learning_rate: Positive = 0.001
    temperature: Positive = 1.0
    groups: Several = 2
    layers: LayersOrZero = 2
    found: Mapping[str, Any] | None = None

    @property
    def weighs(self) -> bool:
        return self.use in ("weights", "both")

    @property
    def groups_tasks(self) -> bool:
        return self.use in ("grouping", "both")


def read(section: Any, where: str = WHERE) -> RelatednessSettings | None:
    """The section, checked; None where there is none."""
    if section is None:
        return None
    like = "{'steps': 20, 'use': 'weights'}"
    return RelatednessSettings(**registry.section_of(section, RelatednessSettings, where, like))


def check(settings: RelatednessSettings, built: Model, config: Mapping[str, Any]) -> None:
    """Raises a `ConfigError` where the rest of the config leaves nothing to be measured or set."""
    if len(built.tasks) < 2:
        raise ConfigError(f"{WHERE}: {', '.join(built.tasks)} is the only task; it needs two")
    section = registry.entry_of(config["balancing"])
    if settings.weighs:
        kind, imbalance = section.get("kind"), config["optimizer"].get("imbalance")
        if kind not in ("equal", "static") or "weights" in section:
            own = "balancing.weights" if "weights" in section else f"balancing {kind!r}"
            raise ConfigError(
                f"{WHERE}.use: {settings.use!r} sets the weights, and so does {own}; choices: "
                "balancing 'equal', or 'static' without weights; or use 'grouping'"
            )
        if imbalance is not None and registry.entry_of(imbalance).get("kind") == "blending":
            raise ConfigError(
                f"{WHERE}.use: {settings.use!r} sets the weights, and so does optimizer.imbalance "
                "'blending'; use 'grouping'"
            )
        if section.get("auxiliaries") == "balanced" and built.auxiliaries:
            raise ConfigError(
                f"{WHERE}.use: {settings.use!r} weighs tasks, and {', '.join(built.auxiliaries)} "
                "is none; choices: balancing.auxiliaries 'added'; or use 'grouping'"
            )
    if settings.groups_tasks:
        if len(groupable(built)) < 2:
            raise ConfigError(
                f"{WHERE}.use: {settings.use!r} divides the sharing stage among the tasks that "
                f"pass it; there are {len(groupable(built))}, and it needs two; "
                "use 'weights'"
            )
        kind = registry.entry_of(config["model"].get("sharing", "hard")).get("kind")
        if kind == "hard" and not settings.layers:
            raise ConfigError(
                f"{WHERE}.layers: 0 with model.sharing 'hard' leaves a group nothing of its own; "
                "give it layers, or choose another sharing"
            )


def extend(section: Any, parts: Parts) -> Parts:
    """The extension `relatedness`: the balancing and the model, with what was found, if it was."""
    settings = read(section)
    check(settings, parts.model, parts.config)
    found = settings.found or {}
    if found.get("groups"):
        model = grouped(parts.model, found["groups"], parts.config["model"], settings.layers)
        parts = parts.replace(model=model)
    if found.get("weights"):
        tasks = tuple(parts.model.tasks)
        parts = parts.replace(balancing=weighted(parts.balancing, found["weights"], tasks))
    return parts


def weighted(config: Any, weights: Mapping[str, float], tasks: Sequence[str]) -> dict[str, Any]:
    """`config.balancing` with these weights: they take the place of ones, or of 1/K where `equal`
    takes the mean. In a batch without some tasks the others keep theirs."""
    section = registry.entry_of(config)
    unknown = [name for name in tasks if name not in weights]
    if unknown:
        raise ConfigError(
            f"{WHERE}.found.weights: {', '.join(unknown)}: not measured; measure again in "
            "a new workdir"
        )
    mean = section["kind"] == "equal" and section.pop("reduction", "mean") == "mean"
    scale = len(tasks) if mean else 1
    return {**section, "kind": "static", "weights": [weights[name] / scale for name in tasks]}


def measure(experiment: Any, settings: RelatednessSettings) -> dict[str, Any]:
    """The content of `relatedness.json`: both matrices `[helped, helping]`, the number of
    measurements of each pair, the relative affinity, weights and groups (None where not used).

    The experiment's own step trains meanwhile, on one device; nothing of it is kept.
    """
    seed, batch_size = experiment.config["seed"], experiment.config["batch_size"]
    model, names = experiment.model, tuple(experiment.model.tasks)
    count, root = len(names), jax.random.key(seed)
    estimate = measured_affinity(
        model.split(),
        len(model.loss_names),
        settings.learning_rate,
        shared=shared_parameters,
    )
    prepare = jax.jit(experiment.prepared)
    step = parallel.program(experiment.step())
    alone = {**experiment.config, "relatedness": None}
    state = dataclasses.replace(experiment, config=alone, devices=1).init()
    batches = iter(experiment.source.train(batch_size, seed=seed))
    seen: dict[str, list[np.ndarray]] = {kind: [] for kind in MEASURES}
    for number in range(settings.steps):
        batch = next(batches)
        experiment.source.spec.check(batch)
        shown = prepare(state, batch)  # as the step will see it
        key = jax.random.fold_in(root, number)
        found = estimate(state.params, state.batch_stats, shown, key)
        for kind, values in zip(MEASURES, jax.device_get(found), strict=True):
            seen[kind].append(np.asarray(values, np.float64)[:count, :count])
        if number + 1 < settings.steps:
            state, _ = step(state, batch)
    means = {kind: _known_mean(np.stack(values)) for kind, values in seen.items()}
    apart = means[settings.measure][~np.eye(count, dtype=bool)]
    if not np.isfinite(apart).any():
        raise ConfigError(
            f"{WHERE}: in {settings.steps} batches no two tasks had labels and finite losses "
            "together; take more steps, larger batches, or data.mixing per='batch'"
        )
    affinity = relative(means[settings.measure])
    weights = groups = None
    if settings.weighs:
        weights = static_weights(affinity, settings.temperature)
        weights = {name: round(float(w), 6) for name, w in zip(names, weights, strict=True)}
    if settings.groups_tasks:
        have = [names.index(name) for name in groupable(model)]
        inside = np.asarray(affinity)[np.ix_(have, have)].tolist()
        best = best_groups(inside, settings.groups)
        groups = [[names[have[i]] for i in group] for group in best]
    return {
        "tasks": list(names),
        "steps": settings.steps,
        "measure": settings.measure,
        **{kind: _plain(values) for kind, values in means.items()},
        "batches": np.isfinite(np.stack(seen[settings.measure])).sum(0).tolist(),
        "affinity": _plain(affinity),
        "weights": weights,
        "groups": groups,
    }


def overshot(report: Mapping[str, Any]) -> list[str]:
    """The tasks whose look-ahead step, on the mean, made their own loss larger."""
    if report["measure"] != "lookahead":
        return []
    own = (row[i] for i, row in enumerate(report["lookahead"]))
    return [name for name, x in zip(report["tasks"], own, strict=True) if x is not None and x < 0]


def _known_mean(values: np.ndarray) -> np.ndarray:
    """Over the first axis; NaN where nothing is known."""
    known = np.isfinite(values)
    count = known.sum(0)
    return np.where(count > 0, np.where(known, values, 0.0).sum(0) / np.maximum(count, 1), np.nan)


def _plain(values: Any) -> list[list[float | None]]:
    return [
        [round(float(x), 6) if np.isfinite(x) else None for x in row] for row in np.asarray(values)
    ]


def begin(experiment: Any, workdir: Workdir, out: Any) -> Any:
    """Claims the workdir; a config with `relatedness` is measured first, once.

    Args:
        experiment: the run's.
        workdir: its folder, new or of the same run.
        out: a console.

    Returns:
        The experiment to train: with the weights and groups that were found, now or when the run
        began.
    """
    section, report = experiment.config.get("relatedness"), None
    settings = read(section)
    if settings is not None and settings.found is None:
        found = _found(workdir)
        lost = found is not None and not (workdir.path / FILE).exists()
        if processes.broadcast_from_first(lost or (found is None and not _used(workdir))):
            out.print(f"relatedness: {settings.steps} steps on one device")
            report = measure(experiment, settings)
            if far := overshot(report):
                out.print(
                    f"relatedness: steps on {', '.join(far)} raise their own losses and measure "
                    f"nothing; learning_rate {settings.learning_rate} is too large",
                    markup=False,
                )
            found = found or {key: report[key] for key in ("weights", "groups")}
            out.print(_said(found), markup=False)
        if found is not None:
            experiment = experiment.changed(relatedness={**section, "found": found})
    source = experiment.source

    def claim() -> None:
        workdir.claim(experiment.config, source.spec, source.assets)
        if report is not None:
            workdir.write(FILE, report)

    processes.on_primary(claim, "--workdir")
    return experiment


def _used(workdir: Workdir) -> bool:
    """Whether `claim` will refuse the folder: measuring first would be in vain."""
    return workdir.path.exists() and (not workdir.path.is_dir() or any(workdir.path.iterdir()))


def _found(workdir: Workdir) -> Mapping[str, Any] | None:
    if not (workdir.path / "config.json").exists():
        return None
    return (workdir.config().get("relatedness") or {}).get("found")


def _said(found: Mapping[str, Any]) -> str:
    parts = []
    if found["weights"]:
        parts.append("weights " + "  ".join(f"{k} {w:.3f}" for k, w in found["weights"].items()))
    if found["groups"]:
        parts.append("groups " + " | ".join(", ".join(group) for group in found["groups"]))
    return "relatedness: " + "; ".join(parts)
