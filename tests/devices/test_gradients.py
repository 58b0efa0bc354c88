"""n devices do what one does: the same SGD gradients, norms synchronised, negatives gathered."""

import functools

import jax
import numpy as np
import optax
import pytest

from mtmm_jax import balancing
from mtmm_jax.devices import parallel
from mtmm_jax.registry import ConfigError
from mtmm_jax.training.step import init_state, make_step
from tests import toy

pytestmark = pytest.mark.usefixtures("uncached")

METHODS = [
    pytest.param("uncertainty", "auto", marks=pytest.mark.slow),
    pytest.param("pcgrad", "full", marks=pytest.mark.slow),
    ("pcgrad", "representation"),
]
# BatchNorm in the picture's encoder, gathered negatives in the retrieval; no third modality, which
# would only cost compile time.
ENCODERS = {name: toy.MODEL["encoders"][name] for name in ("image", "text")}
SGD = optax.sgd(1.0)


@functools.cache
def _steps(method, engine, devices):
    built = toy.build(modality_dropout=0.3, encoders=ENCODERS)
    balancer = balancing.build(method, len(built.tasks))
    state = init_state(built, balancer, SGD, seed=0)
    step = make_step(built, balancer, SGD, seed=0, engine=engine)
    return state, parallel.wrap(step, devices, donate=False)


def _one_step(method, engine, devices, batch):
    state, step = _steps(method, engine, devices)
    new, figures = step(parallel.replicate(state, devices), batch)
    new = jax.device_get(parallel.first(new, devices))
    figures = jax.tree.map(lambda x: x if devices == 1 else x[0], jax.device_get(figures))
    gradient = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), state.params, new.params)
    return gradient, new, figures


@pytest.mark.parametrize(("method", "engine"), METHODS)
@pytest.mark.parametrize("absent", [None, "size"])
def test_gradients_on_several_devices_equal_those_on_one(method, engine, absent):
    batch = toy.batch(8)
    if absent:
        batch["targets"][absent]["present"][:] = False
    expected, state, figures = _one_step(method, engine, 1, batch)
    assert figures["present"].tolist() == [name != absent for name in toy.TASKS]
    assert figures["weights"][list(toy.TASKS).index("size")] == 0 or not absent
    size = optax.tree.norm(expected)
    assert np.isfinite(size)
    assert size > 0.1
    for devices in (2, 4):
        gradient, other, seen = _one_step(method, engine, devices, batch)
        np.testing.assert_allclose(seen["losses"], figures["losses"], rtol=1e-5)
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(gradient), strict=True
        ):
            scale = max(1.0, float(np.abs(a).max()))
            np.testing.assert_allclose(b, a, atol=1e-5 * scale, err_msg=jax.tree_util.keystr(path))
        for a, b in zip(
            jax.tree.leaves(state.batch_stats), jax.tree.leaves(other.batch_stats), strict=True
        ):
            np.testing.assert_allclose(b, a, atol=1e-5)


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
