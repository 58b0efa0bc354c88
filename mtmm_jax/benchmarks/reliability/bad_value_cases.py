"""The values that `bad_values` tries: of every hyper-parameter, section and key that has a type."""

from __future__ import annotations

import ast
import dataclasses
import json
import math
import random
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from mtmm_jax.ranges import Entry, Layers, Range, describe, hints_of, mismatch
from mtmm_jax.registry import parameters

NONSENSE = (
    math.nan, math.inf, -math.inf, True, None, -1, 0, 2.0, 0.5, 10**30, -(10**30), 10**400, 1e308,
    "nonsense", "", "(", [], [math.nan], {}, {"kind": "nonsense"}, [[["x"]]],
)  # fmt: skip
PROVIDED = {("model.sharing", "tasks")}
"""What the model gives an entry where the config has None."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One value at one place.

    Attributes:
        changes: place in the config -> value, the last of which is the one that is tried.
        key: the last part of its place, which a refusal has to name.
        refused: whether it must be; otherwise it may be accepted, and is not trained on.
        wanted: the declared type and range, in words.
        overrides: whether the value is given on the command line, and not in the file.
    """

    changes: dict[str, Any]
    key: str
    refused: bool
    wanted: str
    overrides: bool = False

    @property
    def place(self) -> str:
        return list(self.changes)[-1]

    @property
    def value(self) -> Any:
        return self.changes[self.place]


def outside_and_ends(hint: Any) -> tuple[list[Any], list[Any]]:
    """Values just outside the ranges of a hint, and those at their ends."""
    outside, ends = [], []
    for part in _annotated(hint):
        kind, *rules = typing.get_args(part)
        for rule in rules:
            if isinstance(rule, Range):
                step = 1 if kind is int else max(abs(rule.high), 1.0) * 1e-6
                low, high = (kind(end) for end in (rule.low, rule.high))
                outside += [low - step, high + step]
                outside += [low] * rule.above + [high] * rule.below
                ends += [low] * (not rule.above) + [high] * (not rule.below)
    return [v for v in outside if mismatch(v, hint)], [v for v in ends if not mismatch(v, hint)]


def _annotated(hint: Any) -> Iterator[Any]:
    if typing.get_origin(hint) is Annotated:
        yield hint
    else:
        for part in typing.get_args(hint):
            yield from _annotated(part)


def of_parameter(place: str, hint: Any, around: Mapping[str, Any]) -> Iterator[Case]:
    """The cases of one parameter: `around` is set before it."""
    outside, ends = outside_and_ends(hint)
    key, words = place.rsplit(".", 1)[-1], describe(hint)
    for value in [*outside, *(v for v in NONSENSE if mismatch(v, hint))]:
        yield Case({**around, place: value}, key, True, words)
    for value in ends:
        yield Case({**around, place: value}, key, False, words)


def of_table(
    table: Mapping[str, Any], place: str, needed: Mapping[str, Any] | None = None
) -> Iterator[Case]:
    """The cases of the kind, and of every hyper-parameter of every entry that says its type."""
    kinds = Literal[tuple(table)]
    yield from of_parameter(f"{place}.kind", kinds, {place: dict(needed or {})})
    for kind, entry in table.items():
        if not getattr(entry, "__module__", "mtmm_jax").startswith("mtmm_jax"):
            continue  # registered by whoever asks; the processes that answer do not know it
        hints = hints_of(entry)
        for name in parameters(entry):
            own = (place, name) not in PROVIDED
            if own and name in hints and _known(hints[name]):
                around = {place: {**(needed or {}), "kind": kind}}
                yield from of_parameter(f"{place}.{name}", hints[name], around)


def of_section(settings: type, place: str, given: Mapping[str, Any]) -> Iterator[Case]:
    """The cases of every field of a section's dataclass; `given` are those it needs."""
    for name, hint in hints_of(settings).items():
        if _known(hint) and name != "found":
            around = {place: {k: v for k, v in given.items() if k != name}}
            yield from of_parameter(f"{place}.{name}", hint, around)


