"""Learning without labels: what is made of which rows, by whom, and that nothing else happens."""

import functools

import jax
import numpy as np
import pytest

from mtmm_jax import training
from mtmm_jax.batch import Spec, Target
from mtmm_jax.model import build as build_model
from mtmm_jax.objectives import semi
from mtmm_jax.registry import ConfigError
from mtmm_jax.tasks import hidden
from mtmm_jax.tasks.terms.term import View
from tests import toy
from tests.objectives.test_distillation import TASKS, config, draw, sigmoid, softmax

PARTS = {"encoders": {"text": "text_bag"}, "fusion": "concat"}
SEVERAL = Target("labels", classes=("u", "v"), frequencies=(0.5, 0.1))
SPEC = Spec(toy.SPEC.modalities, {**toy.SPEC.targets, "tags": SEVERAL})
PLAIN = {"steps": 40, "balancing": {"kind": "equal"}, "optimizer": {"kind": "sgd", "ema": 0.9}}
UNIMODAL = {"kind": {"kind": "classification", "unimodal": True}, "size": {"kind": "regression"}}


def build(tasks=None, encoders=("text",)):
    made = {"text": "text_bag", "audio": "audio_mlp"}
    model = {**toy.MODEL, **PARTS, "encoders": {name: made[name] for name in encoders}}
    kinds = {"kind": "classification", "tags": "multilabel", "size": "regression"}
    tasks = tasks or {name: {"kind": kind} for name, kind in kinds.items()}
    return build_model(model, tasks, SPEC)


def batch(size=8, labelled=0.5):
    found = toy.batch(size)
    rng = np.random.default_rng(5)
    found["targets"]["tags"] = {"y": np.full((size, 2), np.nan, np.float32)}
    for entry in found["targets"].values():
        entry["present"] = rng.random(size) < labelled
    return found


def _term(built, name, target, predictions, batch):
    """`(sum, count, gradient)` of one of a model's terms."""
    present = built.present(batch)
    here = {k: np.stack([present[r] for r in t.reads]).all(0) for k, t in built.tasks.items()}

    def term(z):
        view = View({}, {}, {**predictions, name: z}, here, None, {target[0]: target[1]})
        return built.regularisers[target[0]][1].term(view)

    found = jax.jit(jax.value_and_grad(term, has_aux=True))(predictions[name])
    (total, count), gradient = jax.device_get(found)
    return float(total), float(count), gradient


def _share(built, name, predictions, entry):
    """`(sum, count)` of the term `name`/used, which is a metric."""
    term = built.regularisers[f"{name}/used"][1].term
    return jax.jit(lambda: term(View({}, {}, predictions, {}, None, {name: entry})))()


@pytest.fixture(scope="module")
def asked():
    """The model, its variables, a batch with holes and NaN, what it says."""
    built, rows = build(), batch(32)
    variables = draw(built.shapes)
    predictions, _ = jax.jit(built)(variables, rows["inputs"])
    return built, variables, rows, jax.device_get(predictions)


