"""A mesh does what one device does; parameters lie where the rules say, and nowhere whole."""

import functools
import json
import math
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from mtmm_jax import training
from mtmm_jax.devices import mesh, parallel, processes
from mtmm_jax.devices.partition import DEFAULT_RULES, partition, read_rules
from mtmm_jax.inference.finished import open_run
from mtmm_jax.registry import ConfigError
from mtmm_jax.train import fit
from mtmm_jax.training import loop, tables
from mtmm_jax.training.results import SPLITS
from tests.training import gradients, small_run

pytestmark = pytest.mark.usefixtures("uncached")

FORMS = {
    "fsdp 2": {"data": 1, "fsdp": 2},
    "fsdp 4": {"data": 1, "fsdp": 4},
    "data 4": {"data": 4},
    "fsdp 2 x tensor 2": {"data": 1, "fsdp": 2, "tensor": 2},
}
BOTH = "fsdp 2 x tensor 2"
FAST = [("pcgrad", BOTH)]  # the Jacobian, fast: below, with accumulation
# The Jacobian, which has most to move, on replicas, on FSDP and on both axes; the other tiers once
# each. Replicas of every tier: test_gradients.py.
SLOW = [
    *(("graddrop", form) for form in (4, "fsdp 4", BOTH)),
    ("uncertainty", BOTH),
    ("pcgrad", "data 4"),
]


def _layout(form):
    axes = FORMS[form]
    return gradients.layout(jax.devices()[: math.prod(axes.values())], **axes)


@functools.cache
def _steps(method, form, **changes):
    devices = _layout(form) if isinstance(form, str) else form
    return gradients.steps(method, devices, **changes)


@pytest.mark.parametrize(
    ("method", "form"),
    [*FAST, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)],
)
def test_a_mesh_computes_what_one_device_does(method, form):
    for absent in gradients.ABSENT:
        expected = gradients.one_step(_steps(method, 1), absent)
        assert expected["metrics/present"].tolist() == [True, absent is None, True]
        assert not expected["metrics/skipped"]
        gradients.assert_equal(gradients.one_step(_steps(method, form), absent), expected)


@pytest.mark.slow
def test_attention_and_its_rules_change_nothing():
    changes = {"tasks": LABELS, **gradients.ATTENTION}
    expected = gradients.one_step(gradients.steps("pcgrad", 1, **changes), "size")
    prepared = gradients.steps("pcgrad", _layout(BOTH), **changes)
    gradients.assert_equal(gradients.one_step(prepared, "size"), expected)
    rules = prepared[1].placed
    query = next(path for path in rules if path.endswith("attention/query/kernel"))
    assert rules[query][2] == P("fsdp", "tensor")


# What does not add over microbatches, and so is left out here: retrieval, whose negatives are those
# of a microbatch, and batch normalisation, whose statistics are.
ADDING = {
    "encoders": {"text": {"kind": "text_bag", "dropout": 0.0}},
    "fusion": "concat",
    "modality_dropout": 0.0,
}
LABELS = {"kind": {"kind": "classification"}, "size": {"kind": "regression"}}


@pytest.mark.parametrize(
    ("method", "form"),
    [
        ("graddrop", "fsdp 2"),
        *(pytest.param(m, BOTH, marks=pytest.mark.slow) for m in ("uncertainty", "pcgrad")),
    ],
)
def test_accumulation_on_a_mesh_changes_nothing(method, form):
    adding = {"tasks": LABELS, **ADDING}
    whole = gradients.steps(method, 1, **adding)
    parts = gradients.steps(method, _layout(form), accumulate=2, **adding)
    for absent in gradients.ABSENT:
        gradients.assert_equal(gradients.one_step(parts, absent), gradients.one_step(whole, absent))


def test_state_lies_by_the_rules_and_stays_there():
    state, layout, _ = _steps("pcgrad", BOTH)
    flat = {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in _leaves(state)}
    out = "fusion/fused/out/kernel"
    assert layout.placed[out][2] == P("tensor", "fsdp")
    followers = [path for path in flat if path.endswith(out)]
    assert len(followers) == 2, followers  # the parameter and its momentum
    for path in followers:
        assert flat[path].sharding.spec == P("tensor", "fsdp")
        assert flat[path].addressable_shards[0].data.size == flat[path].size / 4
    assert flat["step"].sharding.is_fully_replicated
    held = sum(x.addressable_shards[0].data.size for x in jax.tree.leaves(state.params))
    assert held < 0.55 * sum(x.size for x in jax.tree.leaves(state.params))
    step = layout.program(lambda s, b, axis_name: (s, b), donate=False)
    again, _ = step(state, layout.take(gradients.batch(None)))
    assert jax.tree.all(jax.tree.map(lambda a, b: a.sharding == b.sharding, again, state))


