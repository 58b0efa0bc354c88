"""Runs compared across tasks: scores on validation, the Pareto front, a table and a picture."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from mtmm_jax.evaluation import headlines
from mtmm_jax.model import build
from mtmm_jax.registry import choose
from mtmm_jax.store.workdir import Workdir

MEAN = "mean"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The validation metrics of a run.

    Attributes:
        metrics: task -> its headline metric.
        names: task -> the name of that metric.
        merits: task -> the metric turned so that larger is better.
    """

    metrics: Mapping[str, float]
    names: Mapping[str, str]
    merits: Mapping[str, float]


def outcome(model: Any, results: Mapping[str, Any]) -> Outcome:
    """Of a model's results on a split; a metric that is not known is NaN."""
    known = {
        task: {key: np.nan if value is None else float(value) for key, value in metrics.items()}
        for task, metrics in results.items()
        if task in model.tasks
    }
    names = {name: task.headline for name, task in model.tasks.items()}
    return Outcome(
        {name: known[name][metric] for name, metric in names.items()},
        names,
        headlines(model, known),
    )


def outcome_of(workdir: Workdir) -> Outcome:
    """Of a finished run, on validation."""
    config = workdir.config()
    model = build(config["model"], config["tasks"], workdir.spec())
    return outcome(model, workdir.read("results.json")["validation"])


