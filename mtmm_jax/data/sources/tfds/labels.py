"""From the features of a TFDS data set to labels: `LABELS`, by the kind of target."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mtmm_jax.batch import Target
from mtmm_jax.data.pipeline.pipes import pipe as build_pipe
from mtmm_jax.data.sources.tfds.fields import (
    field,
    get,
    is_a,
    is_array,
    is_bytes,
    refuse,
    sections,
    string_of,
)
from mtmm_jax.data.transforms import Form
from mtmm_jax.ranges import Size
from mtmm_jax.registry import ConfigError
from mtmm_jax.targets import TARGETS
from mtmm_jax.targets.column import PlainColumn
from mtmm_jax.text import read_tokenizer


@dataclasses.dataclass(frozen=True)
class Label:
    """A target.

    Attributes:
        paths: the features it is made from.
        value: example -> its label as found, None where it has none.
        learn: labels of the train split -> what is known of them, and a string to keep if more than
            that must be known to code one.
        coder: what `learn` gave -> (label -> a row of `Target.blank`, None for an unknown class).
    """

    paths: tuple[str, ...]
    value: Callable[[Mapping[str, Any]], Any]
    learn: Callable[[Sequence[Any]], tuple[Target, str]]
    coder: Callable[[Target, str], Callable[[Any], Any]]


def labels(section: Any, features: Any, where: str) -> dict[str, Label]:
    """`{name: {"feature": ...}}` -> targets."""
    arrays = {
        kind: functools.partial(_array, kind)
        for kind, row in TARGETS.items()
        if row.column is PlainColumn
    }
    return {
        name: field({**arrays, **LABELS}, _kind, config, features, f"{where}.{name}")
        for name, config in sections(section, where, "target")
    }


def entry(target: Target, code: Callable[[Any], Any], values: Sequence[Any]) -> dict[str, Any]:
    """`{"y", "present"}` of a batch of labels, None where there is none."""
    y = target.blank(len(values))
    present = np.zeros(len(values), bool)
    for i, value in enumerate(values):
        row = None if value is None else code(value)
        if row is None:
            continue
        present[i] = True
        if isinstance(y, dict):
            for key, part in row.items():
                y[key][i, : len(part)] = part
        else:
            y[i] = row
    return {"y": y, "present": present}


def _kind(feature: Any, where: str) -> str:
    if not is_array(feature):
        return "boxes"
    if is_a(feature, "ClassLabel") or (is_bytes(feature) and not feature.shape):
        return "class"
    if len(feature.shape) == 1:
        return "labels"
    if not feature.shape:
        return "class" if np.dtype(feature.np_dtype).kind == "b" else "number"
    raise ConfigError(f"{where}.feature: {feature} is nothing that a label is made from")


def _class(
    paths, features, where, *, classes: Sequence[str] | None = None, made_from: Sequence[str] = ()
) -> Label:
    """Of a ClassLabel by its names; of a string or a number by the values of the train split.

    -1 (as TFDS marks a label that is withheld), an empty string and a class that the train split
    does not have are absent. `classes` may name them, in the order of a number's values.
    """
    (path,), (feature,) = paths, features
    if not is_array(feature) or feature.shape:
        raise refuse("class", feature, "a ClassLabel, a whole number or a string", where)
    numeric = not is_bytes(feature)
    if numeric and np.dtype(feature.np_dtype).kind == "f":
        raise refuse("class", feature, "whole numbers; a fraction is a number", where)
    given = tuple(feature.names) if is_a(feature, "ClassLabel") else tuple(classes or ())
    if classes is not None and is_a(feature, "ClassLabel") and tuple(classes) != given:
        raise ConfigError(f"{where}.classes: the data set names them already")

    def value(example: Mapping[str, Any]) -> int | str | None:
        if not numeric:
            return string_of(example, path)
        number = int(np.asarray(get(example, path)))
        return None if number < 0 else number

    def learn(values: Sequence[Any]) -> tuple[Target, str]:
        names = given or tuple(str(name) for name in sorted(set(values)))
        code = coder(Target("class", names), "")
        codes = [index for index in map(code, values) if index is not None]
        counts = np.bincount(np.array(codes, int), minlength=len(names))
        frequencies = tuple((counts / max(counts.sum(), 1)).tolist())
        return Target("class", names, frequencies, made_from=tuple(made_from)), ""

    def coder(target: Target, kept: str) -> Callable[[Any], int | None]:
        if numeric and given:
            return lambda number: number if number < len(given) else None
        index = {name: i for i, name in enumerate(target.classes)}
        return lambda value: index.get(str(value))

    return Label(paths, value, learn, coder)


def _number(paths, features, where, *, made_from: Sequence[str] = ()) -> Label:
    """Not-a-number is absent."""
    (path,), (feature,) = paths, features
    if not is_array(feature) or feature.shape or is_bytes(feature):
        raise refuse("number", feature, "a single number", where)

    def value(example: Mapping[str, Any]) -> float | None:
        number = float(np.asarray(get(example, path)))
        return number if np.isfinite(number) else None

    def learn(values: Sequence[float]) -> tuple[Target, str]:
        mean, std = (float(np.mean(values)), float(np.std(values))) if len(values) else (0.0, 1.0)
        return Target("number", mean=mean, std=std or 1.0, made_from=tuple(made_from)), ""

    return Label(paths, value, learn, lambda target, kept: np.float32)


def _labels(
    paths, features, where, *, classes: Sequence[str] | None = None, made_from: Sequence[str] = ()
) -> Label:
    """Of a sequence of ClassLabels, or of a vector of 0 and 1 for each class."""
    (path,), (feature,) = paths, features
    if not is_array(feature) or len(feature.shape) != 1 or is_bytes(feature):
        raise refuse("set of labels", feature, "a Sequence(ClassLabel) or a vector", where)
    listed = is_a(feature, "Sequence") and is_a(feature.feature, "ClassLabel")
    if not listed and feature.shape[0] is None:
        raise refuse("set of labels", feature, "a vector of known size", where)
    given = feature.feature.names if listed else classes or map(str, range(feature.shape[0]))
    names = tuple(given)
    if classes is not None and (listed or len(names) != feature.shape[0]):
        raise ConfigError(f"{where}.classes: {list(classes)} do not fit {feature}")

    def value(example: Mapping[str, Any]) -> np.ndarray:
        found = np.asarray(get(example, path), int if listed else np.float32)
        return np.isin(np.arange(len(names)), found).astype(np.float32) if listed else found

    def learn(values: Sequence[np.ndarray]) -> tuple[Target, str]:
        means = np.mean(values, axis=0) if len(values) else np.zeros(len(names))
        frequencies = tuple(float(share) for share in means)
        return Target("labels", names, frequencies, made_from=tuple(made_from)), ""

    return Label(paths, value, learn, lambda target, kept: lambda row: row)


def _tokens(paths, features, where, *, pipe: str, made_from: Sequence[str] = ()) -> Label:
    """Of a string by a pipe, such as `lower|tokenize(16)`; classes are the tokenizer's pieces."""
    (path,), (feature,) = paths, features
    if not is_array(feature) or feature.shape or not is_bytes(feature):
        raise refuse("row of tokens", feature, "a string", where)
    built = build_pipe(pipe, Form("string"), f"{where}.pipe")
    if built.draws:
        raise ConfigError(f"{where}.pipe: {pipe!r}: a label does not change at random")
    stage = next(i for i, stage in enumerate(built.stages) if stage.fit)

    def learn(values: Sequence[str]) -> tuple[Target, str]:
        fitted = built.fit(values)
        pieces = read_tokenizer(fitted.state[stage]).get_vocab()
        names = tuple(sorted(pieces, key=pieces.get))
        (length,) = fitted.out.shape
        target = Target("tokens", names, length=length, made_from=tuple(made_from))
        return target, fitted.state[stage]

    def coder(target: Target, kept: str) -> Callable[[str], np.ndarray]:
        fitted = built.restore({stage: kept})
        return lambda text: fitted.run([text], None)[0][0]

    return Label(paths, lambda example: string_of(example, path), learn, coder)


