"""Linear models next to a network: fitted from a source, mixed, and left out of training."""

import dataclasses

import jax
import numpy as np
import pytest

from mtmm_jax.batch import Modality, Spec
from mtmm_jax.data.pipeline.source import Source
from mtmm_jax.encoders import backbones
from mtmm_jax.evaluation import Evaluator
from mtmm_jax.evaluation.linear import (
    fit_linear,
    fit_weights,
    fixed_encoders,
    with_variables,
)
from mtmm_jax.model import build
from mtmm_jax.model.forward import ForwardPass
from mtmm_jax.model.linear import shares
from mtmm_jax.registry import ConfigError
from tests import toy

SPEC = Spec(
    {name: toy.SPEC.modalities[name] for name in ("table", "series")},
    {name: toy.SPEC.targets[name] for name in ("kind", "size")},
)
MODEL = {
    "width": 8,
    "encoders": {"table": "table_columns", "series": "series_gru"},
    "fusion": "concat",
    "linear": True,
}
TASKS = {
    "kind": {"kind": "classification", "unimodal": True},
    "size": {"kind": "regression", "loss": "gaussian"},
}
ROWS = {"train": 160, "validation": 60, "test": 61}


@pytest.fixture(scope="module")
def model():
    return build(MODEL, TASKS, SPEC)


def examples(rows):
    """`kind` is a linear function of the table, `size` of the series; with holes, NaN in them."""
    draws = {int(row): np.random.default_rng(int(row)).normal(size=50) for row in rows}
    noise = np.stack([draws[int(row)] for row in rows]).astype(np.float32)
    table, series = noise[:, :5], noise[:, 5:41].reshape(-1, 12, 3)
    kind = np.argmax(table[:, :3] + 0.1 * noise[:, 41:44], axis=1).astype(np.int32)
    size = (10 + 6 * series.mean(1)[:, 0] + 0.1 * noise[:, 44]).astype(np.float32)
    here = {"table": noise[:, 45] > -1, "series": noise[:, 46] > -1}
    table, series = table.copy(), series.copy()
    table[~here["table"]] = np.nan
    series[~here["series"]] = np.nan
    return {
        "inputs": {
            "table": {"x": table, "mask": ~np.isnan(table), "present": here["table"]},
            "series": {
                "x": series,
                "mask": np.ones((len(rows), 12), bool),
                "present": here["series"],
            },
        },
        "targets": {
            "kind": {"y": kind, "present": noise[:, 47] > -1.5},
            "size": {"y": size, "present": noise[:, 48] > -1.5},
        },
        "id": np.asarray(rows, np.int32),
    }


@pytest.fixture(scope="module")
def source():
    ends = np.cumsum([0, *ROWS.values()])
    rows = {name: np.arange(ends[i], ends[i + 1]) for i, name in enumerate(ROWS)}
    return Source("made", SPEC, rows, lambda rows, chance: examples(rows), 0, {}, str)


@pytest.fixture(scope="module")
def drawn(model):
    """Variables as they are drawn."""
    variables = jax.jit(lambda: model.init(jax.random.key(0), SPEC.example(2)))()
    return {**variables, "batch_stats": variables.get("batch_stats", {})}


@pytest.fixture(scope="module")
def fitted(model, source, drawn):
    return fit_linear(model, drawn, source, 32)


@pytest.fixture(scope="module")
def ready(model, source, drawn, fitted):
    """Variables with linear models and their weights, and the weights' report."""
    stats = with_variables(drawn["batch_stats"], fitted.variables)
    variables = {**drawn, "batch_stats": stats}
    weights, report = fit_weights(model, variables, source, 32)
    return {**variables, "batch_stats": with_variables(stats, weights)}, report


def test_linear_models_learn_what_is_linear(fitted):
    test = fitted.results["test"]
    assert test["kind"]["linear, table"]["accuracy"] > 0.8
    assert test["kind"]["linear, series"]["accuracy"] < 0.6
    assert test["size"]["linear, series"]["r2"] > 0.8
    assert test["size"]["linear, table"]["r2"] < 0.2
    assert test["kind"]["linear"]["accuracy"] > 0.6  # a fifth of the rows lack the table
    assert fitted.about["kind"]["linear"]["rows"] < ROWS["train"]
    counted = {name: about["examples"]["test"] for name, about in fitted.about["kind"].items()}
    assert counted["linear, table"] < counted["linear"] <= ROWS["test"]


def test_a_mixture_is_no_worse_than_its_parts_on_validation(model, source, fitted, ready):
    variables, report = ready
    assert set(report) == {"kind", "size"}
    assert list(report["kind"]) == [
        *("network", "network, table", "network, series"),
        *("linear, table", "linear, series", "linear"),
    ]
    for weights in report.values():
        assert sum(weights.values()) == pytest.approx(1, abs=1e-5)
        assert min(weights.values()) >= 0
    results = Evaluator(model).results(variables, source.batches("validation", 32))
    linear = fitted.results["validation"]
    assert results["kind"]["accuracy"] >= linear["kind"]["linear"]["accuracy"] - 0.02
    assert results["size"]["r2"] >= linear["size"]["linear"]["r2"] - 0.02
    assert report["kind"]["linear, table"] + report["kind"]["linear"] > 0.7


