"""The report's first paragraphs, the worst and best rows, and confusions of many classes."""

import json

import numpy as np
import pytest

from mtmm_jax.analysis import examples, report
from mtmm_jax.analysis.summary import summary
from mtmm_jax.batch import Spec, Target
from mtmm_jax.model import build
from tests import kept_run

ANSWER = json.dumps({"prediction": "<b>", "probability": 0.9})
RUN = {
    "finished": "2026-12-01T07:20:00+00:00",
    "seconds": 3723.4,
    "step_seconds": 61.0,
    "device": "1 x cpu",
    "cores": 2,
    "parameters": 12345,
    "rows": {"train": 700, "validation": 150, "test": 143},
    "versions": {"mtmm_jax": "0.3.0", "python": "3.11.8"},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return kept_run.kept(tmp_path_factory.mktemp("kept") / "run")


@pytest.fixture(scope="module")
def model(run):
    config = run.config()
    return build(config["model"], config["tasks"], run.spec())


def _results(model):
    metrics = {name: {task.headline: 0.7} for name, task in model.tasks.items()}
    metrics["size"] = {"r2": None}  # no row of the split counts
    low = {name: {task.headline: 0.2} for name, task in model.tasks.items()}
    high = {name: {task.headline: 0.75} for name, task in model.tasks.items()}
    interval = {"accuracy": {"n": 143, "low": 0.62, "high": 0.77}}
    return {
        "test": metrics,
        "baselines": {
            "trivial": {"test": low}, "only text": {"test": high}, "only image": {"test": low},
        },
        "intervals": {"test": {"kind": interval}},
        "linear": {"results": {"test": {"kind": {"linear, text": {"accuracy": 0.4},
                                                 "linear": {"accuracy": 0.65}}}}},
    }  # fmt: skip


def test_a_run_is_summed_up_in_words(run, model):
    inputs = tuple(run.config()["model"]["encoders"])
    lines = summary(_results(model), model.tasks, run.spec(), inputs, RUN)
    assert lines[0].startswith("The model predicts kind (3 classes), ")
    assert "from text, table, series and image" in lines[0]
    assert "700 rows" in lines[0]
    assert "143 rows that it never saw" in lines[0]
    assert lines[1] == (
        "kind: accuracy 0.700 (95 % interval 0.620 to 0.770, 143 rows). To compare: 0.200 without "
        "looking at anything, 0.750 with text alone, 0.200 with image alone and 0.650 by a linear "
        "model of fixed features."
    )
    assert "level: mae 0.700 (smaller is better)" not in lines[1]
    assert "smaller is better" in lines[2]
    assert "0.200 with image alone" in lines[2]
    size = next(line for line in lines if line.startswith("size:"))
    assert size == "size: its r2 is not known; no row of the test split counts for it."
    tags = next(line for line in lines if line.startswith("tags:"))
    assert "alone" not in tags  # it reads the text only
    assert "1 min 1 s of steps and 1 h 2 min with all else" in lines[-1]
    assert "12,345 parameters" in lines[-1]
    assert "mtmm_jax 0.3.0" in lines[-1]


def test_without_facts_nothing_is_said_of_them(run, model):
    lines = summary(_results(model), model.tasks, run.spec(), ("text",), {})
    assert lines[0].endswith("from text.")
    assert len(lines) == 1 + len(model.tasks)


def test_worst_and_best_rows_are_shown_with_their_inputs(run, model):
    spec = run.spec()
    rng = np.random.default_rng(0)
    arrays = {
        "worst/kind/id": np.array([5, 9]),
        "worst/kind/loss": np.array([3.25, 2.0]),
        "worst/kind/y": np.array([2, 0]),
        "worst/kind/predicted": np.array(
            [json.dumps({"prediction": "<b>", "probability": 0.9})] * 2
        ),
        "row/5/name": np.asarray("<script>alert(1)</script>"),
        "row/5/image/x": rng.uniform(-1, 1, (16, 16, 3)).astype(np.float32),
        "row/5/text/x": np.array([1, 2, 3, 0, 0, 0], np.int32),
        "row/5/text/mask": np.array([1, 1, 1, 0, 0, 0], bool),
    }
    page = examples.section(run, model.tasks, spec, arrays)
    assert page.count("class=example>") == 2
    assert "<script>" not in page
    assert "<b>" not in page
    assert "&lt;b&gt; (90%)" in page
    assert "3.25" in page
    assert page.count("data:image/png") == 1
    assert page.count("absent") >= 2 + 4  # table and series of one row, all of the other
    assert examples.section(run, model.tasks, spec, {}) == ""


def test_confusions_of_many_classes_are_listed(model):
    spec = Spec({}, {"kind": Target("class", classes=tuple(f"c{i}" for i in range(30)))})
    counts = np.diag(np.full(30, 5.0))
    counts[3, 7], counts[4, 1] = 4, 1
    found = report._top_confusions(model, spec, {"confusion/kind": counts})["kind"]
    rows = found.split("<tr>")[2:]
    assert len(rows) == 2
    assert "c3" in rows[0]
    assert "c7" in rows[0]
    assert "4 of 9" in rows[0]
    assert "1 of 6" in rows[1]
    assert not report._top_confusions(model, spec, {"confusion/kind": np.eye(3)})


def test_weights_that_never_change_are_no_picture():
    def records(second):
        return [
            {"split": "train", "weight": {"a": 1.0, "b": 2.0}},
            {"split": "train", "weight": {"a": 1.0, "b": second}},
        ]

    tasks = {"a": "", "b": ""}
    assert not report._vary(records(2.0), tasks)
    assert report._vary(records(2.5), tasks)
    assert not report._vary([], tasks)
