"""The first half of a model: raw inputs through encoders and fusion to what tasks read."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from mtmm_jax.batch import Tokens, clean
from mtmm_jax.layers import Run, batch_bernoulli
from mtmm_jax.model.paths import flatten
from mtmm_jax.model.stages import LEVELS, Levels
from mtmm_jax.registry import ConfigError
from mtmm_jax.tasks.task import modalities_of

if TYPE_CHECKING:
    from mtmm_jax.model.model import Model

AUXILIARY = "auxiliary"


def trunk(model: Model, run: Run, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Read -> tokens: everything that crosses the cut, from raw inputs."""
    inputs = clean({name: inputs[name] for name in model.encoders if name in inputs})
    if not inputs:
        raise ConfigError(f"inputs: none of {', '.join(model.encoders)} is in the batch")
    middle = any(fusing.stage == "middle" for fusing in model.fusions.values())

    def example(name: str, rows: int) -> Any:
        return model.spec.example(rows)["inputs"][name]

    levels = Levels(run, model.encoders, inputs, example, middle)
    encoded = functools.cache(
        lambda *key: _through(run, "adapters", model.adapters, key[0], levels.get(*key))
    )
    shared: dict[str, Any] = {}
    narrow: dict[str, Tokens] = {}  # every fusion is at the same stage
    for read, fusing in model.fusions.items():
        names = modalities_of(read, model.encoders)
        for name in names:
            if name not in narrow:
                tokens = encoded(name, LEVELS[fusing.stage])
                narrow[name] = _through(run, "bottleneck", model.bottlenecks, name, tokens)
        known = {name: narrow[name] for name in names}
        seen = _seen(model, run, known, tuple(inputs))
        if fusing.stage == "decision":
            shared |= {f"{read}/{name}": tokens for name, tokens in seen.items()}
        else:
            path = f"fusion/{read}"
            shared[read] = fusing(run, path, seen, known, levels.second)
    more = [read for _, term in model.regularisers.values() for read in term.reads]
    for read in (*model.reads, *more):
        if read not in model.fusions:
            shared[read] = encoded(read, "second")
    if run.mode["train"] and model.auxiliaries:
        shared[AUXILIARY] = dict(terms(run.updates))
    return shared


def _through(run: Run, room: str, modules: Mapping[str, Any], name: str, tokens: Tokens) -> Tokens:
    """What a modality's own module of a room makes of its tokens, if it has one."""
    return run(f"{room}/{name}", modules[name], tokens) if name in modules else tokens


def _seen(
    model: Model, run: Run, known: Mapping[str, Tokens], inputs: tuple[str, ...]
) -> dict[str, Tokens]:
    """What fusion sees in training. A modality is dropped from all fusions alike."""
    rates = model.modality_dropout
    if not (run.mode["train"] and any(rates.values()) and len(known) > 1):
        return dict(known)
    present = jnp.stack([tokens.present for tokens in known.values()], axis=-1)
    keep = batch_bernoulli(
        run.key("modality_dropout"),
        [1.0 - rates.get(name, 0.0) for name in inputs],
        (present.shape[0], len(inputs)),
        run.mode["axis_name"],
    )
    here = [keep[:, inputs.index(n)] if n in inputs else keep[:, 0] for n in known]
    kept = present & jnp.stack(here, axis=-1)
    kept = jnp.where(kept.any(-1, keepdims=True), kept, present)
    return {
        name: dataclasses.replace(tokens, mask=tokens.mask & kept[:, i : i + 1])
        for i, (name, tokens) in enumerate(known.items())
    }


def terms(updates: Mapping[str, Any]) -> Iterator[tuple[str, tuple[jax.Array, jax.Array]]]:
    """Path -> `(sum, count)` of the auxiliary losses that modules handed over."""
    for path, handed in flatten(updates.get("losses", {})).items():
        for i, term in enumerate(handed):
            yield (path if i == 0 else f"{path}_{i + 1}"), term
