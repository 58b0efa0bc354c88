"""Declared types and ranges: what they take, what they refuse, and what they say."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import ml_collections
import pytest

from mtmm_jax import ranges
from mtmm_jax.ranges import Range, describe, located, mismatch
from mtmm_jax.registry import ConfigError, build, check_fields, checked

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
