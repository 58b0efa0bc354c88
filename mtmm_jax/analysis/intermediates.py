"""What a model looked at: its attention, gates, modality weights and routing, ready to be drawn.

Every module hands over such tensors by name. Which axis is what is found out, not declared: the
samples' axis is the one that grows with the batch, token axes have the lengths of the encoders'
spans, the others the number of modalities or tasks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mtmm_jax.analysis.modality_affinity import encode
from mtmm_jax.batch import Batch, Span
from mtmm_jax.model import Model, flatten

NAMES = ("weight", "gate", "rout", "stitch", "expert", "select", "mixing")
_ROOMS = ("fusion", "sharing", "heads", "encoders")  # what is drawn first where there is a lot
_MOST = 12  # of each kind
_WORDS = 8  # that are shown over a picture


class Axis(NamedTuple):
    """An axis of a picture: what runs along it, and the name of each place."""

    name: str
    labels: tuple[str, ...]


class HeatMap(NamedTuple):
    """`values[rows, columns]`, of one intermediate, averaged over what is not shown."""

    path: str
    rows: Axis
    columns: Axis
    values: np.ndarray


class PatchMap(NamedTuple):
    """`values[rows, height, width]`: how much each row (a word) attends to each patch."""

    path: str
    modality: str
    sample: int
    rows: Axis
    values: np.ndarray


class Seen(NamedTuple):
    """An intermediate: with the samples' axis in front, or without one."""

    values: np.ndarray
    per_sample: bool


class Known(NamedTuple):
    """What axes are recognised by.

    Attributes:
        samples: how a person calls each row of the batch.
        words: `[B][N]` for each text, its tokens as written.
        spans: what each modality's encoder gives, in alphabetical order, as fusions join them.
        fused: the layouts that fusions gave.
        tasks: their names.
    """

    samples: tuple[str, ...]
    words: Mapping[str, Sequence[Sequence[str]]]
    spans: Mapping[str, Span]
    fused: tuple[tuple[Span, ...], ...]
    tasks: tuple[str, ...]


def interesting(path: str) -> bool:
    """Whether the last part of a path names a weight, gate, route or the like."""
    return any(name in path.rsplit("/", 1)[-1].lower() for name in NAMES)


def collect(
    model: Model, variables: Any, batch: Batch
) -> tuple[dict[str, Seen], dict[str, Span], tuple[tuple[Span, ...], ...]]:
    """`{path: Seen}` of what is worth drawing, and the spans that token axes may have: each
    encoder's, and the layouts that fusions gave."""
    inputs = jax.tree.map(np.asarray, dict(batch["inputs"]))
    rows = len(next(iter(inputs.values()))["present"])

    def shapes(count: int) -> dict[str, Any]:
        part = jax.tree.map(lambda x: np.concatenate([x[:1]] * count), inputs)
        return jax.eval_shape(lambda v, i: _named(model(v, i)[1]), variables, part)

    few, more = shapes(rows), shapes(rows + 1)

    @jax.jit
    def look(variables: Any, inputs: Any) -> Any:
        _, found = model(variables, inputs)
        shared, _ = model.trunk(variables, inputs)
        return _named(found), shared, encode(model, variables, inputs)

    found, shared, encoded = jax.device_get(look(variables, inputs))
    order = {room: i for i, room in enumerate(_ROOMS)}
    arrays = {}
    for path in sorted(found, key=lambda path: order.get(path.split("/")[0], len(order))):
        pairs = zip(few[path].shape, more[path].shape, strict=True)
        change = [i for i, (a, b) in enumerate(pairs) if a != b]
        arrays[path] = _samples_first(np.asarray(found[path], np.float32), change, rows)
    spans = {name: t.layout[0] for name, t in sorted(encoded.items()) if len(t.layout) == 1}
    layouts = [getattr(tokens, "layout", ()) for tokens in shared.values()]
    return arrays, spans, tuple(dict.fromkeys(x for x in layouts if len(x) > 1))


def _samples_first(values: np.ndarray, change: list[int], rows: int) -> Seen:
    """An axis of B times something, such as all tokens of a batch, is taken apart."""
    if len(change) != 1:
        return Seen(values, False)
    (axis,) = change
    if values.shape[axis] != rows:
        before, after = values.shape[:axis], values.shape[axis + 1 :]
        values = values.reshape(*before, rows, -1, *after)
    return Seen(np.moveaxis(values, axis, 0), True)


def _named(intermediates: Mapping[str, Any]) -> dict[str, jax.Array]:
    """`{path: array}` of those whose name says so; a module that ran twice has two."""
    found = {}
    for path, sown in flatten(intermediates).items():
        parts = sown if isinstance(sown, tuple) else (sown,)
        for i, value in enumerate(parts):
            if interesting(path) and 0 < np.ndim(value) <= 5:
                found[path if i == 0 else f"{path}_{i + 1}"] = value
    return found


def drawn(
    arrays: Mapping[str, Seen], known: Known, samples: int = 3
) -> tuple[list[HeatMap], list[PatchMap]]:
    """The pictures of all arrays, at most a dozen of either kind.

    Args:
        arrays: as `collect` gives them.
        known: names for their axes.
        samples: how many samples' attention is laid over their pictures.
    """
    heat_maps: list[HeatMap] = []
    patch_maps: list[PatchMap] = []
    for path, (values, per_sample) in arrays.items():
        if per_sample and values.ndim == 4:  # [B, heads, queries, keys]
            values = values.mean(1)
        if per_sample and values.ndim == 3:
            patch_maps += _patches(path, values, known, samples)
        heat_maps += _heat(path, values, known, per_sample)
    return heat_maps[:_MOST], patch_maps[:_MOST]


