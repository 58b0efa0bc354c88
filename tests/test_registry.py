"""Names that do not exist: the error says the value, the place and the choices."""

import dataclasses

import pytest

from mtmm_jax.registry import ConfigError, build, section_of


def _thing(size, *, depth=2, where="", scale=None):
    if depth < 0:
        raise ValueError("depth must not be negative")
    return size, depth, where, scale


TABLE = {"thing": _thing, "other": lambda size: size}


def test_builds_by_name_and_by_mapping():
    assert build(TABLE, "thing", 3, where="a.b") == (3, 2, "a.b", None)
    assert build(TABLE, {"kind": "thing", "depth": 5}, 3, where="a") == (3, 5, "a", None)


def test_context_is_given_only_where_it_is_taken():
    assert build(TABLE, "thing", 3, where="a", scale=4)[3] == 4
    assert build(TABLE, "other", 3, where="a", scale=4) == 3


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "thang",
            r"a.kind: unknown kind 'thang' \(did you mean 'thing'\?\); choices: other, thing",
        ),
        ({"kind": "thing", "dept": 1}, r"a.dept: unknown .* 'dept' \(did you mean 'depth'\?\)"),
        ({"depth": 1}, "a: needs a `kind`; choices: other, thing"),
        ({"kind": "thing", "depth": -1}, "a: thing refuses .* depth must not be negative"),
        ({"kind": "thing", "scale": 1}, "unknown hyper-parameter of thing 'scale'"),
    ],
)
def test_errors_name_value_place_and_choices(spec, message):
    with pytest.raises(ConfigError, match=message):
        build(TABLE, spec, 3, where="a", scale=2)


def test_missing_hyper_parameters_are_named():
    with pytest.raises(ConfigError, match="a: needy needs size"):
        build({"needy": lambda *, size: size}, "needy", where="a")


@dataclasses.dataclass
class _Settings:
    steps: int
    kept: list = dataclasses.field(default_factory=list)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("x", "a: 'x' is not a section such as {'steps': 2}"),
        (
            {"step": 2},
            r"a.step: unknown key 'step' \(did you mean 'steps'\?\); choices: kept, steps",
        ),
        ({"kept": []}, "a: needs steps"),
    ],
)
def test_a_section_has_the_fields_of_its_settings(section, message):
    assert section_of({"steps": 2}, _Settings, "a", "{}") == {"steps": 2}
    with pytest.raises(ConfigError, match=message):
        section_of(section, _Settings, "a", "{'steps': 2}")