def test_before_weights_are_fitted_the_network_predicts(model, drawn, source):
    """And in training always: the mixture is no part of the losses."""
    plain = build({**MODEL, "linear": None}, TASKS, SPEC)
    batch = next(source.batches("test", 32))
    both = jax.jit(lambda v, x: (model(v, x)[0], plain(v, x)[0]))
    mixed, own = both(drawn, batch["inputs"])
    for name in ("kind_table", "size"):
        np.testing.assert_allclose(mixed[name], own[name], atol=2e-4)
    found = jax.nn.softmax(mixed["kind"]), jax.nn.softmax(own["kind"])
    np.testing.assert_allclose(*found, atol=1e-5)
    assert (
        "linear"
        not in jax.eval_shape(
            lambda v, x: model.trunk(v, x, train=True, key=jax.random.key(0)),
            drawn,
            batch["inputs"],
        )[0]
    )


def test_an_absent_modality_gives_its_weight_to_the_others(model, ready, source):
    variables, _ = ready
    batch = next(source.batches("test", 32))
    nobody = np.zeros(32, bool)
    inputs = dict(batch["inputs"])
    inputs["table"] = {**inputs["table"], "present": nobody}
    without = {"series": inputs["series"]}
    program = jax.jit(lambda v, x: model(v, x)[0])
    gone, left_out = program(variables, inputs), program(variables, without)
    for name in model.tasks:
        assert np.isfinite(gone[name]).all()
        np.testing.assert_allclose(gone[name], left_out[name], atol=1e-5)


def test_shares_sum_to_one_over_what_is_there():
    weights = np.array([0.0, 0.5, 0.5], np.float32)
    known = np.array([[1, 1, 1], [1, 0, 1], [1, 0, 0], [0, 0, 0]], bool)
    wanted = [[0, 0.5, 0.5], [0, 0, 1], [1, 0, 0], [1, 0, 0]]
    np.testing.assert_allclose(jax.jit(shares)(weights, known), wanted)


def test_statistics_of_encoders_are_fitted_too(model, fitted):
    assert set(fixed_encoders(model)) == {"encoders/table", "features/table", "features/series"}
    own, other = (fitted.variables[f"{room}/table/quantiles"] for room in ("encoders", "features"))
    assert own.any()
    np.testing.assert_array_equal(own, other)


def test_without_validation_the_strength_is_one_and_no_weight_changes(model, source, ready):
    bare = dataclasses.replace(source, rows={**source.rows, "validation": np.zeros(0, int)})
    found = fit_linear(model, ready[0], bare, 32)
    assert found.results["validation"] == {}
    assert all(one["strength"] == 1.0 for own in found.about.values() for one in own.values())
    weights, _ = fit_weights(model, ready[0], bare, 32)
    assert weights == {}


@pytest.mark.parametrize(
    ("linear", "message"),
    [
        ({"image": "image_gradients"}, "model.linear: unknown encoded modality 'image'.*table"),
        ({"table": "table_mlp"}, "model.linear.table.kind: unknown kind 'table_mlp'"),
        ({"table": "series_summary"}, "SeriesSummary does not read table.*table_columns"),
        ({"table": {"kind": "table_columns", "knots": 1}}, "knots: 1 is not"),
        ({}, "no task has a linear model"),
    ],
)
def test_bad_sections_say_the_fix(linear, message):
    with pytest.raises(ConfigError, match=message):
        build({**MODEL, "linear": linear}, TASKS, SPEC)


def test_vectors_of_a_frozen_encoder_are_the_originals():
    """Next to the n-grams: the mean of the last layer, whatever the network makes of it."""
    with np.load(toy.GOLDEN / "bert.npz") as file:
        found = dict(file)
    folder = str(toy.GOLDEN / "bert")
    length, vocabulary = found["ids"].shape[1], 60
    text = Modality("text", (length,), "int32", vocabulary=vocabulary)
    spec = Spec({"text": text}, {"kind": toy.SPEC.targets["kind"]})

    def made(tune):
        section = {"kind": "pretrained", "weights": folder, "tune": tune}
        config = {"width": 8, "encoders": {"text": section}, "fusion": "concat", "linear": True}
        return build(config, {"kind": "classification"}, spec)

    model = made(0.0)
    assert set(model.linear.encoders) == {"text", "text_pretrained"}
    assert set(made(0.1).linear.encoders) == {"text"}  # it would change while it is trained
    assert model.linear.names("kind") == (
        *("network", "linear, text", "linear, text_pretrained"),
        "linear",
    )
    encoder = model.encoders["text"]
    weights = backbones.variables_of(folder, encoder, "test")
    entry = {"x": found["ids"], "mask": found["mask"], "present": found["mask"].any(1)}

    @jax.jit
    def vectors(params):
        forward = ForwardPass({"params": {"encoders": {"text": params}}, "batch_stats": {}})
        return model.linear.entry(forward, "text_pretrained", {"text": entry})["x"]

    np.testing.assert_allclose(vectors(weights["params"]), found["mean"], atol=1e-4)
    assert model.linear.entry(None, "text_pretrained", {}) is None
