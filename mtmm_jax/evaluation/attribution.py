"""Attribution of predictions to parts of an input: integrated gradients, checked by deletion.

An input is taken apart into units, such as words or patches (`modalities.units`); the path and the
deletions lead to an input in which all of them are neutral.

    A_u = sum_{i in u} (x_i - x'_i) int_0^1 dF/dx_i (x' + a (x - x')) da

so that the units' attributions add up to F(x) - F(x') (Sundararajan, Taly, Yan 2017). F is the
scalar of a prediction that its task names (`Task.explained`), such as a class's log-probability or
a number. Texts and sound go along the path between the tokens that the encoder's stem gives: words
have no values between them, and log energies have no slope that could be followed into silence.
Where such features are formulas (fixed encoders, linear models) units are left out one by one
instead: A_u = F(x) - F(x without u), which need not add up to anything.

Whether A_u is right is checked by deletion (Petsiuk, Das, Saenko 2018): without the units of the
highest A_u the answer should suffer more than without as many others.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax.batch import Tokens, clean
from mtmm_jax.encoders import FixedEncoder
from mtmm_jax.modalities import kind_of
from mtmm_jax.modalities.units import Parts, without
from mtmm_jax.model import Model


def integrated_gradients(
    model: Model,
    variables: Any,
    inputs: Mapping[str, Any],
    parts: Mapping[str, Parts],
    scores: Callable[[Any], jax.Array],
    steps: int = 32,
) -> tuple[dict[str, jax.Array], jax.Array]:
    """`({modality: [K, B, units]}, gap [K, B])`: attributions of K scores, and what they miss of
    F_k(x) - F_k(x').

    Args:
        model, variables: what answered.
        inputs: of a batch.
        parts: of the modalities to explain; the others stay as they are.
        scores: `{task: prediction} -> [K, B]`; a row's score depends on that row alone.
        steps: points of the integral (midpoint rule); each is a forward and K backward passes.
    """
    soft, entries, starts, ends, units = _soften(model, variables, clean(dict(inputs)), parts)

    def value(moved: Mapping[str, jax.Array]) -> jax.Array:
        seen = {name: {**entries[name], "x": x} for name, x in moved.items()}
        return scores(soft(variables, {**entries, **seen})[0])

    def at(share: jax.Array) -> dict[str, jax.Array]:
        between = {n: starts[n] + share.astype(ends[n].dtype) * (ends[n] - starts[n]) for n in ends}
        sums, back = jax.vjp(lambda moved: value(moved).sum(1), between)
        return jax.vmap(lambda one: back(one)[0])(jnp.eye(len(sums), dtype=sums.dtype))

    shares = (jnp.arange(steps, dtype=jnp.float32) + 0.5) / steps
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(at, shares[0]))
    total, _ = jax.lax.scan(
        lambda sums, share: (jax.tree.map(jnp.add, sums, at(share)), None), zeros, shares
    )
    found = {name: (ends[name] - starts[name]) * total[name] / steps for name in ends}
    attributions = {
        name: jax.vmap(lambda x, n=name: _summed(x, units[n], parts[n].count))(x)
        for name, x in found.items()
    }
    whole = sum(x.reshape(*x.shape[:2], -1).sum(2) for x in found.values())
    return attributions, value(ends) - value(starts) - whole


def one_by_one(model: Model, name: str) -> bool:
    """Whether a modality's units are left out one by one: where its path would lead between tokens
    of a stem, and features are formulas of the input itself, which has no path."""
    if kind_of(model.spec.modalities[name]).units.path is None:
        return False
    linear = model.linear is not None and name in model.linear.modalities.values()
    return linear or isinstance(model.encoders[name], FixedEncoder)


def left_out(
    model: Model,
    variables: Any,
    inputs: Mapping[str, Any],
    parts: Mapping[str, Parts],
    scores: Callable[[Any], jax.Array],
) -> dict[str, jax.Array]:
    """`{modality: [K, B, units]}`: F(x) - F(x without the unit)."""
    if not parts:
        return {}
    seen = clean(dict(inputs))
    whole = scores(model(variables, seen)[0])
    found = {}
    for name, own in parts.items():

        def less(unit: jax.Array, name: str = name, own: Parts = own) -> jax.Array:
            keep = jnp.broadcast_to(jnp.arange(own.count) != unit, own.there.shape)
            changed = {**seen, name: without(seen[name], own, keep)}
            return whole - scores(model(variables, clean(changed))[0])

        each = jax.lax.map(less, jnp.arange(own.count), batch_size=8)
        found[name] = jnp.where(own.there, jnp.moveaxis(each, 0, -1), 0.0)
    return found


def _summed(values: jax.Array, units: jax.Array, count: int) -> jax.Array:
    """`[B, count]`: the sums over the places of each unit."""
    rows = len(units)
    flat = units.reshape(rows, -1)
    values = values.reshape(*flat.shape, -1).sum(-1)
    into = jnp.where(flat < 0, count, flat)
    empty = jnp.zeros((rows, count + 1), values.dtype)
    return empty.at[jnp.arange(rows)[:, None], into].add(values)[:, :-1]


def _soften(
    model: Model, variables: Any, inputs: Mapping[str, Any], parts: Mapping[str, Parts]
) -> tuple[Model, dict[str, Any], dict[str, jax.Array], dict[str, jax.Array], dict[str, Any]]:
    """The model that reads some inputs as the tokens of their stems, these inputs, where the path
    of each modality starts and ends, and the unit of each of its places."""
    starts, ends, units = {}, {}, {}
    encoders, entries, read = dict(model.encoders), dict(inputs), model.read(variables)
    for name, own in parts.items():
        modality, entry = model.spec.modalities[name], inputs[name]
        starts[name], ends[name] = jnp.asarray(own.neutral), jnp.asarray(entry["x"])
        units[name] = own.units
        path = kind_of(modality).units.path
        if path is None:
            continue
        encoder, weights = model.encoders[name], _own(read, name)
        stem = encoder.apply(weights, entry, method="stem")
        unsaid = encoder.apply(weights, {**entry, "x": starts[name]}, method="stem")
        starts[name], ends[name] = unsaid.values, stem.values
        encoders[name] = _Stemless(encoder, stem)
        entries[name] = {"x": stem.values, "mask": stem.mask, "present": entry["present"]}
        units[name] = path(own, stem.positions, entry["x"], modality)
    return dataclasses.replace(model, encoders=encoders), entries, starts, ends, units


def _own(variables: Mapping[str, Any], name: str) -> dict[str, Any]:
    rooms = {key: tree.get("encoders", {}).get(name) for key, tree in variables.items()}
    return {key: tree for key, tree in rooms.items() if tree is not None}


class _Stemless:
    """An encoder whose stem has run: it is handed the tokens' values as its input."""

    def __init__(self, encoder: Any, tokens: Tokens) -> None:
        self._encoder, self._tokens = encoder, tokens
        self.width = encoder.width

    def apply(self, variables: Any, *args: Any, method: str = "__call__", **rest: Any) -> Any:
        if method in ("first", "second"):
            return self._encoder.apply(variables, *args, method=method, **rest)
        tokens = self._tokens.replace_values(args[0]["x"])
        if method == "stem":
            return (tokens, {}) if "mutable" in rest else tokens
        for part in ("first", "second"):
            tokens = self._encoder.apply(variables, tokens, method=part, **rest)
            if "mutable" in rest:
                tokens, updates = tokens
        return (tokens, updates) if "mutable" in rest else tokens


def ranked(attributions: jax.Array, there: jax.Array) -> jax.Array:
    """`[..., count]`: the place of each unit, 0 for the highest; units that are not there last."""
    order = jnp.argsort(-jnp.where(there, attributions, -jnp.inf), axis=-1)
    return jnp.argsort(order, axis=-1)


def kept_after(ranks: jax.Array, there: jax.Array, share: jax.Array) -> jax.Array:
    """`[..., count]` bool: what stays when a share of the units, at least one of them where the
    share is above 0, is taken away in the order of `ranks`."""
    number = jnp.round(share * there.sum(-1, keepdims=True).astype(jnp.float32))
    return ranks >= jnp.where(share > 0, jnp.maximum(number, 1), 0).astype(ranks.dtype)


class Explainer:
    """Attributions of one model's predictions for batches of some shape; two programs in all.

    Args:
        model: the model.
        tasks: whose answers are explained, with `Task.explained`.
        steps: of the integrals.
    """

    def __init__(self, model: Model, tasks: Sequence[str], steps: int = 32) -> None:
        self.model, self.tasks = model, tuple(tasks)
        measures = {name: model.tasks[name].explained for name in tasks}

        def answers(predictions: Any) -> tuple[jax.Array, ...]:
            return tuple(m.answer(predictions[name]) for name, m in measures.items())

        def scalar(predictions: Any, answer: Sequence[jax.Array], what: str) -> jax.Array:
            pairs = zip(measures.items(), answer, strict=True)
            return jnp.stack([getattr(m, what)(predictions[name], a) for (name, m), a in pairs])

        def attribute(variables: Any, inputs: Any, parts: Any) -> Any:
            predictions, _ = model(variables, clean(inputs))
            answer = answers(predictions)
            scores = lambda found: scalar(found, answer, "score")  # noqa: E731
            apart = {name: own for name, own in parts.items() if one_by_one(model, name)}
            along = {name: own for name, own in parts.items() if name not in apart}
            found, gap = integrated_gradients(model, variables, inputs, along, scores, steps)
            found |= left_out(model, variables, inputs, apart, scores)
            return predictions, answer, found, gap

        def values(variables: Any, inputs: Any, parts: Any, answer: Any, settings: Any) -> Any:
            def one(changes: Any) -> jax.Array:
                seen = dict(inputs)
                for name, keep in changes["keep"].items():
                    here = inputs[name]["present"] & changes["present"][name]
                    seen[name] = {**without(inputs[name], parts[name], keep), "present": here}
                return scalar(model(variables, clean(seen))[0], answer, "value")

            return jax.lax.map(one, settings, batch_size=16)

        self._attribute, self._values = jax.jit(attribute), jax.jit(values)

    def attribute(self, variables: Any, inputs: Any, parts: Mapping[str, Parts]) -> Any:
        """`(predictions, answers of K tasks, {modality: [K, B, units]}, gap [K, B])`."""
        return self._attribute(variables, dict(inputs), dict(parts))

    def values(
        self,
        variables: Any,
        inputs: Any,
        parts: Mapping[str, Parts],
        answers: Sequence[jax.Array],
        keep: Mapping[str, jax.Array],
        present: Mapping[str, jax.Array] | None = None,
    ) -> jax.Array:
        """`[L, K, B]`: what the model makes of the answers when inputs are changed L times.

        Args:
            variables, inputs, parts: as above.
            answers: of K tasks, `[B, ...]` each.
            keep: modality -> `[L, B, units]` bool, the units that stay.
            present: modality -> `[L]` bool, whether it is there at all; None: always.
        """
        count = len(next(iter(keep.values())))
        always = {name: np.ones(count, bool) for name in keep}
        settings = {"keep": dict(keep), "present": {**always, **(present or {})}}
        return self._values(variables, dict(inputs), dict(parts), answers, settings)

    def deletion(
        self,
        variables: Any,
        inputs: Any,
        parts: Mapping[str, Parts],
        answers: Sequence[jax.Array],
        attributions: Mapping[str, jax.Array],
        shares: jax.Array,
        key: jax.Array,
        orders: int = 5,
        only: str | None = None,
    ) -> dict[str, dict[str, np.ndarray]]:
        """`{modality: {"highest", "random"}}`, each `[S, K, B]`: the values when a share of one
        modality's units is gone: those of the highest attribution to the task, or as many at random
        (the mean over `orders`). Of all modalities, or of `only` one."""
        names = tuple(parts) if only is None else (only,)
        there = {name: own.there for name, own in parts.items()}
        keep = _without_shares(names, orders, there, dict(attributions), shares, key)
        curves = np.asarray(self.values(variables, inputs, parts, answers, keep))
        tasks = len(self.tasks)
        curves = curves.reshape(len(names), tasks + orders, len(shares), *curves.shape[1:])
        return {
            name: {"highest": np.stack([one[k, :, k] for k in range(tasks)], 1),
                   "random": one[tasks:].mean(0)}
            for name, one in zip(names, curves, strict=True)
        }  # fmt: skip


@functools.partial(jax.jit, static_argnums=(0, 1))
def _without_shares(
    names: tuple[str, ...],
    orders: int,
    there: Mapping[str, jax.Array],
    attributions: Mapping[str, jax.Array],
    shares: jax.Array,
    key: jax.Array,
) -> dict[str, jax.Array]:
    """`{modality: [L, B, units]}` bool, which units stay: for each of `names`, in the order of each
    task's attributions and in `orders` of chance, without each of the shares."""
    kept: dict[str, list[jax.Array]] = {name: [] for name in there}
    for i, name in enumerate(names):
        own = there[name]
        drawn = jax.random.uniform(jax.random.fold_in(key, i), (orders, *own.shape))
        ranks = ranked(jnp.concatenate([attributions[name], drawn]), own)
        keep = jax.vmap(lambda s, r=ranks, t=own: kept_after(r, t, s), out_axes=1)(shares)
        keep = keep.reshape(-1, *own.shape)  # orders of the tasks, then of chance, by shares
        for other, lists in kept.items():
            whole = jnp.ones((len(keep), *there[other].shape), bool)
            lists.append(keep if other == name else whole)
    return {name: jnp.concatenate(lists) for name, lists in kept.items()}
