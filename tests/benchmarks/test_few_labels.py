"""The few-labels table: rows come after what they need, and stand next to what they are to beat."""

import functools

import pytest

from mtmm_jax.benchmarks.recipes.runs import config_of, own_config
from mtmm_jax.benchmarks.studies import few_labels
from mtmm_jax.benchmarks.studies.few_labels import ROWS
from mtmm_jax.benchmarks.tables.result_table import Board, names_of
from mtmm_jax.registry import ConfigError


def test_baselines_are_rows():
    assert all(row.baseline in (None, *ROWS) for row in ROWS.values())


def test_rows_are_named_with_their_commas():
    text = "quarter, distilled, teacher,contrastive, then 10%"
    assert names_of(text, ROWS, "row") == ["quarter, distilled", "teacher", "contrastive, then 10%"]
    assert names_of(None, ROWS, "row") == list(ROWS)
    with pytest.raises(ConfigError, match="--only: unknown row 'teachr'.*'teacher'"):
        names_of("teachr", ROWS, "row")


@functools.cache
def _folder(run):
    return run.folder(config_of(run).steps, 2)


@pytest.mark.parametrize("name", ROWS)
def test_rows_begin_from_and_learn_from_runs_of_their_seed(name, tmp_path):
    run = ROWS[name].run
    config = own_config(run, 2, None, tmp_path)
    assert config.seed == 2

    def place(of):
        return str(tmp_path / _folder(of))

    begins = place(run.after) if run.after else None
    assert (config.init_from or {}).get("workdir") == begins
    teachers = list((config.teachers or {}).get("workdirs", []))
    assert teachers == [place(one) for one in run.teachers]
    if "5%" in name and "pretraining" not in name:
        assert config.data.hide.category == 0.05
    assert sum(place(row.run) == place(run) for row in ROWS.values()) == 1


def test_the_table_has_points_over_the_baseline():
    board = Board(None)
    for name, values in (("supervised 5%", (0.4, 0.5)), ("pseudo 5%", (0.5, 0.54))):
        for seed, value in enumerate(values):
            row = {**few_labels.key_of(name, None), "seed": seed, "parameters": 1000}
            board.add({**row, "test": {"category": value}})
    lines = few_labels.table(board, ["supervised 5%", "pseudo 5%", "teacher"]).splitlines()
    assert lines[2:] == [
        "| supervised 5% | `few_labels` | 1,000 | category 0.450 ± 0.050 |  |",
        "| pseudo 5% | `semi_pseudo` | 1,000 | category 0.520 ± 0.020 | "
        "supervised 5%: category +7.0 points |",
    ]
