"""Declared types and ranges: what they take, what they refuse, and what they say."""

import importlib
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import ml_collections
import pytest

from mtmm_jax import ranges
from mtmm_jax.ranges import Range, describe, located, mismatch
from mtmm_jax.registry import ConfigError, build, check_fields, checked, parameters
from tests.made_up import packaged

NONSENSE = (float("nan"), float("inf"), -float("inf"), True, "2", None, [], {}, 10**400, b"2")

TAKEN = [
    (ranges.Count, [1, 7, 2**31 - 1]),
    (ranges.Natural, [0, 7]),
    (ranges.Size, [1, 2**20]),
    (ranges.Layers, [1, 512]),
    (ranges.Real, [-1.5, 0, 3e38]),
    (ranges.NonNegative, [0, 0.0, 5]),
    (ranges.Positive, [1e-30, 2]),
    (ranges.Share, [0, 1, 0.5]),
    (ranges.PositiveShare, [1e-9, 1]),
    (ranges.Decay, [0, 0.999]),
    (ranges.Between, [0.5]),
]
REFUSED = [
    (ranges.Count, [0, -1, 2**31, 2.0]),
    (ranges.Natural, [-1, 1.0]),
    (ranges.Size, [0, 2**20 + 1]),
    (ranges.Layers, [0, 513]),
    (ranges.Real, [1e39, -1e39]),
    (ranges.NonNegative, [-1e-9]),
    (ranges.Positive, [0, -1]),
    (ranges.Share, [-0.1, 1.1]),
    (ranges.PositiveShare, [0, 1.1]),
    (ranges.Decay, [1, -0.1]),
    (ranges.Between, [0, 1]),
]


@pytest.mark.parametrize(("hint", "values"), TAKEN, ids=[describe(hint) for hint, _ in TAKEN])
def test_numbers_within_their_range_are_taken(hint, values):
    assert [mismatch(value, hint) for value in values] == [None] * len(values)
    assert mismatch(None, hint | None) is None


@pytest.mark.parametrize(("hint", "values"), REFUSED, ids=[describe(hint) for hint, _ in REFUSED])
def test_numbers_outside_and_what_is_no_number_are_refused(hint, values):
    for value in (*values, *NONSENSE):
        assert mismatch(value, hint) == describe(hint)
        assert (mismatch(value, hint | None) is None) == (value is None)


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (ranges.Count, "a whole number from 1 upwards"),
        (ranges.Size, "a whole number from 1 to 1,048,576"),
        (ranges.Real, "a number"),
        (ranges.Positive, "a number above 0"),
        (ranges.Share | None, "a number from 0 to 1, or None"),
        (ranges.Decay, "a number from 0, below 1"),
        (ranges.PositiveShare, "a number above 0, up to 1"),
        (Annotated[int, Range(2, 8)], "a whole number from 2 to 8"),
        (Literal["a", "b"], "one of 'a', 'b'"),
        (ranges.Regexes, "a regular expression, or a list, each a regular expression"),
        (Mapping[str, ranges.Share], "a section whose values are a number from 0 to 1"),
    ],
)
def test_hints_are_described_in_words(hint, words):
    assert describe(hint) == words


@pytest.mark.parametrize(
    ("value", "hint", "found"),
    [
        ([1, 2, -3], Sequence[ranges.Count], ("[2]", -3)),
        ({"a": {"b": 2}}, Mapping[str, Mapping[str, ranges.Share]], (".a.b", 2)),
        ([["(", 1]], ranges.Natural | Sequence[tuple[ranges.Regex, int]], ("[0][0]", "(")),
        ([["x"]], Sequence[tuple[str, int]], ("[0]", ["x"])),
        ("abc", Sequence[str], ("", "abc")),
        ("concaf", Literal["concat"], ("", "concaf")),
        (1, bool, ("", 1)),
        (True, Literal[1], ("", True)),
    ],
)
def test_the_part_that_does_not_fit_is_located(value, hint, found):
    assert located(value, hint)[:2] == found


