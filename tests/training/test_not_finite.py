"""A run whose rows hold NaN, infinity and gaps of every kind ends, and its report names them."""

import dataclasses
import html
import json

import numpy as np
import pytest

from mtmm_jax import data, training
from mtmm_jax.data.sources.generator import generator
from mtmm_jax.train import fit
from tests.training.test_faults import CONFIG

STEPS = 12


def _source():
    """m2 is in no training row, class 2 in no row at all; steps 2 to 6 each have a fault."""
    clean = dataclasses.replace(generator(size=(160, 16, 16)), workers=0)
    batches = clean.train(8, seed=0)
    ids = [next(batches)["id"] for _ in range(STEPS)]
    train = clean.rows["train"]

    def fill(batch, step, room, name, key, value):
        hit = np.isin(batch["id"], ids[step - 1])
        entry = batch[room][name]
        old = entry[key]
        entry[key] = np.where(hit.reshape(-1, *[1] * (old.ndim - 1)), old.dtype.type(value), old)

    def compose(rows, chance):
        batch = clean.compose(rows, chance)
        fill(batch, 2, "inputs", "m1", "x", np.nan)
        fill(batch, 3, "targets", "task_1", "y", 1e38)
        fill(batch, 4, "inputs", "m1", "x", 3e38)  # times a weight: infinite in bfloat16
        fill(batch, 5, "inputs", "m1", "x", -np.inf)
        for name in ("task_1", "synergy"):
            fill(batch, 6, "targets", name, "present", False)
        batch["inputs"]["m2"]["present"] = ~np.isin(rows, train)
        return batch

    target = clean.spec.targets["synergy"]
    empty = dataclasses.replace(
        target, classes=(*target.classes, "none"), frequencies=(0.5, 0.5, 0)
    )
    spec = dataclasses.replace(clean.spec, targets={**clean.spec.targets, "synergy": empty})
    return dataclasses.replace(clean, spec=spec, compose=compose)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path, tables = tmp_path_factory.mktemp("runs") / "run", data.SOURCES
    tables["not_finite"] = _source
    encoders = {name: {"kind": "table_mlp", "dtype": "bfloat16"} for name in ("m1", "m2")}
    try:
        experiment = training.assemble(
            {
                **CONFIG,
                "steps": STEPS,
                "data": "not_finite",
                "model": {**CONFIG["model"], "encoders": encoders},
                "tasks": {"task_1": {"kind": "regression"}, "synergy": {"kind": "classification"}},
                "evaluation": {**CONFIG["evaluation"], "log_every": 1},
            }
        )
        results = fit(experiment, path)
    finally:
        del tables["not_finite"]
    return path, results


def test_training_goes_to_its_end_and_every_metric_is_a_number(run):
    path, results = run
    assert results["training"]["last_step"] == STEPS
    metrics = [value for task in results["test"].values() for value in task.values()]
    assert metrics
    assert all(value is not None and np.isfinite(value) for value in metrics)
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    train = {r["step"]: r for r in records if r["split"] == "train"}
    assert all(train[step]["skipped"] for step in (2, 4, 5))
    assert not any(train[step]["skipped"] for step in (1, 6, *range(7, STEPS + 1)))


@pytest.mark.parametrize(
    "words",
    [
        "updates were not finite and were skipped",
        "synergy: loss or gradient was not finite in",
        "synergy: no row to train on has none",
        "m2: none of the training rows looked at has it, 100% of the test rows do",
    ],
)
def test_the_report_names_it(run, words):
    assert words in html.unescape((run[0] / "report.html").read_text())
