"""Methods with memory over several steps, and the wrappers, against plain recomputation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtmm_jax import balancing
from mtmm_jax.balancing.base import Evidence
from mtmm_jax.registry import ConfigError
from tests.balancing.cases import make, run

ALL = np.ones(2, bool)


def _weigh(balancer, losses_per_step, gradients=None):
    """The weights of every step for given losses, and the last state; all steps in one program."""
    rows = np.asarray(np.eye(2, 3) if gradients is None else gradients, np.float32)

    def step(state, losses):
        state = balancer.update({"x": rows}, state, losses=losses)[1]
        return state, state.task_weights

    losses = np.asarray(losses_per_step, np.float32)
    run_all = jax.jit(lambda at: jax.lax.scan(step, balancer.init({"x": rows[0]}), at))
    state, weights = run_all(losses)
    return np.asarray(weights), state


def _weights_now(balancer, state):
    """What the rule makes of two losses of 1, in a given state."""
    return jax.jit(balancer.rule.weigh)(state.rule, Evidence(np.ones(2, np.float32), ALL))[0]


def test_uncertainty_finds_its_optimum():
    """ds = 1/2 - 1/2 e^-s L vanishes at s = log L, so the weights go to 1 / (2 L)."""
    weights, _ = _weigh(balancing.uncertainty(2, learning_rate=0.1), [[4.0, 0.25]] * 150)
    np.testing.assert_allclose(weights[0], [0.5, 0.5])
    np.testing.assert_allclose(weights[-1], [0.125, 2.0], rtol=1e-2)


def test_imtl_l_scales_losses_alike():
    weights, _ = _weigh(balancing.imtl_l(2, learning_rate=0.1), [[4.0, 0.25]] * 150)
    np.testing.assert_allclose(weights[-1] * [4.0, 0.25], [1, 1], rtol=1e-2)


def test_dwa_follows_its_formula():
    losses = [[1.0, 2.0], [0.5, 1.9], [0.4, 1.0], [0.3, 0.9]]
    weights, _ = _weigh(balancing.dwa(2, epoch=1), losses)
    np.testing.assert_allclose(weights[:2], 1)
    for step in (2, 3):
        ratio = np.asarray(losses[step - 1]) / losses[step - 2]
        expected = 2 * np.exp(ratio / 2) / np.exp(ratio / 2).sum()
        np.testing.assert_allclose(weights[step], expected, rtol=1e-5)
    observed = balancing.dwa(2, epoch=0)
    state, observe = observed.init({"x": np.zeros(3, np.float32)}), jax.jit(observed.observe)
    for means in losses[:2]:
        state = observe(state, np.asarray(means, np.float32))
    got = _weights_now(observed, state)
    np.testing.assert_allclose(got, weights[2], rtol=1e-5)


def test_famo_follows_its_code():
    """Adam with L2 on xi, as published, by hand for two steps; both ways of learning."""
    losses = np.asarray([[1.0, 2.0], [0.9, 1.0], [0.5, 0.9]])
    xi, m, v, expected = np.zeros(2), np.zeros(2), np.zeros(2), []
    for t in range(3):
        if t:
            z = np.exp(xi) / np.exp(xi).sum()
            delta = np.log(losses[t - 1] + 1e-8) - np.log(losses[t] + 1e-8)
            grad = (np.diag(z) - np.outer(z, z)) @ delta + 1e-3 * xi
            m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
            xi = xi - 0.025 * m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        z = np.exp(xi) / np.exp(xi).sum()
        expected.append(z / losses[t] / (z / losses[t]).sum())
    weights, _ = _weigh(balancing.famo(2), losses)
    np.testing.assert_allclose(weights, expected, rtol=1e-4)
    same = balancing.famo(2, after="same")
    state = same.init({"x": np.zeros(3, np.float32)})
    weigh, observe = jax.jit(same.rule.weigh), jax.jit(same.observe)
    losses = losses.astype(np.float32)
    for t in range(3):
        got, rule = weigh(state.rule, Evidence(losses[t], ALL))
        np.testing.assert_allclose(got, expected[t], rtol=1e-4)
        if t < 2:
            state = observe(state._replace(rule=rule), losses[t + 1])


def test_stch_warms_up_then_leans_on_the_worse_task():
    weights, _ = _weigh(balancing.stch(2, mu=0.1, warmup=2), [[1.0, 4.0], [3.0, 4.0], [4.0, 4.0]])
    np.testing.assert_allclose(weights[0], [1, 0.25], rtol=1e-5)
    scaled = np.exp(np.array([2.0, 1.0]) / 0.1)  # nadirs 2 and 4
    np.testing.assert_allclose(weights[2], scaled / scaled.sum() / [2, 4], rtol=1e-4)


def test_scalarisations_are_gradients_of_their_scalars():
    losses = np.asarray([1.0, 3.0])
    np.testing.assert_allclose(
        _weigh(balancing.gls(2), [losses])[0][0], np.sqrt(3.0) / 2 / losses, rtol=1e-5
    )

    def pbi(at, theta=5.0):
        r = np.ones(2) / np.sqrt(2)
        return at @ r + theta * np.linalg.norm(at - (at @ r) * r)

    def cosmos(at):
        return at.mean() - at.sum() / np.sqrt(2) / np.linalg.norm(at)

    for method, scalar in ((balancing.pbi(2), pbi), (balancing.cosmos(2), cosmos)):
        slope = [(scalar(losses + e) - scalar(losses - e)) / 2e-5 for e in np.eye(2) * 1e-5]
        np.testing.assert_allclose(_weigh(method, [losses])[0][0], slope, rtol=1e-4)


@pytest.mark.parametrize(
    ("favour", "expected"), [("better", [1.6, 0.4]), ("worse", [0.4, 1.6]), ("focal", None)]
)
def test_performance_both_ways(favour, expected):
    balancer = balancing.performance(2, favour=favour)
    state, observe = balancer.init({"x": np.zeros(3, np.float32)}), jax.jit(balancer.observe)
    state = observe(state, np.array([0.8, np.nan], np.float32))
    state = observe(state, np.array([np.nan, 0.2], np.float32))
    got = _weights_now(balancer, state)
    if expected is None:
        raw = -(1 - np.array([0.8, 0.2])) * np.log([0.8, 0.2])
        expected = 2 * raw / raw.sum()
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_gradnorm_drives_norms_to_their_targets():
    """Constant losses: all rates are 1, so weighted norms must become equal."""
    rows = np.array([[4.0, 0, 0], [0, 1.0, 0]])
    weights, _ = _weigh(balancing.gradnorm(2, learning_rate=0.01), [[1.0, 1.0]] * 300, rows)
    final = weights[-1] * [4, 1]
    np.testing.assert_allclose(final[0], final[1], rtol=0.1)
    np.testing.assert_allclose(weights.sum(1), 2, rtol=1e-5)


def test_learned_weights_follow_the_held_out_gradient():
    j = np.array([[1.0, 0, 0], [0, 1.0, 0]])
    held_out = np.array([[1.0, 0, 0], [1.0, 0, 0]])  # what generalises is task 0's direction
    _, w, _ = run("learned", j, other=held_out, steps=30)
    np.testing.assert_allclose(w, [1, 0], atol=1e-6)


def test_affinity_weights_by_hand():
    affinity = np.array([[1.0, 0.5, -1.0], [0.5, 1.0, 0.0], [-1.0, 0.0, 1.0]], np.float32)
    got = jax.jit(balancing.affinity_weights)(np.array([1.0, 0.0, 0.0], np.float32), affinity)
    np.testing.assert_allclose(got, [2 / 3, 1 / 3, 0], rtol=1e-6)
    rates = balancing.lookahead_affinity(jnp.asarray([2.0]), jnp.asarray([[1.5]]))
    np.testing.assert_allclose(rates, [[0.25]])


RNG = np.random.default_rng(0)
J = RNG.normal(size=(4, 9))


def test_normalised_balances_scaled_rows():
    losses = np.array([0.5, 1, 2, 4.0])
    norms = np.linalg.norm(J, axis=1)
    for by, scale in (
        ("l2", norms),
        ("loss", losses),
        ("loss+", norms * losses),
        ("none", 1 + 0 * norms),
    ):
        wrap = ({"kind": "normalised", "by": by},)
        v, w, _ = run("mgda", J, losses, wrap=_Frozen(wrap))
        expected, w0, _ = run("mgda", J / scale[:, None], losses)
        np.testing.assert_allclose(v, expected, atol=1e-6)
        np.testing.assert_allclose(w, w0 / scale, atol=1e-6)
    with pytest.raises(ConfigError, match="needs gradients"):
        balancing.normalised(balancing.equal(2), "l2")


class _Frozen(tuple):
    """A hashable list of wrapper specs, for the cache of compiled steps."""

    def __hash__(self) -> int:
        return hash(repr(self))


def test_smoothed_averages_weights():
    balancer = balancing.smoothed(balancing.static(2, [1.0, 3.0]), decay=0.5)
    weights, _ = _weigh(balancer, [[1, 1]] * 2)
    np.testing.assert_allclose(weights, [[1, 3], [1, 3]])
    rlw, smooth = balancing.rlw(2), balancing.smoothed(balancing.rlw(2), 0.9)
    raw, _ = _weigh(rlw, [[1, 1]] * 5)
    got, _ = _weigh(smooth, [[1, 1]] * 5)
    expected = raw[0]
    for step in range(1, 5):
        expected = 0.9 * expected + 0.1 * raw[step]
    np.testing.assert_allclose(got[-1], expected, rtol=1e-5)


def test_every_keeps_weights_until_due_or_a_new_task():
    balancer = balancing.every(balancing.rlw(2), 3)
    raw, _ = _weigh(balancing.rlw(2), [[1, 1]] * 7)
    got, _ = _weigh(balancer, [[1, 1]] * 7)
    np.testing.assert_allclose(got, raw[[0, 0, 0, 1, 1, 1, 2]], rtol=1e-6)
    losses = [[1, np.nan], [1, 1], [1, 1]]
    got, _ = _weigh(balancer, losses)
    assert got[0][1] == 0
    assert got[1][1] > 0  # asked again at once for the task that came


@pytest.mark.parametrize("kind", ["rlw", "cagrad", "graddrop"])
def test_warm_up_is_equal_then_the_method(kind):
    wrapped = _Frozen([{"kind": "warmed_up", "steps": 2}])
    for steps in (1, 2):
        np.testing.assert_allclose(run(kind, J, steps=steps, wrap=wrapped)[0], J.mean(0), atol=1e-7)
    np.testing.assert_allclose(run(kind, J, steps=3, wrap=wrapped)[0], run(kind, J)[0], atol=1e-7)


def _one_step(balancer, params, rows):
    losses = np.ones(4, np.float32)
    return jax.jit(lambda: balancer.update(rows, balancer.init(params), losses=losses))()


def test_groups_are_balanced_separately():
    balancer = balancing.grouped(balancing.upgrad(4), {"left": "^a/", "right": "."})
    rows = {"a": {"w": J[:, :4].astype(np.float32)}, "b": J[:, 4:].astype(np.float32)}
    params = jax.tree.map(lambda x: np.zeros_like(x[0]), rows)
    update, _ = _one_step(balancer, params, rows)
    np.testing.assert_allclose(update["a"]["w"], run("upgrad", J[:, :4])[0], atol=1e-5)
    np.testing.assert_allclose(update["b"], run("upgrad", J[:, 4:])[0], atol=1e-5)
    with pytest.raises(ConfigError, match="unused matches no parameter"):
        balancing.grouped(balancing.upgrad(4), {"all": ".", "unused": "zzz"}).init(params)
    with pytest.raises(ConfigError, match="no group matches 'b'"):
        balancing.grouped(balancing.upgrad(4), {"left": "^a/"}).init(params)


@pytest.mark.parametrize("groups", ["layer", "matrix"])
def test_gradvac_in_groups(groups):
    balancer = make("gradvac", 4, groups=groups)
    rows = {"a": {"w": J[:, :4].astype(np.float32), "b": J[:, 4:].astype(np.float32)}}
    update, state = _one_step(balancer, jax.tree.map(lambda x: np.zeros_like(x[0]), rows), rows)
    assert set(state.rule.inner) == ({"a"} if groups == "layer" else {"a/w", "a/b"})
    whole = run("gradvac", J, dtype=np.float32)[0]
    joined = np.concatenate([update["a"]["w"], update["a"]["b"]])
    assert np.isfinite(joined).all()
    if groups == "layer":
        np.testing.assert_allclose(joined, whole, atol=1e-4)


def test_shared_by_path():
    params = {"trunk": {"w": 0}, "heads": {"w": 0}}
    labels = balancing.shared_by_path("^trunk/")(params)
    assert labels == {"trunk": {"w": True}, "heads": {"w": False}}
    with pytest.raises(ConfigError, match="matches none of heads/w, trunk/w"):
        balancing.shared_by_path("encoder")(params)
