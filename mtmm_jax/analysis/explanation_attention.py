"""The parts of an input that a model attends to, ranked and compared with integrated gradients.

What a head or a fusion gives to a modality's tokens, the mean over maps, heads and tokens that ask,
goes back through the encoder's own attention to the tokens that its stem read (rollout, Abnar and
Zuidema 2020), and from there to the parts:

    r <- r (A_l + I) / 2,   l from the last block to the first

Attention says where a model looked, not what it made of it: whether the parts carried the answer
is checked by deletion, as gradients are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mtmm_jax.analysis.intermediates import Known, handed_over, layout_of, looked_at
from mtmm_jax.batch import Tokens, clean
from mtmm_jax.evaluation.attribution import Explainer
from mtmm_jax.modalities.units import Parts
from mtmm_jax.model import Model


class Attention:
    """Asks one model what it attends to; one program for each shape of batch.

    Args:
        model: the model.
        tasks: whose heads and fusions are read.
    """

    def __init__(self, model: Model, tasks: Sequence[str]) -> None:
        self.model, self.tasks = model, tuple(tasks)

        @jax.jit
        def look(variables: Any, inputs: Any) -> Any:
            inputs = clean(inputs)
            found, shared, encoded = looked_at(model, variables, inputs)
            maps = _maps(found)
            read, stems = model.read(variables), {}
            for name, encoder in model.encoders.items():
                if _blocks(maps, name):
                    rooms = {k: tree.get("encoders", {}).get(name) for k, tree in read.items()}
                    own = {k: tree for k, tree in rooms.items() if tree is not None}
                    stems[name] = encoder.apply(own, inputs[name], method="stem")
            return maps, stems, encoded, shared

        self._look = look

    def __call__(
        self, variables: Any, inputs: Mapping[str, Any], parts: Mapping[str, Parts]
    ) -> dict[str, dict[str, np.ndarray]]:
        """`{task: {modality: [B, units]}}`, of the modalities that attention falls on."""
        given = {name: inputs[name] for name in self.model.encoders}
        maps, stems, encoded, shared = jax.device_get(self._look(variables, given))
        spans = {name: t.layout[0] for name, t in sorted(encoded.items()) if len(t.layout) == 1}
        layouts = [getattr(tokens, "layout", ()) for tokens in shared.values()]
        fused = tuple(dict.fromkeys(x for x in layouts if len(x) > 1))
        known = Known((), {}, spans, fused, tuple(self.model.tasks))
        found: dict[str, dict[str, np.ndarray]] = {}
        for task in self.tasks:
            rooms = (
                f"heads/{task}/",
                *(f"fusion/{read}/" for read in self.model.tasks[task].reads),
            )
            chosen = {path: x for path, x in maps.items() if path.startswith(rooms)}
            found[task] = {}
            for name, own in parts.items():
                onto = _onto_tokens(chosen, encoded, known, name)
                blocks = _blocks(maps, name)
                if onto is None and not blocks:
                    continue
                tokens = stems.get(name, encoded[name])
                weights = _rolled_out(onto, blocks, encoded[name], tokens)
                units = None if weights is None else _onto_units(weights, tokens, own)
                if units is not None:
                    found[task][name] = units
        return found


def _maps(intermediates: Mapping[str, Any]) -> dict[str, jax.Array]:
    """`{path: [B, queries, keys]}`, the mean over heads; a pool has one query."""
    found = {}
    for path, x in handed_over(intermediates).items():
        if path.rsplit("/", 1)[-1].startswith("weights") and np.ndim(x) in (2, 3, 4):
            found[path] = x.mean(1) if x.ndim == 4 else x[:, None] if x.ndim == 2 else x
    return found


def _blocks(maps: Mapping[str, Any], name: str) -> list[Any]:
    """The attention of an encoder's blocks among its own tokens, from the first on."""

    def place(path: str) -> list[Any]:
        return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path)]

    paths = sorted((p for p in maps if p.startswith(f"encoders/{name}/")), key=place)
    found = [maps[path] for path in paths]
    same = all(x.shape == found[0].shape and x.shape[1] == x.shape[2] for x in found)
    return found if same else []


