"""Sharing over inputs of the tasks' own: each enters with what it reads."""

import jax
import numpy as np
import pytest

from mtmm_jax import balancing, model, training
from mtmm_jax.model import shared_parameters
from mtmm_jax.registry import ConfigError
from mtmm_jax.sharing import SHARINGS
from mtmm_jax.sharing.parts import SEVERAL_WIDTHS
from tests import toy
from tests.made_up import packaged
from tests.sharing.test_sharing import (
    KEY,
    LENGTH,
    SMALL,
    _copies,
    _module,
    _wide,
)

EVERY = pytest.mark.parametrize("kind", SHARINGS)


@EVERY
def test_several_widths_are_taken_or_refused_by_name(kind):
    copies = _copies(2, LENGTH)
    copies["green"] = _wide(copies["green"])
    module = _module(kind, 2)
    if kind in SEVERAL_WIDTHS:
        own, _ = jax.eval_shape(module.init_with_output, KEY, copies)
        assert {name: own[name].values.shape for name in own} == {
            name: tokens.values.shape for name, tokens in copies.items()
        }
        return
    if kind not in packaged(SHARINGS):
        return
    with pytest.raises(ConfigError) as error:
        jax.eval_shape(module.init, KEY, copies)
    words = ["model.sharing", "red has 8", "green has 16", *SEVERAL_WIDTHS]
    assert all(word in str(error.value) for word in words)


# A fusion of some, one modality, another; encoders that compile fast.
TASKS = {
    "size": {"kind": "regression", "reads": "image+text"},
    "kind": {"kind": "classification", "reads": "text"},
    "more": {"kind": "classification", "target": "kind", "reads": "series"},
}
PARTS = {
    "encoders": {
        "image": {"kind": "image_mlp", "dropout": 0.0},
        "text": {"kind": "text_bag", "dropout": 0.0},
        "series": {"kind": "series_gru"},
    },
    "width": 8,
}


def _built(kind, tasks=TASKS, passing=("size", "kind", "more"), **changes):
    sharing = {"kind": kind, **SMALL.get(kind, {})}
    if passing is not None:
        sharing["tasks"] = list(passing)
    return toy.build(tasks, **{**PARTS, "sharing": sharing, **changes})


@EVERY
def test_every_sharing_stands_between_own_inputs_and_heads(kind):
    built = _built(kind)
    predictions, seen = jax.eval_shape(built, built.shapes, toy.batch()["inputs"])
    assert set(predictions) == set(TASKS)
    assert ("sharing" in built.shapes["params"]) == (kind != "hard")
    silent = ("hard", "shared_middle", "separate", "adapter")
    if kind in packaged(SHARINGS):
        assert ("sharing" in seen) == (kind not in silent)
    own_losses = {name.split("/")[0] for name in built.auxiliaries}
    assert own_losses == ({"sharing"} if kind in ("sluice", "dselect") else set())


def test_heads_read_what_the_sharing_makes_of_their_tasks_input():
    """Sharing for two of three tasks, in the order in which the model has them."""
    built = _built("shared_middle", passing=("more", "size"))
    variables = toy.variables(built, toy.SPEC.example(2))
    params = variables["params"]
    assert built.sharing.tasks == ("size", "more")
    assert set(params["sharing"]) == {
        *(f"{layer}_{task}" for layer in ("in", "out") for task in ("size", "more")),
        *("middle1", "middle2"),
    }
    reads = {"size": "image+text", "kind": "text", "more": "series"}

    @jax.jit
    def run(variables, inputs):
        shared, _ = built.trunk(variables, inputs)
        assert set(shared) == set(reads.values())
        copies = {name: shared[reads[name]] for name in ("size", "more")}
        assert copies["size"].values.shape[1] != copies["more"].values.shape[1]
        params = variables["params"]
        own = built.sharing.apply({"params": params["sharing"]}, copies)
        own["kind"] = shared["text"]  # it does not pass
        expected = {
            name: task.head.apply({"params": params["heads"][name]}, {reads[name]: own[name]})
            for name, task in built.tasks.items()
        }
        return built.readout(variables, dict.fromkeys(built.tasks, shared))[0], expected

    predictions, expected = run(variables, toy.batch()["inputs"])
    assert set(predictions) == set(TASKS)
    for name in TASKS:
        np.testing.assert_allclose(predictions[name], expected[name], atol=1e-5)


