"""Classification in a common space: by the classes' names alone, or by a few examples.

A retrieval task puts pictures, texts and sounds into one space. There a class is a vector, and what
is nearest to a picture is its class, whether one was trained on or not:

    c(x) = argmax_c cos(x, v_c) - g [c was trained on]

v_c is the vector of the class's name (zero-shot, Radford et al. 2021) or the mean of n examples'
vectors (prototypes, Snell et al. 2017). Where classes that were trained on stand next to classes
that were not, the former win too often; the offset g ("calibrated stacking", Chao et al. 2016) is
chosen on validation rows. Everything here is NumPy on vectors; `measure` makes them of a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtmm_jax.chance import bits
from mtmm_jax.data.pipeline.labels import HELD_OUT
from mtmm_jax.data.pipeline.source import Source
from mtmm_jax.evaluation.spaces import WHERE, embedded, embedder, named, space_of
from mtmm_jax.model import Model
from mtmm_jax.registry import ConfigError, choose

Array = np.ndarray
EXAMPLES = (1, 5)


def unit(x: Array) -> Array:
    """Rows of length one; zeros stay."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def nearest(vectors: Array, classes: Array, among: Array, offset: float | Array = 0.0) -> Array:
    """`[N]` the class of the largest cosine, of those in `among`.

    Args:
        vectors: `[N, D]`.
        classes: `[C, D]`.
        among: `[C]` bool.
        offset: what is taken off each class's cosine, `[C]` or one for all.
    """
    scores = unit(vectors) @ unit(classes).T - offset
    return np.where(among, scores, -np.inf).argmax(-1)


def class_accuracy(predicted: Array, y: Array, among: Array) -> float:
    """The mean over classes of the share of their rows that is right; NaN without a row.

    Classes count alike, however many rows they have, as is usual for unseen ones (Xian et al.
    2018).

    Args:
        predicted, y: `[N]`.
        among: `[C]` bool, the classes whose rows count.
    """
    shares = [np.mean(predicted[y == c] == c) for c in np.flatnonzero(among) if (y == c).any()]
    return float(np.mean(shares)) if shares else float("nan")


def harmonic(a: float, b: float) -> float:
    """2 a b / (a + b): high only where both are."""
    return 2 * a * b / (a + b) if a + b > 0 else 0.0


def generalised(
    vectors: Array, y: Array, classes: Array, seen: Array, known: Array, offset: float = 0.0
) -> dict[str, float]:
    """`{"seen", "unseen", "harmonic"}`: accuracy on both kinds of rows, among all classes.

    Args:
        vectors, y: of the rows, `[N, D]` and `[N]`.
        classes: `[C, D]`.
        seen: `[C]` bool, the classes that were trained on.
        known: `[C]` bool, the classes that have a vector.
        offset: g, taken off the cosines of seen classes.
    """
    predicted = nearest(vectors, classes, known, offset * seen)
    a = class_accuracy(predicted, y, seen & known)
    b = class_accuracy(predicted, y, ~seen & known)
    return {"seen": a, "unseen": b, "harmonic": harmonic(a, b)}


def calibrate(
    vectors: Array, y: Array, classes: Array, seen: Array, known: Array, steps: int = 41
) -> tuple[float, float]:
    """`(offset, area)`: the g with the largest harmonic mean, of `steps` from -1 to 1, and the area
    under the curve of seen against unseen accuracy that all g make, which needs no choice.

    Args:
        vectors, y, classes, seen, known: as for `generalised`, of other rows than those it is
            reported on.
        steps: how many offsets are tried.
    """
    offsets = np.linspace(-1.0, 1.0, steps)
    found = [generalised(vectors, y, classes, seen, known, g) for g in offsets]
    if np.isnan([found[0]["seen"], found[0]["unseen"]]).any():  # one kind has no row to choose by
        return 0.0, float("nan")
    best = max(range(steps), key=lambda i: (found[i]["harmonic"], -abs(offsets[i])))
    curve = sorted(((f["unseen"], f["seen"]) for f in found), key=lambda p: (p[0], -p[1]))
    x, z = np.array([(0.0, curve[0][1]), *curve, (curve[-1][0], 0.0)]).T
    return float(offsets[best]), float(np.trapezoid(z, x))


def prototypes(vectors: Array, y: Array, count: int, classes: int, seed: int = 0) -> Array:
    """`[C, D]`: the mean unit vector of `count` drawn examples of each class; NaN where a class has
    fewer.

    Args:
        vectors, y: of the examples.
        count: n, of each class.
        classes: C.
        seed: of the draw.
    """
    found = np.full((classes, vectors.shape[1]), np.nan)
    for c in range(classes):
        rows = drawn(y, c, count, seed)
        if len(rows) == count:
            found[c] = unit(vectors[rows]).mean(0)
    return found


def drawn(y: Array, kind: int, count: int, seed: int = 0) -> Array:
    """A mask of the rows that are their class's examples: at most `count`, by their order within
    the class."""
    rows = np.flatnonzero(y == kind)
    return rows[np.argsort(bits(seed, np.arange(len(rows))), kind="stable")[:count]]


# From a model and its data.


