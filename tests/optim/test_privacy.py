"""Private gradients against a loop over samples; what cannot be private; epsilon by quadrature."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from mtmm_jax import balancing
from mtmm_jax.balancing.pacing import paced
from mtmm_jax.optim import privacy
from mtmm_jax.registry import ConfigError
from mtmm_jax.tasks.traits import Traits
from tests import toy
from tests.balancing import toy as small

K = small.K
PARAMS, BATCH = jax.device_get((small.params(), small.batch()))
KEY = jax.random.key(3)


def losses(params, batch_stats, batch, key):
    del batch_stats, key
    return small.SPLIT(params, batch)


def private(clip=0.5, noise=0.0, chunk=3, balancer=None, axis_name=None):
    mechanism = privacy.Private(clip, noise, chunk)
    balancer = balancer or balancing.equal(K)
    fn = privacy.value_and_grad(losses, balancer, mechanism, axis_name=axis_name)
    start = jax.jit(lambda: balancer.init(PARAMS, small.shared_labels))
    return lambda batch, key: fn(PARAMS, start(), {}, batch, key)


def by_hand(clip, weights):
    """The mean of clipped gradients, sample by sample."""
    grads = []
    gradient = jax.jit(jax.grad(lambda p, row: jnp.dot(weights, small.SPLIT(p, row)[0])))
    for i in range(small.BATCH):
        row = jax.tree.map(lambda x, i=i: x[i : i + 1], BATCH)
        grad = gradient(PARAMS, row)
        leaves = [np.asarray(x) for x in jax.tree.leaves(grad)]
        norm = np.sqrt(sum(np.square(x).sum() for x in leaves))
        grads.append([x * min(1.0, clip / norm) for x in leaves])
    return [np.mean(x, axis=0) for x in zip(*grads, strict=True)], len(grads)


@pytest.mark.parametrize("clip", [0.5, 2.0])
def test_clipped_gradients_are_those_of_a_loop(clip):
    rates = [1.0, 0.5, 2.0]
    out = jax.jit(private(clip, balancer=paced(balancing.equal(K), rates)))(BATCH, KEY)
    expected, _ = by_hand(clip, np.float32(rates) / K)
    for a, b in zip(jax.tree.leaves(out.grads), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    sums, counts, _ = jax.device_get(jax.jit(lambda p, b: small.SPLIT(p, b))(PARAMS, BATCH))
    np.testing.assert_allclose(out.losses, sums / counts, rtol=1e-5)
    assert 0 < out.diagnostics["clipped"] <= 1
    assert not out.diagnostics["skipped"]


def test_one_sample_moves_the_sum_by_no_more_than_the_clip():
    far = jax.tree.map(
        lambda x: np.concatenate([x[:2], 50 * x[2:3], x[3:]]) if x.dtype == np.float32 else x,
        BATCH,
    )
    clipped = jax.jit(lambda batch: private(0.5)(batch, KEY).grads)
    a, b = (jax.device_get(clipped(batch)) for batch in (BATCH, far))
    moved = sum(
        np.square(np.asarray(x - y)).sum()
        for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)
    )
    assert 0.1 < np.sqrt(moved) * small.BATCH <= 1.0 + 1e-5  # from one end of the ball to the other


def test_noise_has_its_size_and_depends_on_the_key():
    plain = jax.device_get(jax.jit(private(0.5, 0.0))(BATCH, KEY)).grads
    many = jax.jit(private(0.5, 4.0))
    noisy = lambda key: jax.device_get(many(BATCH, key)).grads  # noqa: E731
    draws = [noisy(jax.random.fold_in(KEY, i)) for i in range(20)]
    noise = np.stack(
        [
            np.concatenate(
                [np.ravel(x - y) for x, y in zip(*map(jax.tree.leaves, (d, plain)), strict=True)]
            )
            for d in draws
        ]
    )
    np.testing.assert_allclose(noise.std(), 0.5 * 4.0 / small.BATCH, rtol=0.05)
    correlation = np.corrcoef(noise)
    assert np.abs(correlation - np.eye(20)).max() < 0.5
    repeated = noisy(KEY), noisy(KEY)
    jax.tree.map(np.testing.assert_array_equal, *repeated)


def test_several_devices_give_the_gradient_of_one_with_the_noise_once():
    one = jax.jit(private(0.5, 1.0))(BATCH, KEY)
    halves = jax.tree.map(lambda x: x.reshape(2, -1, *x.shape[1:]), BATCH)
    many = jax.pmap(private(0.5, 1.0, axis_name="d"), axis_name="d", in_axes=(0, None))
    one, out = jax.device_get((one, many(halves, KEY)))
    for d in range(2):
        jax.tree.map(
            lambda a, b, d=d: np.testing.assert_allclose(a[d], b, rtol=1e-4, atol=1e-6),
            out.grads,
            one.grads,
        )
    np.testing.assert_allclose(out.losses[0], one.losses, rtol=1e-5)


TASKS = {"kind": {"kind": "classification"}, "size": {"kind": "regression"}}
BAG = {"encoders": {"text": "text_bag"}, "width": 8}


def test_it_stands_in_the_place_of_the_step_of_a_model():
    """By sample and without clipping: the mean over the batch of the weighted sums."""
    built = toy.build(TASKS, **BAG, fusion="concat")
    batch = toy.batch(4)
    params = toy.variables(built, toy.SPEC.example(2))["params"]
    balancer = balancing.equal(2)
    mechanism = privacy.Private(1e9, 0.0, 4)
    # Dropout draws for each sample; without it both see the same.
    split = built.split()

    def quiet(params, batch_stats, batch, key):
        del key
        variables = {"params": params, "batch_stats": batch_stats}
        shared, _ = built.trunk(variables, batch["inputs"])
        found, _ = built.readout(variables, dict.fromkeys(built.tasks, shared))
        return *built.losses(found, batch, None), {"batch_stats": {}}

    fn = privacy.value_and_grad(quiet, balancer, mechanism)
    state = balancer.init(params)
    out = jax.jit(lambda p: fn(p, state, {}, batch, KEY))(params)
    whole = jax.jit(jax.grad(lambda p: quiet(p, {}, batch, None)[0].sum() / 2 / 4))(params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), out.grads, whole
    )
    noisy = privacy.value_and_grad(split, balancer, privacy.Private(1.0, 1.0, 2))
    shapes = jax.eval_shape(lambda p: noisy(p, state, {}, batch, KEY), params)
    assert jax.tree.structure(shapes.grads) == jax.tree.structure(params)
    assert shapes.aux == {"batch_stats": {}}
    privacy.check(built, {}, {"balancing": "equal", "optimizer": {"kind": "adamw"}})


def fake(kind="classification", auxiliaries=(), **traits):
    task = types.SimpleNamespace(kind=kind, traits=Traits(**traits))
    return types.SimpleNamespace(tasks={"a": task}, auxiliaries=auxiliaries)


REFUSED = {
    "norm": ({}, {}, {"batch_stats": {"mean": 0.0}}, "BatchNorm mixes the samples"),
    "contrast": (
        {},
        {},
        {"model": fake("retrieval", compares_rows=True)},
        "tasks.a \\(retrieval\\) compares the samples",
    ),
    "extra": ({}, {}, {"model": fake(auxiliaries=("even",))}, "'even' is that of a whole batch"),
    "method": (
        "pcgrad",
        {},
        {},
        "balancing.kind: unknown method .* 'pcgrad'; choices: equal, static",
    ),
    "wrap": ({"wrap": ["smoothed"]}, {}, {}, "balancing.wrap"),
    "sam": ({}, {"kind": "sam"}, {}, "sam takes two gradients"),
    "parts": ({}, {"accumulate": 2}, {}, "optimizer.accumulate"),
    "pace": ({}, {"tasks": "loss_rate"}, {}, "optimizer.tasks: 'loss_rate' reads the samples"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_private_is_refused(name):
    method, optimizer, other, message = REFUSED[name]
    method = method if isinstance(method, str) else {"kind": "equal", **method}
    config = {"balancing": method, "optimizer": {"kind": "sgd", **optimizer}}
    with pytest.raises(ConfigError, match=message):
        privacy.check(other.get("model", fake()), other.get("batch_stats", {}), config)


def test_the_config_is_checked():
    assert privacy.read(None) is None
    assert privacy.read({"clip": 2}) == privacy.Private(2.0, 1.0, 16)
    for spec, message in [
        ({"clip": 0}, "optimizer.private.clip: 0"),
        ({"noise": -1}, "optimizer.private.noise: -1"),
        ({"chunk": 0}, "optimizer.private.chunk: 0"),
        ({"sigma": 1.0}, "optimizer.private.sigma: .* choices: chunk, clip, noise"),
        (1.0, "optimizer.private: 1.0 is not a section"),
    ]:
        with pytest.raises(ConfigError, match=message):
            privacy.read(spec)


def test_epsilon_by_quadrature():
    """The best order's divergence from the densities themselves; without sampling, the formula."""
    sigma, q, steps, delta = 1.5, 0.1, 50, 1e-5

    def divergence(order):
        def ratio(x):
            return (
                (1 - q + q * np.exp((2 * x - 1) / (2 * sigma**2))) ** order
                * np.exp(-(x**2) / (2 * sigma**2))
                / np.sqrt(2 * np.pi * sigma**2)
            )

        return np.log(integrate.quad(ratio, -60, 60, points=[0, order])[0]) / (order - 1)

    def converted(order, total):
        return total + np.log1p(-1 / order) - (np.log(delta) + np.log(order)) / (order - 1)

    expected = min(converted(order, steps * divergence(order)) for order in range(2, 30))
    np.testing.assert_allclose(privacy.epsilon(sigma, q, steps, delta), expected, rtol=1e-5)
    whole = min(converted(a, 3 * a / (2 * sigma**2)) for a in range(2, 513))
    np.testing.assert_allclose(privacy.epsilon(sigma, 1.0, 3, delta), whole, rtol=1e-9)
    assert privacy.epsilon(0.0, 0.1, 5) == np.inf
    assert privacy.epsilon(1.0, 0.1, 0) == 0.0
    with pytest.raises(ConfigError, match="epsilon.share: 2 is not"):
        privacy.epsilon(1.0, 2, 5)
