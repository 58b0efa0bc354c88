"""Methods with memory over twenty calls, against stored values of torchjd or plain NumPy."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from mtmm_jax import balancing

STORED = json.loads((Path(__file__).parents[1] / "golden/torchjd_calls.json").read_text())
K, CALLS = 4, 20


def _jacobians():
    rng = np.random.RandomState(7)
    scale = np.array([1.0, 30.0, 0.02, 4.0])[:, None]
    return np.stack(
        [rng.randn(K, 12) * scale - 0.8 * scale * rng.randn(12) * (t % 3) for t in range(CALLS)]
    )


ROWS = _jacobians()
LOSSES = np.abs(ROWS[:, :, 0]) + 0.1


def _run(balancer, rows=ROWS, losses=LOSSES, present=None, dtype=np.float64):
    """Updates and weights of all calls, one program."""
    present = np.ones((len(rows), K), bool) if present is None else present

    def step(state, at):
        grads, loss, here = at
        update, state = balancer.update(
            {"x": grads}, state, losses=loss, present=here, other={"x": grads[:, ::-1]}
        )
        return state, (update["x"], state.task_weights)

    with jax.enable_x64(dtype == np.float64):
        rows, losses = rows.astype(dtype), losses.astype(dtype)
        run = jax.jit(lambda r, *x: jax.lax.scan(step, balancer.init({"x": r[0, 0]}), (r, *x)))
        return tuple(np.asarray(x) for x in run(rows, losses, present)[1])


@pytest.mark.parametrize(
    ("entry", "kind", "hyper"),
    [
        ("PCD(tau=0.02)", "pcd", {}),
        ("PCD(tau=(.5,.1,.02),beta=.9)", "pcd", {"tau": (0.5, 0.1, 0.02), "decay": 0.9}),
        ("ConFIG(pref=(1,2,.5,1))", "conflict_free", {"preference": (1.0, 2.0, 0.5, 1.0)}),
        ("ExcessMTL({})", "excess_mtl", {}),
        ("ExcessMTL({'n_warmup_steps': 5})", "excess_mtl", {"warmup": 5}),
    ],
)
def test_twenty_calls_equal_torchjd(entry, kind, hyper):
    updates, _ = _run(balancing.build({"kind": kind, **hyper}, K))
    for call, (got, stored) in enumerate(zip(updates, STORED[entry], strict=True)):
        scale = np.abs(stored).max()
        np.testing.assert_allclose(got, stored, atol=1e-5 * scale, err_msg=str(call))


def test_go4align_follows_its_code():
    """With one group every weight is the mean; with K groups each task has its own."""
    p, step = np.ones(K) / K, 0.1
    for groups in (1, K, 2):
        p = np.ones(K) / K
        _, weights = _run(balancing.go4align(K, groups=groups, step=step))
        for losses, got in zip(LOSSES, weights, strict=True):
            p = p * np.exp(-step * losses)
            p = p / p.sum()
            raw = losses.sum() / losses * p
            np.testing.assert_allclose(got, _best_means(raw, groups), rtol=1e-9)


def _best_means(values, groups):
    """Each value's group mean, by trying every assignment."""
    best = None
    for code in range(groups ** len(values)):
        group = np.array([code // groups**i % groups for i in range(len(values))])
        means = np.array([values[group == g].mean() for g in group])
        cost = ((values - means) ** 2).sum()
        if best is None or cost < best[0] - 1e-15:
            best = cost, means
    return best[1]


@pytest.mark.parametrize("normalise", [False, True])
def test_ldc_mtl_follows_its_code(normalise):
    """Its loss and Adam by hand; the third task absent in call 5. (Normalised, the first losses are
    all equal, and with a penalty the sign of their differences would be rounding.)"""
    penalty = 0.0 if normalise else 0.3
    present = np.ones((CALLS, K), bool)
    present[5, 2] = False
    balancer = balancing.ldc_mtl(K, penalty=penalty, learning_rate=0.1, normalise=normalise)
    _, weights = _run(balancer, present=present)
    a, m, v, count = np.ones(K), np.zeros(K), np.zeros(K), np.zeros(K)
    for call in range(CALLS):
        here = np.flatnonzero(present[call])
        # Of the tasks that are there: an absent one is left out as if it were none.
        unit = LOSSES[0][here].min() / LOSSES[0] if normalise else np.ones(K)
        s = 1 / (1 + np.exp(-a[here]))
        z = s * unit[here] * LOSSES[call][here]
        turn = np.sign(z[:-1] - z[1:])
        slope = 1 / s.sum() + penalty * (np.append(turn, 0) - np.append(0, turn))
        np.testing.assert_allclose(weights[call][here], slope * s * unit[here], rtol=1e-6)
        assert not weights[call][~present[call]].any()
        grad = slope * s * (1 - s) * unit[here] * LOSSES[call][here]
        count[here] += 1
        m[here] = 0.9 * m[here] + 0.1 * grad
        v[here] = 0.999 * v[here] + 0.001 * grad**2
        t = count[here]
        a[here] -= 0.1 * m[here] / (1 - 0.9**t) / (np.sqrt(v[here] / (1 - 0.999**t)) + 1e-8)


def test_auto_lambda_follows_its_code():
    """Quadratic losses: its finite difference along the validation gradient is exact, so the code's
    update is Adam on `-alpha <g_k, g_val>`, here with a finite difference as in the code."""
    alpha, rate = 0.1, 0.01
    targets = np.random.default_rng(0).normal(size=(K, 12))
    held_out = targets + 0.3
    losses_at = lambda x: 0.5 * ((x - targets) ** 2).sum(1)  # noqa: E731
    primary = np.array([1.0, 0, 1, 0])
    balancer = balancing.auto_lambda(K, learning_rate=rate, step=alpha, primary=(0, 2))

    def update(rows, state, other):
        return balancer.update({"x": rows}, state, other={"x": other})

    with jax.enable_x64(True):
        jitted = jax.jit(update)
        x, w, m, v = np.zeros(12), np.full(K, 0.1), np.zeros(K), np.zeros(K)
        state = balancer.init({"x": x})
        for t in range(1, 6):
            ahead = x - alpha * (w @ (x - targets))
            along = primary @ (ahead - held_out)
            eps = 0.01 / np.linalg.norm(along)
            slope = (losses_at(x + eps * along) - losses_at(x - eps * along)) / (2 * eps)
            grad = -alpha * slope
            m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
            w = w - rate * m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
            moved, state = jitted(x - targets, state, ahead - held_out)
            np.testing.assert_allclose(state.task_weights, w, rtol=1e-8)
            x = x - alpha * np.asarray(moved["x"])


def test_stch_both_forms():
    """The published code's: sum of logs for five steps, the nadir from the fifth alone."""
    _, weights = _run(balancing.stch(K, mu=0.5, warmup=5, measured=1, form="log"))
    np.testing.assert_allclose(weights[:5], 1 / LOSSES[:5])
    for call in range(5, CALLS):
        z = np.exp(np.log(LOSSES[call] / LOSSES[4]) / 0.5)
        np.testing.assert_allclose(weights[call], K * z / z.sum() / LOSSES[call], rtol=1e-8)
    _, weights = _run(balancing.stch(K, warmup=0, preference=1 / K))  # torchjd's
    z = np.exp(LOSSES / K)
    np.testing.assert_allclose(weights, z / z.sum(1, keepdims=True) / K, rtol=1e-8)
    with pytest.raises(ValueError, match="neither preference nor ideal"):
        balancing.stch(K, form="log", preference=0.5)


def test_sdmgrad_with_a_preference():
    """Twenty steps of projected SGD by hand, for two calls."""
    w, p = np.ones(K) / K, np.array([4.0, 2, 1, 1]) / 8
    _, weights = _run(balancing.sdmgrad(K, lam=0.6, preference=(4.0, 2.0, 1.0, 1.0)))
    for call in range(2):
        cross = ROWS[call] @ ROWS[call][:, ::-1].T
        scale = np.sqrt(np.maximum(np.diag(cross), 0)).mean()
        cross, velocity = cross / (scale**2 + 1e-8), np.zeros(K)
        for _ in range(20):
            velocity = 0.5 * velocity + cross @ (w + 0.6 * p)
            w = _simplex(w - 10 * velocity)
        np.testing.assert_allclose(weights[call], (w + 0.6 * p) / 1.6, atol=1e-8)


def _simplex(x):
    low, high = x.min() - 1, x.max()
    for _ in range(200):
        shift = (low + high) / 2
        low, high = (shift, high) if np.maximum(x - shift, 0).sum() > 1 else (low, shift)
    return np.maximum(x - low, 0)