def _leaves(tree):
    return jax.tree_util.tree_leaves_with_path(tree)


def test_rows_of_the_jacobian_follow_their_parameters():
    layout = gradients.layout(data=1, fsdp=4).resolve({"a": {"kernel": np.zeros((3, 8))}})
    state = {"rule": {"a/kernel": np.zeros((2, 3, 8)), "b/kernel": np.zeros((2, 3, 8))}}
    found = layout.of({**state, "trace": {"a": {"kernel": np.zeros((8, 3))}}})
    assert found["rule"]["a/kernel"].spec == P(None, None, "fsdp")
    assert found["rule"]["b/kernel"].spec == P()
    assert found["trace"]["a"]["kernel"].spec == P()


SHAPES = {"encoders/text/query/kernel": (8, 16), "encoders/text/scale": (8,), "heads/a/bias": (3,)}


def test_default_rules_take_what_divides():
    sizes = {"data": 1, "fsdp": 2, "tensor": 4}
    found = partition(SHAPES, DEFAULT_RULES, sizes, strict=False)
    assert [spec for _, spec in found.values()] == [P("fsdp", "tensor"), P("fsdp"), P()]
    found = partition(SHAPES, DEFAULT_RULES, {**sizes, "fsdp": 16}, strict=False)
    assert [spec for _, spec in found.values()] == [P(None, "tensor"), P(), P()]
    convolution = {"encoders/image/up/kernel": (3, 3, 6, 8)}
    found = partition(convolution, DEFAULT_RULES, sizes, strict=False)
    assert [spec for _, spec in found.values()] == [P(None, None, None, "fsdp")]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([], r"devices.rules: \[\]; needs pairs"),
        ([["a", None, 1]], r"devices.rules\[0\]: .* is not a list of 2"),
        ([["(", None]], r"devices.rules\[0\]\[0\]: '\(' is not a regular"),
        ([[".*", ["fsdq"]]], r"devices.rules\[0\]: unknown axis 'fsdq' .*'fsdp'"),
        ([[".*", [["fsdp", "tensor"], "fsdp"]]], r"devices.rules\[0\]: .* an axis twice"),
        ([[".*", 2]], r"devices.rules\[0\]\[1\]: 2 is not a text, or a list"),
        ([[".*kernel", None]], r"no rule matches encoders/text/scale \[8\]"),
        ([["text", None], [".*", None]], r"'text' matches nothing; the paths: encoders/text/query"),
        ([[".*", None], [".*bias", None]], r"'\.\*bias' comes after rules that match all"),
        ([[".*", ["fsdp"]]], r"names 1 dimensions; encoders/text/query/kernel is \[8, 16\]"),
        (
            [[".*kernel", "fsdp"], [".*", ["fsdp"]]],
            r"divides heads/a/bias \[3\] over 2 devices \(fsdp\); 3 does not divide",
        ),
    ],
)
def test_rules_that_do_not_fit_are_refused(rules, message):
    with pytest.raises(ConfigError, match=message):
        read = read_rules(rules, "devices.rules")
        partition(SHAPES, read, {"data": 1, "fsdp": 2, "tensor": 2})


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"kind": "mash"}, "devices.kind: unknown kind 'mash'"),
        ({"kind": "mesh", "fsdq": 2}, "devices.fsdq: unknown hyper-parameter"),
        ({"kind": "mesh", "data": 3}, "data 3 x fsdp 1 x tensor 1 does not make the 4 devices"),
        ({"kind": "mesh", "fsdp": -1}, "-1 for data and fsdp; only one axis"),
        ({"kind": "mesh", "tensor": 0}, "devices.tensor: 0 is not a whole number from 1 .*-1"),
        ({"kind": "mesh", "timeout": 0}, "devices.timeout: 0 is not a number above 0"),
        ({"kind": "mesh", "fsdp": 2, "data": 2}, "batch_size: 6 does not divide over the 4"),
    ],
)
def test_meshes_that_cannot_be_are_refused(section, message):
    with pytest.raises(ConfigError, match=message):
        parallel.place(section, 6)
    assert parallel.place({"kind": "mesh", "tensor": 2}, 6).mesh.shape["data"] == 2


