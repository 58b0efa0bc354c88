"""Summary of a run in a few sentences: question, result, baselines, cost."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from mtmm_jax.batch import Spec
from mtmm_jax.tasks.task import Task, modalities_of
from mtmm_jax.training.results import comparison

SPLIT = "test"


def summary(
    results: Mapping[str, Any],
    tasks: Mapping[str, Task],
    spec: Spec,
    inputs: tuple[str, ...],
    run: Mapping[str, Any],
) -> list[str]:
    """Paragraphs, the first for someone who reads no other.

    Args:
        results: of `results.json`.
        tasks: of the model.
        spec: of its data.
        inputs: the modalities that it reads.
        run: of `run.json`; empty where there is none.
    """
    lines = [_question(tasks, spec, inputs, run.get("rows", {}))]
    lines += [_answer(name, task, results, inputs) for name, task in tasks.items()]
    return [*lines, *_cost(run)]


def _question(
    tasks: Mapping[str, Task], spec: Spec, inputs: tuple[str, ...], rows: Mapping[str, int]
) -> str:
    what = _listed([_kind_of(name, task, spec) for name, task in tasks.items()])
    counts = ""
    if rows:
        counts = (
            f" It learned from {rows.get('train', 0):,} rows, {rows.get('validation', 0):,} others "
            f"chose its checkpoint, and what follows is of {rows.get(SPLIT, 0):,} rows that it "
            "never saw."
        )
    return f"The model predicts {what} from {_listed(list(inputs))}.{counts}"


def _kind_of(name: str, task: Task, spec: Spec) -> str:
    """`kind (12 classes)`."""
    target = spec.targets.get(task.target)
    if target is not None and target.classes:
        return f"{name} ({len(target.classes):,} classes)"
    return name if target is None else f"{name} ({target.kind})"


def _answer(name: str, task: Task, results: Mapping[str, Any], inputs: tuple[str, ...]) -> str:
    """The headline, its interval, and what less than the whole model reaches."""
    metric = task.headline
    value = results[SPLIT].get(name, {}).get(metric)
    title = metric.replace("_", " ")
    if not _known(value):
        return f"{name}: its {title} is not known; no row of the {SPLIT} split counts for it."
    smaller = " (smaller is better)" if task.smaller_is_better else ""
    found = f"{name}: {title} {value:.3f}{_certain(_at(results, 'intervals', SPLIT, name, metric))}"
    found += smaller
    columns = comparison(results, SPLIT)
    others = {key: value for key, own in columns.items() if _known(value := _at(own, name, metric))}
    against = []
    if "trivial" in others:
        against.append(f"{others['trivial']:.3f} without looking at anything")
    read = {one for entry in task.reads for one in modalities_of(entry, inputs)}
    alone = {m: others[f"only {m}"] for m in inputs if m in read and f"only {m}" in others}
    if len(alone) > 1:
        order = sorted(alone, key=lambda m: alone[m] if task.smaller_is_better else -alone[m])
        against += [f"{alone[m]:.3f} with {m} alone" for m in order[:4]]
    if "linear" in others:
        against.append(f"{others['linear']:.3f} by a linear model of fixed features")
    return f"{found}. To compare: {_listed(against)}." if against else f"{found}."


def _certain(entry: Any) -> str:
    if not entry or not entry.get("n"):
        return ""
    low, high = entry.get("low"), entry.get("high")
    interval = f"95 % interval {low:.3f} to {high:.3f}, " if _known(low) and _known(high) else ""
    return f" ({interval}{entry['n']:,} rows)"


def _cost(run: Mapping[str, Any]) -> Iterator[str]:
    """Date, device, duration, versions."""
    if not run:
        return
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    yield (
        f"Finished {run['finished'].replace('T', ' ').removesuffix('+00:00')} UTC on "
        f"{run['device']} ({run['cores']} cores), {_duration(run['step_seconds'])} of steps and "
        f"{_duration(run['seconds'])} with all else since the command was started; "
        f"{run['parameters']:,} parameters. {versions}."
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _listed(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _known(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _at(tree: Any, *keys: str) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree
