"""What tasks do for each other before training: measured, turned into weights and groups, kept."""

import io
import itertools

import jax
import numpy as np
import pytest
from rich.console import Console

from mtmm_jax import training
from mtmm_jax.analysis import pictures
from mtmm_jax.balancing.affinity import (
    best_groups,
    group_score,
    measured_affinity,
    relative,
    static_weights,
)
from mtmm_jax.inference.finished import open_run
from mtmm_jax.objectives import relatedness
from mtmm_jax.registry import ConfigError
from mtmm_jax.store.checkpoints import Checkpoints
from mtmm_jax.store.workdir import Workdir
from mtmm_jax.training.logs import read_journal
from mtmm_jax.training.loop import train
from tests.balancing import toy as small
from tests.training import small_run

K = small.K


@jax.jit
def _losses(params, batch):
    sums, counts, _ = small.SPLIT(params, batch)
    return sums, counts


def losses(params, batch):
    sums, counts = map(np.asarray, _losses(params, batch))
    return sums / np.maximum(counts, 1)


@jax.jit
def gradients(params, batch):
    """For each task, the gradient of the mean of its losses over the trunk."""

    def means(trunk):
        sums, counts, _ = small.SPLIT({**params, "trunk": trunk}, batch)
        return sums / counts

    return jax.jacrev(means)(params["trunk"])


def by_loop(params, batch, step):
    """Both matrices, a gradient and a step of a task at a time."""
    before, rows = losses(params, batch), jax.device_get(gradients(params, batch))
    grads = [{name: leaf[k] for name, leaf in rows.items()} for k in range(K)]
    flat = [np.concatenate([g["w1"].ravel(), g["w2"].ravel()]) for g in grads]
    share, cosine = np.zeros((K, K)), np.zeros((K, K))
    for j, k in itertools.product(range(K), repeat=2):
        moved = {name: params["trunk"][name] - step * grads[k][name] for name in ("w1", "w2")}
        share[j, k] = 1 - losses({**params, "trunk": moved}, batch)[j] / before[j]
        cosine[j, k] = flat[j] @ flat[k] / np.linalg.norm(flat[j]) / np.linalg.norm(flat[k])
    return share, cosine