def _known(hint: Any) -> bool:
    """True if a hint refuses some of the nonsense: it is a type, and not only a comment."""
    return any(mismatch(value, hint) for value in NONSENSE)


def of_list(table: Mapping[str, Any], place: str) -> Iterator[Case]:
    """The cases of a table whose entries stand in a list: a list of one."""
    for case in of_table(table, place):
        if case.key == "kind":
            continue
        entry = {**case.changes[place], case.key: case.value}
        yield Case({place: [entry]}, case.key, case.refused, case.wanted)


def after(given: Mapping[str, Any], found: Iterator[Case]) -> Iterator[Case]:
    """The cases, with changes that come before theirs."""
    for case in found:
        yield dataclasses.replace(case, changes={**given, **case.changes})


def cases() -> list[Case]:
    """All cases of all tables, sections and keys."""
    return [*_of_tables(), *_of_data(), *_of_sections(), *_of_keys()]


def _of_tables() -> Iterator[Case]:
    from mtmm_jax import balancing, fusion
    from mtmm_jax.balancing.pacing import PACES
    from mtmm_jax.data import SOURCES
    from mtmm_jax.devices.mesh import FORMS
    from mtmm_jax.encoders import ENCODERS
    from mtmm_jax.heads import HEADS
    from mtmm_jax.layers import Adapter
    from mtmm_jax.layers.reversal import Reversal
    from mtmm_jax.objectives.imbalance import IMBALANCE
    from mtmm_jax.objectives.semi import SEMI
    from mtmm_jax.optim import optimizers, privacy, schedules
    from mtmm_jax.sharing import SHARINGS
    from mtmm_jax.tasks import REGULARISERS, TASKS

    tables = {
        "data": SOURCES,
        "model.encoders.m1": ENCODERS,
        "model.fusion": fusion.FUSIONS,
        "model.missing": fusion.MISSING,
        "model.align": fusion.ALIGNMENTS,
        "model.bottleneck.all": fusion.BOTTLENECKS,
        "model.sharing": SHARINGS,
        "model.adapters.m1": {"adapter": Adapter},
        "tasks.synergy.head": HEADS,
        "tasks.synergy.reverse": {"reversal": Reversal},
        "tasks.more": TASKS,
        "balancing": balancing.METHODS,
        "optimizer": optimizers.OPTIMIZERS,
        "optimizer.schedule": schedules.SCHEDULES,
        "optimizer.tasks": PACES,
        "optimizer.private": {"gaussian": privacy.mechanism},
        "devices": FORMS,
        "semi": SEMI,
    }
    for place, table in tables.items():
        yield from of_table(table, place)
    yield from of_list(REGULARISERS, "model.regularisers")
    yield from of_list(balancing.WRAPPERS, "balancing.wrap")
    decision = {"stage": "decision"}
    yield from of_table(fusion.DECISIONS, "model.fusion", decision)
    unimodal = {"tasks.synergy": {"kind": "classification", "unimodal": True}}
    yield from after(unimodal, of_table(IMBALANCE, "optimizer.imbalance", {"task": "synergy"}))


def _of_data() -> Iterator[Case]:
    """The options of sources, and how several are mixed."""
    from mtmm_jax.data import MIXINGS, OPTIONS
    from mtmm_jax.data.pipeline.labels import LabelledShare
    from mtmm_jax.readers.limits import Limits

    for key, option in OPTIONS.items():
        yield from of_parameter(f"data.{key}", option.wants, {})
    named = {"hide": "synergy", "held_out": "synergy", "bucket": "m1"}
    for key, name in named.items():
        _, hint = typing.get_args(OPTIONS[key].wants)
        yield from of_parameter(f"data.{key}.{name}", hint, {f"data.{key}": {}})
    yield from of_parameter("data.in_step", Mapping[str, str] | None, {})
    yield from of_section(LabelledShare, "data.semi", {"target": "synergy"})
    one = {"kind": "generator", "size": [16, 8, 8]}
    mixture = {"data": {"kind": "mixture", "sources": {"a": one, "b": {**one, "seed": 1}}}}
    yield from after(mixture, of_table(MIXINGS, "data.mixing"))
    nowhere = {"kind": "manifest", "path": "nowhere.csv", "modalities": {}, "targets": {}}
    yield from after({"data": nowhere}, of_section(Limits, "data.limits", {}))


