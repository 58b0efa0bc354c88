"""What decoding costs is measured for all sorts of files, and every sort's result is kept."""

import json
from pathlib import Path

from mtmm_jax import benchmarks
from mtmm_jax.benchmarks.speed import decoding


def test_all_sorts_of_files_are_measured_and_kept(tmp_path):
    out = tmp_path / "decoding.json"
    small = ["--files", "1", "--examples", "8", "--records", "8", "--rounds", "1"]
    rows = decoding.main([*small, "--json", str(out)])
    assert json.loads(out.read_text())["rows"] == rows
    assert len(rows) == len(decoding.PICTURES) + len(decoding.SOUNDS) + 3
    kept = Path(benchmarks.__file__).parent / "results" / "decoding.json"
    assert [row["what"] for row in json.loads(kept.read_text())["rows"]] == [
        row["what"] for row in rows
    ]
    later = next(row for row in rows if row["what"].startswith("later epoch"))
    assert later["times"] < 1


def test_a_row_has_the_median_and_the_spread_of_ratios_within_rounds():
    row = decoding.row("x", 3, [(2.0, 1.0), (3.0, 1.0), (8.0, 2.0)])
    assert row == {
        "what": "x",
        "n": 3,
        "rounds": 3,
        "ours_ms": 3.0,
        "peer_ms": 1.0,
        "times": 3.0,
        "least": 2.0,
        "most": 4.0,
    }
