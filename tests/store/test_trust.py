"""A workdir has one trainer, files as they were written, and damaged checkpoints are passed by."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from mtmm_jax.inference.finished import open_run
from mtmm_jax.registry import ConfigError
from mtmm_jax.store import digests, files, lock
from mtmm_jax.store.checkpoints import Checkpoints
from mtmm_jax.store.workdir import Workdir
from tests import toy
from tests.training.test_faults import _state, _three


def test_a_second_trainer_is_refused_with_the_first_ones_process(tmp_path):
    folder = tmp_path / "run"
    code = (
        "import sys, time; from pathlib import Path; from mtmm_jax.store.lock import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"held\n"
        message = rf"another process trains in .*: process {other.pid} on \S+ since \d{{4}}-"
        with pytest.raises(ConfigError, match=message), lock.locked(folder):
            pass
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    with lock.locked(folder) as stale:
        assert f"process {other.pid} on" in stale
        assert "ended without finishing; its lock is taken over" in stale
    with lock.locked(folder) as stale:
        assert stale == ""


def test_a_lock_leaves_no_trace_where_nothing_was_started(tmp_path):
    with pytest.raises(ZeroDivisionError), lock.locked(tmp_path / "run"):
        _ = 1 / 0
    assert not (tmp_path / "run").exists()
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "letter.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty and holds no run"), _held(tmp_path / "own"):
        pass
    assert [p.name for p in (tmp_path / "own").iterdir()] == ["letter.txt"]
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("x" * 300)):
        with pytest.raises(ConfigError, match="--workdir: ") as caught, _held(path):
            pass
        assert "\n" not in str(caught.value)


def _held(path):
    return Workdir(path).lock()


def test_a_claim_that_was_killed_is_done_again(tmp_path):
    workdir = Workdir(tmp_path)
    workdir.claim({"a": 1}, toy.SPEC, {"x": b"1"})
    (tmp_path / "config.json").unlink()  # written last
    (tmp_path / ".0123.part").write_bytes(b"")
    assert not workdir.claim({"a": 2}, toy.SPEC, {"x": b"2"})
    assert (workdir.config(), workdir.asset("x")) == ({"a": 2}, b"2")


@pytest.mark.parametrize("name", ["config.json", "spec.json", "assets/x"])
def test_what_was_written_at_the_beginning_is_checked(tmp_path, name):
    workdir = Workdir(tmp_path)
    workdir.claim({"a": 1.5}, toy.SPEC, {"x": b"some words"})
    path = tmp_path / name
    path.write_bytes(path.read_bytes().replace(b"words", b"wards").replace(b"1", b"2"))
    with pytest.raises(files.Damaged, match=f"{path.name}: is not what was written") as caught:
        (workdir.config(), workdir.spec(), workdir.assets())
    assert "take the file from a copy of the run, or train in a new folder" in str(caught.value)


@pytest.mark.parametrize("name", ["../x", "../../x", "a/../../x", "/etc/x"])
def test_names_that_lead_out_of_a_workdir_are_refused(tmp_path, name):
    workdir = Workdir(tmp_path / "deep" / "run")
    workdir.path.mkdir(parents=True)
    with pytest.raises(ConfigError, match="leads out of"):
        workdir.file(name)
    os.symlink(tmp_path, workdir.path / "assets")
    with pytest.raises(ConfigError, match="leads out of"):
        workdir.file("assets/x")


def test_paths_of_a_foreign_run_are_followed_when_asked(tmp_path, monkeypatch):
    workdir = Workdir(tmp_path / "run")
    config = {"data": {"kind": "manifest", "path": "/somebody/else.csv"}}
    workdir.claim(config, toy.SPEC, {})
    workdir.check_paths(config, False)
    monkeypatch.setenv("MTMM_JAX_KEY", str(tmp_path / "key of another"))
    with pytest.raises(
        ConfigError, match="data.path = '/somebody/else.csv', which is not followed"
    ):
        open_run(workdir.path, workdir.config())
    workdir.check_paths(config, True)
    workdir.check_paths({"data": {**config["data"], "path": "/mine.csv"}}, False)


def _damaged(folder, step, how=lambda data: data[:50] + bytes([data[50] ^ 1]) + data[51:]):
    path = max(
        (folder / str(step) / "state").rglob("*"), key=lambda p: p.is_file() * p.stat().st_size
    )
    path.write_bytes(how(path.read_bytes()))
    return path


def test_one_bit_of_a_checkpoint_is_seen_and_training_takes_the_one_before(tmp_path):
    folder, said = _three(tmp_path / "checkpoints"), []
    path = _damaged(folder, 3)
    checkpoints = Checkpoints(folder, 3)
    with pytest.raises(ConfigError, match="another SHA-256.*; remove .*others: .1, 2."):
        checkpoints.restore(3, _state(0, w=4, b=2))
    step, state, iterator = checkpoints.resume(_state(0, w=4, b=2), 1, said.append)
    assert (step, int(state.step), iterator) == (2, 2, {"step": 2})
    assert len(said) == 1
    assert "checkpoint 3 is damaged" in said[0]
    assert path.name in said[0]
    assert checkpoints.steps() == [1, 2]
    assert (folder / "damaged" / "3").is_dir()
    checkpoints.save(_state(3, w=4, b=2), None, {"step": 3})  # trained again
    checkpoints.close()
    assert Checkpoints(folder, 3).restore(3, _state(0, w=4, b=2))[1] == {"step": 3}


@pytest.mark.parametrize("content", ['{"a":' * 100_000 + "1" + "}" * 100_000, "[]", "", "junk"])
def test_metadata_of_any_content_are_one_line(tmp_path, content):
    folder = _three(tmp_path / "checkpoints")
    shutil.rmtree(folder / "digests")  # as a stranger would, whose digests nobody can check
    for path in folder.rglob("*METADATA*"):
        path.write_text(content)
    checkpoints = Checkpoints(folder, 3)
    assert checkpoints.progress(3) is None
    with pytest.raises(ConfigError, match="checkpoint 3 .* cannot be read") as error:
        checkpoints.restore(3, _state(0, w=4, b=2))
    assert "\n" not in str(error.value)


def test_the_only_checkpoint_is_not_thrown_away(tmp_path):
    folder = tmp_path / "checkpoints"
    checkpoints = Checkpoints(folder)
    checkpoints.save(_state(7, w=4), 0.5, {"step": 7})
    checkpoints.close()
    _damaged(folder, 7)
    with pytest.raises(ConfigError, match="checkpoint 7 .* no other step is there"):
        Checkpoints(folder).resume(_state(0, w=4), 1, print)
    assert (folder / "7").is_dir()


def test_a_broken_score_does_not_hide_a_better_checkpoint(tmp_path):
    folder = tmp_path / "checkpoints"
    checkpoints = Checkpoints(folder, 3)
    for step, score in ((1, 0.9), (2, 0.5), (3, 0.1)):
        checkpoints.save(_state(step, w=4), score, {"step": step})
    checkpoints.close()
    assert sorted(p.name for p in (folder / "digests").iterdir()) == ["1.json", "2.json", "3.json"]
    for content in (b"", b"junk", b'{"score": 0.99}'):
        (folder / "2" / "metrics" / "metrics").write_bytes(content)
        assert Checkpoints(folder).best() == 1
    (folder / "digests" / "2.json").unlink()  # then the file of the checkpoint is all there is
    (folder / "2" / "metrics" / "metrics").write_bytes(b"junk")
    assert Checkpoints(folder).best() == 1
    said = []
    again = Checkpoints(folder, 3)
    (folder / "1" / "metrics" / "metrics").write_bytes(b"junk")
    again.check_small(said.append)  # Orbax would read them
    assert "checkpoint 1 is damaged (metrics/metrics is not what was written" in said[0]
    assert "checkpoint 2 is damaged (metrics/metrics cannot be read)" in said[1]
    again.save(_state(4, w=4), 0.2, {"step": 4})
    again.close()
    assert 4 in again.steps()


def test_digests_follow_the_checkpoints_and_reading_changes_nothing(tmp_path):
    folder = tmp_path / "checkpoints"
    checkpoints = Checkpoints(folder, 1)
    for step in (1, 2, 3):
        checkpoints.save(_state(step, w=4), None, {"step": step})
    checkpoints.close()
    assert [p.stem for p in (folder / "digests").iterdir()] == ["3"]
    known = json.loads((folder / "digests" / "3.json").read_text())["files"]
    assert known == digests.of_folder(folder / "3")
    (folder / "4.orbax-checkpoint-tmp").mkdir()  # of a trainer that is saving now
    before = sorted(folder.rglob("*"))
    reader = Checkpoints(folder)
    reader.restore(reader.best(), _state(0, w=4))
    reader.close()
    assert sorted(folder.rglob("*")) == before
