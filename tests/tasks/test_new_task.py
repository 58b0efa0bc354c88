"""A task that only the tests know goes through every command; nothing else has to know it."""

import csv
import functools
import json

import numpy as np
import pytest

from mtmm_jax import evaluate, export, predict, report, tasks, train
from mtmm_jax.inference import exported
from tests.tasks.quantile import quantile

CONFIG = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({config!r})
"""
TASKS = {
    "price": {"kind": "quantile"},
    "bare": {"kind": "bare_quantile", "target": "cost"},
}


@functools.wraps(quantile)
def bare(*args, **kwargs):
    """The same task, which says nothing of itself but what a `Task` must."""
    full = quantile(*args, **kwargs)
    keys = ("name", "kind", "reads", "target", "head", "loss", "metrics", "headline", "decode")
    return tasks.Task(**{key: getattr(full, key) for key in keys}, trivial=full.trivial)


def _rows(folder, count=96):
    rng = np.random.default_rng(0)
    path = folder / "rows.csv"
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(("id", "size", "age", "price", "cost", "split"))
        for i in range(count):
            size, age = rng.normal(0, 1, 2).round(4)
            price = "" if i % 16 == 5 else round(100 + 20 * size - 5 * age + rng.normal(), 3)
            cost = round(7 - 2 * size + rng.normal() / 10, 3)
            out.writerow(
                (i, size, age, price, cost, ("train", "train", "validation", "test")[i % 4])
            )
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run of two such tasks, and its manifest."""
    folder = tmp_path_factory.mktemp("new_task")
    config = {
        "seed": 0,
        "steps": 30,
        "batch_size": 16,
        "devices": 1,
        "data": {
            "kind": "manifest",
            "path": str(_rows(folder)),
            "modalities": {"table": {"kind": "table", "columns": ["size", "age"]}},
            "targets": {name: {"kind": "number"} for name in ("price", "cost")},
        },
        "model": {"width": 8, "encoders": {"table": "table_mlp"}, "fusion": "concat"},
        "tasks": TASKS,
        "balancing": "equal",
        "optimizer": {"kind": "adamw", "learning_rate": 0.02},
        "checkpoint": {"every": 30, "keep": 1, "best": "mean"},
        "evaluation": {"every": 30, "batch_size": 16, "log_every": 10, "baselines": True},
    }
    (folder / "config.py").write_text(CONFIG.format(config=config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tasks.TASKS, "quantile", quantile)
        patch.setitem(tasks.TASKS, "bare_quantile", bare)
        assert train.main(["--config", str(folder / "config.py"), "--workdir", _run(folder)]) == 0
        yield folder


def _run(folder):
    return str(folder / "run")


def _json(capsys):
    return json.loads(capsys.readouterr().out)


def test_it_is_trained_evaluated_and_reported(folder, capsys):
    results = json.loads((folder / "run" / "results.json").read_text())
    for name in TASKS:
        trivial = results["baselines"]["trivial"]["test"][name]["pinball"]
        assert results["test"][name]["pinball"] < 0.6 * trivial
    capsys.readouterr()
    assert evaluate.main(["--workdir", _run(folder), "--json"]) == 0
    assert _json(capsys)
    (folder / "run" / "report.html").unlink()
    assert report.main(["--workdir", _run(folder)]) == 0
    page = (folder / "run" / "report.html").read_text()
    assert "pinball" in page


def test_it_predicts_one_sample_and_explains_it(folder, capsys):
    sample = ("--table", json.dumps({"size": 1.0, "age": -1.0}))
    capsys.readouterr()
    assert predict.main(["--workdir", _run(folder), *sample, "--json"]) == 0
    found = _json(capsys)["answers"]
    assert set(found["price"]["quantiles"]) == {"0.1", "0.5", "0.9"}
    assert predict.main(["--workdir", _run(folder), *sample]) == 0
    capsys.readouterr()
    page = folder / "explained"
    assert predict.main(["--workdir", _run(folder), *sample, "--explain", str(page), "--json"]) == 0
    explained = {one["task"]: one for one in _json(capsys)}
    assert set(explained) == set(TASKS)
    for name, one in explained.items():
        assert not one["likelihood"]
        assert one["answer"].startswith(f"{found[name]['prediction']:.4g}"[:3])
        assert one["gap"] < 0.05
        added = sum(one["modalities"].values())
        assert added == pytest.approx(one["value"] - one["nothing"], abs=1e-4)
    assert (page / "price.png").exists()
    assert "price" in (page / "explanation.html").read_text()


def test_it_predicts_and_labels_a_manifest(folder, capsys):
    manifest, out = folder / "rows.csv", folder / "predictions.jsonl"
    given = ["--workdir", _run(folder), "--manifest", str(manifest), "--out", str(out)]
    assert predict.main(given) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 96
    out = folder / "labels.jsonl"
    given = ["--workdir", _run(folder), "--label", str(manifest), "--out", str(out)]
    capsys.readouterr()
    assert predict.main([*given, "--least", "0"]) == 0
    assert "not labelled, as their kind has no labels: bare" in capsys.readouterr().out
    labelled = [json.loads(line) for line in out.read_text().splitlines()]
    for i, (row, label) in enumerate(zip(rows, labelled, strict=True)):
        if i % 16 == 5:
            assert label["price"] == pytest.approx(row["answers"]["price"]["prediction"], rel=1e-5)
            assert label["price_confidence"] is None
        else:
            assert "price_confidence" not in label


def test_it_is_exported_and_the_file_predicts_the_same(folder, capsys):
    file, manifest = folder / "run.zip", str(folder / "rows.csv")
    assert export.main(["--workdir", _run(folder), "--out", str(file)]) == 0
    outputs = {name: task["outputs"] for name, task in exported.load(file).tasks.items()}
    assert outputs == {"price": ["quantiles", "present"], "bare": ["value", "present"]}
    whole, out = folder / "whole.jsonl", folder / "exported.jsonl"
    for where, path in (("--workdir", whole), ("--exported", out)):
        given = _run(folder) if where == "--workdir" else str(file)
        assert predict.main([where, given, "--manifest", manifest, "--out", str(path)]) == 0
    for one, other in zip(
        whole.read_text().splitlines(), out.read_text().splitlines(), strict=True
    ):
        run, program = json.loads(one)["answers"], json.loads(other)["answers"]
        assert program["price"]["prediction"] == pytest.approx(run["price"]["prediction"], rel=1e-4)
        assert program["price"]["quantiles"] == pytest.approx(run["price"]["quantiles"], rel=1e-4)
        assert program["price"].keys() == run["price"].keys()
        assert np.shape(program["bare"]["outputs"]["value"]) == (3,)  # it says no more of itself
