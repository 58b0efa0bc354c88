"""Intermediates of a model for plotting: attention, gates, modality weights and routing.

Every module hands over such tensors by name; all are drawn but `FEATURES`. Which axis is what is
found out, not declared: the samples' axis is the one that grows with the batch, token axes have the
lengths of the encoders' spans, the others the number of modalities or tasks. A name only tells
whether the last axis is one of these, or is the module's own.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mtmm_jax.analysis.modality_affinity import encode
from mtmm_jax.batch import Batch, Span
from mtmm_jax.model import Model, flatten

FEATURES = "mean|variance|guess_.+"  # what modules hand over that weighs nothing: no picture
_BETWEEN = "weight|stitch|mixing|alpha|adjacency"  # of others the last axis is the module's own
_CALLED = {"expert": "expert", "routed": "expert", "routing": "node", "beta": "layer"}
_ROOMS = ("fusion", "sharing", "heads", "encoders")  # what is drawn first
_MOST = 12  # of each kind in each room
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
    """Lengths and names by which axes are recognised.

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


def collect(
    model: Model, variables: Any, batch: Batch
) -> tuple[dict[str, Seen], dict[str, Span], tuple[tuple[Span, ...], ...]]:
    """`{path: Seen}` of what is worth drawing, and the spans that token axes may have: each
    encoder's, and the layouts that fusions gave."""
    inputs = jax.tree.map(np.asarray, dict(batch["inputs"]))
    wider = jax.tree.map(lambda x: np.concatenate([x, x[:1]]), inputs)
    look = functools.partial(looked_at, model)
    more, _, _ = jax.eval_shape(look, variables, wider)
    return arranged(*jax.device_get(jax.jit(look)(variables, inputs)), more)


def looked_at(model: Model, variables: Any, inputs: Any) -> tuple[Any, Any, Any]:
    """All intermediates of one pass, what the tasks read in it, and the tokens of encoders. Pure"""
    shared, first = model.trunk(variables, inputs)
    _, second = model.readout(variables, dict.fromkeys(model.tasks, shared))
    found = [updates.get("intermediates", {}) for updates in (first, second)]
    return {**found[0], **found[1]}, shared, encode(model, variables, inputs)


def arranged(
    found: Any, shared: Any, encoded: Any, more: Any
) -> tuple[dict[str, Seen], dict[str, Span], tuple[tuple[Span, ...], ...]]:
    """The result of `collect`, from the arrays of `looked_at`, and `more`: the shapes of the
    intermediates when the batch has one row more."""
    arrays, wider = handed_over(found), handed_over(more)
    rows = len(next(iter(encoded.values())).present)
    seen = {}
    for path, values in arrays.items():
        change = np.flatnonzero(np.not_equal(values.shape, wider[path].shape))
        seen[path] = _samples_first(np.asarray(values, np.float32), change, rows)
    spans = {name: t.layout[0] for name, t in sorted(encoded.items()) if len(t.layout) == 1}
    layouts = [getattr(tokens, "layout", ()) for tokens in shared.values()]
    return seen, spans, tuple(dict.fromkeys(x for x in layouts if len(x) > 1))


def _samples_first(values: np.ndarray, change: Sequence[int], rows: int) -> Seen:
    """An axis of B times something, such as all tokens of a batch, is taken apart."""
    if len(change) != 1:
        return Seen(values, False)
    (axis,) = change
    if values.shape[axis] != rows:
        before, after = values.shape[:axis], values.shape[axis + 1 :]
        values = values.reshape(*before, rows, -1, *after)
    return Seen(np.moveaxis(values, axis, 0), True)


def handed_over(intermediates: Mapping[str, Any]) -> dict[str, jax.Array]:
    """`{path: array}` of all but features; a module that ran twice has two."""
    found = {}
    for path, sown in flatten(intermediates).items():
        for i, value in enumerate(sown if isinstance(sown, tuple) else (sown,)):
            if not re.fullmatch(FEATURES, path.rsplit("/", 1)[-1]):
                found[path if i == 0 else f"{path}_{i + 1}"] = value
    return found


def drawn(
    arrays: Mapping[str, Seen], known: Known, samples: int = 3
) -> tuple[list[HeatMap], list[PatchMap]]:
    """Plots of all arrays, a dozen of a kind for each room; the last path counts the rest.

    Args:
        arrays: as `collect` gives them.
        known: names for their axes.
        samples: how many samples' attention is laid over their pictures.
    """
    heat_maps, patch_maps = [], []
    for path, (values, per_sample) in arrays.items():
        if path.endswith("/precisions"):  # of a product of experts, whose prior has 1
            path, values = f"{path} as weights", (values / (1 + values.sum(1)[:, None])).mean(-1)
        if per_sample and values.ndim > 2:  # [B, heads, queries, keys]
            values = values.reshape(len(values), -1, *values.shape[-2:]).mean(1)
            if "weight" in path.rsplit("/", 1)[-1]:
                patch_maps += _patches(path, values, known, samples)
        heat_maps.append(_heat(path, values, known, per_sample))
    return _few(_joined(heat_maps, known)), _few(patch_maps)