def test_unlabelled_rows_that_are_sure_get_a_label(asked):
    built, variables, rows, z = asked
    limits = {"kind": 0.6, "tags": 0.75}
    model, teach = semi.prepare(
        {"kind": "pseudo", "thresholds": limits, "alpha": 3.0, "warmup": 4}, built, PLAIN
    )
    targets = jax.jit(functools.partial(teach, model))
    labels = jax.device_get(targets(variables, rows, np.int32(4)))
    assert set(labels) == {"semi/kind", "semi/tags"}
    seen = rows["inputs"]["text"]["present"]
    free = {name: seen & ~rows["targets"][name]["present"] for name in limits}
    p = {"kind": softmax(z["kind"]), "tags": sigmoid(z["tags"])}
    sure = {"kind": p["kind"].max(1) >= 0.6, "tags": np.maximum(p["tags"], 1 - p["tags"]) >= 0.75}
    for name, entry in labels.items():
        np.testing.assert_array_equal(entry["present"], free[name.removeprefix("semi/")])
    assert 0 < (sure["kind"] & free["kind"]).sum() < free["kind"].sum()
    np.testing.assert_array_equal(labels["semi/kind"]["weight"] > 0, sure["kind"])
    np.testing.assert_array_equal(labels["semi/kind"]["y"], np.eye(3)[z["kind"].argmax(1)])
    wanted = np.where(sure["tags"], p["tags"] > 0.5, -1)
    np.testing.assert_array_equal(labels["semi/tags"]["y"], wanted)
    assert 0 < sure["tags"].mean() < 1

    scale, _ = model.regularisers["semi/kind"]
    assert scale == 1.5
    total, count, gradient = _term(model, "kind", ("semi/kind", labels["semi/kind"]), z, rows)
    used = sure["kind"] & free["kind"]
    np.testing.assert_allclose(total, -np.log(p["kind"].max(1))[used].sum(), rtol=1e-4)
    assert count == free["kind"].sum()
    assert not gradient[~used].any()
    share, whole = _share(model, "semi/kind", z, labels["semi/kind"])
    assert (float(share), float(whole)) == (used.sum(), count)
    share, _ = _share(model, "semi/tags", z, labels["semi/tags"])
    np.testing.assert_allclose(share, sure["tags"].mean(1)[free["tags"]].sum(), rtol=1e-6)

    early = jax.device_get(targets(variables, rows, np.int32(3)))["semi/kind"]
    assert _term(model, "kind", ("semi/kind", early), z, rows)[0] == 0


def test_the_average_is_followed_as_the_ramp_says(asked):
    built, variables, rows, z = asked
    model, teach = semi.prepare({"kind": "mean_teacher", "alpha": 6.0}, built, PLAIN)
    labels = jax.device_get(jax.jit(functools.partial(teach, model))(variables, rows, np.int32(5)))
    seen = rows["inputs"]["text"]["present"]
    assert set(labels) == {"semi/kind", "semi/tags", "semi/size"}
    moved = {name: value + 0.5 * np.cos(np.arange(value.size)).reshape(value.shape)
             for name, value in z.items()}  # fmt: skip
    moved = {name: value.astype(np.float32) for name, value in moved.items()}
    ramp = np.exp(-5 * (1 - 5 / 10) ** 2)
    gaps = {
        "kind": ((softmax(z["kind"]) - softmax(moved["kind"])) ** 2).sum(1),
        "tags": ((sigmoid(z["tags"]) - sigmoid(moved["tags"])) ** 2).mean(1),
        "size": 0.5 * (z["size"] - moved["size"])[:, 0] ** 2,
    }
    for name, gap in gaps.items():
        assert model.regularisers[f"semi/{name}"][0] == 2.0
        target = (f"semi/{name}", labels[f"semi/{name}"])
        total, count, gradient = _term(model, name, target, moved, rows)
        np.testing.assert_allclose(total, ramp * gap[seen].sum(), rtol=1e-3)
        assert count == seen.sum() < len(seen)
        assert gradient[seen].any()
        assert not gradient[~seen].any()


@pytest.mark.parametrize(("step", "expected"), [(0, np.exp(-5)), (5, np.exp(-1.25)), (20, 1.0)])
def test_the_ramp(step, expected):
    np.testing.assert_allclose(jax.jit(semi.ramped)(np.int32(step), 10.0), expected, rtol=1e-6)


def test_modalities_follow_what_all_say_and_do_not_move_it():
    built, rows = build(UNIMODAL, ("text", "audio")), batch()
    model, teach = semi.prepare({"kind": "consistency", "alpha": 2.0}, built, PLAIN)
    assert teach is None
    rng = np.random.default_rng(0)
    names = ("kind", "kind_text", "kind_audio")
    z = {name: rng.normal(0, 2, (8, 3)).astype(np.float32) for name in names}
    for head in names[1:]:
        here = rows["inputs"][head.removeprefix("kind_")]["present"]
        target = (f"semi/{head}", {})
        total, count, gradient = _term(model, head, target, z, rows)
        q, p = softmax(z["kind"]), softmax(z[head])
        np.testing.assert_allclose(total, (q * np.log(q / p)).sum(1)[here].sum(), rtol=1e-5)
        assert count == here.sum()
        assert gradient[here].any()
        assert not gradient[~here].any()
        assert not _term(model, "kind", target, z, rows)[2].any()
        assert model.regularisers[target[0]][0] == 1.0


