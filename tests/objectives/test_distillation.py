"""Distillation: the terms are their formulas, and teachers are asked as they were trained."""

import shutil

import jax
import numpy as np
import pytest

from mtmm_jax import data, training
from mtmm_jax.batch import Modality, Target
from mtmm_jax.devices import parallel
from mtmm_jax.inference.finished import open_run
from mtmm_jax.model import build as build_model
from mtmm_jax.objectives.teachers import open_teachers
from mtmm_jax.registry import ConfigError
from mtmm_jax.store.checkpoints import Checkpoints
from mtmm_jax.store.workdir import Workdir
from mtmm_jax.tasks.ordinal import log_probabilities
from mtmm_jax.tasks.terms.imitation import imitation, likeness, scaled_loss
from mtmm_jax.tasks.terms.term import View
from tests import kept_run, toy
from tests.data.small import source
from tests.training import small_run

TASKS = {"kind": {"kind": "classification"}, "size": {"kind": "regression"}}
ENCODERS = {
    "text": {"kind": "text_bag", "dropout": 0.0},
    "audio": {"kind": "audio_mlp", "dropout": 0.0},
}
ROWS = 8


def config(encoders=("text", "audio"), width=8, teachers=None, tasks=TASKS, **changes):
    """A run of one device; the data always have text and audio."""
    plain = small_run.get_config().to_dict()
    plain["model"] |= {"width": width, "encoders": {name: ENCODERS[name] for name in encoders}}
    plain |= {"devices": 1, "balancing": {"kind": "equal"}, "tasks": tasks, "teachers": teachers}
    plain["optimizer"] = {"kind": "sgd", "learning_rate": 0.1}
    return {**plain, **changes}


def draw(shapes, seed=0):
    rng = np.random.default_rng(seed)

    def leaf(x):
        return rng.normal(0, 0.5, x.shape).astype(x.dtype) if x.dtype == np.float32 else (
            np.zeros(x.shape, x.dtype)
        )  # fmt: skip

    return jax.tree.map(leaf, shapes)


