"""Parts used alone with the wrong thing: one line that says what to make."""

import doctest
import importlib

import jax
import jax.numpy as jnp
import pytest

from mtmm_jax import balancing
from mtmm_jax.encoders import ENCODERS
from mtmm_jax.fusion import FUSIONS
from mtmm_jax.registry import ConfigError

X = jnp.ones((2, 3, 4))


@pytest.mark.parametrize("name", FUSIONS)
def test_a_fusion_of_arrays_says_how_to_make_tokens(name):
    fusion = FUSIONS[name](width=8)
    for given in (X, {"image": X, "text": X}):
        with pytest.raises(ConfigError, match=r"takes \{modality: Tokens\}, not .*array float32"):
            jax.eval_shape(fusion.init, jax.random.key(0), given)


# The others ask for the shape of an example first, or for a folder of weights.
SIZED = [
    n for n, e in ENCODERS.items() if "shape" not in getattr(e, "__dataclass_fields__", "shape")
]


@pytest.mark.parametrize("name", SIZED)
def test_an_encoder_of_an_array_says_how_to_make_an_entry(name):
    encoder = ENCODERS[name](width=8)
    for given in (X, {"x": X}):
        with pytest.raises(ConfigError, match='encoder: takes .*"present": jnp.ones'):
            jax.eval_shape(encoder.init, jax.random.key(0), given)


@pytest.mark.parametrize("params", [jnp.ones(3), {"w": jnp.ones(3), "b": jnp.ones(1)}])
def test_a_list_of_gradients_says_how_to_stack_them(params):
    balancer = balancing.pcgrad(2)
    state = balancer.init(params)
    with pytest.raises(ConfigError, match=r"jnp.stack\(g\), \*gradients"):
        balancer.update([params, params], state, params)
    with pytest.raises(ConfigError, match="arrays for . parameters"):
        balancer.update([jnp.ones((2, 3))] * 3, state, params)


def test_parameters_in_a_list_are_a_tree_like_others():
    params = [jnp.ones(3), jnp.ones(2)]
    balancer = balancing.pcgrad(2)
    rows = jax.tree.map(lambda x: jnp.stack([x, -x]), params)
    updates, _ = balancer.update(rows, balancer.init(params), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)


@pytest.mark.parametrize("room", ["balancing", "encoders", "fusion", "heads", "sharing"])
def test_the_rooms_example_runs(room):
    found = doctest.testmod(importlib.import_module(f"mtmm_jax.{room}"))
    assert found.attempted > 5
    assert found.failed == 0
