"""Rates by task: what they do to shared parameters, to heads, and to conflict."""

import functools

import jax
import numpy as np
import pytest

from mtmm_jax import balancing
from mtmm_jax.balancing import pacing
from mtmm_jax.balancing.base import gather
from mtmm_jax.benchmarks.balancing import pacing as benchmark
from mtmm_jax.optim import optimizers, per_task
from mtmm_jax.registry import ConfigError
from tests.balancing import toy as small

K = 3
NAMES = ("a", "b", "c")
RATES = {"a": 0.5, "c": 2.0}
VECTOR = np.array([0.5, 1.0, 2.0])
ROWS = np.random.default_rng(0).normal(size=(K, 6)).astype(np.float32)
LOSSES = np.array([1.0, 2.0, 0.5], np.float32)


ZEROS = {"x": np.zeros((K, 6), np.float32)}
_gather = jax.jit(gather)


def evidence(scale=1.0, losses=LOSSES, present=(True, True, True)):
    rows = {"x": (ROWS * np.reshape(scale, (-1, 1))).astype(np.float32)}
    return _gather(np.asarray(losses, np.float32), np.asarray(present), rows)


def ask(balancer, *seen):
    """Weights and rates after each piece of evidence."""

    @jax.jit
    def weigh(state, one):
        weights, state = balancer.rule.weigh(state, one)
        return (weights, balancing.current_rates(state)), state

    state = jax.jit(lambda: balancer.rule.init(ZEROS, K))()
    metrics = []
    for one in seen:
        found, state = weigh(state, one)
        metrics.append(jax.device_get(found))
    return metrics


@pytest.mark.parametrize("method", ["equal", "uncertainty", "cagrad", "upgrad"])
def test_fixed_rates_multiply_the_weights(method):
    inner = balancing.build(method, K)
    ((weights, rates),) = ask(per_task.pace(inner, RATES, NAMES), evidence())
    plain, _ = jax.jit(lambda one: inner.rule.weigh(inner.rule.init(ZEROS, K), one))(evidence())
    np.testing.assert_allclose(rates, VECTOR)
    np.testing.assert_allclose(weights, VECTOR * plain, rtol=1e-6)
    assert per_task.pace(inner, None, NAMES) is inner


def test_rates_by_gradient_norm_follow_a_loop():
    """Inverse running norms of mean 1, with bias correction; an absent task's mean stands."""
    scales = np.array([[1.0, 2.0, 4.0], [3.0, 2.0, 1.0], [1.0, 9.0, 1.0]])
    present = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]], bool)
    balancer = per_task.pace(
        balancing.equal(K), {"kind": "gradient_norm", "decay": 0.6, "limit": 100}, NAMES
    )
    assert balancer.rule.needs == "gramian"
    seen = [evidence(s, present=p) for s, p in zip(scales, present, strict=True)]
    found = ask(balancer, *seen)
    for step in range(3):
        mean = []
        for k in range(K):
            here = [i for i in range(step + 1) if present[i, k]]
            weights = 0.6 ** np.arange(len(here))[::-1]
            norms = [scales[i, k] * np.linalg.norm(ROWS[k]) for i in here]
            mean.append(np.average(norms, weights=weights))
        counted = present[step]
        inverse = 1 / np.array(mean)
        expected = inverse / inverse[counted].mean()
        np.testing.assert_allclose(found[step][1][counted], expected[counted], rtol=1e-5)
        np.testing.assert_allclose(
            found[step][0], np.where(counted, found[step][1] / counted.sum(), 0), rtol=1e-5
        )
    assert found[1][1][1] == found[0][1][1]


def test_rates_by_loss_favour_what_stands_still():
    balancer = per_task.pace(balancing.equal(K), "loss_rate", NAMES)
    assert balancer.rule.needs == "losses"
    course = [evidence(losses=[2.0 * 0.9**t, 2.0 * 0.99**t, 200.0 * 0.99**t]) for t in range(30)]
    found = ask(balancer, *course)
    np.testing.assert_allclose(found[0][1], 1, rtol=1e-5)
    rates = found[-1][1]
    assert rates[0] < 0.7 < 1.1 < rates[1]
    np.testing.assert_allclose(rates[1], rates[2], rtol=1e-4)  # whatever the loss's unit
    np.testing.assert_allclose(rates.mean(), 1, rtol=1e-5)
    below = ask(balancer, *[evidence(losses=[-1.0, 0.0, 1.0])] * 3)[-1][1]
    np.testing.assert_allclose(below, 1, rtol=1e-5)