def measure(
    model: Model,
    variables: Any,
    source: Source,
    label: str,
    size: int,
    *,
    examples: Sequence[int] = EXAMPLES,
    modality: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """All metrics of one class label, predicted from the modality that shares a space with the
    names.

    Rows of held-out classes are those of the test split and of the training rows that training
    never saw; examples of those classes come from the latter and are not predicted themselves,
    those of the others are training rows. The offset is chosen on the validation split, the only
    place where labels of held-out classes are looked at before they are scored.

    Args:
        model, variables: of a finished run.
        source: its data; classes that `held_out` took away were not seen.
        label: the class label.
        size: rows at a time.
        examples: for prototypes, how many of each class.
        modality: whose rows are classified; the first that stands with the text.
        seed: of the draw of examples.

    Returns:
        `{"classes", "unseen_classes", "chance", "names": {...}, "examples": {n: {...}}}`.
    """
    choose(label, source.spec.targets, WHERE, "label")
    target = source.spec.targets[label]
    if not target.traits.discrete:
        fitting = [name for name, t in source.spec.targets.items() if t.traits.discrete]
        raise ConfigError(
            f"{WHERE}: {label!r} is a {target.kind!r} label; choices: {', '.join(fitting)}"
        )
    task, read, words = space_of(model, modality)
    embed, count = embedder(model, task), len(target.classes)
    splits = {
        name: embedded(embed, variables, source.batches(name, size), read, label)
        for name in ("train", "validation", "test", HELD_OUT)
        if name in source.rows and len(source.rows[name])
    }
    vectors, y = splits["test"]
    held, held_y = splits.get(HELD_OUT, (vectors[:0], y[:0]))
    seen = ~np.isin(np.arange(count), held_y)
    whole = np.ones(count, bool)
    rows, labels = np.concatenate([vectors, held]), np.concatenate([y, held_y])
    spoken = [name.replace("-", " ").replace("_", " ") for name in target.classes]
    classes = named(embed, variables, source, words, spoken)
    metrics: dict[str, Any] = {
        "label": label,
        "modality": read,
        "classes": count,
        "unseen_classes": [target.classes[c] for c in np.flatnonzero(~seen)],
        "rows": {"seen": int(seen[labels].sum()), "unseen": int((~seen[labels]).sum())},
        "names": _few_shot(rows, labels, classes, seen, whole, splits["validation"]),
    }
    for n in examples:
        shown = [
            np.concatenate(parts) for parts in zip(splits["train"], (held, held_y), strict=True)
        ]
        few = prototypes(*shown, n, count, seed)
        known = np.isfinite(few).all(1)
        left = _unused(held_y, n, seed)
        queries = np.concatenate([vectors, held[left]]), np.concatenate([y, held_y[left]])
        accuracies = _few_shot(*queries, np.nan_to_num(few), seen, known, splits["validation"])
        metrics.setdefault("examples", {})[str(n)] = accuracies
    return metrics


def _unused(y: Array, count: int, seed: int) -> Array:
    """The rows that are no class's examples."""
    used = [row for c in np.unique(y) for row in drawn(y, c, count, seed)]
    return np.setdiff1d(np.arange(len(y)), used)


def _few_shot(
    rows: Array,
    y: Array,
    classes: Array,
    seen: Array,
    known: Array,
    validation: tuple[Array, Array],
) -> dict[str, float]:
    """The metrics of one set of class vectors: each kind by itself, both together, calibrated."""
    predicted = {kind: nearest(rows, classes, among) for kind, among in _kinds(seen, known).items()}
    accuracies = {
        kind: class_accuracy(predicted[kind], y, among)
        for kind, among in _kinds(seen, known).items()
    }
    accuracies |= {f"chance_{kind}": 1 / among.sum() for kind, among in _kinds(seen, known).items()}
    if "unseen" not in accuracies:
        return {key: float(value) for key, value in accuracies.items()}
    plain = generalised(rows, y, classes, seen, known)
    offset, area = calibrate(*validation, classes, seen, known)
    calibrated = generalised(rows, y, classes, seen, known, offset)
    accuracies |= {f"together_{key}": value for key, value in plain.items()}
    accuracies |= {f"calibrated_{key}": value for key, value in calibrated.items()}
    return {
        key: float(value) for key, value in {**accuracies, "offset": offset, "area": area}.items()
    }


def _kinds(seen: Array, known: Array) -> Mapping[str, Array]:
    found = {"seen": seen & known, "unseen": ~seen & known}
    return {kind: among for kind, among in found.items() if among.any()}


def table(metrics: Mapping[str, Any], title: str) -> Any:
    """A line for names and one for each number of examples."""
    from rich.table import Table

    out = Table(title=title)
    out.add_column("classes predicted by")
    columns = (
        *("unseen", "chance_unseen", "seen", "together_unseen", "together_seen"),
        *("together_harmonic", "calibrated_harmonic", "area"),
    )
    cells = {"their names": metrics["names"]}
    cells |= {f"{n} examples": row for n, row in metrics.get("examples", {}).items()}
    shown = [name for name in columns if any(name in row for row in cells.values())]
    for name in shown:
        out.add_column(name.replace("_", " "), justify="right")
    for how, row in cells.items():
        out.add_row(how, *(f"{row[name]:.3f}" if name in row else "-" for name in shown))
    return out
