"""Plain sentences about a finished run, for the console, `results.json` and the report.

A remark is a function from `Findings`, which holds numbers and names only, to sentences; `REMARKS`
lists them in the order in which they are shown. A new one is a function and a line of that list:

    def dear(found: Findings) -> Iterator[str]:
        if found.results["training"]["last_step"] > 10**6:
            yield "Training took over a million steps."
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

SPLIT = "test"
STANDS_STILL = 3  # evaluations without an improvement that are worth a sentence
MUCH_WAITING = 0.1  # of the time of steps
WIDE = 0.1  # interval, as a share of the way from the trivial predictor to a perfect one


@dataclasses.dataclass(frozen=True)
class Findings:
    """The measurements that remarks are made from.

    Attributes:
        results: what `results.json` holds.
        headlines: task -> its headline metric, of those that are to be spoken of.
        smaller: the tasks whose headline is better when smaller.
        waited: the share of their time in which steps waited for data; None where none was timed.
        advice: what to do about that.
    """

    results: Mapping[str, Any]
    headlines: Mapping[str, str]
    smaller: frozenset[str] = frozenset()
    waited: float | None = None
    advice: str = ""


Remark = Callable[[Findings], Iterator[str]]


def validation_stood_still(found: Findings) -> Iterator[str]:
    """Since when the score that chooses the checkpoint has not improved."""
    course = found.results.get("training")
    if course is None:
        return
    if course["evaluations_since"] < STANDS_STILL and not course["stopped_early"]:
        return
    last, since, score = course["last_step"], course["improved_at"], course["score"]
    if not since:
        yield (
            f"The validation score ({score}) was never a number: check that the validation split "
            "has labels, and the learning rate."
        )
        return
    ended = f" and training stopped at {last} of {course['steps']}" * course["stopped_early"]
    fewer = "" if course["stopped_early"] else "; config.stopping ends such a run by itself"
    yield (
        f"The validation score ({score}) stopped improving at step {since} of {last}{ended}. More "
        f"steps would not help: more data, augmentation or a smaller model may{fewer}."
    )


def waited_for_data(found: Findings) -> Iterator[str]:
    """That data are the bottleneck, and what to do."""
    if found.waited is not None and found.waited > MUCH_WAITING:
        advice = f": {found.advice}" if found.advice else ""
        yield (
            f"Steps waited for data {found.waited:.0%} of their time: data are the bottleneck"
            f"{advice}."
        )


def few_examples(found: Findings) -> Iterator[str]:
    """The headlines whose 95 % interval is wide, and those of no example at all."""
    for task, metric in found.headlines.items():
        entry = _certainty(found, task, metric)
        if not entry:
            continue
        if not entry["n"]:
            yield f"{task}: no example of the {SPLIT} split counts, so its {metric} is unknown."
            continue
        if entry["low"] is None:
            continue
        width, room = entry["high"] - entry["low"], room_of(found, task, metric)
        if room is not None and width > WIDE * room:
            value = found.results[SPLIT][task][metric]
            yield (
                f"{task}: {metric} {value:.3f} is of {entry['n']:,} examples only, and its 95 % "
                f"interval, {entry['low']:.3f} to {entry['high']:.3f}, is wider than "
                f"{WIDE * room:.3g}: a smaller difference between models means little. Four times "
                "the examples halve it."
            )


def room_of(found: Findings, task: str, metric: str) -> float | None:
    """The way from the trivial predictor to a perfect one; without baselines from 0 to 1, and
    unknown for an error."""
    by_split = found.results.get("baselines", {}).get("trivial", {})
    trivial = by_split.get(SPLIT, {}).get(task, {}).get(metric)
    if trivial is None or not math.isfinite(trivial):
        return None if task in found.smaller else 1.0
    return max(trivial if task in found.smaller else 1.0 - trivial, 0.0)


def below_the_linear_model(found: Findings) -> Iterator[str]:
    """The tasks of which a linear model of fixed features is better by more than chance, on the
    same examples."""
    linear = found.results.get("linear") or {}
    for task, experts in linear.get("results", {}).get(SPLIT, {}).items():
        metric, about = found.headlines.get(task), linear.get("about", {}).get(task, {})
        rows = _certainty(found, task, metric).get("n")
        values = {
            name: own.get(metric)
            for name, own in experts.items()
            if about.get(name, {}).get("examples", {}).get(SPLIT, rows) == rows
        }
        best, value = _best(values, task in found.smaller)
        if best is not None and _beyond(found, task, metric, value):
            yield (
                f"{task}: {metric} {found.results[SPLIT][task][metric]:.3f} is below that of a "
                f"linear model of fixed features ({best}), {value:.3f}: see its weight in "
                "results.json (linear.weights); with few rows choose fixed encoders and fewer "
                "steps, with a short validation split a longer one."
            )


def one_input_is_better(found: Findings) -> Iterator[str]:
    """The tasks that one modality alone does better than all together, and what to do."""
    baselines = found.results.get("baselines", {})
    alone = [name for name in baselines if name.startswith("only ")]
    for task, metric in found.headlines.items() if len(alone) > 1 else ():
        rows = _certainty(found, task, metric).get("n")
        values = {
            name.removeprefix("only "): baselines[name].get(SPLIT, {}).get(task, {}).get(metric)
            for name in alone
            if _certainty(found, task, metric, "baselines", name).get("n") == rows  # the same
        }
        best, value = _best(values, task in found.smaller)
        if best is not None and _beyond(found, task, metric, value):
            yield (
                f"{task}: {best} alone has {metric} {value:.3f}, all inputs together "
                f"{found.results[SPLIT][task][metric]:.3f}: the others harm it. Let the task read "
                f"{best} (tasks.{task}.reads), or give it heads of single inputs "
                f"(tasks.{task}.unimodal) and more modality dropout."
            )


def _certainty(found: Findings, task: str, metric: str, *place: str) -> Mapping[str, Any]:
    """The number of examples and the interval of a metric, at a place of the results; empty where
    there are none."""
    at = found.results.get("intervals", {})
    for key in (*place, SPLIT, task, metric):
        at = at.get(key) or {}
    return at


def _best(values: Mapping[str, float | None], smaller: bool) -> tuple[str | None, float]:
    known = {name: value for name, value in values.items() if value is not None}
    known = {name: value for name, value in known.items() if math.isfinite(value)}
    if not known:
        return None, math.nan
    name = min(known, key=lambda key: known[key] if smaller else -known[key])
    return name, known[name]


def _beyond(found: Findings, task: str, metric: str, value: float) -> bool:
    """Whether a value is better than the model's by more than half of its 95 % interval."""
    own = found.results[SPLIT].get(task, {}).get(metric)
    entry = _certainty(found, task, metric)
    if own is None or not math.isfinite(own):
        return False
    low, high = entry.get("low"), entry.get("high")
    half = 0.0 if low is None or high is None else (high - low) / 2
    gain = own - value if task in found.smaller else value - own
    return gain > half


