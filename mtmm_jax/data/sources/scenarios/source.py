"""Made-up mixes of sensors and tasks as they occur together: driving, medicine, service, and so on.

All is synthetic: coloured shapes stand for what a camera sees, tones for words. What is kept of the
real thing is the form: which modalities there are, which tasks, which task needs which modality,
and which need several of them at once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated

import numpy as np

from mtmm_jax.batch import Batch, Spec
from mtmm_jax.data.pipeline.source import SPLITS, Source
from mtmm_jax.data.sources.scenarios.parts import Lot
from mtmm_jax.data.sources.scenarios.worlds import SCENARIOS, World
from mtmm_jax.modalities import kind_of
from mtmm_jax.ranges import Natural, Range, SplitSizes
from mtmm_jax.registry import ConfigError, checked, choose

_SPLIT = 2**24  # a row's number is that of its split times this, plus its place in the split
_SURVEYED = 512  # training rows that frequencies, means and deviations are counted on


@functools.partial(checked, where="data.scenarios")
def scenarios(
    *,
    scenario: str = "driving",
    noise: Annotated[float, Range(0, 10)] = 0.5,
    size: SplitSizes = (4096, 512, 512),
    seed: Natural = 0,
) -> Source:
    """One of `SCENARIOS`: made-up rows whose numbers depend on (seed, split, row) only.

    Costs nothing to store. Use it: to see a system of several tasks run end to end. Not: to measure
    a method.

    Args:
        scenario: driving, medical, service, home, traffic, video or sign.
        noise: of every sensor; 0 for none.
        size: rows of train, validation and test.
        seed: of everything, the rows included.
    """
    where = "data.scenarios"
    choose(scenario, SCENARIOS, f"{where}.scenario", "scenario")
    if max(size) > _SPLIT:
        raise ConfigError(f"{where}.size: {size}; at most {_SPLIT} rows in a split")
    make = functools.partial(_make, SCENARIOS[scenario], float(noise), seed)
    known = make(np.arange(min(_SURVEYED, size[0])))
    targets = {name: target.described_by(y) for name, (target, y) in known.targets.items()}
    return Source(
        name="scenarios",
        spec=Spec({name: modality for name, (modality, _) in known.inputs.items()}, targets),
        rows={s: i * _SPLIT + np.arange(size[i]) for i, s in enumerate(SPLITS)},
        compose=functools.partial(_compose, make),
        draws=0,
        assets={},
        describe=lambda id: f"{scenario}, {SPLITS[id // _SPLIT]} row {id % _SPLIT}",
        augment=False,
        seed=seed,
    )


def _make(build: Callable[[Lot], World], noise: float, seed: int, rows: np.ndarray) -> World:
    return build(Lot(seed, rows, noise))


def _compose(
    make: Callable[[np.ndarray], World], rows: np.ndarray, chance: np.ndarray | None
) -> Batch:
    del chance  # nothing is augmented
    world, present = make(rows), np.ones(len(rows), bool)
    inputs = {name: {"x": x, "present": present} for name, (_, x) in world.inputs.items()}
    for name, (modality, x) in world.inputs.items():
        if kind_of(modality).mask == "always":
            inputs[name]["mask"] = np.ones(x.shape, bool)
    return {
        "inputs": inputs,
        "targets": {n: {"y": y, "present": present} for n, (_, y) in world.targets.items()},
        "id": rows.astype(np.int32),
    }