@pytest.mark.parametrize(
    ("shape", "owners", "expected"),
    [
        ((4, 1, 1), [0, 0, 1, 1], [(0, 2), (1, 2)]),
        ((1, 2, 2), [0, 1, 2, 3], [(0, 2), (0, 2), (1, 2), (1, 2)]),
        ((1, 1, 4), [0, 0, 1, 1], [(0, 1), (0, 1)]),
        ((2, 2, 1), [0, 1, 0, 1], [(0, 2), (1, 2)]),
        ((1, 3, 2), [0, 0, 0, 1, 1, 1], None),
    ],
)
def test_each_process_brings_the_rows_of_its_devices(shape, owners, expected, monkeypatch):
    devices = np.array([SimpleNamespace(process_index=i) for i in owners]).reshape(shape)
    made = SimpleNamespace(devices=devices, shape=dict(zip(mesh.AXES, shape, strict=True)))
    for process, part in enumerate(expected or [None]):
        monkeypatch.setattr(mesh.jax, "process_index", lambda process=process: process)
        if part is None:
            with pytest.raises(ConfigError, match="leaves 2 processes with rows that overlap"):
                mesh.shard_of(made)
        else:
            assert mesh.shard_of(made) == part


def _config(devices, steps=6):
    return {**small_run.get_config().to_dict(), "devices": devices, "steps": steps}


MESH = {"kind": "mesh", "data": 1, "fsdp": 2, "tensor": 2}


def _parameters(path):
    return jax.device_get(open_run(path, step="last").variables["params"])


@pytest.mark.slow
def test_a_run_moves_between_one_device_and_a_mesh(tmp_path, monkeypatch):
    """One step on a mesh, one on one device, the rest on a mesh: the metrics are those of one
    device throughout, and the run opens on one device."""
    expected = fit(training.assemble(_config(1)), tmp_path / "one")
    path = tmp_path / "moved"
    for step, devices in enumerate((MESH, 1), start=1):
        with monkeypatch.context() as patched:
            patched.setattr(processes.Stop, "agreed", 15)
            with pytest.raises(processes.Interrupted, match=f"after step {step}"):
                fit(training.assemble(_config(devices)), path)
    found = fit(training.assemble(_config(MESH)), path)
    for split in SPLITS:
        for a, b in zip(*map(jax.tree.leaves, (expected[split], found[split])), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4)
    gap = jax.tree.map(np.subtract, _parameters(path), _parameters(tmp_path / "one"))
    assert optax.tree.norm(gap) < 1e-5
    evaluated = open_run(path, _config(MESH))
    assert isinstance(evaluated.experiment.devices, mesh.Layout)
    elsewhere = open_run(path, _config({"kind": "mesh", "fsdp": 3, "data": 1}))
    assert elsewhere.experiment.devices == 1


def test_the_tables_say_how_a_mesh_divides():
    experiment = training.assemble(_config(MESH))
    table = tables.partition_table(experiment)
    rows = list(zip(*(column.cells for column in table.columns), strict=True))
    assert [row[0].replace("\\", "") for row in rows] == [r.pattern for r in DEFAULT_RULES]
    assert json.loads(rows[-1][1]) == "fsdp"
    assert sum(int(row[2]) for row in rows) == len(jax.tree.leaves(experiment.shapes.params))
    assert tables.partition_table(training.assemble(_config(1))) is None
    assert tables.memory_table(experiment).row_count == 3


def test_the_loop_waits_for_the_device_only_where_it_says_so(tmp_path, monkeypatch):
    guards = []

    def noted(*args, **kwargs):
        guards.append(jax.config.jax_transfer_guard_device_to_host)
        return score(*args, **kwargs)

    score = loop.score
    monkeypatch.setattr(loop, "score", noted)
    config = {**_config(1, steps=1), "balancing": "equal"}
    fit(training.assemble(config), tmp_path / "run")
    assert guards == ["disallow"]
