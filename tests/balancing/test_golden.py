"""Every method against stored values of torchjd or against an independent NumPy reference."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from mtmm_jax import balancing
from mtmm_jax.balancing.gramian import pcgrad_weights
from mtmm_jax.balancing.jacobian import drop_signs, gradvac_weights
from mtmm_jax.benchmarks.balancing import references
from tests.balancing import oracles
from tests.balancing.cases import padded, run

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/torchjd_oracle.json").read_text())
GOLDEN = GOLDEN.get("matrices", GOLDEN)


def _matrices():
    rng = np.random.RandomState(0)
    j3 = rng.randn(3, 10)
    j5 = rng.randn(5, 1000)
    c3 = j3.copy()
    c3[1] = -0.8 * j3[0] + 0.3 * j3[1]
    return {"J3": j3, "J5": j5, "C3": c3, "J_base": np.array([[-4.0, 1, 1], [6, 1, 1]])}


MATRICES = _matrices()
ENTRIES = {
    "Mean": ("equal", {}),
    "Sum": ("equal", {"reduction": "sum"}),
    "MGDA(eps=1e-12,it=20000)": ("mgda", {}),
    "UPGrad(default reg=1e-4)": ("upgrad", {}),
    "UPGrad(exact reg=0)": ("upgrad", {"reg": 0.0}),
    "DualProj(default reg=1e-4)": ("dualproj", {}),
    "DualProj(exact reg=0)": ("dualproj", {"reg": 0.0}),
    "CAGrad(c=0.4)": ("cagrad", {"c": 0.4}),
    "CAGrad(c=0.5)": ("cagrad", {"c": 0.5}),
    "CAGrad(c=1.0)": ("cagrad", {"c": 1.0}),
    "IMTLG": ("imtl_g", {}),
    "AlignedMTL(min)": ("aligned_mtl", {}),
    "AlignedMTL(median)": ("aligned_mtl", {"scale": "median"}),
    "AlignedMTL(rmse)": ("aligned_mtl", {"scale": "rmse"}),
    "ConFIG": ("conflict_free", {}),
    "FairGrad(alpha=1)": ("fairgrad", {}),
    "FairGrad(alpha=2)": ("fairgrad", {"alpha": 2.0}),
    "NashMTL(default,first call)": ("nash", {}),
    "NashMTL(max_norm=0,first call)": ("nash", {"max_norm": 0.0}),
    "PCD(tau=.02,first call)": ("pcd", {}),
    "ExcessMTL(step=1,first call)": ("excess_mtl", {}),
    "TrimmedMean(1)": ("trimmed_mean", {}),
    "Krum(0,1)": ("krum", {}),
}
# Where the stored value itself stopped short, our answer must be no worse in the objective
# that the method minimises, and near: (matrix, entry) -> distance of the stored v.
UNCONVERGED = {
    ("C3", "MGDA(eps=1e-12,it=20000)"): 1e-2,
    ("J3", "CAGrad(c=1.0)"): 2e-4,
    ("J5", "CAGrad(c=0.4)"): 2e-4,
    ("C3", "CAGrad(c=0.5)"): 2e-4,
    ("C3", "CAGrad(c=1.0)"): 2e-4,
    ("J_base", "CAGrad(c=1.0)"): 2e-4,
}


def _objective(kind, gramian, weights, hyper):
    """What the method minimises, at its final weights."""
    if kind == "mgda":
        return weights @ gramian @ weights
    mean = np.ones(len(gramian)) / len(gramian)
    radius = hyper["c"] * np.sqrt(mean @ gramian @ mean)
    moved = weights - mean  # proportional to the simplex point
    point = moved / moved.sum()
    return mean @ gramian @ point + radius * np.sqrt(point @ gramian @ point)


FIVE, FORTY = (5, 1000), (40, 125)


def _padded_run(kind, jacobian, shape, steps=1, dtype=np.float64, **hyper):
    """The update and the weights, computed in one program for all matrices of up to `shape`."""
    k, width = jacobian.shape
    present = np.arange(shape[0]) < k
    losses = present.astype(np.float64)
    v, w, _ = run(
        kind, padded(jacobian, *shape), losses, present, steps=steps, dtype=dtype, **hyper
    )
    assert not v[width:].any()
    return v[:width], w[:k]


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("matrix", MATRICES)
def test_stored_values(matrix, entry):
    if entry not in GOLDEN[matrix]:
        pytest.skip("not defined for two tasks")
    kind, hyper = ENTRIES[entry]
    stored, jacobian = GOLDEN[matrix][entry], MATRICES[matrix]
    v, w = _padded_run(kind, jacobian, FIVE, **hyper)
    head = np.asarray(stored["v_head"])
    error = max(np.abs(v[: len(head)] - head).max(), abs(np.linalg.norm(v) - stored["v_norm"]))
    gramian = jacobian @ jacobian.T
    if (matrix, entry) in UNCONVERGED:
        ours = _objective(kind, gramian, w, hyper)
        theirs = _objective(kind, gramian, np.asarray(stored["w"]), hyper)
        assert ours <= theirs + 1e-9
        assert error < UNCONVERGED[matrix, entry]
    else:
        assert error < 1e-5
    single, _ = _padded_run(kind, jacobian, FIVE, dtype=np.float32, **hyper)
    np.testing.assert_allclose(single, v, atol=1e-3 * np.abs(v).max())


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize(
    ("entry", "kind"), [("SDMGradWeighting", "sdmgrad"), ("MoDoWeighting", "modo")]
)
def test_stored_values_of_two_calls(matrix, entry, kind):
    jacobian = MATRICES[matrix]
    for calls, stored in enumerate(GOLDEN[matrix][entry], start=1):
        _, w = _padded_run(kind, jacobian, FIVE, steps=calls)
        np.testing.assert_allclose(w, stored, atol=1e-5)


def test_stored_constant_weights():
    for name, jacobian in MATRICES.items():  # four programs: there is a weight for each task
        weights = tuple(range(1, len(jacobian) + 1))
        v, _, _ = run("static", jacobian, weights=weights)
        np.testing.assert_allclose(np.linalg.norm(v), GOLDEN[name]["Constant[1..m]"]["v_norm"])


REFERENCES = {
    "upgrad": lambda j: j.T @ oracles.upgrad(j @ j.T, 1e-4),
    "dualproj": lambda j: j.T @ oracles.dualproj(j @ j.T, 1e-4),
    "imtl_g": lambda j: j.T @ oracles.imtl_g(j @ j.T),
    "aligned_mtl": lambda j: j.T @ oracles.aligned(j @ j.T, "min"),
    "conflict_free": oracles.conflict_free,
    "krum": lambda j: j.T @ oracles.krum(j, 0, 1),
    "trimmed_mean": lambda j: oracles.trimmed_mean(j, 1),
    "pcd": references.pcd,
    "cagrad": references.cagrad,
    "mgda": references.mgda,
}


@pytest.mark.parametrize("k", [7, 40])
@pytest.mark.parametrize("kind", REFERENCES)
def test_numpy_references(kind, k):
    for family, jacobian in oracles.matrices(k).items():
        expected = REFERENCES[kind](jacobian)
        scale = np.abs(expected).max()
        v, _ = _padded_run(kind, jacobian, FORTY)
        np.testing.assert_allclose(v, expected, atol=1e-5 * scale, err_msg=family)
        if family != "conflicting":  # there the Gramian's condition number exceeds float32
            single, _ = _padded_run(kind, jacobian, FORTY, dtype=np.float32)
            np.testing.assert_allclose(single, expected, atol=1e-3 * scale, err_msg=family)


@pytest.mark.parametrize("k", [7, 40])
def test_optimality_conditions(k):
    """MGDA, CAGrad, Nash and FairGrad satisfy the conditions that define them."""
    for family, j in oracles.matrices(k).items():
        g = j @ j.T
        _, w = _padded_run("mgda", j, FORTY)
        assert w.min() >= 0
        assert abs(w.sum() - 1) < 1e-9
        assert (g @ w).min() >= (w @ g @ w) * (1 - 1e-5), family
        for kind, alpha in (("nash", 1), ("fairgrad", 2)):
            hyper = {"max_norm": 0.0} if kind == "nash" else {"alpha": 2.0}
            _, w = _padded_run(kind, j, FORTY, **hyper)
            np.testing.assert_allclose((g @ w) ** alpha * w, 1, atol=1e-5)
            _, w = _padded_run(kind, j, FORTY, dtype=np.float32, **hyper)
            np.testing.assert_allclose(
                (g @ w) ** alpha * w, 1, atol=3e-2 if family == "conflicting" else 1e-3
            )
        _, w = _padded_run("cagrad", j, FORTY, c=0.5)
        moved = w - 1 / k
        point = moved / moved.sum()
        slope = g.mean(1) + 0.5 * np.sqrt(g.mean()) * g @ point / np.sqrt(point @ g @ point)
        assert slope @ point - slope.min() < 1e-5 * abs(slope @ point), family


@jax.jit
def _both_projections(g, present, orders, target):
    g = balancing.geometry_of(g)
    return (
        pcgrad_weights(g, present, orders),
        gradvac_weights(g, present, orders, target, 0.5),
    )


def test_projections_in_random_order_match_plain_loops():
    rng = np.random.default_rng(3)
    for k in (2, 40):
        j = oracles.matrices(k)["conflicting"]
        orders = np.stack([rng.permutation(k) for _ in range(k)])
        target = rng.uniform(-0.2, 0.4, size=(k, k))
        with jax.enable_x64(True):
            w, (w2, rho) = _both_projections(j @ j.T, np.ones(k, bool), orders, target)
        np.testing.assert_allclose(
            j.T @ np.asarray(w), oracles.pcgrad(j, orders), rtol=1e-6, atol=1e-8
        )
        v, expected = oracles.gradvac(j, orders, target, 0.5)
        np.testing.assert_allclose(j.T @ np.asarray(w2), v, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(rho, expected, atol=1e-8)


def test_graddrop_matches_a_loop_over_coordinates():
    rng = np.random.default_rng(4)
    j, u, leak = rng.normal(size=(4, 30)), rng.random(30), np.array([0.25, 0, 1, 0.5])
    expected = np.zeros(30)
    for c in range(30):
        p = 0.5 * (1 + j[:, c].sum() / np.abs(j[:, c]).sum())
        for k in range(4):
            keep = (j[k, c] > 0 and p > u[c]) or (j[k, c] < 0 and p < u[c])
            expected[c] += j[k, c] * (leak[k] + (1 - leak[k]) * keep)
    got = jax.jit(drop_signs)(*(x.astype(np.float32) for x in (j, u, leak)))
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_two_tasks_upgrad_with_preference_ones_is_pcgrad():
    rng = np.random.default_rng(5)
    for _ in range(20):
        j = rng.normal(size=(2, 3))
        up, _, _ = run("upgrad", j, reg=0.0, preference=1.0)
        pc, _, _ = run("pcgrad", j)
        np.testing.assert_allclose(up, pc, atol=1e-8)


def test_condition_number_and_cosines():
    j = oracles.matrices(5)["wide"]
    units = j / np.linalg.norm(j, axis=1, keepdims=True)

    @jax.jit
    def measured(g):
        everyone = np.ones(5, bool)
        return (
            balancing.cosines(g),
            balancing.condition_number(g, everyone),
            balancing.conflict_rate(g, everyone),
        )

    cosines, number, rate = measured((j @ j.T).astype(np.float32))
    np.testing.assert_allclose(cosines, units @ units.T, atol=1e-5)
    np.testing.assert_allclose(number, np.linalg.cond(j), rtol=1e-3)
    conflicts = (j @ j.T)[~np.eye(5, dtype=bool)] < 0
    np.testing.assert_allclose(rate, conflicts.mean())
