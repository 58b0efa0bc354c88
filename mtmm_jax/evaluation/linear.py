"""Linear models of fixed features: fitted before training, mixed with the network after it.

    statistics of the train split -> features -> ridge or logistic regression of each task, for
    every modality and for all; the penalty is chosen on validation

They are the baseline that a network must beat, and part of the model (`model.linear`): after
training `fit_weights` finds the mixture of all predictions that is best on validation.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from scipy import optimize, special

from mtmm_jax.batch import Batch, clean
from mtmm_jax.encoders.fixed import FixedEncoder
from mtmm_jax.model import Model
from mtmm_jax.model.forward import ForwardPass
from mtmm_jax.model.linear import FEATURES, STACK, shares
from mtmm_jax.tasks.task import Labels, Task
from mtmm_jax.tasks.traits.linear import Linear
from mtmm_jax.tasks.traits.linear_solver import Features
from mtmm_jax.text import tokenizer_of

ROWS = 5000  # of the train split at most, drawn with a fixed seed
SPLITS = ("train", "validation", "test")
_PRIOR, _MOST = 1.0, 8.0  # of the mixture's weights: rows that it counts for, largest logit

Stats = dict[str, dict[str, np.ndarray]]
Results = dict[str, dict[str, dict[str, dict[str, float]]]]


def fixed_encoders(model: Model) -> dict[str, tuple[str, FixedEncoder]]:
    """Path of the variables -> what it reads and encoder, of all that have statistics to fit. What
    is read is a modality, or the name of features of `model.linear`."""
    found = {
        f"encoders/{name}": (name, encoder)
        for name, encoder in model.encoders.items()
        if isinstance(encoder, FixedEncoder)
    }
    if model.linear is not None:
        own = model.linear.encoders.items()
        found |= {f"{FEATURES}/{name}": (name, encoder) for name, encoder in own}
    return found


def fit_statistics(
    encoders: Mapping[str, tuple[str, FixedEncoder]],
    source: Any,
    batch_size: int,
    entries: Any = lambda batch: clean(batch["inputs"]),
) -> Stats:
    """Path -> the statistics of each encoder, from at most `ROWS` training rows.

    Args:
        encoders: path -> the name of what it reads, and encoder.
        source: of the rows.
        batch_size: of a pass.
        entries: batch -> `{name: what is read}`.
    """
    stats = {
        path: {**_blank(encoder), **encoder.prepare(tokenizer_of(source.assets, name))}
        for path, (name, encoder) in encoders.items()
    }
    programs = {path: _applied(encoder, "raw_of") for path, (_, encoder) in encoders.items()}
    raw: dict[str, list[Features]] = {path: [] for path in encoders}
    for batch in _batches(source, "train", batch_size):
        inputs = entries(batch)
        for path, (name, _) in encoders.items():
            rows = np.asarray(inputs[name]["present"]) & (batch["weight"] > 0)
            own = np.asarray(programs[path](stats[path], inputs[name]))[rows]
            raw[path].append(Features.of(own))
    for path, (_, encoder) in encoders.items():
        parts = raw.pop(path) or [Features.of(np.zeros((0, encoder.size)))]
        found = Features.stack(parts)
        found = found.blocks[0] if encoder.sparse else found.array()
        stats[path] = {**stats[path], **encoder.fit(found)}
    return stats


def encode_split(
    encoder: FixedEncoder,
    name: str,
    stats: Mapping[str, np.ndarray],
    source: Any,
    split: str,
    batch_size: int,
) -> np.ndarray:
    """`[N, D]`: a modality's features of at most `ROWS` rows of a split."""
    program = _applied(encoder, "vectors")
    parts = [
        np.asarray(program(stats, clean(batch["inputs"])[name]))[batch["id"] >= 0]
        for batch in _batches(source, split, batch_size)
    ]
    return np.concatenate(parts) if parts else np.zeros((0, encoder.size), np.float32)