REMARKS: list[Remark] = [
    below_the_linear_model,
    one_input_is_better,
    validation_stood_still,
    waited_for_data,
    few_examples,
]


def remarks(found: Findings) -> list[str]:
    """The sentences of all of `REMARKS`, in their order."""
    return [sentence for remark in REMARKS for sentence in remark(found)]


def step_times(
    records: Iterable[Mapping[str, Any]],
) -> Iterator[tuple[Mapping[str, Any], float]]:
    """The train records of a journal, each with the seconds of the steps since the one before."""
    last = 0
    for record in (r for r in records if r["split"] == "train"):
        speed = record["steps_per_second"]
        if speed and math.isfinite(speed) and record["step"] > last:
            yield record, (record["step"] - last) / speed
        last = record["step"]


def waiting_share(records: Iterable[Mapping[str, Any]]) -> float | None:
    """The share of their time in which the steps of a journal waited for data.

    Left out are the first log, in which the step compiles, and those of the first epoch, in which
    files are decoded for the first time; where there are no others, the first epoch counts.
    """
    training = [
        (_epoch(record["epoch"]), seconds, record["data_wait"])
        for record, seconds in step_times(records)
    ]
    later = training[1:]
    later = [one for one in later if one[0] >= 1] or later
    total = sum(seconds for _, seconds, _ in later)
    return sum(seconds * wait for _, seconds, wait in later) / total if total > 0 else None


def _epoch(value: Any) -> float:
    """Of several sources, that of the slowest."""
    return min(value) if isinstance(value, list) else value