def _onto_tokens(
    maps: Mapping[str, np.ndarray], encoded: Mapping[str, Tokens], known: Known, name: str
) -> np.ndarray | None:
    """`[B, N]`: how much falls on a modality's tokens; None where nothing can."""
    rows, found = len(encoded[name].mask), []
    for path, weights in maps.items():
        start = 0
        for span in layout_of(path, weights.shape[2], known, keys=True):
            if span.name == name and name in known.spans and len(weights) == rows:
                asking = _asking(path, weights.shape[1], encoded, known, rows)
                total = np.einsum("bq,bqk->bk", asking, weights[..., start : start + span.length])
                found.append(total / np.maximum(asking.sum(1, keepdims=True), 1))
            start += span.length
    return np.mean(found, axis=0) if found else None


def _asking(
    path: str, size: int, encoded: Mapping[str, Tokens], known: Known, rows: int
) -> np.ndarray:
    """`[B, queries]` float mask of the queries that are present, as far as known."""
    layout = layout_of(path, size, known) if size > 1 else ()
    masks = [
        encoded[span.name].mask if span.name in encoded else np.ones((rows, span.length), bool)
        for span in layout
    ]
    return np.concatenate(masks or [np.ones((rows, size), bool)], axis=1).astype(np.float32)


def _rolled_out(
    onto: np.ndarray | None, blocks: Sequence[np.ndarray], encoded: Tokens, read: Tokens
) -> np.ndarray | None:
    """`[B, N]` over the tokens that the encoder read, from those that it said; None: no such way.

    Where nothing outside attends to them, all that it said count alike. A summary is the last of
    its tokens, others of its own stand behind what it read.
    """
    mask = encoded.mask.astype(np.float32)
    weights = mask / np.maximum(mask.sum(1, keepdims=True), 1) if onto is None else onto
    if not blocks:
        return weights
    size, count = blocks[0].shape[1], read.mask.shape[1]
    start = np.zeros((len(weights), size), np.float32)
    if weights.shape[1] in (count, size):
        start[:, : weights.shape[1]] = weights
    elif weights.shape[1] == 1 and size > count:
        start[:, -1:] = weights
    else:
        return None
    for block in reversed(blocks):
        start = 0.5 * (start + np.einsum("bq,bqk->bk", start, block.astype(np.float32)))
    return start[:, :count]


def _onto_units(weights: np.ndarray, tokens: Tokens, parts: Parts) -> np.ndarray | None:
    """`[B, units]`: a token's share is spread over its places; None where it has no place."""
    (span,), places, rows = tokens.layout[:1], parts.units.shape[1:], len(weights)
    values = weights.reshape(rows, *span.grid)
    if len(places) == 1:  # a spectrogram's bands sound at once
        values = values.reshape(rows, span.grid[0], -1).sum(2)
    if values.ndim - 1 != len(places) or values[0].size == 1:
        return None
    cells = np.ix_(*(np.arange(n) * g // n for n, g in zip(places, values.shape[1:], strict=True)))
    spread = values[(slice(None), *cells)].reshape(rows, -1) * (values[0].size / np.prod(places))
    units = parts.units.reshape(rows, -1)
    into = np.where(units < 0, parts.count, units) + np.arange(rows)[:, None] * (parts.count + 1)
    sums = np.bincount(into.ravel(), spread.ravel(), rows * (parts.count + 1))
    return sums.reshape(rows, -1)[:, :-1].astype(np.float32)


def deletion(
    explainer: Explainer,
    variables: Any,
    inputs: Mapping[str, Any],
    parts: Mapping[str, Parts],
    answers: Sequence[jax.Array],
    attended: Mapping[str, Mapping[str, np.ndarray]],
    shares: jax.Array,
    only: str | None = None,
) -> dict[str, dict[str, np.ndarray]]:
    """`{task: {modality: [S, B]}}`: the values when the share of the units that a task attended to
    most is gone. Of all modalities, or of `only` one."""
    names = {n: None for found in attended.values() for n in found if only in (None, n)}
    curves: dict[str, dict[str, np.ndarray]] = {task: {} for task in attended}
    for name in names:
        none = np.zeros(parts[name].there.shape, np.float32)
        ranked = np.stack([attended[task].get(name, none) for task in explainer.tasks])
        found = explainer.deletion(
            variables, inputs, parts, answers, {name: ranked}, shares, jax.random.key(0), 1, name
        )[name]["highest"]
        for k, task in enumerate(explainer.tasks):
            if name in attended[task]:
                curves[task][name] = np.asarray(found[:, k])
    return curves