@pytest.mark.parametrize("rates", [RATES, "gradient_norm", "loss_rate"])
def test_an_absent_task_is_as_if_deleted_and_nothing_becomes_nan(rates):
    three = per_task.pace(balancing.equal(K), rates, NAMES)
    two = per_task.pace(
        balancing.equal(2), {"a": 0.5} if isinstance(rates, dict) else rates, NAMES[:2]
    )
    gone = ROWS.copy()
    gone[2] = np.nan

    def twice(balancer, losses):
        """Rows -> what two steps on them give."""

        @jax.jit
        def steps(rows):
            state = balancer.init({"x": np.zeros(6, np.float32)})
            _, state = balancer.update({"x": rows}, state, losses=losses)
            return balancer.update({"x": rows}, state, losses=losses)

        return steps

    of_three = twice(three, LOSSES)
    update, state = of_three(gone)
    kept, _ = twice(two, LOSSES[:2])(gone[:2])
    np.testing.assert_allclose(update["x"], kept["x"], rtol=1e-5)
    assert state.task_weights[2] == 0
    update, state = of_three(ZEROS["x"])
    assert np.isfinite(jax.tree.leaves((update, state.task_weights))[0]).all()
    assert np.isfinite(balancing.current_rates(state)).all()


@pytest.mark.parametrize(
    ("kind", "method"),
    [("sgd", "equal"), ("adamw", "equal"), ("sgd", "upgrad"), ("sam", "equal")],
)
def test_a_head_moves_by_its_rate_under_any_optimiser(kind, method):
    """One step from the same state, with and without rates; the trunk by `r_k w_k`."""
    params, batch = jax.device_get((small.params(), small.batch()))
    names = ("0", "1", "2")
    moved = {}
    for name, rates in {"plain": {"0": 1.0}, "paced": {"0": 0.25}}.items():
        balancer = per_task.pace(balancing.build(method, K), rates, names)
        around = functools.partial(per_task.pace_heads, balancer=balancer, tasks=names)
        config = {"kind": kind, "learning_rate": 0.1, "ema": 0.5}
        if kind == "sam":
            config |= {"inner": "sgd", "rho": 1e-6}
        optimizer, _ = optimizers.build(config, 10, around)
        grad = balancing.value_and_grad(small.SPLIT, balancer, shared=small.shared_labels)

        def step(params, grad=grad, balancer=balancer, optimizer=optimizer):
            state = balancer.init(params, small.shared_labels)
            out = grad(params, state, batch)
            updates, kept = optimizer.update(
                out.grads,
                optimizer.init(params),
                params,
                grad_fn=lambda p, i: grad(p, state, batch).grads,
                task_rates=per_task.current_rates(out.state),
            )
            return updates, optimizers.evaluation_params(kept, params)

        moved[name], average = jax.jit(step)(params)
        moved[name] = jax.device_get(moved[name])
        expected = jax.tree.map(np.add, params, moved[name])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), average, expected)
    plain, paced = moved["plain"], moved["paced"]
    for k, factor in enumerate((0.25, 1.0, 1.0)):
        expected = factor * plain["heads"][k]["w"]
        np.testing.assert_allclose(paced["heads"][k]["w"], expected, rtol=1e-3, atol=1e-6)
    assert np.abs(paced["trunk"]["w1"] - plain["trunk"]["w1"]).max() > 1e-4


def test_rates_that_cannot_be_are_refused():
    inner = balancing.equal(K)
    for rates, message in [
        ("speed", "optimizer.tasks.kind: unknown kind 'speed'; choices: gradient_norm, loss_rate"),
        ({"d": 1.0}, "optimizer.tasks.d: unknown task 'd'; choices: a, b, c"),
        ({"a": 0}, "optimizer.tasks.a: 0 is not a number above 0"),
        (
            {"kind": "gradient_norm", "decay": 1},
            "optimizer.tasks.decay: 1 is not a number above 0",
        ),
        ({"kind": "gradient_norm", "limit": 1}, "optimizer.tasks.limit: 1 is not a number above 1"),
        ({"kind": "loss_rate", "slow": 0.5}, "optimizer.tasks.slow: 0.5 is not above decay, 0.9"),
        ({"kind": "loss_rate", "rho": 1}, "optimizer.tasks.rho: .* choices: decay, limit, power"),
    ]:
        with pytest.raises(ConfigError, match=message):
            per_task.pace(inner, rates, NAMES)
    with pytest.raises(ConfigError, match="rates: 2 values for 3 tasks"):
        pacing.paced(inner, [1.0, 2.0])
    with pytest.raises(ConfigError, match="returns a gradient, not weights"):
        ask(pacing.paced(balancing.graddrop(K), 1.0), evidence())


def test_the_wrapped_method_still_observes():
    inner = balancing.performance(K)
    balancer = pacing.paced(inner, 1.0)
    state = jax.jit(balancer.init)({"x": np.zeros(6, np.float32)})
    seen = jax.jit(balancer.observe)(state, np.float32([0.1, 0.5, 0.9]))
    assert balancer.rule.observes == inner.rule.observes == "metrics"
    changed = jax.tree.map(lambda a, b: np.any(a != b), seen.rule.inner, state.rule.inner)
    assert any(jax.tree.leaves(changed))


def test_pacing_by_gradient_norm_reduces_conflict_on_the_generator():
    """Four opposed tasks of two likelihoods: no pull is much longer than another, and fewer steps
    go against a task."""
    equal, paced = (benchmark.run(rates, 0, 120) for rates in (None, {"kind": "gradient_norm"}))
    assert paced["imbalance"] < 0.5 * equal["imbalance"]
    assert paced["against"] < equal["against"]
