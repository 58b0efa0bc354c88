"""The folder of a run: its format, and what it refuses."""

import json

import pytest

import mtmm_jax
from mtmm_jax import evaluate, export, predict, report
from mtmm_jax.inference.finished import open_run
from mtmm_jax.registry import ConfigError
from mtmm_jax.store.files import sealed
from mtmm_jax.store.workdir import FORMAT, Workdir
from tests import toy

CONFIG = {"steps": 3, "devices": 1}


def _claimed(path, **stamp):
    workdir = Workdir(path)
    workdir.claim(CONFIG, toy.SPEC, {})
    stored = json.loads((path / "config.json").read_text())
    kept = {key: value for key, value in {**stored, **stamp}.items() if value is not None}
    del kept["sha256"], kept["signed"]
    (path / "config.json").write_bytes(sealed(kept))
    return workdir


def test_a_workdir_says_its_format_and_who_wrote_it(tmp_path):
    workdir = _claimed(tmp_path / "run")
    stored = json.loads((workdir.path / "config.json").read_text())
    assert stored.items() >= CONFIG.items()
    assert (stored["format"], stored["written_by"]) == (FORMAT, mtmm_jax.__version__)
    assert workdir.config() == CONFIG
    assert workdir.claim(CONFIG, toy.SPEC, {})  # the same run resumes


def test_a_resumed_run_mends_its_assets_and_refuses_other_ones(tmp_path, capsys):
    """Other assets are other data: ids of another tokenizer mean other words."""
    workdir, assets = Workdir(tmp_path / "run"), {"tokenizer.json": b"words"}
    assert not workdir.claim(CONFIG, toy.SPEC, assets)
    path = workdir.path / "assets" / "tokenizer.json"
    for damage in (lambda: path.write_bytes(b"wards"), path.unlink):
        damage()
        assert workdir.claim(CONFIG, toy.SPEC, assets)
        assert path.read_bytes() == b"words"
        said = capsys.readouterr().err
        assert "tokenizer.json: was damaged or missing" in said
        assert said.count("\n") == 1
    assert workdir.claim(CONFIG, toy.SPEC, assets)
    assert capsys.readouterr().err == ""
    for other in ({"tokenizer.json": b"wards"}, {**assets, "columns.json": b"{}"}):
        with pytest.raises(ConfigError, match="the data of .* changed: they give a "):
            workdir.claim(CONFIG, toy.SPEC, other)


@pytest.mark.parametrize(
    ("stamp", "message"),
    [
        ({"format": None, "written_by": None}, "has format 1, written by mtmm_jax 0.1.0;"),
        ({"format": 9, "written_by": "7.0"}, "has format 9, written by mtmm_jax 7.0;"),
    ],
)
def test_another_format_is_refused_in_one_line(tmp_path, stamp, message, capsys):
    workdir = _claimed(tmp_path / "run", **stamp)
    for opened in (
        workdir.config,
        lambda: open_run(workdir.path),
        lambda: workdir.claim(CONFIG, toy.SPEC, {}),
    ):
        with pytest.raises(ConfigError, match=message):
            opened()
    where = ["--workdir", str(workdir.path)]
    for command, words in (
        (evaluate, []),
        (predict, ["--text", "a"]),
        (report, []),
        (export, ["--out", str(tmp_path / "run.zip")]),
    ):
        assert command.main([*where, *words]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1
