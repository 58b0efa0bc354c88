"""Preparing: once, by any number of processes at the same time, and never with TensorFlow."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mtmm_jax.data.sources import packed

SCRIPT = """
import sys
from mtmm_jax.data.sources.emoji import prepared
table = prepared.load(sys.argv[1])
assert "tensorflow" not in sys.modules
print(len(table.names), int(table.speech[::97].astype("int64").sum()))
"""


def start(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-c", SCRIPT, str(folder)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.slow
def test_two_processes_prepare_at_once(tmp_path):
    both = [start(tmp_path), start(tmp_path)]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert said[0][0] == said[1][0]
    assert [path.name.split("-")[0] for path in tmp_path.iterdir()] == [
        "emoji"
    ]  # nothing left over
    assert "preparing the emoji data set" in said[0][1]


def test_a_failed_preparation_leaves_nothing(tmp_path, monkeypatch):
    def fail(name, folder):
        raise RuntimeError("disk on fire")

    monkeypatch.setattr(packed, "_builder", fail)
    with pytest.raises(RuntimeError, match="disk on fire"):
        packed.prepare("emoji", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_cache_is_chosen_by_argument_then_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("MTMM_JAX_DATA", str(tmp_path / "environment"))
    assert packed.cache() == tmp_path / "environment"
    assert packed.cache(tmp_path) == tmp_path
    monkeypatch.delenv("MTMM_JAX_DATA")
    assert packed.cache() == Path.home() / ".cache" / "mtmm_jax"


def test_what_is_loaded(table):
    count = len(table.names)
    assert {name: d.shape for name, d in table.drawings.items()} == {
        "noto": (count, 4, 64, 64),
        "twemoji": (count, 4, 64, 64),
    }
    assert all((d[:, :3] <= d[:, 3:]).all() for d in table.drawings.values())  # premultiplied
    assert table.speech.dtype == np.int16
    assert (np.diff(table.spans, axis=-1) > 1600).all()
    assert (table.voice[:, 0] != table.voice[:, 1]).all()
    assert all(labels.shape == (count,) for labels in table.labels.values())


def test_every_drawing_and_utterance_has_something_in_it(table):
    for drawings in table.drawings.values():
        assert (drawings[:, 3] > 128).sum((1, 2)).min() > 50
    spans = table.spans.reshape(-1, 2)
    assert min(np.abs(table.speech[a:b].astype(int)).max() for a, b in spans) > 2000


def test_what_was_read_is_kept(tmp_path, monkeypatch, capsys):
    """The second start asks TFDS for nothing; what cannot be read is read anew."""
    first = packed.load("digits", tmp_path)
    (index,) = tmp_path.glob("digits-*/made-*.json")
    kept = index.with_suffix(".npz")
    with monkeypatch.context() as patch:
        patch.setattr(packed, "_builder", lambda *_: pytest.fail("read by TFDS"))
        again = packed.load("digits", tmp_path)
    assert again.classes == first.classes
    assert len(again.classes["digit"]) == 10
    np.testing.assert_array_equal(again.split, first.split)
    np.testing.assert_array_equal(again.rows[7]["fou"], first.rows[7]["fou"])
    (kept.parent / "made-of-old.pickle").write_bytes(b"")
    capsys.readouterr()
    for damaged, at in ((kept, 5000), (index, 5000), (kept, None)):
        before = damaged.read_bytes()
        flip = bytes([before[at or 0] ^ 1])
        damaged.write_bytes(before[:100] if at is None else before[:at] + flip + before[at + 1 :])
        again = packed.load("digits", tmp_path)
        assert again.classes == first.classes
        np.testing.assert_array_equal(again.rows[7]["fou"], first.rows[7]["fou"])
        said = capsys.readouterr().err
        assert (said.count("\n"), said.count("it is made again")) == (1, 1)
        assert damaged.name in said
        assert damaged.read_bytes() == before
    assert sorted(kept.parent.glob("made-*")) == sorted([kept, index])


def test_damaged_prepared_files_are_prepared_anew(tmp_path, capsys):
    first = packed.load("vowels", tmp_path)
    (folder,) = tmp_path.glob("vowels-*")
    written = sorted(p for p in (folder / "vowels").rglob("*") if p.is_file())
    for damaged in written:
        for made in folder.glob("made-*"):
            made.unlink()
        data = bytearray(damaged.read_bytes())
        data[len(data) // 2] ^= 4
        damaged.write_bytes(data)
        capsys.readouterr()
        again = packed.load("vowels", tmp_path)
        said = capsys.readouterr().err
        assert f"{damaged.name} is not what was written; the vowels data set is prepared" in said
        np.testing.assert_array_equal(again.rows[3]["series"], first.rows[3]["series"])
    assert len(written) >= 4
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