def keep(path, seed=0, **options):
    """A run that seems finished."""
    experiment = training.assemble(config(**options))
    workdir = Workdir(path)
    workdir.claim(experiment.config, experiment.source.spec, {})
    checkpoints = Checkpoints(workdir.checkpoints)
    checkpoints.save(draw(experiment.shapes, seed), 0.5, {"step": 0})
    checkpoints.close()
    return str(path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {
        "both": keep(folder / "both"),
        "text": keep(folder / "text", 1, encoders=("text",)),
        "audio": keep(folder / "audio", 2, encoders=("audio",), width=4),
    }


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


# The terms.


def _view(prediction, seen, target):
    return View({}, {}, {"t": prediction}, {"t": seen}, None, {"x": target})


def _term(task, z, y, here, seen, temperature=3.0, measure="kl", **more):
    term = imitation("t", task.distilled, "x", temperature=temperature, measure=measure).term
    entry = {"y": y, "present": here, **more}
    found = jax.value_and_grad(lambda z: term(_view(z, seen, entry)), has_aux=True)
    (total, count), gradient = jax.device_get(jax.jit(found)(z))
    assert np.isfinite(gradient).all()
    return float(total), float(count), gradient


MEASURED = [
    (kind, measure)
    for kind in ("classification", "ordinal", "multilabel")
    for measure in ("kl", "squared")
]


@pytest.mark.parametrize(("kind", "measure"), [*MEASURED, ("regression", "kl")])
def test_terms_are_their_formulas_and_fillers_reach_nothing(kind, measure):
    rng = np.random.default_rng(0)
    several = Target("labels", classes=("u", "v", "w"), frequencies=(0.5, 0.1, 0.2))
    spec = toy.SPEC.__class__(toy.SPEC.modalities, {**toy.SPEC.targets, "tags": several})
    name = {"multilabel": "tags", "regression": "size"}.get(kind, "kind")
    built = build_model(toy.MODEL, {"t": {"kind": kind, "target": name}}, spec)
    task = built.tasks["t"]
    size = {"ordinal": 2, "regression": 1}.get(kind, 3)
    z = -np.sort(-rng.normal(0, 2, (ROWS, size)), axis=1).astype(np.float32)
    here, seen = rng.random(ROWS) < 0.7, rng.random(ROWS) < 0.7
    weight = rng.random(ROWS).astype(np.float32)
    rows = (here & seen).astype(float)
    if kind == "regression":
        y = rng.normal(10, 2, ROWS).astype(np.float32)
        gap = 0.5 * (z[:, 0] - (y - 10) / 2) ** 2
    elif kind == "multilabel":
        y = rng.random((ROWS, 3)).astype(np.float32)
        y[0] = (0, 1, -1)  # the last is unknown
        here[0] = seen[0] = rows[0] = True
        p, q = sigmoid(z / 3), np.maximum(y, 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            own = np.nan_to_num(q * np.log(q)) + np.nan_to_num((1 - q) * np.log(1 - q))
        each = 9 * (own - q * np.log(p) - (1 - q) * np.log(1 - p))
        each = (q - p) ** 2 if measure == "squared" else each
        each[0, 2] = 0
        gap = each.mean(1)
    else:
        y = rng.dirichlet(np.ones(3), ROWS).astype(np.float32)
        y[0], here[0], seen[0], rows[0] = (0, 1, 0), True, True, True
        log_p = np.asarray(jax.jit(log_probabilities)(z)) if kind == "ordinal" else z
        p = softmax(log_p / 3)
        with np.errstate(divide="ignore", invalid="ignore"):
            gap = 9 * (np.nan_to_num(y * np.log(y)) - y * np.log(p)).sum(1)
        gap = ((y - p) ** 2).sum(1) if measure == "squared" else gap
    y[~here] = np.nan
    total, count, gradient = _term(task, z, y, here, seen, measure=measure, weight=weight)
    np.testing.assert_allclose(total, (rows * weight * np.where(rows, gap, 0)).sum(), rtol=2e-5)
    assert count == rows.sum() < ROWS
    assert not gradient[rows == 0].any()
    assert gradient[rows == 1].any()


def test_likeness_is_one_minus_the_cosine():
    from mtmm_jax.batch import Tokens

    rng = np.random.default_rng(1)
    x, kernel = rng.normal(size=(5, 1, 4)), rng.normal(size=(4, 3))
    t, mask = rng.normal(size=(5, 3)).astype(np.float32), np.ones((5, 1), bool)
    mask[1], here = False, np.array([True, True, True, False, True])
    t[3] = np.nan
    tokens = {"a": Tokens(x.astype(np.float32), mask)}
    params = {"w": {"k": kernel.astype(np.float32)}}
    view = View(params, tokens, {}, {}, None, {"x": {"y": t, "present": here}})
    total, count = jax.jit(lambda: likeness("a", "x", "w/k").term(view))()
    u = x[:, 0] @ kernel
    cosine = (u * t).sum(1) / np.linalg.norm(u, axis=1) / np.linalg.norm(t, axis=1)
    np.testing.assert_allclose(total, (1 - cosine)[[0, 2, 4]].sum(), rtol=1e-5)
    assert count == 3


def test_a_loss_of_no_weight_is_that_of_an_absent_task():
    task = toy.build().tasks["size"]
    z, batch = np.ones((8, 1), np.float32), toy.batch(8)
    labels = task.labels(batch, {"fused": np.ones(8, bool)})
    losses = (task.loss, scaled_loss(task, 0), scaled_loss(task, 0.5))
    (total, count), none, half = jax.jit(lambda: [loss(z, labels, None) for loss in losses])()
    assert none == (0, 0)
    assert half == (0.5 * np.asarray(total), count)


# The teachers.


def _said(path, batch, temperature):
    """One run's predictions for a batch, by NumPy: `{task: (y, rows)}`."""
    run = open_run(path)
    model = run.experiment.model
    z, _ = jax.jit(model)(run.variables, batch["inputs"])
    rows = np.stack([batch["inputs"][name]["present"] for name in model.encoders]).any(0)
    kind = softmax(np.asarray(z["kind"]) / temperature)
    return {"kind": (kind, rows), "size": (np.asarray(z["size"])[:, 0] * 2 + 10, rows)}


def _student(runs, who, **options):
    teachers = {"workdirs": [runs[name] for name in who], **options.pop("teachers", {})}
    return training.assemble(config(teachers=teachers, **options))


@pytest.mark.parametrize(
    ("who", "reads"), [(("both",), ("text",)), (("text", "audio"), ("text", "audio"))]
)
def test_teachers_are_asked_about_what_they_read(runs, who, reads):
    """A teacher that reads more than the student; two that read less."""
    experiment = _student(runs, who, encoders=reads, teachers={"temperature": 3.0, "alpha": 0.5})
    batch = next(iter(experiment.source.train(ROWS, seed=0)))
    experiment.source.spec.check(batch)
    batch["inputs"]["text"]["present"] = batch["inputs"]["text"]["present"] & (np.arange(ROWS) > 2)
    taught = experiment.source.teach(batch)
    assert taught.keys() == {name for name in batch["targets"] if name.startswith("distilled/")}
    outputs = [_said(runs[name], batch, 3.0) for name in who]
    for task in ("kind", "size"):
        seen = np.stack([said[task][1] for said in outputs])
        y = np.stack([said[task][0] for said in outputs])
        entry = taught[f"distilled/{task}"]
        np.testing.assert_array_equal(entry["present"], seen.any(0))
        wide = seen.reshape(*seen.shape, *[1] * (y.ndim - 2))
        mean = np.where(wide, y, 0).sum(0) / np.maximum(wide.sum(0), 1)
        np.testing.assert_allclose(entry["y"], mean, atol=1e-5)
    assert 0 < entry["present"].sum() < ROWS or who == ("text", "audio")
    terms = {name: scale for name, (scale, _) in experiment.model.regularisers.items()}
    assert terms == {"teachers/kind": 0.25, "teachers/size": 0.25}
    for split in ("validation", "test"):
        assert "distilled/kind" not in next(experiment.source.batches(split, 4))["targets"]


def test_a_row_that_weighs_nothing_or_whose_modality_is_left_out_is_not_taught(runs):
    experiment = _student(runs, ("text", "audio"))
    teach = experiment.source.teach
    batch = next(iter(source("right").train(ROWS, seed=0)))
    without = {**batch, "inputs": {"audio": batch["inputs"]["audio"]}}
    alone = teach(without)["distilled/kind"]
    np.testing.assert_array_equal(alone["present"], batch["inputs"]["audio"]["present"])
    np.testing.assert_allclose(
        alone["y"][alone["present"]],
        _said(runs["audio"], without, 2.0)["kind"][0][alone["present"]],
        atol=1e-5,
    )
    batch["weight"][:3] = 0
    assert not teach(batch)["distilled/kind"]["present"][:3].any()


def _steps(experiment, devices=1, state=None):
    """Two steps of SGD on batches with holes; NaN where something is absent."""
    step = parallel.wrap(experiment.step(), devices, donate=False)
    state = parallel.replicate(state or draw(experiment.shapes), devices)
    batches = iter(experiment.source.train(ROWS, seed=0))
    metrics = []
    for _ in range(2):
        batch = next(batches)
        for entry in (*batch["inputs"].values(), *batch["targets"].values()):
            values = entry.get("x", entry.get("y"))
            if values.dtype == np.float32:
                values = values.copy()
                values[~entry["present"]] = np.nan
                entry["x" if "x" in entry else "y"] = values
        state, outputs = step(state, batch)
        metrics.append(parallel.fetch(outputs, devices))
    return jax.device_get(parallel.first(state, devices)), metrics, batch


FEATURES = {"features": {"fused": 0.5, "text": 1.0}, "hard": 0.5}


@pytest.fixture(scope="module")
def one(runs):
    experiment = _student(runs, ("both", "text"), width=4, teachers=FEATURES)
    return experiment, *_steps(experiment)


def test_features_are_followed_through_learned_maps(one):
    experiment, state, metrics, _ = one
    start = draw(experiment.shapes)
    maps = start.params["teachers"]
    assert set(maps) == {"fused_0", "fused_1", "text_0", "text_1"}
    assert {leaf["kernel"].shape for leaf in maps.values()} == {(4, 8)}
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), maps, state.params["teachers"])
    assert min(jax.tree.leaves(moved)) > 1e-6
    names = experiment.model.loss_names
    assert names[-4:] == tuple(
        f"teachers/features/{r}/{i}" for r in ("fused", "text") for i in (0, 1)
    )
    assert all(outputs["present"].all() and not outputs["skipped"] for outputs in metrics)
    assert np.isfinite([outputs["losses"] for outputs in metrics]).all()


