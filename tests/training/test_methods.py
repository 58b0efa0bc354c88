"""Every balancing method fits the assembled step; one of each tier trains: finite, weights
reported."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mtmm_jax import balancing, training
from mtmm_jax.model import shared_parameters
from mtmm_jax.registry import ConfigError
from mtmm_jax.training.step import TrainState, make_step
from tests import toy

# A small model without recurrence: the methods differ in balancing, not in the encoders.
MODEL = {
    "width": 8,
    "encoders": {"text": {"kind": "text_bag", "dropout": 0.0}},
    "fusion": "concat",
}
TASKS = {
    "kind": {"kind": "classification", "target": "kind"},
    "again": {"kind": "classification", "target": "kind"},
    "size": {"kind": "regression"},
}


# One of each tier and kind of state is run; the others, which balancing/test_properties.py runs
# on gradients and on a function, are traced through the step.
FAST = ("equal", "uncertainty", "famo", "cagrad", "gradvac", "moco", "modo")


@functools.cache
def _model():
    built = toy.model.build(MODEL, TASKS, toy.SPEC)
    return built, toy.variables(built, toy.SPEC.example(2))["params"]


def _program(method, microbatches=1):
    """`(state, new state, metrics)` of the first step of SGD, to be compiled, and its arguments."""
    built, params = _model()
    balancer, options = toy.balancer_of(method, built)
    optimizer = optax.sgd(0.1)
    step = make_step(built, balancer, optimizer, seed=0, accumulate=microbatches, **options)

    def run(params, batch):
        rest = optimizer.init(params), balancer.init(params, shared_parameters)
        state = TrainState(jnp.zeros((), jnp.int32), params, {}, *rest)
        return state, *step(state, batch)

    batch = toy.batch(8)
    batch["inputs"] = {"text": batch["inputs"]["text"]}
    return run, params, batch


@functools.cache
def _one_step(method, microbatches=1):
    run, *arguments = _program(method, microbatches)
    return jax.device_get(jax.jit(run)(*arguments))


@pytest.mark.slow
@pytest.mark.parametrize("method", [method for method in balancing.METHODS if method not in FAST])
def test_a_step_keeps_its_shapes_with_every_method(method):
    run, *arguments = _program(method)
    state, new, metrics = jax.eval_shape(run, *arguments)
    assert metrics["weights"].shape == metrics["losses"].shape == (3,)
    assert new == state


@pytest.mark.parametrize("method", FAST)
def test_one_step(method):
    state, new, metrics = _one_step(method)
    assert np.isfinite(metrics["losses"]).all()
    assert metrics["weights"].shape == (3,)
    assert not metrics["skipped"]
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.params, new.params)
    assert max(jax.tree.leaves(moved)) > 0
    assert jax.tree.structure(new) == jax.tree.structure(state)


def test_forms_that_training_cannot_feed_are_refused():
    built = toy.model.build(MODEL, TASKS, toy.SPEC)
    with pytest.raises(ConfigError, match="famo: after='next'"):
        toy.balancer_of({"kind": "famo", "after": "same"}, built)
    config = training.load("emoji").to_dict()
    config |= {"balancing": "modo", "batch_size": 63, "model": MODEL, "tasks": TASKS}
    config["checkpoint"]["best"] = "mean"
    with pytest.raises(ConfigError, match="batch_size: 63 .* choose a multiple of 2"):
        training.assemble(config, toy.SPEC)


@pytest.mark.parametrize(
    "method",
    [
        pytest.param("uncertainty", marks=pytest.mark.slow),
        "cagrad",
        pytest.param("graddrop", marks=pytest.mark.slow),
    ],
)
def test_accumulation_trains_as_the_whole_batch_does(method):
    """Without dropout and batch statistics, one SGD step over two microbatches is the same."""
    (_, one, metrics), (_, two, also_metrics) = (_one_step(method, n) for n in (1, 2))
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5)  # noqa: E731
    jax.tree.map(close, one.params, two.params)
    jax.tree.map(close, metrics, also_metrics)


def test_microbatches_must_divide_the_batch():
    config = training.load("emoji").to_dict()
    config |= {"balancing": "pcgrad", "batch_size": 8, "model": MODEL, "tasks": TASKS}
    config["checkpoint"]["best"] = "mean"
    config["optimizer"]["accumulate"] = 3
    with pytest.raises(ConfigError, match="3 microbatches .* choose a multiple of 3"):
        training.assemble(config, toy.SPEC)
    config["optimizer"]["accumulate"] = 0
    with pytest.raises(ConfigError, match="optimizer.accumulate: 0 is not a whole number"):
        training.assemble(config, toy.SPEC)
