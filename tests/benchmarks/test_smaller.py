"""The table of smaller models: what stands in it is what the written files say."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from mtmm_jax import training
from mtmm_jax.benchmarks.recipes.runs import TrainingRun, config_of
from mtmm_jax.benchmarks.studies import pretrained, smaller, width
from mtmm_jax.benchmarks.tables.result_table import Board
from mtmm_jax.evaluation import Evaluator, headlines
from mtmm_jax.fusion import BOTTLENECKS
from mtmm_jax.registry import ConfigError
from mtmm_jax.training.loop import evaluation_batches
from mtmm_jax.transfer.quantising import Quantised, dequantise, product, quantise
from tests import toy
from tests.data.conftest import CACHE
from tests.training import small_run

TASKS = {
    "kind": {"kind": "classification"},
    "size": {"kind": "regression", "loss": "gaussian"},
    "pairs": {
        "kind": "retrieval",
        "reads": ["text", "audio"],
        "head": {"kind": "embedding", "size": 4},
    },
}


def small(**sections):
    plain = {**small_run.get_config().to_dict(), "devices": 1, "balancing": "equal"}
    plain["model"] = {**plain["model"], "encoders": {"text": "text_bag", "audio": "audio_mlp"}}
    return training.assemble({**plain, "tasks": TASKS, **sections})


@pytest.fixture(scope="module")
def learned():
    made = small()
    return made, toy.variables(made.model, made.model.spec.example(2))


@pytest.mark.parametrize("int8", [False, True])
def test_figures_are_those_of_the_file(learned, tmp_path, int8):
    made, variables = learned
    measured = smaller.measure(made, variables, int8, tmp_path / "model.zip")
    params = variables["params"]
    if int8:  # what the file has rounded
        variables = {**variables, "params": dequantise(quantise(params))}
    results = Evaluator(made.model).results(variables, evaluation_batches(made, "test"))
    expected = headlines(made.model, results)
    assert measured["test"].keys() == expected.keys() == TASKS.keys()
    for name, value in expected.items():
        assert measured["test"][name] == pytest.approx(value, abs=2e-4), name
    assert measured["bytes"] == (tmp_path / "model.zip").stat().st_size
    assert measured["parameters"] == sum(x.size for x in jax.tree.leaves(params))


def test_a_file_whose_weights_are_lost_reaches_less(learned, tmp_path):
    """The metrics come from the file, not from the model next to it."""
    made, variables = learned
    file = tmp_path / "model.zip"
    measured = smaller.measure(made, variables, False, file)["test"]
    still = {**variables, "params": jax.tree.map(np.zeros_like, variables["params"])}
    lost = smaller.measure(made, still, False, file)["test"]
    assert smaller.reached(file, made)["size"] == pytest.approx(lost["size"], abs=1e-4)
    assert lost["size"] != measured["size"]


def test_kinds_without_a_way_back_are_named(tmp_path):
    made = small(tasks={"level": {"kind": "ordinal", "target": "kind"}})
    task = dataclasses.replace(made.model.tasks["level"], restore=None)
    made = dataclasses.replace(made, model=dataclasses.replace(made.model, tasks={"level": task}))
    variables = toy.variables(made.model, made.model.spec.example(2))
    with pytest.raises(ConfigError, match="tasks.level: 'ordinal' cannot be scored .* none"):
        smaller.measure(made, variables, False, tmp_path / "model.zip")


def test_changes_are_those_of_the_configs():
    pruned = smaller.config_of("emoji", "pruned", None)
    assert pruned.to_dict() == {**training.load("pruned").to_dict(), "quantise": None}
    short = smaller.config_of("emoji", "pruned_channels", 20).optimizer.prune
    assert (short.begin, short.end, short.every, short.share) == (2, 14, 1, 0.3)
    digits = smaller.config_of("digits", "quantised", 3)
    assert digits.quantise == training.load("quantised").quantise
    assert "prune" not in digits.optimizer
    assert "prune" not in smaller.config_of("emoji", None, 3).optimizer


def test_the_students_baseline_is_its_teacher():
    keys = {name: smaller.key_of(name, "digits", None) for name in smaller.ROWS}
    assert keys["student"] == {"config": "distil_small", "steps": 1000, "row": "student"}
    assert keys["pruned 70%"] == {"config": "digits", "steps": 600, "row": "pruned 70%"}
    student = smaller.ROWS["student"]
    assert student.run.teachers == (smaller.ROWS[student.baseline].run,)
    board = smaller.Board(None)
    row = {"bytes": 100, "parameters": 40, "zeros": 0.0, "seed": 0}
    board.add({**keys["teacher"], **row, "test": {"category": 0.6, "year": 0.5}})
    board.add({**keys["student"], **row, "bytes": 25, "test": {"category": 0.61, "year": 0.45}})
    shown = smaller.table(board, "digits", None, list(smaller.ROWS))
    cells = {c.header: list(c.cells) for c in shown.columns}
    assert cells["model"] == ["teacher", "student"]
    assert cells["worst change"][1] == "-5.0 points"
    assert cells["of"][1] == "0.25 teacher"
    assert cells["asked"] == ["", "missed"]


def test_a_row_is_trained_and_measured_once(tmp_path, monkeypatch):
    trained = []

    class Short:
        def __init__(self, config):
            self.experiment = config

        def train(self, seed):
            trained.append((self.experiment.optimizer.get("prune") is not None, seed))

    def fake(experiment, variables, int8, file):
        file.write_bytes(b"x" * (1 if int8 else 10))
        return {"test": {"digit": 0.5}, "bytes": 1, "parameters": 2, "zeros": 0.0}

    monkeypatch.setattr(smaller, "prepare_jax", lambda: None)
    monkeypatch.setattr(smaller, "measure", fake)
    monkeypatch.setattr(smaller, "latency", lambda files: {n: {"1": 2.0} for n in files})
    monkeypatch.setattr("mtmm_jax.benchmarks.tables.short_runs.ShortRun", Short)
    place = ["--workdir", str(tmp_path / "files"), "--json", str(tmp_path / "rows.json")]
    options = ["--config", "digits", "--seeds", "0,1", "--steps", "10", *place]
    for only in ("pruned 70%", "pruned 70%,pruned 70%, int8"):
        assert smaller.main([*options, "--only", only]) == 0
    assert trained == [(False, 0), (False, 1), (True, 0), (True, 1), (True, 0), (True, 1)]
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    (timed,) = [row for row in rows if row["row"] == "latency"]
    assert set(timed["latency"]) == {"plain", "pruned 70%", "pruned 70%, int8"}


def test_a_product_in_eight_bits_is_near_that_in_float32():
    x, w = np.random.default_rng(0).normal(size=(2, 32, 32)).astype(np.float32)
    small = quantise({"kernel": w}, ["kernel"])["kernel"]
    assert isinstance(small, Quantised)
    np.testing.assert_allclose(product(x, small), x @ w, atol=0.3)


@pytest.mark.parametrize("entry", BOTTLENECKS)
def test_every_bottleneck_has_a_config_that_the_curve_narrows(entry):
    section = training.load(f"bottleneck_{entry}").model.bottleneck.all.to_dict()
    (_, plan) = width.settings([entry], [2], [0.5])
    changed = {"weight": 0.5} if entry == "gates" else {"k": 2}
    assert plan[2][0] == {**section, **changed}
    assert section["kind"] == entry


def test_ways_to_use_weights_are_those_of_the_configs():
    made = {row: pretrained.config_of(row, "here", 4) for row in pretrained.ROWS}
    for row, name in pretrained.ROWS.items():
        config, plain = made[row], training.load(name)
        assert config.get("lora") == plain.get("lora")
        assert config.optimizer == plain.optimizer
        assert list(config.tasks) == ["category"]
        assert config.data.tokenizer == (None if row == pretrained.GRU else "here")
        if row in (pretrained.SCRATCH, pretrained.GRU):
            assert config.init_from is None
        else:
            assert config.init_from.freeze == plain.init_from.freeze
            assert config.init_from.weights == "here"
    assert [row for row in made if made[row].get("lora") is not None] == ["LoRA"]
    assert made[pretrained.GRU].model.encoders.text.kind == "text_gru"


def test_unseen_classes_are_held_out_alike():
    made = [pretrained.config_of(row, "here", 4) for row in pretrained.UNSEEN]
    for config in made:
        assert dict(config.data.held_out) == {"subcategory": 20}
        assert [name for name, spec in config.model.encoders.items() if spec] == ["image", "text"]
        assert list(config.tasks) == ["retrieval"]
        assert list(config.tasks.retrieval.reads) == ["image", "text"]
    own, given = made
    assert own.data.get("tokenizer") is None
    assert given.data.tokenizer == given.init_from.weights == "here"


def test_unseen_classes_are_reported_by_chance():
    board, names = Board(None), {"chance_unseen": 0.05}
    for seed, value in enumerate((0.2, 0.3)):
        key = pretrained.key_of("MiniLM's words", "here", None)
        board.add({**key, "seed": seed, "accuracy": value, "trained": 1, "names": names})
    for row, value in (("from scratch", 0.7), ("frozen", 0.76), ("LoRA", 0.74)):
        key = pretrained.key_of(row, "here", None)
        board.add({**key, "seed": 0, "accuracy": value, "trained": 1})
    plain, unseen = pretrained.tables(board, "here", None)
    assert list(plain.columns[3].cells) == ["", "+6.0 points", "+4.0 points"]
    assert list(plain.columns[4].cells) == ["", "kept", "missed"]
    assert list(unseen.columns[3].cells) == ["5.0 x chance"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["lora", "fine_tune_all", "adapters", "pruned_channels", "quantised"]
)
def test_configs_assemble_without_what_they_start_from(name, monkeypatch):
    monkeypatch.setenv("MTMM_JAX_DATA", str(CACHE))
    config = config_of(TrainingRun(name, ("init_from=None", "data.tokenizer=None")))
    assert training.assemble(config).model.tasks


@pytest.mark.slow
@pytest.mark.parametrize("entry", BOTTLENECKS)
def test_bottlenecks_of_configs_assemble(entry, monkeypatch):
    monkeypatch.setenv("MTMM_JAX_DATA", str(CACHE))
    model = training.assemble(training.load(f"bottleneck_{entry}")).model
    assert set(model.bottlenecks) == set(model.encoders)