# A run.


def _assembled(kind, **changes):
    tasks = changes.pop("tasks", UNIMODAL if kind == "consistency" else TASKS)
    plain = config(tasks=tasks, semi={"kind": kind, **changes.pop("semi", {})}, **changes)
    plain["optimizer"]["ema"] = 0.9
    return training.assemble(plain)


def _step(experiment, batch):
    step = jax.jit(lambda state, batch: experiment.step()(state, batch))
    state = draw(experiment.shapes).replace(step=np.int32(100))
    return jax.device_get(step(state, batch))


@pytest.mark.parametrize("kind", semi.SEMI)
def test_a_step_moves_by_rows_without_labels(kind):
    experiment = _assembled(kind, semi={"thresholds": 0.3} if kind == "pseudo" else {})
    rows = next(iter(experiment.source.train(8, seed=0)))
    bare = {
        name: {"y": entry["y"], "present": np.zeros(8, bool)}
        for name, entry in rows["targets"].items()
    }
    state, metrics = _step(experiment, {**rows, "targets": bare})
    names = experiment.model.loss_names
    trained = dict(zip(names, metrics["present"], strict=True))
    assert all(there == name.startswith("semi/") for name, there in trained.items())
    assert not metrics["skipped"]
    start = draw(experiment.shapes).params["encoders"]
    gaps = jax.tree.map(lambda a, b: np.abs(a - b).max(), start, state.params["encoders"])
    # The average is what it was drawn as, and so unlike the parameters.
    assert max(jax.tree.leaves(gaps)) > 1e-5
    if kind == "pseudo":
        losses = dict(zip(names, metrics["losses"], strict=True))
        assert losses["semi/kind/used"] == 1.0


def test_where_every_row_has_its_label_nothing_happens():
    experiment = _assembled("pseudo", tasks={"kind": TASKS["kind"]}, semi={"thresholds": 0.0})
    rows = next(iter(experiment.source.train(8, seed=0)))
    rows["targets"]["kind"]["present"][:] = True
    _, metrics = _step(experiment, rows)
    trained = dict(zip(experiment.model.loss_names, metrics["present"], strict=True))
    assert trained == {"kind": True, "semi/kind": False, "semi/kind/used": False}


def test_figures_are_no_tasks_where_auxiliaries_are_balanced():
    names = _assembled("pseudo", balancing={"kind": "equal", "auxiliaries": "balanced"})
    assert names.model.loss_names == ("kind", "size", "semi/kind")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"kind": "psuedo"}, "semi.kind: unknown kind 'psuedo' .*choices: consistency, mean_t"),
        ({"kind": "pseudo", "threshold": 1}, "unknown hyper-parameter of pseudo 'threshold'"),
        ({"kind": "pseudo", "thresholds": 2}, "semi.thresholds: 2 is not a number from 0 to 1"),
        ({"kind": "pseudo", "thresholds": {"knd": 1}}, "semi.thresholds: unknown task 'knd'"),
        ({"kind": "pseudo", "warmup": -1}, "semi.warmup: -1 is not a whole number from 0"),
        ({"kind": "pseudo", "alpha": -1}, "semi.alpha: -1 is not a number"),
        ({"kind": "pseudo", "tasks": ["size"]}, "'size' is a regression, .*choices: kind"),
        ({"kind": "mean_teacher"}, "needs an average of the parameters: set optimizer.ema"),
        ({"kind": "mean_teacher", "ramp": 0}, "semi.ramp: 0 is not a whole number from 1"),
        ({"kind": "mean_teacher", "measure": "l1"}, "semi.measure: unknown measure 'l1'"),
        ({"kind": "consistency"}, "no task has heads .*; set unimodal to True"),
        ({"kind": "consistency", "tasks": ["kind"]}, "task 'kind' has heads|set unimodal"),
    ],
)
def test_what_cannot_be_learned_is_refused(section, message):
    with pytest.raises(ConfigError, match=message):
        training.assemble(config(semi=section))