def _blank(encoder: FixedEncoder) -> dict[str, np.ndarray]:
    return {
        name: np.full(shape, value, np.dtype(dtype))
        for name, (shape, dtype, value) in encoder.statistics().items()
    }


def _applied(encoder: FixedEncoder, method: str) -> Any:
    """`(statistics, entry) -> [B, D]`, compiled."""
    return jax.jit(lambda stats, entry: encoder.apply({"batch_stats": stats}, entry, method=method))


def _batches(source: Any, split: str, batch_size: int) -> Iterator[Batch]:
    """A split in a fixed order, at most `ROWS` of it."""
    rows = source.rows[split]
    if len(rows) > ROWS:
        chosen = np.random.default_rng(0).choice(len(rows), ROWS, replace=False)
        source = dataclasses.replace(source, rows={**source.rows, split: rows[np.sort(chosen)]})
    return source.batches(split, min(batch_size, max(len(rows), 1))) if len(rows) else iter(())


class _Table(NamedTuple):
    """A split: features and which modalities are there; labels of each task."""

    features: dict[str, Features]
    present: dict[str, np.ndarray]
    labels: dict[str, tuple[np.ndarray, np.ndarray]]
    ids: np.ndarray


def entries_of(model: Model, variables: Any) -> Any:
    """`batch -> {modality or name of features: what formulas read}`, frozen encoders run: once for
    a batch, however often it is read."""
    linear, kept = model.linear, {}

    @jax.jit
    def pooled(variables: Any, inputs: Any) -> Any:
        forward = ForwardPass(model.read(variables))
        return {name: linear.entry(forward, name, inputs) for name in linear.backbones}

    def entries(batch: Batch) -> dict[str, Any]:
        inputs = clean(batch["inputs"])
        if linear is None or not linear.backbones:
            return inputs
        key = np.asarray(batch["id"]).tobytes()
        if key not in kept:
            kept[key] = jax.device_get(pooled(variables, inputs))
        return {**inputs, **kept[key]}

    return entries


def _table(
    model: Model, source: Any, split: str, batch_size: int, stats: Stats, entries: Any
) -> _Table | None:
    linear = model.linear
    programs = {name: _applied(encoder, "vectors") for name, encoder in linear.encoders.items()}
    features, present, labels, ids = {}, {}, {}, []
    for batch in _batches(source, split, batch_size):
        inputs, there = entries(batch), model.present(batch)
        for name in linear.encoders:
            own = programs[name](stats[f"{FEATURES}/{name}"], inputs[name])
            features.setdefault(name, []).append(Features.of(np.asarray(own)))
            present.setdefault(name, []).append(np.asarray(inputs[name]["present"]))
        for name in linear.stacks:
            found = model.tasks[name].labels(batch, there)
            if found.y is None:
                continue
            labels.setdefault(name, []).append((np.asarray(found.y), np.asarray(found.weight)))
        ids.append(np.asarray(batch["id"]))
    if not ids:
        return None
    joined = {
        name: tuple(map(np.concatenate, zip(*own, strict=True))) for name, own in labels.items()
    }
    return _Table(
        {name: Features.stack(own) for name, own in features.items()},
        {name: np.concatenate(own) for name, own in present.items()},
        joined,
        np.concatenate(ids),
    )


class Fitted(NamedTuple):
    """The result of `fit_linear`.

    Attributes:
        variables: path below "batch_stats" -> array.
        results: split -> task -> expert -> metrics.
        about: task -> expert -> {"strength", "rows", "seconds", "examples": split -> how many}.
    """

    variables: dict[str, np.ndarray]
    results: Results
    about: dict[str, dict[str, dict[str, Any]]]