def test_the_step_holds_nothing_of_the_teachers(one):
    experiment, state, _, batch = one
    traced = jax.make_jaxpr(lambda s, b: experiment.step()(s, b))(state, batch)
    _, variables = experiment.source.teach._ready
    largest = max(np.size(leaf) for leaf in jax.tree.leaves(variables))
    assert max(np.size(c) for c in traced.consts) < largest
    assert "teach" not in experiment.trainer


@pytest.mark.usefixtures("uncached")
def test_devices_learn_together_what_one_does(one):
    experiment, state, metrics, _ = one
    other, seen, _ = _steps(experiment, 2)
    for a, b in zip(metrics, seen, strict=True):
        np.testing.assert_allclose(b["losses"], a["losses"], rtol=1e-4, atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(b, a, atol=2e-5), state.params, other.params
    )


@pytest.mark.slow
def test_microbatches_say_what_the_whole_batch_does(runs):
    metrics = []
    for count in (1, 2):
        plain = config(width=4, teachers={"workdirs": [runs["both"]], "tasks": ["kind"]})
        plain["optimizer"] |= {"accumulate": count}
        metrics.append(_steps(training.assemble(plain))[1][0]["losses"])
    np.testing.assert_allclose(*metrics, rtol=1e-4)


def test_a_student_is_opened_where_its_teachers_are_not(runs, tmp_path):
    gone = shutil.copytree(runs["both"], tmp_path / "teacher")
    teachers = {"workdirs": [str(gone)], "features": {"fused": 1.0}}
    path = keep(tmp_path / "student", 3, width=4, teachers=teachers)
    shutil.rmtree(gone)
    stored = Workdir(tmp_path / "student").config()
    assert stored["teachers"]["found"]["widths"] == {"fused": [8]}
    run = open_run(path)
    assert run.variables["params"]["teachers"]["fused_0"]["kernel"].shape == (4, 8)
    again = open_run(path, stored)
    with pytest.raises(ConfigError, match=r"teachers.workdirs\[0\]: .*no folder"):
        again.experiment.source.teach(next(again.experiment.source.batches("test", 4)))


