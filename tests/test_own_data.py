"""`mtmm_jax.fit`: a table, three lines, a run of every command."""

import json

import pytest

import mtmm_jax
from mtmm_jax import evaluate
from mtmm_jax.registry import ConfigError

SMALL = {
    "steps": 4,
    "batch_size": 8,
    "evaluation.every": 2,
    "checkpoint.every": 2,
    "evaluation.baselines": False,
}
COLOURS = ["red", "blue", "green"]


def columns(rows=60):
    return {
        "words": [f"a {COLOURS[i % 3]} thing number {i}" for i in range(rows)],
        "size": [i % 7 for i in range(rows)],
        "colour": [COLOURS[i % 3] for i in range(rows)],
        "price": [1.5 * (i % 7) + (i % 3) for i in range(rows)],
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    run = mtmm_jax.fit(
        columns(),
        ["colour", "price"],
        workdir=folder / "runs" / "things",
        folder=str(folder),
        config=SMALL,
    )
    return folder, run


def test_a_run_has_results_a_report_and_a_config_of_every_command(run, capsys):
    folder, run = run
    assert run.results["test"]["colour"]["accuracy"] > 0.9  # a word says it
    assert set(run.results["linear"]["weights"]) == {"colour", "price"}
    assert "<iframe" in run.report()._repr_html_()
    assert str(run.report()).endswith("report.html")
    assert (folder / "things.jsonl").exists()
    assert 'training.load("own_data")' in run.config.read_text()
    evaluate.main(["--workdir", str(run.workdir)])
    assert "colour" in capsys.readouterr().out


def test_rows_in_memory_and_in_files_have_the_same_answers(run):
    folder, run = run
    new = {"words": ["a green one", "something blue"], "size": [3, None]}
    answers = run.predict(new, folder=str(folder))
    assert [one["answers"]["colour"]["prediction"] for one in answers] == ["green", "blue"]
    assert isinstance(answers[0]["answers"]["price"]["prediction"], float)
    path = folder / "new.jsonl"
    rows = [{name: values[i] for name, values in new.items()} for i in range(2)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run.predict(path) == answers
    assert not list(folder.glob("rows-*"))


def test_a_finished_run_is_opened(run, capsys):
    folder, run = run
    before = run.results
    again = mtmm_jax.fit(
        str(folder / "things.jsonl"), ["colour", "price"], workdir=run.workdir, config=SMALL
    )
    assert again.results == before
    assert "resuming" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("table", "label", "message"),
    [
        ({"a": ["x"] * 9, "b": ["y"] * 9}, "colour", "--label: .*'colour'"),
        ({"a": ["x"] * 9}, [], "fit.label: names no column"),
        (3, "a", "int is no table"),
        ("nowhere.csv", "a", "nowhere.csv does not exist"),
    ],
)
def test_what_cannot_be_fitted_is_one_line(table, label, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        mtmm_jax.fit(table, label, workdir=tmp_path / "w", folder=str(tmp_path))