# What is hidden is to be said (masked modelling).


def _masked(modality, **options):
    encoders = {"image": "image_mlp", "table": "table_mlp", "series": "series_gru"}
    model = {**toy.MODEL, "encoders": {modality: encoders[modality]}}
    task = {"kind": "reconstruction", "modality": modality, **options}
    return build_model(model, {"again": task}, toy.SPEC)


@pytest.mark.parametrize(
    ("modality", "patch", "cells"), [("image", 4, (4, 4)), ("series", 3, (4,)), ("table", 1, (5,))]
)
def test_a_share_is_hidden_and_only_that_is_scored(modality, patch, cells):
    built = _masked(modality, hide=0.5, patch=patch, size=8)
    rows = toy.batch(8)
    rows["inputs"] = {modality: rows["inputs"][modality]}
    keys = jax.random.split(jax.random.key(0), 8)
    hide = hidden.hider(built.tasks, toy.SPEC.modalities)
    seen = jax.jit(hide)(keys, rows)
    before, after = rows["inputs"][modality], seen["inputs"][modality]
    gone = np.asarray(seen["targets"]["hidden/again"]["gone"])
    by_cell = gone.reshape(8, -1).mean(1)
    np.testing.assert_allclose(by_cell, round(0.5 * np.prod(cells)) / np.prod(cells))
    assert len({tuple(row.ravel()) for row in gone}) > 1
    if modality == "image":
        blocks = gone.reshape(8, 4, 4, 4, 4).transpose(0, 1, 3, 2, 4).reshape(8, 16, 16)
        assert np.isin(blocks.mean(-1), (0, 1)).all()
    wide = gone.reshape(*gone.shape, *[1] * (before["x"].ndim - gone.ndim))
    np.testing.assert_array_equal(after["x"], np.where(wide, 0, before["x"]))
    if "mask" in before:
        np.testing.assert_array_equal(after["mask"], before["mask"] & ~gone)
    task = built.tasks["again"]
    present = {"fused": before["present"]}
    labels = jax.jit(lambda *batches: [task.labels(b, present).y for b in batches])
    y, whole = labels(seen, rows)
    assert (np.asarray(y["known"]) <= np.asarray(whole["known"])).all()
    known = np.asarray(y["known"]).reshape(8, *task.form)[before["present"]]
    if modality == "image":  # of 8 x 8 values, from 16 x 16 pixels
        np.testing.assert_array_equal(known[..., 0], gone[before["present"]][:, ::2, ::2])
    else:
        mask = (before["mask"] & gone)[before["present"]]
        ours = mask.reshape(*mask.shape, *[1] * (known.ndim - 2))
        np.testing.assert_array_equal(known, np.broadcast_to(ours, known.shape))
    np.testing.assert_allclose(y["values"], whole["values"])
    assert np.isfinite(np.asarray(y["values"])).all()
    empty = jax.jit(hide)(keys, {**rows, "inputs": {"other": before}})
    assert "hidden/again" not in empty["targets"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hide": 1.0}, "again.hide: 1.0 is not a number from 0, below 1"),
        ({"hide": 0.5, "patch": 5}, r"again.patch: 5 does not divide \[16, 16\]"),
        ({"hide": 0.5, "patch": 0}, "again.patch: 0 is not a whole number"),
    ],
)
def test_what_cannot_be_hidden(options, message):
    with pytest.raises(ConfigError, match=message):
        _masked("image", **options)


def test_two_tasks_cannot_hide_the_same_and_none_hides_nothing():
    built = _masked("image", hide=0.5)
    task = built.tasks["again"]
    with pytest.raises(ConfigError, match=r"tasks.b.hide: tasks.a hides parts of 'image' already"):
        hidden.hider({"a": task, "b": task}, toy.SPEC.modalities)
    assert hidden.hider(_masked("image").tasks, toy.SPEC.modalities) is None
    assert hidden.in_turn([None]) is None
