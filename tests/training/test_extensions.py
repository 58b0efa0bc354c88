"""The table of extensions: order, what excludes what, and hooks of one shape in one step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtmm_jax import training
from mtmm_jax.assembly import Extension, Parts, StepContext, StepHook, extended, section_at
from mtmm_jax.registry import ConfigError
from mtmm_jax.store import config as configs
from mtmm_jax.training.extensions import EXTENSIONS, optional_sections
from mtmm_jax.training.step import prepared, reactions
from tests.training import small_run

CONFIG = {**small_run.get_config().to_dict(), "devices": 1}


def _plain(place, value):
    config = {**CONFIG, **dict.fromkeys(optional_sections())}
    config = {key: dict(v) if isinstance(v, dict) else v for key, v in config.items()}
    node, *last = place.split(".")
    if last:
        config[node][last[0]] = value
    else:
        config[node] = value
    return config


def test_no_two_rows_have_one_place_in_the_order():
    orders = [row.order for row in EXTENSIONS.values()]
    assert len(set(orders)) == len(orders)


def test_what_a_row_excludes_is_a_row():
    for row in EXTENSIONS.values():
        assert set(row.excludes) <= set(EXTENSIONS)


EXCLUDED = [(place, other) for place, row in EXTENSIONS.items() for other in row.excludes]


@pytest.mark.parametrize(("place", "other"), EXCLUDED)
def test_sections_that_exclude_each_other_are_refused(place, other):
    config = _plain(place, {"kind": "x"})
    node, key = other.split(".")
    config[node][key] = {"noise": 1.0}
    parts = Parts(config, None, None, 1, None, None)
    with pytest.raises(ConfigError, match=f"{place}: not with {other}: ") as error:
        extended(parts, EXTENSIONS)
    assert "\n" not in str(error.value)


def test_rows_are_applied_in_their_order_and_only_where_the_config_has_them():
    seen = []

    def row(name, order):
        return Extension(lambda section, parts: seen.append((name, section)) or parts, order)

    table = {"b": row("b", 2), "a": row("a", 1), "c.d": row("c.d", 3), "none": row("none", 0)}
    extended(Parts({"a": 1, "b": 2, "c": {"d": 3}, "none": None}, *[None] * 5), table)
    assert seen == [("a", 1), ("b", 2), ("c.d", 3)]
    assert section_at({"a": "text"}, "a.b") is None


def test_a_row_sees_what_is_built_before_it(monkeypatch):
    seen = {}
    for name, order in (("early", 5), ("between", 60), ("late", 95)):

        def extend(section, parts, name=name):
            seen[name] = (parts.balancer is not None, parts.optimizer is not None)
            return parts

        monkeypatch.setitem(EXTENSIONS, name, Extension(extend, order))
    training.assemble({**CONFIG, "early": True, "between": True, "late": True})
    assert seen == {"early": (False, False), "between": (True, False), "late": (True, True)}


def test_a_new_row_is_an_optional_key_of_every_config(monkeypatch):
    monkeypatch.setitem(EXTENSIONS, "more", Extension(lambda section, parts: parts, 5))
    config = training.load("emoji")
    assert config.more is None
    assert training.apply_overrides(config, ["--config.more=3"]).more == 3
    with pytest.raises(ConfigError, match="config.mores: unknown key 'mores'"):
        training.check_config({**CONFIG, "mores": 3})


def _scale(name, factor, log):
    def react(context, memory, sums, key):
        del context, sums, key
        log.append(name)
        return lambda grads: jax.tree.map(lambda g: g * factor, grads), memory, {}

    return StepHook(name, react=react)


def test_hooks_change_the_gradient_one_after_the_other():
    log = []
    hooks = [_scale("twice", 2.0, log), _scale("third", 3.0, log)]
    state = training.TrainState(0, {}, {}, {}, {})
    change, memory, metrics = reactions(hooks, state, None, {}, None)
    assert (log, memory, metrics) == (["twice", "third"], {}, {})
    assert change({"a": 1.0}) == {"a": 6.0}


def test_hooks_prepare_the_batch_one_after_the_other_and_know_how_it_came():
    def prepare(context, batch):
        return {**batch, "seen": (*batch.get("seen", ()), context.batch["raw"])}

    hooks = [StepHook("a", prepare=prepare), StepHook("none"), StepHook("b", prepare=prepare)]
    context = StepContext(None, None, None, {"raw": 1})
    assert prepared(hooks, context, {"raw": 2}) == {"raw": 2, "seen": (1, 1)}


@pytest.fixture(scope="module")
def stepped():
    """`hooks -> (state, metrics)` after two steps of one run."""
    experiment = training.assemble(CONFIG)
    batches = experiment.source.train(8, seed=0)
    first = [next(iter(batches)), next(iter(batches))]

    def run(*hooks):
        own = dataclasses.replace(experiment, hooks=hooks)
        state, step = own.init(), jax.jit(own.step())
        for batch in first:
            state, metrics = step(state, batch)
        return jax.device_get((state, metrics))

    return run


def test_hooks_that_do_nothing_change_nothing(stepped):
    plain, _ = stepped()
    hooked, _ = stepped(StepHook("empty"), _scale("one", 1.0, []))
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(hooked), strict=True):
        np.testing.assert_array_equal(one, other)


def test_two_hooks_keep_memories_and_metrics_of_their_own(stepped):
    def counting(name, by):
        def react(context, memory, sums, key):
            del context, key
            found = {f"{name}/rows": sums["rows"]}
            return lambda grads: grads, memory + by, found

        def measure(context, memory, shared, predictions, batch, axis_name):
            del context, memory, shared, predictions, axis_name
            return {"rows": by * jnp.sum(batch["weight"])}, {}

        return StepHook(name, init=lambda: jnp.zeros(()), measure=measure, react=react)

    state, metrics = stepped(counting("a", 1.0), counting("b", 10.0))
    assert {name: float(value) for name, value in state.memory.items()} == {"a": 2.0, "b": 20.0}
    assert (float(metrics["a/rows"]), float(metrics["b/rows"])) == (8.0, 80.0)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("balancing", "equal"),
        ("model.fusion", "mean"),
        ("model.sharing", "hard"),
        ("model.encoders.text", "text_bag"),
        ("tasks.kind", "classification"),
        ("optimizer", "sgd"),
        ("optimizer.schedule", "constant"),
        ("data", "small_run"),
    ],
)
def test_a_name_stands_for_a_section_in_a_file_and_on_the_command_line(place, name):
    def with_(value):
        config = small_run.get_config().to_dict() | {"devices": 1}
        *parents, last = place.split(".")
        node = config
        for key in parents:
            node = node[key]
        node[last] = value
        return config

    parts = training.assemble(with_(name)), training.assemble(with_({"kind": name}))
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), part.shapes) for part in parts]
    assert shapes[0] == shapes[1]
    given = configs.apply_overrides(training.load("generator"), [f"--config.{place}={name}"]) if (
        place not in ("tasks.kind", "model.encoders.text", "optimizer.schedule")
    ) else None  # fmt: skip
    assert given is None or section_at(given.to_dict(), place) == name
