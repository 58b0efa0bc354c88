"""What must hold for every row of METHODS; a new entry is tested by being listed there."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from mtmm_jax import balancing
from tests.balancing.cases import RANDOM, make, padded, run
from tests.made_up import packaged

K = 5
MANY, WIDTH = 40, 50
EQUIVARIANT = {
    "upgrad",
    "dualproj",
    "mgda",
    "imtl_g",
    "aligned_mtl",
    "conflict_free",
    "cagrad",
    "nash",
    "fairgrad",
}
# One task alone: these keep to g itself; the others scale it as they scale any task.
ALONE_SCALES = {
    "static",
    "uncertainty",
    "gls",
    "stch",
    "cosmos",
    "nash",
    "fairgrad",
    "famo",
    "db_mtl",
    "moco",
    "auto_lambda",
}


def _case(seed=0, k=K, width=12):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(k, width)), rng.uniform(0.5, 2, k), rng.normal(size=(k, width))


@pytest.mark.parametrize("kind", balancing.METHODS)
def test_absent_or_nan_is_row_deleted(kind):
    """Three steps with the last task absent, over any filler, equal three steps without it."""
    j, losses, other = _case()
    expected = run(kind, j[:-1], losses[:-1], other=other[:-1], steps=3)
    gone = np.arange(K) < K - 1
    fillers = {
        "zeros": (0.0, 0.0, gone),
        "nan, said to be absent": (np.nan, np.nan, gone),
        "nan gradient, said to be present": (np.nan, 1.0, np.ones(K, bool)),
        "infinite loss, said to be present": (1.0, np.inf, np.ones(K, bool)),
    }
    for name, (filler, loss, present) in fillers.items():
        j2, l2, o2 = j.copy(), losses.copy(), other.copy()
        j2[-1], o2[-1], l2[-1] = filler, filler, loss
        v, w, state = run(kind, j2, l2, present, o2, steps=3)
        np.testing.assert_allclose(v, expected[0], rtol=1e-6, atol=1e-9, err_msg=name)
        np.testing.assert_allclose(w[:-1], expected[1], rtol=1e-6, atol=1e-9, err_msg=name)
        assert w[-1] == 0
        np.testing.assert_array_equal(state.absences, [0] * (K - 1) + [3])
        assert int(state.skipped) == 0


@pytest.mark.parametrize("kind", balancing.METHODS)
def test_structure_stands_and_an_absent_task_keeps_its_state(kind):
    j, losses, other = _case(1, MANY, WIDTH)
    initial = make(kind, MANY).init({"x": np.zeros(WIDTH, np.float32)})
    own = [leaf for leaf in jax.tree.leaves(initial) if leaf.size]
    assert len({leaf.unsafe_buffer_pointer() for leaf in own}) == len(own), "cannot be donated"
    gone = np.arange(MANY) == 2
    present = np.stack([np.ones(MANY, bool)] * 2 + [~gone])
    before, after = (run(kind, j, losses, present, other, steps, np.float32)[2] for steps in (2, 3))
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), initial, after)
    assert all(jax.tree.leaves(same)), "a step changes the state's structure"
    for old, new in zip(jax.tree.leaves(before.rule), jax.tree.leaves(after.rule), strict=True):
        if old.shape[:1] == (MANY,):
            np.testing.assert_array_equal(old[2], new[2])


def _hard(j):
    """Scales 1e-20 to 1e20, dependent, repeated, opposed and zero rows."""
    k = len(j)
    low, zero = j.copy(), j.copy()
    low[3:] = j[: k - 3].sum(1, keepdims=True) / 10
    zero[1] = 0
    return {
        "small": j * 1e-6,
        "large": j * 1e6,
        "square below float32": j * 1e-20,
        "square above float32": j * 1e20,
        "dependent": low,
        "one zero": zero,
        "repeated": np.repeat(j[:1], k, 0),
        "zeros": np.zeros_like(j),
        "opposed": np.concatenate([j[: k // 2], -j[: k // 2], j[: k % 2]]),
    }


@pytest.mark.parametrize("kind", balancing.METHODS)
def test_finite_on_hard_matrices(kind):
    """Of 5 tasks, the other 35 absent, and of 40; float32 throughout."""
    j, losses, _ = _case(2)
    many, more, _ = _case(6, MANY, WIDTH)
    hard = [(name, case, losses) for name, case in _hard(j).items()]
    hard += [(f"40 {name}", case, more) for name, case in _hard(many).items()]
    for name, matrix, at in hard:
        k = len(matrix)
        rows = padded(matrix, MANY, WIDTH)
        at = np.pad(at, (0, MANY - k))
        v, w, _ = run(kind, rows, at, np.arange(MANY) < k, dtype=np.float32)
        assert np.isfinite(v).all(), name
        assert np.isfinite(w).all(), name
    v, w, _ = run(kind, j * np.logspace(-1.5, 1.5, K)[:, None], losses)
    assert np.isfinite(v).all()
    assert np.isfinite(w).all()


@pytest.mark.parametrize("kind", balancing.METHODS)
def test_one_task_is_the_gradient_itself(kind):
    j, losses, other = _case(3, 1)
    v, _, _ = run(kind, j, losses, other=other)
    cosine = v @ j[0] / np.linalg.norm(v) / np.linalg.norm(j[0])
    assert cosine > 1 - 1e-9
    if kind not in ALONE_SCALES:
        ratio = np.linalg.norm(v) / np.linalg.norm(j[0])
        allowed = 1.5 if kind == "cagrad" else 1.0
        np.testing.assert_allclose(ratio, allowed, rtol=1e-6)


@pytest.mark.parametrize("kind", balancing.METHODS)
def test_many_tasks(kind):
    """K = 40: finite, and zero for the absent."""
    j, losses, other = _case(6, MANY, WIDTH)
    present = np.random.default_rng(6).random(MANY) < 0.8
    v, w, _ = run(kind, j, losses, present, other, dtype=np.float32)
    assert np.isfinite(w).all()
    assert np.isfinite(v).all()
    assert not w[~present].any()


@pytest.mark.parametrize("kind", sorted(EQUIVARIANT))
def test_order_of_tasks_does_not_matter(kind):
    j, losses, _ = _case(7)
    order = np.array([3, 1, 4, 0, 2])
    v, w, _ = run(kind, j, losses)
    v2, w2, _ = run(kind, j[order], losses[order])
    np.testing.assert_allclose(v2, v, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(w2, w[order], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("kind", "hyper"),
    [("upgrad", {"reg": 0.0}), ("dualproj", {"reg": 0.0}), ("mgda", {}), ("cagrad", {"c": 1.0})],
)
def test_no_conflict_with_any_task(kind, hyper):
    for seed in range(10):
        j, _, _ = _case(seed)
        v, _, _ = run(kind, j, np.ones(K), **hyper)
        assert (j @ v).min() >= -1e-6 * np.abs(j @ v).max()


def test_defining_equalities():
    j, _, _ = _case(8)
    units = j / np.linalg.norm(j, axis=1, keepdims=True)
    v, _, _ = run("imtl_g", j)
    np.testing.assert_allclose(units @ v, (units @ v)[0], rtol=1e-8)
    v, _, _ = run("conflict_free", j)
    np.testing.assert_allclose(units @ v, (units @ v)[0], rtol=1e-8)
    _, w, _ = run("nash", j, max_norm=0.0)
    np.testing.assert_allclose(j @ j.T @ w * w, 1, rtol=1e-8)


@pytest.mark.parametrize("kind", ["pcgrad", "gradvac", "graddrop", "rlw"])
def test_draws_depend_on_seed_and_step_only(kind):
    assert {kind} <= RANDOM
    j, losses, _ = _case(9)
    first = run(kind, j, losses, steps=1)[0]
    np.testing.assert_array_equal(first, run(kind, j, losses, steps=1)[0])
    assert (
        kind in {"pcgrad", "gradvac"} or np.abs(first - run(kind, j, losses, steps=2)[0]).max() > 0
    )
    assert any(np.abs(first - run(kind, j, losses, seed=s)[0]).max() > 1e-9 for s in (1, 2, 3))


def test_every_method_is_exported_and_documented():
    own = packaged(balancing.METHODS)
    assert {*own, *balancing.WRAPPERS} <= set(balancing.__all__)
    for name, constructor in own.items():
        assert getattr(balancing, name) is constructor
        text = constructor.__doc__
        assert "Cost:" in text, name
        assert "Use it:" in text, name
        assert "Not:" in text, name


def test_names_and_hyper_parameters_are_checked():
    with pytest.raises(ValueError, match="did you mean 'cagrad'"):
        balancing.build("cagrd", 2)
    with pytest.raises(ValueError, match=r"balancing\.d.*choices: c, rescale"):
        balancing.build({"kind": "cagrad", "d": 1}, 2)
    with pytest.raises(ValueError, match=r"balancing\.wrap\[0\]"):
        balancing.build({"kind": "cagrad", "wrap": [{"kind": "smooth"}]}, 2)
    with pytest.raises(ValueError, match="3 values for 2 tasks"):
        balancing.build({"kind": "static", "weights": [1, 2, 3]}, 2)
