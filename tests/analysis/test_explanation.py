"""Attributions against closed forms, deletion, and what `predict --explain` writes."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from mtmm_jax import predict
from mtmm_jax.analysis import explanation, explanation_page
from mtmm_jax.batch import Modality
from mtmm_jax.evaluation.attribution import (
    integrated_gradients,
    kept_after,
    ranked,
)
from mtmm_jax.inference.finished import open_run
from mtmm_jax.modalities import kind_of
from mtmm_jax.modalities.units import without
from mtmm_jax.registry import ConfigError
from mtmm_jax.store.workdir import Workdir
from mtmm_jax.text import read_tokenizer, train_tokenizer, unknown_id, words_of
from tests.kept_run import kept


class Linear:
    """A model that is a sum of products: F = sum_i w_i x_i + c x_0 x_1."""

    def __init__(self, spec, weights, cross=0.0):
        self.spec, self.weights, self.cross = spec, weights, cross
        self.encoders = dict.fromkeys(spec.modalities)

    def read(self, variables):
        return variables

    def __call__(self, variables, inputs):
        x = inputs["table"]["x"]
        return {"task": x @ self.weights + self.cross * x[:, 0] * x[:, 1]}, {}


def table(x):
    x = np.asarray(x, np.float32)
    return {"x": x, "present": np.ones(len(x), bool)}


def test_integrated_gradients_of_a_bilinear_function(monkeypatch):
    import dataclasses

    from mtmm_jax.batch import Spec

    spec = Spec({"table": Modality("table", (3,), "float32", names=("a", "b", "c"))}, {})
    model = Linear(spec, jnp.asarray([1.0, -2.0, 0.5]), cross=4.0)
    monkeypatch.setattr(dataclasses, "replace", lambda model, **_: model)
    entry = table([[1, 2, 3], [0, 1, -1]])
    parts = {
        "table": kind_of(spec.modalities["table"]).units.parts(spec.modalities["table"], entry)
    }
    scores = lambda said: said["task"][None]  # noqa: E731
    found, gap = integrated_gradients(model, {}, {"table": entry}, parts, scores, 8)
    # Along the straight path both factors of c x0 x1 get half of it.
    expected = [[1 + 4, -4 + 4, 1.5], [0, -2, -0.5]]
    np.testing.assert_allclose(found["table"][0], expected, rtol=1e-5)
    np.testing.assert_allclose(gap, 0, atol=1e-5)


@pytest.mark.parametrize(
    ("modality", "shape", "count"),
    [
        (Modality("image", (32, 32, 3), "float32"), (32, 32, 3), 64),
        (Modality("image", (5, 7, 3), "float32"), (5, 7, 3), 35),
        (Modality("video", (3, 8, 8, 3), "float32"), (3, 8, 8, 3), 48),
        (Modality("audio", (8000,), "float32", rate=16000.0), (8000,), 5),
        (Modality("series", (40, 2), "float32"), (40, 2), 16),
        (Modality("table", (3,), "float32", names=("a", "b", "c")), (3,), 3),
    ],
)
def test_units_cover_every_place_once_and_are_named(modality, shape, count):
    x = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    entry = {"x": x, "present": np.array([True, False])}
    units = kind_of(modality).units
    parts = units.parts(modality, entry)
    assert parts.count == count == len(units.names(modality, count))
    assert set(np.unique(parts.units)) == set(range(count))
    assert parts.there[0].all()
    assert not parts.there[1].any()
    keep = jnp.ones((2, count), bool)
    np.testing.assert_array_equal(without(entry, parts, keep)["x"], x)
    np.testing.assert_array_equal(without(entry, parts, ~keep)["x"], parts.neutral)
    one = without(entry, parts, keep.at[:, 1].set(False))["x"]
    changed = np.asarray(one != x).reshape(2, *parts.units.shape[1:], -1).any(-1)
    assert (changed <= (parts.units == 1)).all()
    assert changed.any()


def test_masked_steps_of_a_series_are_no_unit():
    x = np.ones((1, 6, 1), np.float32)
    mask = np.arange(6)[None] < 4
    entry = {"x": x, "mask": mask, "present": np.ones(1, bool)}
    modality = Modality("series", (None, 1), "float32")
    parts = kind_of(modality).units.parts(modality, entry)
    assert parts.there.sum() == 4


def test_words_are_joined_from_their_pieces():
    tokenizer = read_tokenizer(train_tokenizer(["red apple", "green apple", "red pear"] * 3, 40))
    ids = np.array([*tokenizer.encode("red pear apples").ids, 0, 0])
    numbers, words = words_of(tokenizer, ids)
    assert words[:2] == ["red", "pear"]
    assert words[2].startswith("apple")
    assert list(numbers[-2:]) == [-1, -1]
    assert numbers.max() == len(words) - 1
    assert unknown_id(tokenizer) == 1


def test_the_highest_units_go_first_and_absent_ones_never():
    values = jnp.asarray([[3.0, 9.0, 1.0, 5.0]])
    there = jnp.asarray([[True, True, True, False]])
    ranks = ranked(values, there)
    np.testing.assert_array_equal(ranks, [[1, 0, 2, 3]])
    np.testing.assert_array_equal(kept_after(ranks, there, jnp.float32(0)), [[True] * 4])
    np.testing.assert_array_equal(
        kept_after(ranks, there, jnp.float32(0.1)), [[True, False, True, True]]
    )
    np.testing.assert_array_equal(
        kept_after(ranks, there, jnp.float32(1)), [[False, False, False, True]]
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return open_run(kept(tmp_path_factory.mktemp("run")).path)


def sample(run):
    model = run.experiment.model
    rng = np.random.default_rng(0)

    def values(x):
        return rng.integers(2, 9, x.shape) if x.dtype.kind == "i" else rng.normal(size=x.shape)

    example = model.spec.example(1)["inputs"]
    return {n: {**e, "x": values(e["x"]).astype(e["x"].dtype)} for n, e in example.items()}


@pytest.fixture(scope="module")
def explained(run):
    """Inputs of all modalities, and what is said of them."""
    inputs = sample(run)
    inputs = {name: inputs[name] for name in run.experiment.model.encoders}
    return inputs, explanation.explain(run, inputs, steps=64)


def test_attributions_and_shares_add_up(run, explained):
    inputs, found = explained
    assert [one.task for one in found] == explanation.explainable(run, tuple(inputs))
    assert len(found) > 2
    missed = [one.gap * sum(abs(x.sum()) for x in one.units.values()) for one in found]
    assert max(missed) < 0.05 * sum(np.abs(x).sum() for one in found for x in one.units.values())
    for one in found:
        assert one.nothing + sum(one.modalities.values()) == pytest.approx(one.value, abs=1e-4)
        for curve in one.curves.values():
            assert curve["highest"][0] == pytest.approx(one.value, abs=1e-4)
            assert curve["highest"][-1] == pytest.approx(curve["random"][-1], abs=1e-4)


def test_attention_is_reported_where_there_is_some(run, explained):
    inputs, (shown, *_) = explained
    assert shown.task == "kind"
    assert set(shown.attention) == {"image"}  # the only encoder that attends; its fusion does not
    assert shown.attention["image"].shape == shown.units["image"].shape
    curves = shown.curves["image"]
    assert curves["attention"][0] == pytest.approx(shown.value, abs=1e-4)
    assert curves["attention"][-1] == pytest.approx(curves["random"][-1], abs=1e-4)
    assert set(shown.curves["table"]) == {"highest", "random"}
    assert "attention" in explanation.as_json([shown])[0]["curves"]["image"]
    said = explanation_page.sentences(run, shown)
    assert [("looked" in line) for line in said if ": " in line][2:].count(True) == 1
    metric = explanation_page.picture(shown, inputs, run.experiment.model.spec.modalities)
    lines = {axis.get_title(): len(axis.lines) for axis in metric.axes}
    assert lines["image: taken away bit by bit"] == 3
    assert lines["table: taken away bit by bit"] == 2


def test_what_cannot_be_explained_is_refused(run):
    with pytest.raises(ConfigError, match=r"--task: .*'pairs'.*kind"):
        explanation.explain(run, {"text": sample(run)["text"]}, ["pairs"])


def test_the_command_writes_a_page_pictures_and_json(run, tmp_path, capsys, monkeypatch):
    """Both runs of the command are about the same explanation, which is made once."""
    out, explained = tmp_path / "why", []

    def explain(*arguments):
        explained.extend([] if explained else explanations(*arguments))
        return explained

    explanations = explanation.explain
    monkeypatch.setattr(explanation, "explain", explain)
    given = ["--text", "red apple", "--explain", str(out), "--task", "kind"]
    assert predict.main(["--workdir", str(run.workdir.path), *given]) == 0
    said = capsys.readouterr().out
    assert "kind: " in said
    assert "Not given, though the model can use it" in said
    page = (out / "explanation.html").read_text()
    assert "apple" in page
    assert page.count("<div class=example><h3>text</h3>") == 1  # what was given, large
    assert "<h3>image</h3>" not in page
    assert "data:image/png" in page
    assert (out / "kind.png").stat().st_size > 1000
    assert predict.main(["--workdir", str(run.workdir.path), *given, "--json"]) == 0
    (shown,) = json.loads(capsys.readouterr().out)
    assert shown["task"] == "kind"
    # What is absent has no share, and is reported missing.
    assert list(shown["modalities"]) == list(shown["units"]) == ["text"]
    assert set(shown["missing"]) == set(run.experiment.model.encoders) - {"text"}
    assert np.isfinite(shown["units"]["text"]).all()


def test_explain_is_about_one_sample_of_one_run(capsys):
    assert predict.main(["--workdir", "w", "--task", "kind"]) == 2
    assert "--task: belongs to --explain" in capsys.readouterr().err
    assert predict.main(["--workdir", "w", "--manifest", "m.csv", "--explain"]) == 2
    assert "--explain: explains one sample of one run" in capsys.readouterr().err


def test_how_often_right_is_said_of_how_many_rows(tmp_path):
    workdir = Workdir(tmp_path)
    metrics = {"kind": {"accuracy": 0.8, "ece": 0.1, "brier": 0.3}}
    certain = {"test": {"kind": {"accuracy": {"n": 143}, "ece": {"n": 143}}}}
    workdir.write("results.json", {"test": metrics, "intervals": certain})
    assert explanation.reliability(workdir, "kind") == {"accuracy": 0.8, "ece": 0.1, "n": 143}
    workdir.write("results.json", {"test": metrics})
    assert explanation.reliability(workdir, "kind") == {"accuracy": 0.8, "ece": 0.1}
