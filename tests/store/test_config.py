"""Configs: overrides are typed and checked, and nothing unknown passes."""

from itertools import pairwise

import pytest

from mtmm_jax import training
from mtmm_jax.registry import ConfigError
from mtmm_jax.store import config as configs


def _emoji(*overrides):
    return configs.apply_overrides(training.load("emoji"), overrides)


def test_configs_are_found_by_name_and_by_path():
    assert {"emoji", "fusion_late"} <= set(configs.found())
    path = configs.found()["emoji"]
    assert training.load(str(path)).to_dict() == training.load("emoji").to_dict()


def test_no_two_configs_have_one_name():
    files = [f for f in configs.found()["emoji"].parent.rglob("*.py") if f.stem != "__init__"]
    assert len(files) == len(configs.found())


def test_the_old_place_of_a_config_says_the_new_one():
    with pytest.raises(ConfigError, match="no file .*; fusion_late is in .*fusion/fusion_late.py"):
        training.load("configs/fusion_late.py")


@pytest.mark.parametrize("name", sorted(configs.found()))
def test_every_config_is_whole_and_says_its_command(name):
    config = training.load(name)
    training.check_config(config)
    words = configs.found()[name].read_text().split()
    assert {name, f"configs/{name}.py"} & {b for a, b in pairwise(words) if a == "--config"}


def test_overrides_are_typed_literals():
    config = _emoji(
        "--config.optimizer.learning_rate=1",
        "--config.balancing=pcgrad",
        "--config.tasks.year=None",
        "--config.tasks.category.label_smoothing=0.1",
        "--config.model.encoders.text={'kind': 'text_transformer'}",
        "--config.tasks.retrieval.reads=['audio', 'text']",
    )
    assert config.optimizer.learning_rate == 1.0
    assert config.balancing == "pcgrad"
    assert config.tasks.year is None
    assert config.tasks.category.label_smoothing == 0.1
    assert config.model.encoders.text.kind == "text_transformer"
    assert list(config.tasks.retrieval.reads) == ["audio", "text"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.optimiser.learning_rate=1", "unknown config key 'optimiser' .*'optimizer'"),
        ("--config.evaluation.evry=5", r"--config.evaluation.evry: unknown .*'every'"),
        ("--config.steps=many", "--config.steps: 'many' is str; needs int, such as"),
        ("--config.steps=1.5", "--config.steps: 1.5 is float; needs int"),
        ("--config.seed.x=1", "--config.seed.x: seed is not a section"),
        ("--confg.steps=5", "not understood; overrides look like"),
        ("--config.steps", "not understood"),
    ],
)
def test_wrong_overrides_are_named(override, message):
    with pytest.raises(ConfigError, match=message):
        _emoji(override)


def test_impossible_values_are_named():
    with pytest.raises(ConfigError, match=r"config.steps: 0 is not a whole number from 1 upwards"):
        training.check_config(_emoji("--config.steps=0"))
    config = _emoji().to_dict()
    del config["balancing"]
    with pytest.raises(ConfigError, match="config: misses balancing"):
        training.check_config(config)
    with pytest.raises(ConfigError, match="config.extra: unknown key"):
        training.check_config({**_emoji().to_dict(), "extra": 1})


def test_differences_are_named_with_their_place():
    old = {"a": {"b": 1, "c": 2}, "d": [1]}
    assert configs.differences(old, {"a": {"b": 1, "c": 3}, "d": [1]}) == ["a.c: 2 -> 3"]
    assert configs.differences(old, old) == []


_FILES = {
    "name": ("c.model.fusion = 'concat'\n    c.balancing = 'equal'", None),
    "error": ("c.steps = undefined", "line 4: NameError: name 'undefined' is not defined"),
    "key": ("c.modle.width = 3", "line 4: AttributeError: "),
    "syntax": ("c.steps = (", "SyntaxError: "),
}


@pytest.mark.parametrize("how", _FILES)
def test_a_config_file_may_name_an_entry_and_its_errors_are_one_line(tmp_path, how):
    line, message = _FILES[how]
    path = tmp_path / "mine.py"
    path.write_text(
        "from mtmm_jax import training\ndef get_config():\n    c = training.load('generator')\n"
        f"    {line}\n    return c\n"
    )
    if message is None:
        config = training.load(str(path))
        training.check_config(config)
        training.apply_overrides(config, ["--config.model.fusion={'kind': 'tensor'}"])
        assert (config.model.fusion.kind, config.balancing) == ("tensor", "equal")
        return
    with pytest.raises(ConfigError) as caught:
        training.load(str(path))
    assert f"--config: {path}" in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_that_no_config_takes_are_one_line():
    with pytest.raises(ConfigError, match="config: is no config: ConfigDict does not accept dots"):
        configs.mutable({"tasks": {"../x": {"kind": "classification"}}})