def _heat(path: str, values: np.ndarray, known: Known, per_sample: bool) -> Iterator[HeatMap]:
    samples = Axis("sample", known.samples)
    if per_sample and values.ndim == 2:
        yield HeatMap(path, samples, axis_of(path, values.shape[1], known), values)
        return
    if per_sample and values.ndim == 3:
        rows, columns = (
            axis_of(path, n, known, keys=bool(i)) for i, n in enumerate(values.shape[1:])
        )
        if rows.name == "token" and columns.name != "token":  # routing: what a sample used
            total = values.sum(1)
            used = total / np.maximum(np.abs(total).sum(-1, keepdims=True), 1e-9)
            yield HeatMap(path, samples, columns, used)
        elif rows.name in ("modality", "task") and columns.name == "feature":
            yield HeatMap(path, samples, rows, values.mean(-1))
        else:
            yield HeatMap(path, rows, columns, values.mean(0))
        return
    if per_sample:
        values = values.mean(0)
    if values.ndim == 3 and len(values) <= 6:
        for i, part in enumerate(values):
            yield from _heat(f"{path}[{i}]", part, known, per_sample=False)
    elif values.ndim == 2:
        rows, columns = (axis_of(path, n, known, keys=bool(i)) for i, n in enumerate(values.shape))
        yield HeatMap(path, rows, columns, values)
    elif values.ndim == 1:
        yield HeatMap(path, Axis("", ("",)), axis_of(path, len(values), known), values[None])


def axis_of(path: str, size: int, known: Known, keys: bool = False) -> Axis:
    """What an axis of this length is, by what is known; numbers where nothing fits.

    Tasks come before modalities inside sharing, after them elsewhere. `keys`: it is the second of
    two axes, the one that is attended to.
    """
    tables = [("modality", tuple(known.spans)), ("task", known.tasks)]
    for name, labels in reversed(tables) if path.startswith("sharing") else tables:
        if size == len(labels) and size > 1:
            return Axis(name, labels)
    layout = layout_of(path, size, known, keys)
    if layout:
        return Axis("token", tuple(_token_labels(layout)))
    wide = "feature" if size > 16 else "part"
    name = next((n for n in ("expert", "layer", "stitch") if n in path.lower()), wide)
    return Axis(name, tuple(str(i + 1) for i in range(size)))


def layout_of(path: str, size: int, known: Known, keys: bool = False) -> tuple[Span, ...]:
    """The spans of a token axis of this length; () where that is not clear.

    Modalities that the path names come first: alone, or with tokens of the module's own. Of two
    names the first asks and the last is asked (`text_from_image`). Else all tokens, with or
    without a class token in front, else the one set of modalities that has this many tokens.
    """
    words = path.replace("/", "_").split("_")
    named = [word for word in dict.fromkeys(words) if word in known.spans]
    for name in reversed(named) if keys else named:
        layout = _extended((known.spans[name],), size, known)
        if layout:
            return layout
    whole = tuple(known.spans.values())
    for layout in (*known.fused, whole):
        if sum(span.length for span in layout) == size:
            return layout
    fitting = [
        part
        for count in range(1, len(whole))
        for part in itertools.combinations(whole, count)
        if sum(span.length for span in part) == size
    ]
    if fitting:
        return fitting[0] if len(fitting) == 1 else ()
    return _extended(whole, size, known)


def _extended(layout: tuple[Span, ...], size: int, known: Known) -> tuple[Span, ...]:
    """The layout as it is, or with a module's own tokens: the fusion's, where it tells them, a
    class token in front otherwise."""
    extra = size - sum(span.length for span in layout)
    if extra == 0:
        return layout
    for fused in known.fused:
        for span in fused:
            if span.name not in known.spans and span.length == extra:
                return (span, *layout) if span == fused[0] else (*layout, span)
    return (Span("own", 1, (1,), (1.0,)), *layout) if extra == 1 else ()


def _token_labels(layout: Sequence[Span]) -> Iterator[str]:
    for span in layout:
        for i in range(span.length):
            place = np.unravel_index(i, span.grid) if math.prod(span.grid) == span.length else (i,)
            yield f"{span.name} {','.join(str(int(p) + 1) for p in place)}"


def _starts(layout: Sequence[Span]) -> Iterator[tuple[Span, int]]:
    ends = itertools.accumulate(span.length for span in layout)
    return ((span, end - span.length) for span, end in zip(layout, ends, strict=True))


def _patches(path: str, values: np.ndarray, known: Known, samples: int) -> Iterator[PatchMap]:
    """Attention `[B, queries, keys]` whose keys hold a grid of image patches."""
    queries = layout_of(path, values.shape[1], known)
    for span, start in _starts(layout_of(path, values.shape[2], known, keys=True)):
        if len(span.grid) != 2 or math.prod(span.grid) != span.length or span.length == 1:
            continue
        for sample in range(min(samples, len(values))):
            rows, kept = _query_rows(queries, sample, known)
            part = values[sample, :, start : start + span.length]
            shown = part.mean(0, keepdims=True) if kept is None else part[kept]
            yield PatchMap(path, span.name, sample, rows, shown.reshape(-1, *span.grid))
        return


def _query_rows(layout: Sequence[Span], sample: int, known: Known) -> tuple[Axis, slice | None]:
    """The words of a text where there is one, else the module's own tokens, else their mean."""
    for span, start in _starts(layout):
        words = known.words.get(span.name, ((),) * (sample + 1))[sample][:_WORDS]
        if words:
            return Axis("word", tuple(words)), slice(start, start + len(words))
    for span, start in _starts(layout):
        if span.name not in known.spans:
            names = tuple(f"{span.name} {i + 1}" for i in range(min(span.length, _WORDS)))
            return Axis("token", names), slice(start, start + len(names))
    return Axis("token", ("all tokens",)), None