def fit_linear(model: Model, variables: Any, source: Any, batch_size: int) -> Fitted:
    """Statistics of all fixed encoders, and the linear models of `model.linear` if there are any.

    A model is fitted on the train rows that have its label and one of its modalities; its metrics
    are those of the task, over the rows of a split that have them too.

    Args:
        model: with fixed encoders.
        variables: of frozen encoders, as they begin.
        source: of the rows; at most `ROWS` of a split are read.
        batch_size: of a pass.
    """
    source.prepare()
    entries = entries_of(model, variables)
    stats = fit_statistics(fixed_encoders(model), source, batch_size, entries)
    found = {f"{path}/{key}": v for path, own in stats.items() for key, v in own.items()}
    results: Results = {"validation": {}, "test": {}}
    about: dict[str, dict[str, dict[str, Any]]] = {}
    if model.linear is None:
        return Fitted(found, results, about)
    tables = {s: _table(model, source, s, batch_size, stats, entries) for s in SPLITS}
    for name, stack in model.linear.stacks.items():
        titles = model.linear.names(name)[len(stack.networks) :]
        measure = _measured(model.tasks[name])
        about[name] = {}
        for i, (title, modalities) in enumerate(zip(titles, stack.experts, strict=True)):
            began = time.perf_counter()
            x, y = _rows(tables["train"], name, modalities)
            if not len(y):
                continue
            fit = stack.linear.fit(x, y, *_rows(tables["validation"], name, modalities, (x, y)))
            found[f"{STACK}/{name}/kernel{i}"] = fit.kernel
            found[f"{STACK}/{name}/bias{i}"] = fit.bias
            seconds = time.perf_counter() - began
            about[name][title] = {
                "strength": fit.strength,
                "rows": len(y),
                "seconds": round(seconds, 3),
                "examples": {},
            }
            for split in results:
                table = tables[split]
                if table is not None and name in table.labels:
                    whole = Features.join([table.features[m] for m in modalities])
                    scores = whole @ fit.kernel + fit.bias
                    own = results[split].setdefault(name, {})
                    y, weight = table.labels[name]
                    there = np.stack([table.present[m] for m in modalities]).any(0)
                    own[title] = measure(scores, y, weight * there, table.ids)
                    about[name][title]["examples"][split] = int((weight * there > 0).sum())
    return Fitted(found, results, about)


def _rows(
    table: _Table | None,
    task: str,
    modalities: tuple[str, ...],
    like: tuple[Features, np.ndarray] | None = None,
) -> tuple[Features, np.ndarray]:
    """Features and labels of the rows that count; none of those of `like` without a table."""
    if table is None or task not in table.labels:
        nothing = (Features([np.zeros((0, 0), np.float32)]), np.zeros(0))
        return nothing if like is None else (like[0].take(np.arange(0)), like[1][:0])
    y, weight = table.labels[task]
    there = np.stack([table.present[m] for m in modalities]).any(0) & (weight > 0)
    rows = np.flatnonzero(there)
    return Features.join([table.features[m].take(rows) for m in modalities]), y[rows]


def _measured(task: Task) -> Any:
    """`(scores, labels, weights, ids) -> {metric: value}`."""

    @jax.jit
    def states(scores: Any, y: Any, weight: Any, ids: Any) -> Any:
        labels = Labels(y, weight, ids)
        return {key: metric.update(scores, labels) for key, metric in task.metrics.items()}

    def measure(scores: Any, y: Any, weight: Any, ids: Any) -> dict[str, float]:
        found = jax.device_get(states(np.asarray(scores, np.float32), y, weight, ids))
        return {
            name: value
            for key, metric in task.metrics.items()
            for name, value in metric.compute(found[key]).items()
        }

    return measure


def fit_weights(
    model: Model, variables: Mapping[str, Any], source: Any, batch_size: int
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, float]]]:
    """The mixtures that are best on validation: variables to set, and task -> expert -> weight.

    Minimises N L(w) - (1 / E) sum_e log w_e over the simplex, L the task's own loss, in nats, over
    the N rows of validation that count: the prior is one row that every expert predicts alike. A
    task without such rows keeps the mean of its network and its last linear model.
    """
    experts = _expert_predictions(model, variables, source, batch_size)
    found, report = {}, {}
    for name, (each, known, y, weight) in experts.items():
        count = each.shape[1]
        if not weight.sum():
            values = np.zeros(count, np.float32)
            values[[0, -1]] = 0.5
        else:
            objective = _programs(model).objectives[name]
            values = _simplex(objective, model.tasks[name].linear, each, known, y, weight)
        found[f"{STACK}/{name}/weights"] = values
        titles = model.linear.names(name)
        report[name] = {title: float(v) for title, v in zip(titles, values, strict=True)}
    return found, report