# What is refused.


@pytest.mark.parametrize(
    ("teachers", "message"),
    [
        ({}, "teachers: needs workdirs"),
        ("runs/a", "'runs/a' is not a section"),
        ({"workdirs": "runs/a"}, "teachers.workdirs: 'runs/a' is not a list"),
        ({"workdirs": ["/nowhere"]}, r"teachers.workdirs\[0\]: '/nowhere': .*no folder"),
        ({"workdirs": ["both"], "temperature": 0}, "teachers.temperature: 0 is not a number above"),
        ({"workdirs": ["both"], "alpha": -1}, "teachers.alpha: -1 is not a number from 0"),
        ({"workdirs": ["both"], "tempreature": 1}, "unknown key 'tempreature'"),
        ({"workdirs": ["both"], "tasks": ["knd"]}, "teachers.tasks: unknown task 'knd'"),
        ({"workdirs": ["both"], "tasks": ["more"]}, "teachers.tasks: no teacher has 'more'"),
        ({"workdirs": ["both"], "tasks": ["pairs"]}, "'pairs' is a retrieval, which cannot"),
        ({"workdirs": ["text"], "features": {"audio": 1}}, "features: '.*text': unknown read"),
        ({"workdirs": ["both"], "features": {"audi": 1}}, "the student: unknown read 'audi'"),
        ({"workdirs": ["both"], "features": {"text": -1}}, "features.text: -1 is not"),
    ],
)
def test_what_cannot_teach_is_refused(runs, teachers, message):
    if isinstance(teachers, dict) and isinstance(teachers.get("workdirs"), list):
        teachers["workdirs"] = [runs.get(name, name) for name in teachers["workdirs"]]
    more = {
        "more": {"kind": "classification", "target": "kind"},
        "pairs": {"kind": "retrieval", "reads": ["text", "audio"]},
    }
    with pytest.raises(ConfigError, match=message):
        training.assemble(config(teachers=teachers, tasks={**TASKS, **more}))


def _altered(path, folder, change):
    copy = Workdir(shutil.copytree(path, folder / "altered"))
    spec = copy.spec().to_dict()
    change(spec)
    kept_run.rewrite(copy, spec)
    return str(copy.path)


def _classes(spec):
    spec["targets"]["kind"]["classes"] = ["a", "b", "z"]


def _longer(spec):
    spec["modalities"]["text"]["shape"] = [9]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_classes, r"its task 'kind' has 3 classes, the student's 3; they differ in \['c', 'z'\]"),
        (_longer, r"its 'text' has shape \(9,\), that of the data \(6,\)"),
    ],
)
def test_a_teacher_of_other_data_is_refused(runs, tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        _student({"x": _altered(runs["text"], tmp_path, change)}, ("x",))


def test_a_teacher_of_another_label_kind_or_modality_is_refused(runs, tmp_path):
    tasks = {"size": {"kind": "classification", "target": "kind"}}
    with pytest.raises(ConfigError, match="its task 'size' is a regression, the student's a class"):
        _student(runs, ("both",), tasks=tasks)
    one = source("left")
    with pytest.raises(ConfigError, match="reads 'audio', which the data do not have; they have: "):
        open_teachers([runs["audio"]], one, training.assemble)
    worded = data.Source(**{**vars(source("right")), "assets": {"tokenizer.json": b"other"}})
    (Workdir(tmp_path).path / "x").mkdir()
    kept = shutil.copytree(runs["text"], tmp_path / "kept")
    spec = Workdir(kept).spec().to_dict()
    kept_run.rewrite(Workdir(kept), spec, {"tokenizer.json": b"own"})
    with pytest.raises(ConfigError, match="reads 'text' with another tokenizer"):
        open_teachers([str(kept)], worded, training.assemble)
    assert Modality("text", (6,), "int32", vocabulary=20) == worded.spec.modalities["text"]
