"""Metrics under growing damage of one modality, and two numbers for the curve."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mtmm_jax.batch import Batch
from mtmm_jax.evaluation.split import restrict
from mtmm_jax.evaluation.subsets import Probe, Scores
from mtmm_jax.modalities import kind_of
from mtmm_jax.modalities.corruption import SEVERITIES, Place
from mtmm_jax.model import Model

Curve = list[Scores]  # by severity, 0 first


def passes(model: Model) -> int:
    """The number of passes of `curves` over each batch."""
    damage = sum(len(kind_of(model.spec.modalities[m]).corruptions) for m in model.encoders)
    return 1 + len(model.encoders) + 2 * damage * (len(SEVERITIES) - 1)


def curves(
    probe: Probe,
    variables: Any,
    batches: Iterable[Batch],
    *,
    seed: int = 0,
    advance: Callable[[], Any] = lambda: None,
) -> dict[str, dict[str, dict[str, Curve]]]:
    """`{modality: {corruption: {"all": curve, "alone": curve}}}` under damage to that modality.

    "all" is the model with every modality, "alone" the model with nothing but the damaged one. The
    rows that count are those of the split as it is: a sample whose only input comes and goes is
    answered by the trivial prediction while it is gone.

    Args:
        probe, variables: as for `subset_scores`.
        batches: of a split; gone through twice.
        seed: of all damage; rows are distinguished by their ids.
        advance: called after each pass over a batch.
    """
    model = probe.model
    batches = list(batches)
    spread = {name: _spread(model, name, batches) for name in model.encoders}
    merged: dict[tuple[str, str, str, int], Any] = {}

    def add(key: tuple[str, str, str, int], states: Any) -> None:
        merged[key] = probe.merge(merged[key], states) if key in merged else states
        advance()

    for batch in batches:
        placed = probe.place(batch)
        alone = {name: restrict(placed, [name])["inputs"] for name in model.encoders}
        add(("", "", "all", 0), probe.states(variables, placed, placed["inputs"]))
        for name in model.encoders:
            add((name, "", "alone", 0), probe.states(variables, placed, alone[name]))
            modality = model.spec.modalities[name]
            place = Place(_ids(batch), modality, spread[name], seed)
            for damage, corruption in kind_of(modality).corruptions.items():
                for severity in SEVERITIES[1:]:
                    entry = _same_keys(
                        corruption(batch["inputs"][name], place, severity),
                        batch["inputs"][name],
                    )
                    for view, inputs in (("all", placed["inputs"]), ("alone", alone[name])):
                        seen = {**inputs, name: entry}
                        states = probe.states(variables, placed, seen)
                        add((name, damage, view, severity), states)
    return {
        name: {
            damage: {
                view: [
                    probe.scores(merged[_key(name, damage, view, severity)])
                    for severity in SEVERITIES
                ]
                for view in ("all", "alone")
            }
            for damage in kind_of(model.spec.modalities[name]).corruptions
        }
        for name in model.encoders
    }


def _key(name: str, damage: str, view: str, severity: int) -> tuple[str, str, str, int]:
    """The undamaged model is run once for all corruptions."""
    if severity:
        return (name, damage, view, severity)
    return ("", "", "all", 0) if view == "all" else (name, "", "alone", 0)


def _ids(batch: Batch) -> np.ndarray:
    rows = len(next(iter(batch["inputs"].values()))["present"])
    return np.asarray(batch.get("id", np.arange(rows)))


def _same_keys(changed: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """Without a mask that says nothing, so that only damage to a maskless input compiles anew."""
    return {k: v for k, v in changed.items() if k in entry or not (k == "mask" and v.all())}


def _spread(model: Model, name: str, batches: Sequence[Batch]) -> np.ndarray | float:
    """The standard deviation of each column or channel, over what is there."""
    damages = kind_of(model.spec.modalities[name]).corruptions.values()
    if not any(damage.relative for damage in damages):
        return 1.0
    rows = []
    for batch in batches:
        entry = batch["inputs"][name]
        x = np.asarray(entry["x"], np.float64)
        there = np.asarray(entry["present"])[:, None] & np.ones(x.shape[:2], bool)
        there = there & np.asarray(entry.get("mask", True))
        keep = there.reshape(*there.shape, *(1,) * (x.ndim - 2)) & (x == x)
        rows.append(np.where(keep, x, np.nan).reshape(-1, x.shape[-1]))
    values = np.concatenate(rows)
    known = np.isfinite(values)
    count = np.maximum(known.sum(0), 1)
    mean = np.where(known, values, 0).sum(0) / count
    return np.sqrt(np.where(known, np.square(values - mean), 0).sum(0) / count)


def area(values: Sequence[float]) -> float:
    """The trapezoid area under a curve whose severities are spread evenly over 0..1."""
    v = np.asarray(values, np.float64)
    return float((v[1:] + v[:-1]).sum() / 2 / (len(v) - 1))


def relative_robustness(metrics: Sequence[float], smaller_is_better: bool = False) -> float:
    """Area under A(s) / A(0), s the severity over 0..1: the share that is left, on average.

    MultiBench (Liang et al. 2021) takes the area under A(s) itself, tau = integral A(s) ds, and
    scales it between the best and the worst of the methods that it compares; one run has no others
    to be scaled by, so here a model is measured against its own undamaged self. tau is A(0) times
    this number. Of metrics where smaller is better, A(0) / A(s). NaN where A(0) is not above 0: a
    model that was no use before has nothing to lose.
    """
    v = np.asarray(metrics, np.float64)
    if smaller_is_better:
        if not (v > 0).all():
            return math.nan
        return area(v[0] / v)
    return area(v / v[0]) if v[0] > 0 else math.nan


def effective_robustness(
    metrics: Sequence[float], baseline: Sequence[float], smaller_is_better: bool = False
) -> dict[str, float]:
    """The gain over a baseline under the same damage, in the metric's unit.

    `raw` = area under A(s) - B(s), above 0 where the model is better. `equalised` takes off the
    lead that it had when nothing was damaged, area under A(s) - (B(s) + A(0) - B(0)): what
    MultiBench (Liang et al. 2021, after Taori et al. 2020) calls effective robustness, there
    against late fusion and then scaled between the methods compared. Neither is scaled here.

    Args:
        metrics: the model's A(s), severity 0 first.
        baseline: B(s), for instance of the best single modality.
        smaller_is_better: of errors, the sign is turned.
    """
    sign = -1.0 if smaller_is_better else 1.0
    gap = sign * (np.asarray(metrics, np.float64) - np.asarray(baseline, np.float64))
    return {"raw": area(gap), "equalised": area(gap - gap[0])}


def best_alone(model: Model, found: Mapping[str, Mapping[str, Mapping[str, Curve]]]) -> dict:
    """`{task: the modality that does best without the others}`, undamaged."""
    best = {}
    for name, task in model.tasks.items():
        sign = -1.0 if task.smaller_is_better else 1.0
        clean = {
            modality: sign * next(iter(damage.values()))["alone"][0][name]["metric"]
            for modality, damage in found.items()
        }
        known = {modality: value for modality, value in clean.items() if not math.isnan(value)}
        best[name] = max(known, key=known.get) if known else None
    return best


def summary(model: Model, found: Mapping[str, Any]) -> dict[str, Any]:
    """`{task: {"baseline", "modalities": {modality: {corruption: numbers}}}}` of `curves`' answer.

    The baseline is the run's best single modality: its own curve where it is the damaged one, and
    a flat line where it is not, for it does not see the damage.
    """
    summaries: dict[str, Any] = {}
    for name, best in best_alone(model, found).items():
        task = model.tasks[name]
        rows: dict[str, Any] = {}
        for modality, kinds in found.items():
            for damage, views in kinds.items():
                metrics = [scores[name]["metric"] for scores in views["all"]]
                base = _baseline(found, best, modality, damage, name)
                rows.setdefault(modality, {})[damage] = {
                    "metrics": metrics,
                    "losses": [scores[name]["loss"] for scores in views["all"]],
                    "baseline": base,
                    "relative": relative_robustness(metrics, task.smaller_is_better),
                    **effective_robustness(metrics, base, task.smaller_is_better),
                }
        summaries[name] = {"metric": task.headline, "baseline": best, "modalities": rows}
    return summaries


def _baseline(
    found: Mapping[str, Any], best: str | None, modality: str, damage: str, task: str
) -> list[float]:
    if best is None:
        return [math.nan] * len(SEVERITIES)
    if best == modality:
        return [scores[task]["metric"] for scores in found[modality][damage]["alone"]]
    clean = next(iter(found[best].values()))["alone"][0][task]["metric"]
    return [clean] * len(SEVERITIES)