def shared_tasks(outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    """The tasks that all runs have, in the order of the first."""
    first = outcomes[0].merits if outcomes else ()
    return tuple(t for t in first if all(t in other.merits for other in outcomes))


def score(outcome: Outcome, tasks: Sequence[str], by: str = MEAN) -> float:
    """One task's merit, or the mean over some tasks; -inf where one of them is not known."""
    choose(by, (MEAN, *tasks), "--by", "task")
    value = float(np.mean([outcome.merits[t] for t in tasks])) if by == MEAN else outcome.merits[by]
    return value if np.isfinite(value) else -np.inf


def pareto_front(merits: np.ndarray) -> np.ndarray:
    """`[N]` bool: the rows of `[N, K]` that no other row dominates, larger being better.

    A row dominates another if it is nowhere worse and somewhere better; equal rows do not. NaN is
    worse than any number. Cost: N^2 K.
    """
    values = np.where(np.isnan(merits), -np.inf, np.asarray(merits, np.float64))
    no_worse = (values[:, None] >= values[None]).all(-1)
    better = (values[:, None] > values[None]).any(-1)
    return ~(no_worse & better).any(0)


def front_of(outcomes: Sequence[Outcome], tasks: Sequence[str]) -> np.ndarray:
    """`[N]` bool, over the merits of some tasks."""
    return pareto_front(np.array([[o.merits[t] for t in tasks] for o in outcomes]))


def table(
    outcomes: Mapping[str, Outcome],
    changes: Mapping[str, Mapping[str, str]],
    by: str = MEAN,
    failed: Iterable[str] = (),
) -> Table:
    """A line for each run, the best first; a star where no other run is better for all tasks.

    Args:
        outcomes: run -> what it reached.
        changes: run -> what its config differs in, as text.
        by: what they are sorted by, a task or "mean".
        failed: runs without an outcome, which stand last.
    """
    tasks = shared_tasks(list(outcomes.values()))
    first = next(iter(outcomes.values()))
    # The title says what the score is, for a mean of unlike metrics is a matter of taste.
    of = f"mean of {', '.join(tasks)}" if by == MEAN else by
    out = Table(title=f"validation, best first; score: {of}; *: on the Pareto front of the tasks")
    keys = list(dict.fromkeys(key for outcome in changes.values() for key in outcome))
    for name in ("run", *keys):
        out.add_column(name, overflow="fold")
    for name in ("score", *(f"{t} {first.names[t]}" for t in tasks), "*"):
        out.add_column(name, justify="right")
    scores = {name: score(outcome, tasks, by) for name, outcome in outcomes.items()}
    on_front = dict(zip(outcomes, front_of(list(outcomes.values()), tasks), strict=True))

    def cells_of(name: str) -> list[str]:
        return [label(name), *(changes[name].get(key, "") for key in keys)]

    for name in ranked(scores):
        metrics = [outcomes[name].metrics[t] for t in tasks]
        numbers = [shown(value) for value in (scores[name], *metrics)]
        out.add_row(*cells_of(name), *numbers, "*" if on_front[name] else "")
    for name in failed:
        out.add_row(*cells_of(name), "failed")
    return out


def label(name: str) -> str:
    """A trial's number, as a label in the plot."""
    number, _, rest = name.partition("-")
    return number if rest and number.isdigit() else name


def ranked(scores: Mapping[str, float]) -> list[str]:
    """The names by score, the best first; equals in the order in which they came."""
    return sorted(scores, key=lambda name: -scores[name])


def shown(value: float) -> str:
    return f"{value:.4f}" if np.isfinite(value) else "-"


def picture(outcomes: Mapping[str, Outcome]) -> bytes:
    """PNG: each task against each other one, the runs as numbers; better is right and up.

    Runs on the front of all tasks are filled. In a panel the line is the front of its two tasks.
    With one task: its metric by run.
    """
    from matplotlib import pyplot as plt  # slow to import

    listed = list(outcomes.values())
    tasks = shared_tasks(listed)
    front = front_of(listed, tasks)
    labels = [label(name).lstrip("0") for name in outcomes]
    size = max(len(tasks) - 1, 1)
    figure, axes = plt.subplots(
        size, size, figsize=(3.4 * size + 1, 3.2 * size + 0.6), squeeze=False, layout="constrained"
    )
    for row, column in np.ndindex(size, size):
        axis = axes[row, column]
        if column > row:
            axis.set_axis_off()
            continue
        if len(tasks) == 1:
            _bars(axis, listed, tasks[0], labels, front)
        else:
            _panel(axis, listed, tasks[column], tasks[row + 1], labels, front)
    figure.suptitle("validation; filled: on the Pareto front of all tasks")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return buffer.getvalue()


def _panel(axis: Any, outcomes: Sequence[Outcome], x: str, y: str, labels: Any, front: Any) -> None:
    points = np.array([[o.metrics[x], o.metrics[y]] for o in outcomes])
    best = front_of(outcomes, (x, y)) & np.isfinite(points).all(1)
    line = points[best][np.argsort(points[best, 0])]
    axis.plot(*line.T, color="0.7", linewidth=1, zorder=1)
    for chosen, face in ((front, "tab:blue"), (~front, "none")):
        axis.scatter(*points[chosen].T, s=36, facecolors=face, edgecolors="tab:blue", zorder=2)
    for label, point in zip(labels, points, strict=True):
        if np.isfinite(point).all():
            axis.annotate(label, point, textcoords="offset points", xytext=(4, 4), fontsize=8)
    axis.set_xlabel(f"{x} {outcomes[0].names[x]}")
    axis.set_ylabel(f"{y} {outcomes[0].names[y]}")
    if _falling(outcomes, x):
        axis.invert_xaxis()
    if _falling(outcomes, y):
        axis.invert_yaxis()


def _bars(axis: Any, outcomes: Sequence[Outcome], task: str, labels: Any, front: Any) -> None:
    values = [o.metrics[task] for o in outcomes]
    faces = ["tab:blue" if best else "none" for best in front]
    axis.scatter(range(len(values)), values, s=36, facecolors=faces, edgecolors="tab:blue")
    axis.set_xticks(range(len(values)), labels)
    axis.set_xlabel("run")
    axis.set_ylabel(f"{task} {outcomes[0].names[task]}")
    if _falling(outcomes, task):
        axis.invert_yaxis()


def _falling(outcomes: Sequence[Outcome], task: str) -> bool:
    """Whether less is better."""
    return any(o.merits[task] == -o.metrics[task] != 0 for o in outcomes)
