"""Tables that are not held in memory are checked as those that are."""

import dataclasses
import json

import pyarrow
import pyarrow.parquet
import pytest

from mtmm_jax import training
from mtmm_jax.data import pack
from mtmm_jax.data.inspect import check as checks
from mtmm_jax.data.inspect import streamed
from mtmm_jax.data.pipeline.source import split_sizes
from mtmm_jax.data.sources.sharded import open_stream
from mtmm_jax.readers.limits import LIMITS
from mtmm_jax.registry import ConfigError
from tests.data import stranger


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("odd")
    rows = stranger.draw(root)
    for name in ("t.csv", "t.jsonl", "t.parquet"):
        stranger.write_table(root, rows, name)
    held = [
        {**row, "photo": (root / row["photo"]).read_bytes(), "split": "train" if i % 4 else "test"}
        for i, row in enumerate(rows)
    ]
    held[40]["photo"] = held[41]["photo"]  # in train and in test
    for row in held:
        del row["sound"]
    table = pyarrow.Table.from_pylist(held)
    pyarrow.parquet.write_table(table, root / "held.parquet", row_group_size=50)
    return root


@pytest.fixture
def large(monkeypatch):
    monkeypatch.setattr(streamed, "LARGE_BYTES", 0)
    monkeypatch.setattr(streamed, "LARGE_ROWS", 0)


def report_of(path, *options):
    out = path.parent / "report.json"
    assert checks.main([str(path), "--json", str(out), *options]) in (0, 1)
    return json.loads(out.read_text())


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet"])
def test_a_large_table_is_reported_as_a_small_one(root, name, request):
    want = report_of(root / name)
    request.getfixturevalue("large")
    found = report_of(root / name)
    for key in ("rows", "splits", "kinds", "columns"):
        assert found[key] == want[key]
    assert found["problems"] == want["problems"]
    assert {(p["about"], p["column"]) for p in found["doubts"]} == {
        (p["about"], p["column"]) for p in want["doubts"]
    }


def test_counts_are_of_all_rows_where_guesses_are_of_a_sample(root, large, monkeypatch, capsys):
    stream = open_stream(root / "t.csv", LIMITS)
    whole = {one.name: one for one in streamed.look_at_stream(stream, ())[1]}
    monkeypatch.setattr(streamed, "_SAMPLE", 10)
    capsys.readouterr()
    rows, looks = streamed.look_at_stream(stream, ())
    assert len(rows) < 21
    assert "guessed from 15 of 120 rows; all of them are counted" in capsys.readouterr().err
    for look in looks:
        want = whole[look.name]
        for field in ("present", "missing", "distinct"):
            assert getattr(look, field) == getattr(want, field)
        if look.classes:
            assert look.classes == want.classes


def test_bytes_in_parquet_from_check_to_a_config_that_trains(root, tmp_path, capsys):
    table, own = root / "held.parquet", tmp_path / "own.py"
    found = report_of(table, "--write", str(own))
    looks = {one["name"]: one for one in found["columns"]}
    assert (looks["photo"]["role"], looks["photo"]["kind"]) == ("modality", "image")
    assert (looks["photo"]["present"], looks["photo"]["missing"]) == (120, 0)
    about = {p["about"]: p for p in found["problems"]}
    assert about["undecodable"]["line"] == 12
    assert about["in two splits"]["column"] in ("photo", "caption")
    assert {p["column"] for p in found["problems"] if p["about"] == "in two splits"} >= {"photo"}
    with pytest.raises(ConfigError, match=r"mtmm_jax.data.pack"):
        training.assemble(training.load(str(own)))
    shards, packed = tmp_path / "shards", tmp_path / "packed.py"
    arguments = [str(table), "--config", str(own), "--out", str(shards), "--workers", "1"]
    assert pack.main(arguments) == 0
    capsys.readouterr()
    assert checks.main([str(shards), "--write", str(packed)]) == 1  # one picture is broken
    assert "undecodable" in capsys.readouterr().out
    assert checks.main(["--config", str(packed)]) == 1
    source = training.assemble(training.load(str(packed))).source
    assert split_sizes(source) == found["splits"]
    assert len(packed.read_text().splitlines()) <= 25


def test_a_damaged_shard_is_a_problem(root, tmp_path, capsys):
    shards = tmp_path / "shards"
    assert pack.main([str(root / "t.csv"), "--out", str(shards), "--workers", "1"]) == 0
    path = shards / "rows-000000.bin"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert checks.main([str(shards)]) == 1
    assert "damaged shard" in capsys.readouterr().out


def test_many_bad_rows_are_counted_and_not_all_kept(root, large, monkeypatch):
    monkeypatch.setattr(streamed, "_KEPT", 2)
    rows = [{**row, "photo": "nowhere.png"} for row in stranger.rows_of()]
    path = stranger.write_table(root, rows, "bad.jsonl")
    options = [
        "--modality",
        "photo=image",
        "--target",
        "colour=class",
        "--split",
        "train=0.5,test=0.5",
    ]
    found = report_of(path, *options)
    assert found["splits"] == {"train": 0, "validation": 0, "test": 0}
    assert [p["about"] for p in found["problems"]] == ["missing", "missing", "more"]
    assert "118 more rows" in found["problems"][-1]["reason"]


def test_a_column_of_bytes_of_no_known_kind_is_left_out(tmp_path):
    rows = [{"blob": b"\0\1%d" % i, "kind": "ab"[i % 2], "n": i / 3} for i in range(40)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    _, looks = streamed.look_at_stream(open_stream(tmp_path / "t.parquet", LIMITS), ["kind"])
    roles = {look.name: look.role for look in looks}
    assert roles == {"blob": "", "kind": "target", "n": "table"}
    assert dataclasses.asdict(looks[0])["why"] == "bytes of no known kind"
