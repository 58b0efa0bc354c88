"""Short trainings side by side: what is run, what is kept, how it is ranked."""

import jax
import numpy as np
import pytest

from mtmm_jax import training
from mtmm_jax.benchmarks.studies import synergy
from mtmm_jax.benchmarks.tables import leaderboard
from mtmm_jax.benchmarks.tables.leaderboard import config_of, entries, runs, standings
from mtmm_jax.benchmarks.tables.result_table import Board
from mtmm_jax.benchmarks.tables.short_runs import ShortRun
from mtmm_jax.fusion import DECISIONS, FUSIONS
from mtmm_jax.sharing import SHARINGS


def test_every_fusion_sharing_and_decision_is_entered():
    names = entries(["image", "text"])
    assert {f"fusion {kind}" for kind in FUSIONS} <= set(names)
    assert {f"sharing {kind}" for kind in SHARINGS} <= set(names)
    assert {f"decision {kind}" for kind in DECISIONS} <= set(names)
    assert {"only image", "only text"} <= set(names)


def test_an_entry_changes_one_thing():
    base = training.load("emoji")
    config = config_of("emoji", {"sharing": {"kind": "mmoe"}}, 7, 2.0)
    assert config.model.sharing.kind == "mmoe"
    assert config.model.fusion == base.model.fusion
    assert config.steps == 7
    assert config.optimizer.learning_rate == 2 * base.optimizer.learning_rate
    assert config.tasks.retrieval is None  # it does not read what is fused
    alone = config_of("emoji", {"only": "text"}, 7, 1.0)
    assert [name for name, kind in alone.model.encoders.items() if kind] == ["text"]
    assert alone.model.modality_dropout == 0


def _row(entry, seed, validation, test, rate=1.0):
    return {
        "data": "digits",
        "entry": entry,
        "steps": 5,
        "rate": rate,
        "seed": seed,
        "parameters": 1,
        "seconds": 1.0,
        "validation": {"digit": validation},
        "validation_mean": validation,
        "test": {"digit": test},
        "test_mean": test,
    }


def test_the_best_stands_first_at_the_rate_that_validation_chose(tmp_path):
    rows = [
        _row("only pix", 0, 0.5, 0.9, 0.5),  # best on test, but not on validation
        _row("only pix", 0, 0.7, 0.6, 2.0),
        _row("only pix", 1, 0.7, 0.8, 2.0),
        _row("fusion mean", 0, 0.9, 0.95),
        {"data": "digits", "entry": "fusion block", "steps": 5, "refused": True, "reason": "..."},
        {**_row("fusion mean", 0, 0.9, 0.1), "data": "films"},
    ]
    lines = standings(rows, "digits", 5)
    assert [line["entry"] for line in lines] == ["fusion mean", "only pix"]
    np.testing.assert_allclose([line["mean"] for line in lines], [0.95, 0.7])
    np.testing.assert_allclose(lines[1]["spread"], 0.1)
    assert lines[1]["rate"] == 2.0
    assert leaderboard.table(lines, "x").row_count == 2
    leaderboard.plot({"digits": lines, "again": lines}, tmp_path / "new" / "board.png")
    assert (tmp_path / "new" / "board.png").stat().st_size > 5000


class _Fake:
    """In place of a training."""

    made = 0

    def __init__(self, config):
        type(self).made += 1
        self.rate = config.optimizer.learning_rate

    def row(self, seed):
        metrics = {"digit": 1 - abs(self.rate - 1e-3)}
        return {
            "seed": seed,
            "parameters": 1,
            "seconds": 0.0,
            "validation": metrics,
            "validation_mean": metrics["digit"],
            "test": metrics,
            "test_mean": metrics["digit"],
        }


def test_only_what_is_missing_runs(monkeypatch, tmp_path):
    monkeypatch.setattr("mtmm_jax.benchmarks.tables.short_runs.ShortRun", _Fake)
    path = str(tmp_path / "board.json")
    board = Board(path)
    for row in runs(board, "digits", "only pix", {"only": "pix"}, [0, 1], 5):
        board.add(row)
    # Three rates by the first seed, then the second seed at the best of them.
    assert [(row["rate"], row["seed"]) for row in board.rows] == [(0.5, 0), (1, 0), (2, 0), (1, 1)]
    again = Board(path)
    made = _Fake.made
    assert list(runs(again, "digits", "only pix", {"only": "pix"}, [0, 1], 5)) == []
    assert _Fake.made == made
    more = list(runs(again, "digits", "only pix", {"only": "pix"}, [0, 1, 2], 5))
    assert [(row["rate"], row["seed"]) for row in more] == [(1.0, 2)]


def test_an_entry_that_does_not_fit_says_why():
    changes = {"fusion": {"kind": "tensor"}}  # at most four modalities; the digits have six
    (row,) = runs(Board(None), "digits", "fusion tensor", changes, [0], 5)
    assert row["refused"]
    assert "model.fusion" in row["reason"]


def test_mistakes_name_the_choices(capsys):
    assert leaderboard.main(["--data", "digit"]) == 2
    assert "did you mean 'digits'" in capsys.readouterr().err
    assert leaderboard.main(["--data", "digits", "--only", "nothing"]) == 2
    assert "fusion concat" in capsys.readouterr().err


@pytest.mark.slow
def test_a_quick_leaderboard_runs_goes_on_and_draws(tmp_path, capsys):
    rows, picture = tmp_path / "rows.json", tmp_path / "board.png"
    options = ["--data", "digits", "--quick", "--json", str(rows), "--plot", str(picture)]
    assert leaderboard.main([*options, "--only", "only pix"]) == 0
    first = Board(str(rows)).rows
    assert {row["seed"] for row in first} == {0}
    assert leaderboard.main([*options, "--only", "only pix|fusion concat"]) == 0
    later = Board(str(rows)).rows
    assert later[: len(first)] == first
    assert {row["entry"] for row in later} == {"only pix", "fusion concat"}
    assert picture.stat().st_size > 1000
    assert "fusion concat" in capsys.readouterr().out


@pytest.mark.slow
def test_a_short_run_learns_and_differs_by_seed():
    config = synergy.config_of({"fusion": {"kind": "multiplicative"}}, 150)
    short = ShortRun(config)
    row, other = short.row(0), short.train(1)
    again = short.metrics(short.evaluate(other, "test"))
    assert min(row["test_mean"], again["synergy"]) > 0.9
    assert row["parameters"] == short.experiment.parameters > 1000
    start = short.train(0)
    assert not any(
        np.array_equal(a, b)
        for a, b in zip(*(jax.tree.leaves(v["params"]) for v in (start, other)), strict=True)
    )