def _of_sections() -> Iterator[Case]:
    from mtmm_jax.objectives import distillation, relatedness
    from mtmm_jax.optim import optimizers, pruning
    from mtmm_jax.tasks.adversarial import Critic
    from mtmm_jax.training.stopping import StoppingSettings
    from mtmm_jax.transfer import init_from, lora, quantising

    prune = {"share": 0.5, "begin": 0, "end": 1}
    measured = {"steps": 1, "use": "weights"}
    yield from of_section(optimizers.Options, "optimizer", {"kind": "adamw"})
    yield from of_section(pruning.PruneSettings, "optimizer.prune", prune)
    yield from of_section(relatedness.RelatednessSettings, "relatedness", measured)
    yield from of_section(distillation.DistillationSettings, "teachers", {"workdirs": ["nowhere"]})
    yield from of_section(lora.LoraSettings, "lora", {})
    yield from of_section(quantising.QuantiseSettings, "quantise", {})
    yield from of_section(init_from.InitFromSettings, "init_from", {"workdir": "nowhere"})
    yield from of_section(StoppingSettings, "stopping", {"patience": 2})
    picture = {"tasks.m1": {"kind": "reconstruction"}}
    yield from after(picture, of_section(Critic, "tasks.m1.adversarial", {}))


def _of_keys() -> Iterator[Case]:
    """The keys of the config, of the model, of its stages of fusion and of tasks."""
    from mtmm_jax.balancing.trainer import TRAINER
    from mtmm_jax.model.build import MODEL_KEYS, STAGE_KEYS
    from mtmm_jax.model.build_tasks import TASK_KEYS
    from mtmm_jax.optim.unfreezing import Pairs
    from mtmm_jax.store import config
    from mtmm_jax.training.extensions import EXTENSIONS

    keys = {**config.KEYS, **config.OPTIONAL_HINTS, **config.STOPPING}
    keys |= {f"{name}.{key}": h for name, own in config.SECTIONS.items() for key, h in own.items()}
    keys |= {f"model.{key}": hint for key, hint in MODEL_KEYS.items()}
    keys |= {f"tasks.synergy.{key}": hint for key, hint in TASK_KEYS.items()}
    keys |= {f"balancing.{key}": hint for key, hint in TRAINER.items()}
    keys |= {place: Mapping[str, Any] | None for place in EXTENSIONS if place not in keys}
    keys |= {"model.encoders.m1": Entry | None, "tasks.synergy": Entry | None}
    keys |= {"model.sharing.tasks": str | Sequence[str] | None}
    keys |= {"optimizer.accumulate": Layers | None, "optimizer.unfreeze": Pairs | None}
    for place, hint in keys.items():
        yield from of_parameter(place, hint, {})
    for key, row in STAGE_KEYS.items():
        fused = {"model.fusion": {"kind": "concat", "stage": row.stages[0]}}
        yield from of_parameter(f"model.fusion.{key}", row.wants, fused)


def chosen(count: int, seed: int = 0) -> list[Case]:
    """So many of the cases, drawn by the seed, each parameter before any a second time.

    A quarter of those that can stand on the command line do.
    """
    by_place: dict[str, list[Case]] = {}
    for case in cases():
        by_place.setdefault(json.dumps([*case.changes, case.key, case.wanted]), []).append(case)
    draw = random.Random(seed)
    for own in by_place.values():
        draw.shuffle(own)
    queues = sorted(by_place.values(), key=lambda own: draw.random())
    picked: list[Case] = []
    while len(picked) < count and any(queues):
        for queue in queues:
            if queue and len(picked) < count:
                picked.append(queue.pop())
    return [
        dataclasses.replace(case, overrides=draw.random() < 0.25 and _is_literal(case.value))
        for case in picked
    ]


def _is_literal(value: Any) -> bool:
    """Whether it is the same after `--config.x=value`."""
    try:
        return ast.literal_eval(repr(value)) == value
    except ValueError:
        return False