def _joined(maps: Iterable[HeatMap], known: Known) -> Iterator[HeatMap]:
    """Heat maps of one row a task or modality, joined into one of several rows."""
    owners = dict.fromkeys(known.spans, "modality") | dict.fromkeys(known.tasks, "task")
    owner = re.compile(rf"(?<=[/_])({'|'.join(map(re.escape, owners))})(?=/|$)")
    groups: dict[Any, list[HeatMap]] = {}
    for shown in maps:
        named = owner.search(shown.path)
        if named and shown.rows.labels == ("",):
            rows = Axis(owners[named[0]], (named[0],))
            shown = shown._replace(path=owner.sub(f"each {rows.name}", shown.path, 1), rows=rows)
        groups.setdefault((shown.path, shown.rows.name, shown.columns), []).append(shown)
    for (path, name, columns), group in groups.items():
        labels = tuple(label for shown in group for label in shown.rows.labels)
        values = np.concatenate([shown.values for shown in group])
        yield HeatMap(path, Axis(name, labels), columns, values)


def _few(maps: Iterable[Any]) -> list[Any]:
    """The first dozen of each room."""
    rooms: dict[str, list[Any]] = {name: [] for name in _ROOMS}
    for shown in maps:
        rooms.setdefault(shown.path.split("/")[0], []).append(shown)
    for room, group in rooms.items():
        first, more = group[:_MOST], len(group) - _MOST
        last = first[-1].path if more > 0 else None
        note = f"({more} more left out) {last}"
        rooms[room] = [m._replace(path=note) if m.path == last else m for m in first]
    return list(itertools.chain(*rooms.values()))


def _heat(path: str, values: np.ndarray, known: Known, per_sample: bool) -> HeatMap:
    """Its last two axes, or one of them by sample, averaged over the others."""
    if values.ndim == 4 and values.shape[:2] == values.shape[2:]:
        (name, labels), parts = axis_of(path, len(values), known), range(values.shape[1])
        both = Axis(f"{name}, part", tuple(f"{n} {i + 1}" for n in labels for i in parts))
        return HeatMap(path, both, both, values.reshape(len(both.labels), -1))
    if values.ndim < 2:
        values = values.reshape((-1, 1) if per_sample else (1, -1))
    rows, columns = (axis_of(path, n, known, keys=bool(i)) for i, n in enumerate(values.shape[-2:]))
    samples = Axis("sample", known.samples)
    if per_sample and values.ndim == 2:
        return HeatMap(path, samples, columns, values)
    routed = rows.name == "token" and columns.name != "token"
    if per_sample and (routed or len(rows.labels) == 1):
        count = np.abs(values).any(-1, keepdims=True).sum(1)  # a masked token has no gates
        return HeatMap(path, samples, columns, values.sum(1) / np.maximum(count, 1))
    if per_sample and rows.name in ("modality", "task") and columns.name == "feature":
        return HeatMap(path, samples, rows, values.mean(-1))
    return HeatMap(path, rows, columns, values.reshape(-1, *values.shape[-2:]).mean(0))


def axis_of(path: str, size: int, known: Known, keys: bool = False) -> Axis:
    """Name and labels of an axis by its length; numbers where nothing fits.

    Inside sharing it may be over tasks, elsewhere over modalities, else over tokens. `keys`: it is
    the last axis. Of weights and stitches that is what is attended to; gates, routes and scales
    end in the module's own channels, experts or nodes, whatever their number.
    """
    name = path.rsplit("/", 1)[-1].lower()
    if size == 1:
        return Axis("", ("",))
    if "rout" not in name and (re.search(_BETWEEN, name) or not keys):
        shared = path.startswith("sharing")
        things = ("task", known.tasks) if shared else ("modality", tuple(known.spans))
        if size == len(things[1]) and "/attention/" not in path:  # tokens attend to tokens
            return Axis(*things)
        if layout := layout_of(path, size, known, keys):
            return Axis("token", tuple(_token_labels(layout)))
    called = next((n for word, n in _CALLED.items() if word in path.lower()), "part")
    return Axis("feature" if size > 16 else called, tuple(str(i + 1) for i in range(size)))


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
    parts = itertools.chain(*(itertools.combinations(whole, n) for n in range(1, len(whole))))
    fitting = [part for part in parts if sum(span.length for span in part) == size]
    if fitting:
        return fitting[0] if len(fitting) == 1 else ()
    return _extended(whole, size, known)


def _extended(layout: tuple[Span, ...], size: int, known: Known) -> tuple[Span, ...]:
    """The layout, extended by the tokens that a fusion adds, or by a class token."""
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
            place = np.unravel_index(i, span.grid) if np.prod(span.grid) == span.length else (i,)
            yield f"{span.name} {','.join(str(int(p) + 1) for p in place)}"


def _starts(layout: Sequence[Span]) -> Iterator[tuple[Span, int]]:
    ends = itertools.accumulate(span.length for span in layout)
    return ((span, end - span.length) for span, end in zip(layout, ends, strict=True))


def _patches(path: str, values: np.ndarray, known: Known, samples: int) -> Iterator[PatchMap]:
    """Attention `[B, queries, keys]` whose keys hold a grid of image patches."""
    queries = layout_of(path, values.shape[1], known)
    for span, start in _starts(layout_of(path, values.shape[2], known, keys=True)):
        if len(span.grid) != 2 or np.prod(span.grid) != span.length or span.length == 1:
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
