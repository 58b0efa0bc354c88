"""Files of runs are written whole and read back as they were, or refused in one line."""

import errno
import json
import os
import zipfile

import numpy as np
import pytest

from mtmm_jax.registry import ConfigError
from mtmm_jax.store import files, owner

VALUE = {"a": [1, 2.5, None], "b": {"c": "\u00e9", "nan": float("inf")}}


def _read(path):
    return files.unsealed(files.read_bytes(path), path)


def test_what_is_sealed_comes_back_and_is_the_users_own(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    files.write(path, files.sealed(VALUE))
    assert _read(path) == (VALUE, True)
    monkeypatch.setenv("MTMM_JAX_KEY", str(tmp_path / "another"))
    assert _read(path) == (VALUE, False)
    assert (tmp_path / "another").stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv("MTMM_JAX_KEY", "/proc/nowhere/key")  # a home that cannot be written
    assert _read(path) == (VALUE, False)
    assert files.unsealed(files.sealed(VALUE), path) == (VALUE, False)


def test_every_bit_of_a_sealed_file_counts(tmp_path):
    """A flip is refused, or changes nothing: blanks, and the signature, which makes it foreign."""
    path, data = tmp_path / "x.json", files.sealed(VALUE)
    refused = 0
    for at in range(len(data)):
        flipped = data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :]
        found, said = VALUE, f"{path}"
        try:
            found = files.unsealed(flipped, path)[0]
        except files.Damaged as error:
            refused, said = refused + 1, str(error)
        assert found == VALUE
        assert str(path) in said
        assert "\n" not in said
    assert refused > len(data) // 3


BROKEN = {
    "empty": b"",
    "not UTF-8": b"\xff\xfe{}",
    "half": files.sealed(VALUE)[:40],
    "no object": b"[1, 2]",
    "no digest": b'{"a": 1}',
    "deep": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "long numbers": b'{"a": ' + b"1" * 10_000 + b"}",
}


@pytest.mark.parametrize("how", BROKEN)
def test_broken_json_is_one_line_with_the_file_and_the_way_out(tmp_path, how):
    path = tmp_path / "x.json"
    path.write_bytes(BROKEN[how])
    with pytest.raises(files.Damaged) as caught:
        files.unsealed(files.read_bytes(path), path, "make it again")
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).endswith("; make it again")
    assert "\n" not in str(caught.value)


def test_what_is_no_regular_file_is_not_read(tmp_path):
    (tmp_path / "secret").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, message in (
        ("link", "is a symbolic link, which is not followed"),
        ("folder", "is no regular file"),
        ("pipe", "is no regular file"),
        ("nothing", "No such file"),
        ("secret", "has 1 bytes, over 0"),
    ):
        with pytest.raises(files.Damaged, match=message):
            files.read_bytes(tmp_path / name, limit=0)


def test_writing_replaces_a_link_and_does_not_write_through_it(tmp_path):
    (tmp_path / "elsewhere").write_text("untouched")
    (tmp_path / "x").symlink_to(tmp_path / "elsewhere")
    files.write(tmp_path / "x", b"new")
    assert (tmp_path / "elsewhere").read_text() == "untouched"
    assert (tmp_path / "x").read_bytes() == b"new"
    assert not (tmp_path / "x").is_symlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["elsewhere", "x"]


class _Evil:
    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def test_arrays_of_objects_are_refused_and_not_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "x.npz", a=np.array([_Evil()], dtype=object))
    with pytest.raises(files.Damaged, match=r"x.npz: is no NPZ file: Object arrays"):
        files.read_npz(tmp_path / "x.npz")
    assert not (tmp_path / "unpickled").exists()


def test_a_flip_in_an_npz_is_refused_or_without_effect(tmp_path):
    path, wanted = tmp_path / "x.npz", {"a": np.arange(50.0), "b": np.arange(3)}
    files.write_npz(path, wanted)
    data = path.read_bytes()
    for at in range(0, len(data), 3):
        path.write_bytes(data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :])
        try:
            found = files.read_npz(path)
        except files.Damaged:
            continue
        for name, array in found.items():
            np.testing.assert_array_equal(array, wanted[name])


def test_an_npz_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "FILE_BYTES", 2**20)
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.npy", bytes(2**21))
    with pytest.raises(files.Damaged, match="would unpack to 2,097,152 bytes, over 1,048,576"):
        files.read_npz(tmp_path / "x.npz")


NAMES = (
    "kind", "a b", "../x", "/etc/passwd", "..", ".", "", "a/b", "\x00", "x" * 300, "C:\\x", "-rf",
    "\u202egnp", ".hidden", "caf\u00e9", "a\nb", "a:b",
)  # fmt: skip


def test_names_become_different_files_of_one_folder(tmp_path):
    found = [files.file_name(name) for name in NAMES]
    assert found[:2] == ["kind", "a_b"]
    assert len(set(found)) == len(NAMES)
    for name in found:
        (tmp_path / name).write_text("")
        assert (tmp_path / name).parent == tmp_path
        assert not name.startswith((".", "-"))
        assert len(name) <= 90
    assert len(list(tmp_path.iterdir())) == len(NAMES)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, ""), "No space left on device"),
        (OSError(errno.EROFS, ""), "Read-only file system"),
        (OSError(errno.EDQUOT, ""), "quota exceeded"),
        (OSError(errno.ENAMETOOLONG, ""), "File name too long"),
        (OSError(errno.ESTALE, ""), "[Ss]tale"),
        (NotADirectoryError(errno.ENOTDIR, ""), "Not a directory"),
        (ValueError("x [os_error_code='28'] y"), "No space left on device"),
        (RuntimeError("handler"), None),
        (ValueError("a mistake"), None),
    ],
)
def test_what_a_disk_refuses_is_one_line(tmp_path, error, words):
    raised = pytest.raises(ConfigError if words else type(error), match=words)
    with raised, files.writing(tmp_path, "Make room"):
        raise error
    if words:  # also below other errors, as Orbax raises them
        with pytest.raises(ConfigError, match=words), files.writing(tmp_path):
            raise ValueError("orbax") from error


def test_paths_of_a_config_are_found():
    config = {
        "data": {
            "kind": "mixture",
            "sources": {"a": {"kind": "vowels", "data_dir": "x"}, "b": {"path": "rows.csv"}},
            "pipe": "resize(3)",
            "other": "~/secret",
        },
        "teachers": {"workdirs": ["runs/a", "b"]},
    }
    assert dict(owner.paths_of(config)).keys() == {
        "data.sources.a.data_dir",
        "data.sources.b.path",
        "data.other",
        "teachers.workdirs",
    }
    used = json.loads(json.dumps(config))
    for section in (used["data"]["sources"]["a"], used["data"]["sources"]["b"]):
        section.update(data_dir=None, path="mine.csv")
    used["data"]["other"], used["teachers"] = "", None
    owner.check_paths(config, used, "run")  # what the user named is followed
    with pytest.raises(ConfigError, match=r"names data.sources.a.data_dir = 'x' and 4 more"):
        owner.check_paths(config, config, "run")