class _Programs(NamedTuple):
    """`(variables, batch)` -> what each task's experts predict, and the objectives of tasks."""

    experts: Any
    objectives: dict[str, Any]


@functools.lru_cache(maxsize=4)
def _programs(model: Model) -> _Programs:
    """Compiled once for a model, however often its weights are fitted."""

    @jax.jit
    def experts(variables: Any, batch: Batch) -> Any:
        _, seen = model(variables, batch["inputs"])
        present = model.present(batch)
        found = {}
        for name in model.linear.stacks:
            own, labels = seen[STACK][name], model.tasks[name].labels(batch, present)
            if labels.y is not None:
                found[name] = (own["experts"][0], own["present"][0], labels.y, labels.weight)
        return found

    def objective(
        task: Task, logits: Any, scale: Any, each: Any, known: Any, y: Any, weight: Any
    ) -> Any:
        w = jax.nn.softmax(logits)
        mixed = task.linear.mix(each, shares(jnp.broadcast_to(w, known.shape), known))
        total, _ = task.loss(mixed, Labels(y, weight, None), None)
        return scale * total - _PRIOR * jax.nn.log_softmax(logits).mean()

    return _Programs(
        experts,
        {
            name: jax.jit(jax.value_and_grad(functools.partial(objective, model.tasks[name])))
            for name in model.linear.stacks
        },
    )


def _expert_predictions(
    model: Model, variables: Mapping[str, Any], source: Any, batch_size: int
) -> dict[str, tuple[np.ndarray, ...]]:
    """Task -> predictions `[N, E, P]`, which are there `[N, E]`, labels, weights; of validation."""
    parts: dict[str, list[Any]] = {}
    for batch in _batches(source, "validation", batch_size):
        for name, own in jax.device_get(_programs(model).experts(variables, batch)).items():
            parts.setdefault(name, []).append(own)
    return {name: tuple(map(np.concatenate, zip(*own, strict=True))) for name, own in parts.items()}


def _simplex(objective: Any, linear: Linear, *table: np.ndarray) -> np.ndarray:
    """The weights of the least objective."""
    count, rows = table[0].shape[1], max(float(table[-1].sum()), 1.0)

    def value(logits: np.ndarray, scale: float) -> tuple[float, np.ndarray]:
        found = objective(logits.astype(np.float32), np.float32(scale), *table)
        total, slope = jax.device_get(found)
        return float(total), slope.astype(np.float64)

    # Logits of almost all weight on one expert, less what the prior makes of them.
    alone = _MOST * (2 * np.eye(count) - 1)
    prior = value(alone[0], 0.0)[0]
    best = min((value(one, 1.0)[0] - prior) / rows for one in alone)
    scale = linear.nats(best)
    bounds = [(-_MOST, _MOST)] * count
    start = np.zeros(count)
    found = optimize.minimize(
        lambda logits: value(logits, scale), start, jac=True, method="L-BFGS-B", bounds=bounds
    )
    return special.softmax(found.x).astype(np.float32)


def with_variables(batch_stats: Any, found: Mapping[str, np.ndarray]) -> Any:
    """The tree with the leaves of `found`, each in its dtype and where it lay."""
    flat = traverse_util.flatten_dict(batch_stats, sep="/")
    for path, value in found.items():
        like = flat[path]
        flat[path] = jax.device_put(np.asarray(value, like.dtype), like.sharding)
    return traverse_util.unflatten_dict(flat, sep="/")
