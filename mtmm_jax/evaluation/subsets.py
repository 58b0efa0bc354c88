"""Metrics of a model with modalities hidden: all 2^M - 1 subsets, and Shapley values.

The rows that count are those of the split as it is, whatever is hidden from the model, so that the
subsets are compared on the same rows: where a task finds nothing that it reads, its trivial
prediction stands in. Of retrieval such a row leaves the gallery as well, and makes it easier for
those that stay: recall may rise while a modality goes missing for some of the rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from itertools import combinations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax.batch import Batch
from mtmm_jax.devices import parallel
from mtmm_jax.evaluation.split import merge, restrict, trivial_results
from mtmm_jax.model import Model
from mtmm_jax.registry import ConfigError

Scores = dict[str, dict[str, float]]  # {task: {"metric": its headline, "loss": the mean loss}}
MOST = 10  # modalities: 1023 passes


class Probe:
    """Answers batches whose inputs were changed. Compiles once, for any change of the values.

    Args:
        model: the model.
        devices: that share a batch.
    """

    def __init__(self, model: Model, devices: parallel.Devices = 1) -> None:
        self.model, self.devices = model, devices

        def step(variables: Any, pair: Any, *, axis_name: str | None) -> Any:
            batch, seen = pair
            predictions, _ = model(variables, seen)
            there, whole = model.present({"inputs": seen}), model.present(batch)
            metrics: dict[str, Any] = {}
            for name, task in model.tasks.items():
                answered = jnp.stack([there[read] for read in task.reads]).all(0)
                prediction = predictions[name]
                if _replaceable(task.trivial, prediction):
                    prediction = _stand_in(task.trivial, prediction, answered)
                    labels = task.labels(batch, whole)
                else:
                    labels = task.labels(batch, there)
                metrics[name] = {
                    "metrics": {k: m.update(prediction, labels) for k, m in task.metrics.items()},
                    "loss": jnp.stack(task.loss(prediction, labels, axis_name)),
                }
            return metrics

        self._step = parallel.wrap(step, devices, donate=False)

    def place(self, batch: Batch) -> Batch:
        """The batch where the step reads it, so that each pass brings over only what changes."""
        return jax.device_put(batch) if self.devices == 1 else batch

    def states(self, variables: Any, batch: Batch, seen: Mapping[str, Any]) -> dict[str, Any]:
        """`{task: {"metrics", "loss"}}`, with `seen` in place of the batch's inputs."""
        pair = parallel.share((batch, dict(seen)), self.devices)
        return reduce(self.merge, parallel.parts(self._step(variables, pair), self.devices))

    def merge(self, a: Any, b: Any) -> Any:
        """The states of two batches as those of one."""
        metrics = merge(self.model, *({n: s["metrics"] for n, s in x.items()} for x in (a, b)))
        return {n: {"metrics": metrics[n], "loss": a[n]["loss"] + b[n]["loss"]} for n in a}

    def scores(self, states: Any) -> Scores:
        """Each task's headline and mean loss; NaN where nothing counted."""
        found = {}
        for name, task in self.model.tasks.items():
            total, count = (float(value) for value in states[name]["loss"])
            values: dict[str, float] = {}
            for key, metric in task.metrics.items():
                values |= metric.compute(states[name]["metrics"][key])
            loss = total / count if count > 0 else math.nan
            found[name] = {"metric": values[task.headline], "loss": loss}
        return found


def _replaceable(trivial: Any, prediction: Any) -> bool:
    """Whether the trivial prediction has the shapes of the model's own.

    It has not where it is shorter (one frame, one box) or where a head writes step by step; such
    tasks count only the rows that they can answer.
    """
    if jax.tree.structure(trivial) != jax.tree.structure(prediction):
        return False
    pairs = zip(jax.tree.leaves(trivial), jax.tree.leaves(prediction), strict=True)
    return all(np.shape(p) in (np.shape(t), (*p.shape[:1], *np.shape(t))) for t, p in pairs)


def _stand_in(trivial: Any, prediction: Any, answered: jax.Array) -> Any:
    """The prediction, and the trivial one in the rows that are not answered."""

    def leaf(constant: Any, own: jax.Array) -> jax.Array:
        if own.shape == np.shape(constant):  # not of a row, such as a temperature
            return own
        keep = answered.reshape(-1, *(1,) * (own.ndim - 1))
        return jnp.where(keep, own, jnp.asarray(constant, own.dtype))

    return jax.tree.map(leaf, trivial, prediction)


def subsets(modalities: Iterable[str]) -> list[frozenset[str]]:
    """All 2^M of them, the empty one first, by size."""
    names = tuple(modalities)
    return [frozenset(s) for size in range(len(names) + 1) for s in combinations(names, size)]


def subset_scores(
    probe: Probe,
    variables: Any,
    batches: Iterable[Batch],
    advance: Callable[[], Any] = lambda: None,
) -> dict[frozenset[str], Scores]:
    """The scores with each subset of the modalities, the empty one, the trivial predictor, too.

    A task that can answer nothing with a subset has the trivial predictor's scores there; the loss
    of the trivial predictor is NaN where its prediction has not the shape of the model's. Costs
    2^M passes of the model over the data, one compile.

    Args:
        probe: of the model.
        variables: of the model, as `parallel.replicate` gives them for the probe's devices.
        batches: of a split; gone through once.
        advance: called after each pass over a batch.
    """
    model = probe.model
    if len(model.encoders) > MOST:
        raise ConfigError(
            f"analysis: exact contributions of {len(model.encoders)} modalities would take "
            f"{2 ** len(model.encoders)} passes over the split; at most {MOST} modalities"
        )
    batches = list(batches)
    merged: dict[frozenset[str], Any] = {}
    for batch in batches:
        placed = probe.place(batch)
        for subset in subsets(model.encoders):
            seen = restrict(placed, subset)["inputs"]
            states = probe.states(variables, placed, seen)
            merged[subset] = probe.merge(merged[subset], states) if subset in merged else states
            advance()
    scores = {subset: probe.scores(states) for subset, states in merged.items()}
    empty = scores[frozenset()]
    trivial = trivial_results(model, batches)
    for name, task in model.tasks.items():
        if math.isnan(empty[name]["metric"]):
            empty[name]["metric"] = trivial[name][task.headline]
    for found in scores.values():
        for name, metrics in found.items():
            metrics.update({k: empty[name][k] for k, value in metrics.items() if math.isnan(value)})
    return scores


def shapley(values: Mapping[frozenset[str], float]) -> dict[str, float]:
    """phi_m = sum_{S without m} |S|! (M - |S| - 1)! / M! (v(S + m) - v(S)).

    The one division of v(all) - v(nothing) among the modalities that is symmetric, additive and
    gives nothing to one that changes nothing (Shapley 1953): each gets the mean of what it adds
    over all orders in which the modalities may arrive. Two that say the same share the merit.

    Args:
        values: of all 2^M subsets, the empty one included.
    """
    names = sorted(frozenset().union(*values))
    missing = [subset for subset in subsets(names) if subset not in values]
    if missing:
        shown = ", ".join("{" + ", ".join(sorted(s)) + "}" for s in missing[:3])
        raise ConfigError(f"shapley.values: misses {len(missing)} subsets: {shown}")
    whole = math.factorial(len(names))
    share = [math.factorial(k) * math.factorial(len(names) - k - 1) for k in range(len(names))]
    return {
        name: sum(
            share[len(subset)] / whole * (values[subset | {name}] - values[subset])
            for subset in values
            if name not in subset
        )
        for name in names
    }
