"""n devices do what one does: the same SGD gradients, norms synchronised, negatives gathered.

Two devices, and the other methods: `test_mesh.py`.
"""

import jax
import numpy as np
import pytest

from mtmm_jax.devices import parallel
from mtmm_jax.registry import ConfigError
from tests import toy
from tests.training import gradients

pytestmark = pytest.mark.usefixtures("uncached")

METHODS = [
    pytest.param("uncertainty", "auto", marks=pytest.mark.slow),
    pytest.param("pcgrad", "full", marks=pytest.mark.slow),
    ("pcgrad", "representation"),
]


@pytest.mark.parametrize(("method", "engine"), METHODS)
def test_gradients_on_several_devices_equal_those_on_one(method, engine):
    one, four = (gradients.steps(method, devices, engine=engine) for devices in (1, 4))
    start = jax.device_get(one[0].params)
    start = {
        f"params/{jax.tree_util.keystr(path, simple=True, separator='/')}": leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(start)
    }
    for absent in gradients.ABSENT:
        expected = gradients.one_step(one, absent)
        assert expected["metrics/present"].tolist() == [name != absent for name in toy.TASKS]
        assert expected["metrics/weights"][list(toy.TASKS).index("size")] == 0 or not absent
        assert any(path.startswith("batch_stats/") for path in expected)
        moved = [np.square(expected[path] - leaf).sum() for path, leaf in start.items()]
        size = sum(moved) ** 0.5
        assert np.isfinite(size)
        assert size > 0.1
        gradients.assert_equal(gradients.one_step(four, absent), expected)


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ConfigError, match=r"batch_size: 6 does not divide .* among \[1, 2, 3\]"):
        parallel.device_count(4, 6)
    with pytest.raises(ConfigError, match="devices: 9: needs 'all' or a number from 1 to 4"):
        parallel.device_count(9, 9)
    assert parallel.device_count("all", 8) == 4


def test_replicate_and_first_are_inverse():
    tree = {"a": np.arange(3.0), "b": np.float32(2)}
    there = parallel.replicate(tree, 4)
    assert there["a"].shape == (4, 3)
    back = parallel.first(there, 4)
    np.testing.assert_array_equal(back["a"], tree["a"])