def _array(kind: str, paths, features, where, *, made_from: Sequence[str] = ()) -> Label:
    """Of an array of numbers, one of which is not finite: absent. For kinds that a manifest would
    hold as lists of numbers."""
    (path,), (feature,) = paths, features
    if not is_array(feature) or is_bytes(feature) or None in feature.shape:
        raise refuse(f"label of kind {kind}", feature, "numbers of a known shape", where)
    target = Target(kind, shape=tuple(feature.shape), made_from=tuple(made_from))
    target.check(np.zeros((1, *feature.shape), feature.np_dtype), f"{where}.feature")

    def value(example: Mapping[str, Any]) -> np.ndarray | None:
        found = np.asarray(get(example, path))
        return found if np.isfinite(found).all() else None

    return Label(paths, value, lambda values: (target, ""), lambda target, kept: lambda row: row)


def _boxes(
    paths,
    features,
    where,
    *,
    box: str = "bbox",
    label: str | None = "label",
    length: Size | None = None,
    made_from: Sequence[str] = (),
) -> Label:
    """Of a sequence of boxes and their classes.

    Args:
        box, label: their names inside the sequence; without `label` all boxes are of one class.
        length: how many there is room for (the first ones are kept); as many as the train split's
            fullest example has by default.
    """
    (path,), (feature,) = paths, features
    inner = getattr(feature, "feature", None)
    boxes = inner[box] if is_a(inner, "FeaturesDict") and box in inner else None
    if not is_a(boxes, "BBoxFeature"):
        raise refuse("row of boxes", feature, f"a Sequence with a BBoxFeature {box!r}", where)
    if boxes.bbox_format is not None and boxes.bbox_format.name != "REL_YXYX":
        raise refuse("row of boxes", boxes, "boxes as y0, x0, y1, x1 in 0..1", where)
    if label is not None and not (label in inner and is_a(inner[label], "ClassLabel")):
        raise ConfigError(f"{where}.label: {label!r} is no ClassLabel of {feature}")
    names = ("object",) if label is None else tuple(inner[label].names)

    def value(example: Mapping[str, Any]) -> dict[str, np.ndarray]:
        found = get(example, path)
        corners = np.asarray(found[box], np.float32).reshape(-1, 4)
        kinds = np.zeros(len(corners)) if label is None else np.asarray(found[label])
        return {"boxes": corners, "classes": kinds.astype(np.int32)}

    def learn(values: Sequence[dict[str, np.ndarray]]) -> tuple[Target, str]:
        room = length or max((len(row["boxes"]) for row in values), default=0) or 1
        kinds = np.concatenate([row["classes"] for row in values] or [np.zeros(0, int)])
        counts = np.bincount(kinds[kinds >= 0], minlength=len(names))
        frequencies = tuple((counts / max(counts.sum(), 1)).tolist())
        return Target("boxes", names, frequencies, length=room, made_from=tuple(made_from)), ""

    def coder(target: Target, kept: str) -> Callable[[Any], dict[str, np.ndarray]]:
        def code(row: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            cut = {key: part[: target.length] for key, part in row.items()}
            return {**cut, "valid": cut["classes"] >= 0}

        return code

    return Label(paths, value, learn, coder)


LABELS = {
    "class": _class,
    "number": _number,
    "labels": _labels,
    "tokens": _tokens,
    "boxes": _boxes,
}