def test_sections_of_every_kind_are_mappings():
    for section in ({"a": 0.5}, ml_collections.ConfigDict({"a": 0.5})):
        assert mismatch(section, Mapping[str, ranges.Share]) is None
        assert mismatch(section, ranges.Entry) is None
    assert mismatch(["a"], ranges.Entry) is not None


def test_what_a_hint_does_not_say_is_not_checked():
    assert mismatch(object(), Any) is None
    assert mismatch(object(), ml_collections.ConfigDict) is None
    assert ranges.hints_of(print) == {}


def _part(size, *, rate: ranges.Decay = 0.0, mode: Literal["mean", "sum"] = "mean"):
    return size, rate, mode


def test_every_way_to_build_a_part_checks_its_hints():
    with pytest.raises(ConfigError, match=r"a\.rate: 1 is not a number from 0, below 1"):
        build({"part": _part}, {"kind": "part", "rate": 1}, 3, where="a")
    with pytest.raises(ConfigError, match=r"a\.mode: 'sun' .*did you mean 'sum'\?"):
        build({"part": _part}, {"kind": "part", "mode": "sun"}, 3, where="a")
    assert checked(_part, "part")(3, rate=0.5) == (3, 0.5, "mean")
    with pytest.raises(ConfigError, match=r"part\.rate: nan is not"):
        checked(_part, "part")(3, rate=float("nan"))


def test_the_fields_of_a_part_are_checked_without_a_config():
    from mtmm_jax.fusion.pooled import Concat

    check_fields(Concat(8), "fusion")
    with pytest.raises(ConfigError, match=r"fusion\.width: 8\.0 is not a whole number"):
        check_fields(Concat(8.0), "fusion")


PROVIDED = {
    "METHODS": {"num_tasks"},
    "IMBALANCE": {"num_tasks"},
    "SCHEDULES": {"peak"},  # `learning_rate`, which the optimiser checks
    "INPUTS": {"paths", "features", "where"},
    "LABELS": {"paths", "features", "where"},
    "ENCODERS": {"shape"},  # of the modality
    "HEADS": {"shape", "start"},  # by a task, from its labels
}
"""Parameters that a table's builder provides, and no config."""


def _tables() -> dict[str, Mapping[str, Any]]:
    from mtmm_jax import balancing, fusion
    from mtmm_jax.balancing.pacing import PACES
    from mtmm_jax.balancing.wrappers import WRAPPERS
    from mtmm_jax.data import MIXINGS, SOURCES
    from mtmm_jax.data.pipeline.augment_jit import AUGMENTATIONS
    from mtmm_jax.data.sources.tfds.fields import INPUTS
    from mtmm_jax.data.sources.tfds.labels import LABELS
    from mtmm_jax.data.transforms import TRANSFORMS
    from mtmm_jax.devices.mesh import FORMS
    from mtmm_jax.encoders import ENCODERS
    from mtmm_jax.heads import HEADS
    from mtmm_jax.layers import Adapter
    from mtmm_jax.modalities import MODALITIES
    from mtmm_jax.objectives.imbalance import IMBALANCE
    from mtmm_jax.objectives.semi import SEMI
    from mtmm_jax.optim import optimizers, schedules
    from mtmm_jax.sharing import SHARINGS
    from mtmm_jax.targets import columns
    from mtmm_jax.tasks import REGULARISERS, TASKS
    from mtmm_jax.tasks.regression import LOSSES

    return {
        "ENCODERS": ENCODERS,
        "FUSIONS": fusion.FUSIONS,
        "DECISIONS": fusion.DECISIONS,
        "BOTTLENECKS": fusion.BOTTLENECKS,
        "MISSING": fusion.MISSING,
        "ALIGNMENTS": fusion.ALIGNMENTS,
        "SHARINGS": SHARINGS,
        "HEADS": HEADS,
        "TASKS": TASKS,
        "LOSSES": LOSSES,
        "REGULARISERS": REGULARISERS,
        "METHODS": balancing.METHODS,
        "WRAPPERS": WRAPPERS,
        "PACES": PACES,
        "OPTIMIZERS": optimizers.OPTIMIZERS,
        "SCHEDULES": schedules.SCHEDULES,
        "SOURCES": SOURCES,
        "INPUTS": INPUTS,
        "LABELS": LABELS,
        "SEMI": SEMI,
        "IMBALANCE": IMBALANCE,
        "MIXINGS": MIXINGS,
        "DEVICES": FORMS,
        "TRANSFORMS": {name: row.build for name, row in TRANSFORMS.items()},
        "AUGMENTATIONS": {name: row.apply for name, row in AUGMENTATIONS.items()},
        "MODALITIES": {name: row.column for name, row in packaged(MODALITIES).items()},
        "TARGETS": columns(),
        "LAYERS": {"adapter": Adapter},
    }


