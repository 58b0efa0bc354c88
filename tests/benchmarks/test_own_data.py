"""The study of own data: its interval, and the tables that it draws."""

import csv
import math

import pytest

from mtmm_jax.benchmarks.studies.own_data import interval, table
from mtmm_jax.benchmarks.studies.own_data_sets import write


def test_the_interval_counts_overlapping_training_sets():
    mean, half = interval([0.1, 0.2, 0.3], train=70, test=20)
    # 4.3027 is the quantile of Student's t with 2 degrees; .01 the variance.
    assert mean == pytest.approx(0.2)
    assert half == pytest.approx(4.3027 * math.sqrt(0.01 * (1 / 3 + 20 / 70)), rel=1e-4)
    assert math.isnan(interval([0.1], 70, 20)[1])


def test_rows_become_a_table_and_a_file(tmp_path):
    task = {"metric": "r2", "model": 0.5, "baseline": 0.4, "linear": {"a": 0.3, "linear": 0.45}}
    row = {"seconds": 3.0, "baseline_seconds": 1.0, "rows": 70, "test": 20}
    shown = table([{**row, "tasks": {"t": {**task, "only": {"a": 0.2, "b": 0.3}}}}] * 2, "x")
    cells = [column._cells[0] for column in shown.columns]
    assert cells[4].startswith("+0.100 ± 0.000")
    assert cells[5:] == ["0.450 ± 0.000", "b 0.300"]
    assert table([], "x").row_count == 0
    write(tmp_path / "x", [{"a": 1, "b": "two"}])
    with (tmp_path / "x" / "x.csv").open() as file:
        assert list(csv.DictReader(file)) == [{"a": "1", "b": "two"}]