def test_a_middle_is_learned_by_all_and_what_a_task_reads_by_it_alone():
    """With inputs of their own no two tasks meet in an encoder, so that nothing conflicts there:
    PCGrad leaves the sum, and each task's gradient comes back through its own copy."""
    built = _built("shared_middle", {k: TASKS[k] for k in ("kind", "more")}, ("kind", "more"))
    variables = toy.variables(built, toy.SPEC.example(2))
    params, batch = variables["params"], toy.batch()
    split, balancer = built.split(), balancing.build("pcgrad", 2)
    balanced = balancing.value_and_grad(split, balancer, shared=shared_parameters)

    @jax.jit
    def both(params, batch):
        state = balancer.init(params, shared_parameters)
        args = (variables.get("batch_stats", {}), batch, KEY)

        def loss(params):
            sums, counts, _ = split(params, *args)
            return sums / counts

        return balanced(params, state, *args).grads, jax.jacrev(loss)(params)

    found, rows = jax.device_get(both(params, batch))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b.sum(0), atol=1e-5), found, rows)

    def reached(path):
        """Which tasks move any parameter there."""
        moved = [np.abs(row).reshape(2, -1).max(1) for at, row in flat.items() if path in at]
        return (np.max(moved, axis=0) > 0).tolist()

    flat = model.flatten(rows)
    assert reached("sharing/middle1/") == reached("sharing/middle2/") == [True, True]
    assert reached("encoders/text/") == reached("sharing/in_kind/") == [True, False]
    assert reached("encoders/series/") == reached("sharing/out_more/") == [False, True]


def test_without_a_word_those_pass_that_read_fused():
    mixed = {**toy.TASKS, "seen": {**TASKS["kind"], "target": "kind", "reads": "image"}}
    built = toy.build(mixed, sharing="shared_middle", encoders=PARTS["encoders"])
    assert built.sharing.tasks == ("kind", "size")
    assert set(built.shapes["params"]["sharing"]) == {
        *("in_kind", "out_kind", "in_size", "out_size", "middle1")
    }
    both = {"kind": {"kind": "classification", "reads": "fused"}, **TASKS}
    assert _built("mmoe", {**both, "size": None}, ("kind", "size")).sharing.tasks == ("kind",)


@pytest.mark.parametrize(
    ("sharing", "tasks", "words"),
    [
        ("mmoe", TASKS, ["'mmoe'", "'fused'", "tasks; choices: size, kind, more; .* 'hard'"]),
        ({"kind": "mmoe", "tasks": []}, TASKS, ["'mmoe'", "choices: size, kind, more"]),
        ("mmoe", {"pairs": toy.TASKS["pairs"]}, ["choices: none; or set it to 'hard'"]),
        ({"kind": "mmoe", "tasks": ["sise"]}, TASKS, ["tasks: .*'sise'", "'size'"]),
        ({"kind": "mmoe", "tasks": "sise"}, TASKS, ["tasks: .*'sise'", "'size'"]),
        ({"kind": "mmoe", "tasks": ["pairs"]}, None, ["of one read 'pairs'; choices: kind, size"]),
        (
            {"kind": "mmoe", "tasks": ["kind_text"]},
            {"kind": {"kind": "classification", "unimodal": "probe"}},
            ["'kind_text'", "choices: kind$"],
        ),
        ({"kind": "moe", "tasks": ["size"]}, TASKS, ["kind: unknown kind 'moe'"]),
        ({"tasks": ["size"]}, TASKS, ["needs a `kind`"]),
    ],
)
def test_a_sharing_that_no_task_could_pass_is_refused(sharing, tasks, words):
    parts = toy.MODEL["encoders"] if tasks is None or "pairs" in tasks else PARTS["encoders"]
    with pytest.raises(ConfigError) as error:
        toy.build(tasks, sharing=sharing, encoders=parts)
    for word in words:
        error.match(f"model.sharing.*{word}")


def test_the_recipe_has_an_input_for_each_task_and_fuses_nothing():
    config = training.load("shared_layers")
    reads = [task.reads for task in config.tasks.values()]
    assert sorted(reads) == sorted(config.model.encoders)
    assert sorted(config.model.sharing.tasks) == sorted(config.tasks)
    assert config.model.sharing.kind == "shared_middle"