@pytest.mark.parametrize("losses_fn", [small.SPLIT, small.whole], ids=["split", "whole"])
def test_affinities_are_those_of_a_loop(losses_fn):
    params, batch = jax.device_get((small.params(), small.batch()))
    fn = measured_affinity(losses_fn, K, 0.1, shared=small.shared_labels)
    share, cosine = by_loop(params, batch, 0.1)
    affinities = fn(params, batch)
    np.testing.assert_allclose(affinities.lookahead, share, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(affinities.cosines, cosine, rtol=1e-4, atol=1e-5)
    assert not np.allclose(share, share.T, atol=1e-3)  # which way round matters

    alone = {**batch, "present": batch["present"] & (np.arange(K) != 1)}
    share, cosine = by_loop(params, batch, 0.1)
    affinities, kept = fn(params, alone), np.ix_([0, 2], [0, 2])
    for found, expected in ((affinities.lookahead, share), (affinities.cosines, cosine)):
        assert np.isnan(found[1]).all()
        assert np.isnan(found[:, 1]).all()
        np.testing.assert_allclose(found[kept], expected[kept], rtol=1e-3, atol=1e-5)


def test_weights_by_hand():
    nan = float("nan")
    affinity = np.array([[0.2, 0.1, -0.2], [0.0, 4.0, nan], [nan, 1.0, 2.0]], np.float32)
    scaled = relative(affinity)
    np.testing.assert_allclose(scaled, [[1, 0.5, -1], [0, 1, 0], [0, 0.5, 1]])
    np.testing.assert_allclose(static_weights(scaled), 3 * np.array([1, 2, 1]) / 4, rtol=1e-6)
    sharp = static_weights(scaled, 0.5)
    np.testing.assert_allclose(sharp, 3 * np.array([1, 4, 1]) / 6, rtol=1e-6)
    np.testing.assert_allclose(static_weights(-np.abs(scaled)), np.ones(3))


def blocks(*groups, within=0.5, apart=-0.5):
    count = sum(map(len, groups))
    affinity = np.full((count, count), apart)
    for group in groups:
        affinity[np.ix_(group, group)] = within
    return affinity.tolist()


def test_groups_are_the_best_of_all():
    random = np.random.default_rng(0).normal(size=(5, 5)).tolist()
    for most in (2, 3):
        found = best_groups(random, most)
        every = [
            [[i for i in range(5) if label[i] == g] for g in set(label)]
            for label in itertools.product(range(most), repeat=5)
        ]
        assert group_score(random, found) == max(group_score(random, g) for g in every)
    assert best_groups(blocks([0, 2], [1, 3]), 2) == [[0, 2], [1, 3]]
    assert best_groups(blocks([0, 1, 2]), 3) == [[0, 1, 2]]
    assert best_groups(blocks([0], [1], [2]), 3) == [[0], [1], [2]]
    many = [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]
    assert best_groups(blocks(*many), 4) == many
    assert len(best_groups(blocks(*[[i] for i in range(10)]), 2)) == 2


def related_config(**section):
    config = small_run.get_config().to_dict()
    config |= {"devices": 1, "balancing": {"kind": "equal"}, "steps": 2}
    return {**config, "relatedness": {"steps": 2, "use": "both", **section}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"relatedness": {"steps": 2, "use": "wieghts"}},
            "use: 'wieghts' is not one of .*did you mean",
        ),
        (
            {"relatedness": {"steps": 0, "use": "both"}},
            "relatedness.steps: 0 is not a whole number",
        ),
        ({"relatedness": {"use": "both"}}, "relatedness: needs steps"),
        ({"relatedness": {"steps": 2, "use": "both", "temprature": 1}}, "unknown key 'temprature'"),
        ({"relatedness": {"steps": 2, "use": "both", "temperature": 0}}, "temperature: 0 is not"),
        (
            {"relatedness": {"steps": 2, "use": "both", "groups": 1}},
            "groups: 1 is not a whole number",
        ),
        ({"relatedness": {"steps": 2, "use": "both", "layers": 0}}, "layers: 0 with .*'hard'"),
        ({"relatedness": 5}, "relatedness: 5 is not a section"),
        ({"tasks": {"kind": {"kind": "classification"}}}, "kind is the only task"),
        ({"balancing": {"kind": "pcgrad"}}, "sets the weights, and so does balancing 'pcgrad'"),
        ({"balancing": {"kind": "static", "weights": [1, 2]}}, "so does balancing.weights"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        training.assemble({**related_config(), **changes})


def test_weights_and_groups_take_their_places():
    found = {"weights": {"kind": 1.5, "size": 0.5}, "groups": [["kind"], ["size"]]}
    plain = training.assemble({**related_config(), "relatedness": None})
    measured = training.assemble(related_config(found=found))
    assert "sharing" not in plain.shapes.params
    assert set(measured.shapes.params["sharing"]) == {"group_1", "group_2"}
    section = relatedness.weighted("equal", found["weights"], ("kind", "size"))
    assert section == {"kind": "static", "weights": [0.75, 0.25]}  # as large as 1/K on average
    section = relatedness.weighted({"kind": "static", "chunk": 2}, found["weights"], ("kind",))
    assert section == {"kind": "static", "chunk": 2, "weights": [1.5]}
    named = related_config(found=found)
    named["model"] = {**named["model"], "sharing": {"kind": "mmoe", "tasks": ["kind", "size"]}}
    assert training.assemble(named).model.sharing.tasks == ("kind", "size")
    together = training.assemble(related_config(found={**found, "groups": [["kind", "size"]]}))
    assert "sharing" not in together.shapes.params
    with pytest.raises(ConfigError, match="kind were grouped; the tasks that pass the sharing"):
        training.assemble(related_config(found={**found, "groups": [["kind"]]}))
    with pytest.raises(ConfigError, match="relatedness: was not measured"):
        training.assemble(related_config()).init()


def test_a_group_is_blind_to_the_others():
    """Its own copy of the sharing stage: no parameter of a group moves another's prediction."""
    found = {"weights": None, "groups": [["kind"], ["size"]]}
    config = related_config(found=found)
    config["model"] = {**config["model"], "sharing": {"kind": "mmoe", "experts": 2}}
    experiment = training.assemble(config)
    model = experiment.model
    variables = jax.tree.map(
        lambda x: np.cos(np.arange(np.prod(x.shape), dtype=np.float32)).reshape(x.shape),
        experiment.model.shapes,
    )
    batch = next(experiment.source.batches("train", 4))
    forward = jax.jit(lambda v: model(v, batch["inputs"])[0])
    before = forward(variables)
    sharing = variables["params"]["sharing"]
    moved = {**sharing, "group_1": jax.tree.map(lambda x: x + np.float32(1), sharing["group_1"])}
    after = forward({**variables, "params": {**variables["params"], "sharing": moved}})
    assert not np.allclose(before["kind"], after["kind"])
    np.testing.assert_array_equal(before["size"], after["size"])
    assert {"layer1", "layer2", "inner"} == set(sharing["group_1"])


def test_a_run_keeps_what_was_found(tmp_path, monkeypatch):
    quiet = Console(file=io.StringIO())
    workdir = Workdir(tmp_path / "run")
    experiment = relatedness.begin(training.assemble(related_config()), workdir, quiet)
    report = workdir.read(relatedness.FILE)
    found = workdir.config()["relatedness"]["found"]
    assert found == {"weights": report["weights"], "groups": report["groups"]}
    assert sum(report["weights"].values()) == pytest.approx(2, abs=1e-5)
    assert sorted(name for group in report["groups"] for name in group) == ["kind", "size"]
    assert report["batches"] == [[2, 2], [2, 2]]
    (workdir.path / relatedness.FILE).unlink()  # measured again, the same is found
    relatedness.begin(training.assemble(related_config()), workdir, quiet)
    assert workdir.read(relatedness.FILE) == report

    def fail(*args):
        raise AssertionError("measured twice")

    monkeypatch.setattr(relatedness, "measure", fail)
    resumed = relatedness.begin(training.assemble(related_config()), workdir, quiet)
    assert resumed.config == experiment.config
    with pytest.raises(ConfigError, match="another config: relatedness.steps: 2 -> 3"):
        relatedness.begin(training.assemble(related_config(steps=3)), workdir, quiet)
    checkpoints = Checkpoints(workdir.checkpoints, 1)
    try:
        train(resumed, workdir, checkpoints, quiet)
    finally:
        checkpoints.close()
    last = [r for r in read_journal(workdir.metrics) if r["split"] == "train"][-1]
    for name, weight in report["weights"].items():
        assert last["weight"][name] == pytest.approx(weight / 2, rel=1e-5)
    opened = open_run(workdir.path)
    for a, b in zip(*map(jax.tree.leaves, (opened.experiment.shapes, resumed.shapes)), strict=True):
        assert a.shape == b.shape
    figure = pictures.task_relatedness(report)
    assert len(figure.axes) == 3
    pictures.plt.close(figure)


GENERATOR = {
    "seed": 0,
    "steps": 1,
    "batch_size": 256,
    "devices": 1,
    "data": {"kind": "generator", "tasks": 4, "relatedness": 0.8, "conflict": 0.8**0.5,
             "noise": 0.1, "modalities": 1, "width": 8, "size": [2048, 8, 8]},
    "model": {"width": 16, "encoders": {"m1": {"kind": "table_mlp"}}, "fusion": "concat"},
    "tasks": {f"task_{k}": {"kind": "regression", "target": f"task_{k}"} for k in range(1, 5)},
    "balancing": "equal",
    "optimizer": {"kind": "sgd", "learning_rate": 0.1},
    "checkpoint": {"every": 2, "keep": 1, "best": "mean"},
    "evaluation": {"every": 3, "batch_size": 8, "log_every": 1, "baselines": False},
    "relatedness": {"steps": 30, "use": "grouping"},
}  # fmt: skip


@pytest.mark.slow
def test_unrelated_families_of_the_generator_stand_apart():
    """Odd and even tasks: cosines of 8/9 within, 0 between; heads of their own hide the signs."""
    experiment = training.assemble(GENERATOR)
    report = relatedness.measure(experiment, relatedness.read(GENERATOR["relatedness"]))
    assert report["groups"] == [["task_1", "task_3"], ["task_2", "task_4"]]
    assert best_groups(report["cosines"], 2) == [[0, 2], [1, 3]]
    assert report["weights"] is None


def test_steps_that_are_too_long_are_reported():
    report = {"tasks": ["a", "b", "c"], "measure": "lookahead"}
    report["lookahead"] = [[-5.6, 0.1, 0.0], [0.0, 0.2, 0.0], [0.0, 0.0, None]]
    assert relatedness.overshot(report) == ["a"]
    assert relatedness.overshot({**report, "measure": "cosines"}) == []
