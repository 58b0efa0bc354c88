"""What is made of a data set is kept without code, and comes back as it was."""

import numpy as np
import pytest

from mtmm_jax.data.sources import kept
from mtmm_jax.store.files import Damaged

TREE = {
    "rows": [
        {"id": np.int64(i), "x": np.full(3, i, np.float32), "y": np.arange(i), "b": b"\x00" * i,
         "t": f"t{i}", "in": {"none": None, "n": i}}
        for i in range(4)
    ],
    "pair": (1, "a"),
    "mixed": [np.zeros(2), "x", [b"y"], {}],
    "shapes": [np.zeros((1, 2)), np.zeros((2, 3))],
    "empty": [],
    "scalar": np.float32(2.5),
    "names": np.array(["train", "test"]),
    "bytes": b"\xff\x00",
}  # fmt: skip


def _same(a, b):
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            _same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            _same(one, other)
    elif isinstance(a, np.ndarray | np.generic):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    else:
        assert a == b


def test_a_tree_comes_back(tmp_path):
    kept.save(TREE, tmp_path / "made")
    _same(kept.load(tmp_path / "made"), TREE)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["made.json", "made.npz"]


class _Thing:
    pass


@pytest.mark.parametrize("value", [_Thing(), np.array([_Thing()]), {1, 2}, len])
def test_what_is_no_data_is_not_kept(tmp_path, value):
    with pytest.raises(TypeError, match="cannot be kept"):
        kept.save({"a": value}, tmp_path / "made")


@pytest.mark.parametrize("name", ["made.npz", "made.json"])
def test_every_bit_counts(tmp_path, name):
    kept.save(TREE, tmp_path / "made")
    path = tmp_path / name
    data = path.read_bytes()
    for at in range(0, len(data), 41):
        path.write_bytes(data[:at] + bytes([data[at] ^ 2]) + data[at + 1 :])
        try:
            found = kept.load(tmp_path / "made")
        except Damaged:
            continue
        _same(found, TREE)  # a blank of the JSON, or its signature
        assert name == "made.json"
