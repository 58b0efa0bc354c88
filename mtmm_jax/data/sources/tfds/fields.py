"""From the features of a TFDS data set to modalities, by pipes; `tfds_labels.py` has the labels.

`INPUTS` says, by kind, what a section of the mapping may hold and which features fit.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mtmm_jax.data.pipeline.pipes import Pipe, parse
from mtmm_jax.data.pipeline.pipes import pipe as build_pipe
from mtmm_jax.data.transforms import Form
from mtmm_jax.modalities import MODALITIES
from mtmm_jax.modalities.columns import ArrayColumn
from mtmm_jax.ranges import Positive
from mtmm_jax.registry import ConfigError, build, check, choose

_AS_FRACTION = np.float32(1 / 32768)  # of the 16-bit integers in which TFDS keeps sound


@dataclasses.dataclass(frozen=True)
class Input:
    """A modality.

    Attributes:
        paths: the features it is made from, "a/b" for b inside a.
        value: example -> what its pipe takes, None where the example has none.
        pipe: what is done to it.
        encoded: those of the features that TFDS is not to decode, as the pipe does.
    """

    paths: tuple[str, ...]
    value: Callable[[Mapping[str, Any]], Any]
    pipe: Pipe
    encoded: tuple[str, ...] = ()


def inputs(section: Any, features: Any, where: str) -> dict[str, Input]:
    """`{name: {"feature": ..., "pipe": ...}}` -> modalities."""
    return {
        name: field(_readers(), _input_kind, config, features, f"{where}.{name}")
        for name, config in sections(section, where, "modality")
    }


def with_tokenizers(read: Mapping[str, Input], given: Mapping[str, str]) -> dict[str, Input]:
    """The texts in the ids of these tokenizers, by modality; the others as they are."""

    def one(name: str, field: Input) -> Input:
        text, own = given.get(name), field.pipe
        if text is None or not own.out.is_a("text"):
            return field
        return dataclasses.replace(field, pipe=build_pipe(own.text, own.start, own.where, text))

    return {name: one(name, field) for name, field in read.items()}


def sections(section: Any, where: str, what: str) -> Iterable[tuple[str, dict[str, Any]]]:
    if not isinstance(section, Mapping) or not section:
        raise ConfigError(f"{where}: {section!r}; needs a section for each {what}")
    for name, config in section.items():
        if not isinstance(config, Mapping) or "feature" not in config:
            raise ConfigError(f"{where}.{name}: {config!r}; needs a `feature`")
        yield name, dict(config)


def field(
    table: Mapping[str, Callable[..., Any]],
    kind_of: Callable[[Any, str], str],
    config: dict[str, Any],
    features: Any,
    where: str,
) -> Any:
    paths = check(config.pop("feature"), str | Sequence[str], f"{where}.feature")
    check(config.get("kind"), str | None, f"{where}.kind")
    paths = (paths,) if isinstance(paths, str) else tuple(paths)
    found = tuple(_feature(features, path, where) for path in paths)
    kind = config.pop("kind", None) or ("table" if len(paths) > 1 else kind_of(found[0], where))
    choose(kind, table, f"{where}.kind", "kind")
    if len(paths) != 1 and kind != "table":
        raise ConfigError(f"{where}.feature: {list(paths)}; a {kind} is made from one feature")
    return build(table, {"kind": kind, **config}, paths, found, where=where)


def _feature(features: Any, path: str, where: str) -> Any:
    at = features
    for part in str(path).split("/"):
        if not is_a(at, "FeaturesDict"):
            raise ConfigError(f"{where}.feature: {path!r}: there is nothing inside {at}")
        at = at[choose(part, at.keys(), f"{where}.feature", "feature")]
    return at


def get(example: Mapping[str, Any], path: str) -> Any:
    for part in path.split("/"):
        example = example[part]
    return example


def is_a(feature: Any, *names: str) -> bool:
    """By name: TFDS needs TensorFlow to look some of its classes up."""
    return any(base.__name__ in names for base in type(feature).__mro__)


def is_bytes(feature: Any) -> bool:
    return np.dtype(feature.np_dtype).kind in "OSU"


def is_array(feature: Any) -> bool:
    """Whether it is numbers or strings rather than a structure of features."""
    return not hasattr(feature, "keys") and not isinstance(feature.shape, Mapping)


# Modalities


def _input_kind(feature: Any, where: str) -> str:
    if is_a(feature, "Image"):
        return "image"
    if is_a(feature, "Text") or (is_array(feature) and is_bytes(feature)):
        return "text"
    if is_a(feature, "Audio"):
        return "audio"
    if is_array(feature) and len(feature.shape) <= 2:
        return "series" if len(feature.shape) == 2 or None in feature.shape else "table"
    raise ConfigError(f"{where}.feature: {feature} is nothing that a modality is made from")


def refuse(kind: str, feature: Any, wanted: str, where: str) -> ConfigError:
    return ConfigError(f"{where}.feature: {feature} is no {kind}; it needs {wanted}")


def _image(paths, features, where, *, pipe: str = "") -> Input:
    (path,), (feature,) = paths, features
    at = f"{where}.pipe"
    encoded = _starts_with_decode(pipe, at)
    if encoded and (is_a(feature, "Image") or is_bytes(feature)):
        form = Form("image_file", tuple(feature.shape[:2]))
        skip = (path,) if is_a(feature, "Image") else ()
        return Input(
            paths, lambda example: get(example, path) or None, build_pipe(pipe, form, at), skip
        )
    shape = tuple(feature.shape)
    if len(shape) != 3 or shape[2] not in (1, 3) or np.dtype(feature.np_dtype) != np.uint8:
        wanted = "8 bits and 1 or 3 channels, or a pipe that begins with decode"
        raise refuse("image", feature, wanted, where)

    def value(example: Mapping[str, Any]) -> np.ndarray:
        pixels = np.asarray(get(example, path))
        return np.repeat(pixels, 3, axis=-1) if shape[2] == 1 else pixels

    return Input(
        paths, value, build_pipe(pipe, Form("image", (*shape[:2], 3), "uint8", 0, 255), at)
    )


def _audio(paths, features, where, *, pipe: str = "", rate: Positive | None = None) -> Input:
    (path,), (feature,) = paths, features
    at = f"{where}.pipe"
    if _starts_with_decode(pipe, at):
        if not is_bytes(feature):
            raise refuse("encoded audio", feature, "bytes, or a pipe without decode", where)
        if rate is not None:
            raise ConfigError(f"{where}.rate: an encoded sound says its own")
        form = Form("audio_file")
        return Input(paths, lambda example: get(example, path) or None, build_pipe(pipe, form, at))
    rate = rate or getattr(feature, "sample_rate", None)
    if not is_array(feature) or len(feature.shape) != 1 or is_bytes(feature):
        raise refuse("audio", feature, "samples [N], or bytes and a pipe with decode", where)
    if not rate or rate <= 0:
        raise ConfigError(f"{where}.rate: {rate}; the data do not say their samples per second")

    def value(example: Mapping[str, Any]) -> np.ndarray | None:
        wave = np.asarray(get(example, path))
        if not len(wave):
            return None
        return wave.astype(np.float32) * (_AS_FRACTION if wave.dtype.kind == "i" else 1)

    form = Form("audio", (feature.shape[0],), "float32", rate=float(rate))
    return Input(paths, value, build_pipe(pipe, form, at))


def _text(paths, features, where, *, pipe: str = "") -> Input:
    (path,), (feature,) = paths, features
    if not is_array(feature) or feature.shape or not is_bytes(feature):
        raise refuse("text", feature, "a string", where)
    form = Form("string")
    return Input(
        paths, lambda example: string_of(example, path), build_pipe(pipe, form, f"{where}.pipe")
    )


def string_of(example: Mapping[str, Any], path: str) -> str | None:
    """A string feature, None where there is nothing in it."""
    value = get(example, path)
    value = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return value if value.strip() else None


def _table(paths, features, where, *, pipe: str = "") -> Input:
    """Columns side by side: numbers as they are, a class as one column for each."""
    columns: list[str] = []
    for path, feature in zip(paths, features, strict=True):
        if not is_array(feature) or None in feature.shape or len(feature.shape) > 1:
            raise refuse("table", feature, "numbers, classes or vectors of known size", where)
        if is_bytes(feature):
            raise refuse("table", feature, "numbers; a string is a text", where)
        if is_a(feature, "ClassLabel"):
            columns += [f"{path}={name}" for name in feature.names]
        else:
            several = [f"{path}/{i}" for i in range(*feature.shape)] if feature.shape else [path]
            columns += several

    def value(example: Mapping[str, Any]) -> np.ndarray:
        parts = []
        for path, feature in zip(paths, features, strict=True):
            found = np.asarray(get(example, path))
            if is_a(feature, "ClassLabel"):
                found = np.arange(feature.num_classes) == found
            parts.append(np.ravel(found).astype(np.float32))
        return np.concatenate(parts)

    form = Form("table", (len(columns),), "float32", names=tuple(columns))
    return Input(paths, value, build_pipe(pipe, form, f"{where}.pipe"))


def _series(paths, features, where, *, pipe: str = "", rate: Positive | None = None) -> Input:
    (path,), (feature,) = paths, features
    if not is_array(feature) or is_bytes(feature) or len(feature.shape) not in (1, 2):
        raise refuse("series", feature, "numbers [T] or [T, channels]", where)
    steps, channels = (*feature.shape, 1)[:2]
    if channels is None:
        raise refuse("series", feature, "a known number of channels", where)

    def value(example: Mapping[str, Any]) -> np.ndarray | None:
        found = np.asarray(get(example, path), np.float32).reshape(-1, channels)
        return found if len(found) else None

    names = tuple(f"{path}/{i}" for i in range(channels))
    form = Form("series", (steps, channels), "float32", rate=rate, names=names)
    return Input(paths, value, build_pipe(pipe, form, f"{where}.pipe"))


def _array(kind, paths, features, where, *, pipe: str = "") -> Input:
    """Numbers of one shape, for a kind of modality that has no reader of its own."""
    (path,), (feature,) = paths, features
    dimensions = MODALITIES[kind].dimensions
    fits = is_array(feature) and not is_bytes(feature)
    if not fits or len(feature.shape) != dimensions or None in feature.shape:
        raise refuse(kind, feature, f"numbers of {dimensions} fixed dimensions", where)

    def value(example: Mapping[str, Any]) -> np.ndarray:
        return np.asarray(get(example, path), np.float32)

    form = Form(kind, tuple(feature.shape), "float32")
    return Input(paths, value, build_pipe(pipe, form, f"{where}.pipe"))


def _readers() -> dict[str, Callable[..., Input]]:
    """`INPUTS`, and every kind whose values are plain arrays."""
    plain = [name for name, row in MODALITIES.items() if row.column is ArrayColumn]
    return {**{name: functools.partial(_array, name) for name in plain}, **INPUTS}


INPUTS = {
    "image": _image,
    "audio": _audio,
    "text": _text,
    "table": _table,
    "series": _series,
}


def _starts_with_decode(text: str, where: str) -> bool:
    return bool(text.strip()) and parse(text, where)[0].name == "decode"