def _bare_numbers(hint: Any) -> bool:
    """Whether a hint takes numbers of any size."""
    if typing.get_origin(hint) in (Annotated, Literal):
        return False
    return hint in (int, float) or any(map(_bare_numbers, typing.get_args(hint)))


def _without_range(entry: Any, provided: set[str]) -> Iterator[str]:
    hints = ranges.hints_of(entry)
    for name in parameters(entry).keys() - provided:
        if name not in ("form", "keys", "x") and (name not in hints or _bare_numbers(hints[name])):
            yield name


@pytest.mark.parametrize("table", sorted(_tables()))
def test_every_number_of_every_entry_has_a_range(table):
    provided = PROVIDED.get(table, set())
    own = lambda entry: getattr(entry, "__module__", "").startswith("mtmm_jax")  # noqa: E731
    entries = [(name, entry) for name, entry in _tables()[table].items() if own(entry)]
    assert [f"{e}.{name}" for e, entry in entries for name in _without_range(entry, provided)] == []


def test_a_number_without_a_range_is_found():
    def entry(size: int, rates: Sequence[float] | None, mode: str, share: ranges.Share, unsaid=1):
        return size, rates, mode, share, unsaid

    assert sorted(_without_range(entry, {"size"})) == ["rates", "unsaid"]


@pytest.mark.parametrize(
    "settings",
    [
        "data.pipeline.labels.LabelledShare",
        "objectives.distillation.DistillationSettings",
        "objectives.relatedness.RelatednessSettings",
        "optim.optimizers.Options",
        "optim.pruning.PruneSettings",
        "readers.limits.Limits",
        "tasks.adversarial.Critic",
        "transfer.init_from.InitFromSettings",
        "transfer.lora.LoraSettings",
        "transfer.quantising.QuantiseSettings",
    ],
)
def test_every_number_of_every_section_has_a_range(settings):
    module, name = settings.rsplit(".", 1)
    hints = ranges.hints_of(getattr(importlib.import_module(f"mtmm_jax.{module}"), name))
    assert hints
    assert [key for key, hint in hints.items() if _bare_numbers(hint)] == []


def test_every_number_of_every_key_has_a_range():
    from mtmm_jax.data import OPTIONS
    from mtmm_jax.model.build import MODEL_KEYS, STAGE_KEYS
    from mtmm_jax.store import config

    hints = {**config.KEYS, **config.OPTIONAL_HINTS, **MODEL_KEYS}
    hints |= {f"{s}.{key}": h for s, own in config.SECTIONS.items() for key, h in own.items()}
    hints |= {f"data.{key}": option.wants for key, option in OPTIONS.items()}
    hints |= {f"model.fusion.{key}": row.wants for key, row in STAGE_KEYS.items()}
    assert [key for key, hint in hints.items() if _bare_numbers(hint)] == []
