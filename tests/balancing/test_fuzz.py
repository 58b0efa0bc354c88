"""The fuzz of `benchmarks.balancing.fuzz` in short: hard Jacobians of up to eight tasks."""

from __future__ import annotations

import operator
from fractions import Fraction

import jax
import numpy as np
import pytest

from mtmm_jax.balancing.solvers import spectral
from mtmm_jax.benchmarks.balancing import fuzz, references

MOST = 8
CASES = fuzz.cases_of(64, seed=1, most=MOST)


@pytest.mark.parametrize("kind", sorted({*references.UPDATES, *references.EQUATIONS}))
def test_hard_jacobians(kind):
    row = fuzz.judge(kind, CASES, np.float32, chunk=64, most=MOST)
    assert row["not_finite"] == 0
    assert row["compared"] >= 15
    assert row["above"] == 0, [e for e in row["errors"] if e["well"] and e["error"] > 1e-3]
    for name in ("deleted", "permuted", "scaled"):
        assert row.get(name, 0.0) < 1e-3, name


def test_references_agree_with_each_other():
    """On two conflicting gradients UPGrad has a closed form, and PCD's bound holds."""
    rows = np.array([[1.0, 0.2], [-1.0, 0.5]])
    cross = rows[0] @ rows[1]
    projected = [rows[i] - cross / (rows[1 - i] @ rows[1 - i]) * rows[1 - i] for i in (0, 1)]
    np.testing.assert_allclose(references.upgrad(rows, 0.0), sum(projected) / 2, atol=1e-9)
    v = references.pcd(rows)
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    d = v / np.linalg.norm(v)
    assert units[1] @ d > 0
    inside = references.cagrad(rows) - rows.mean(0)
    np.testing.assert_allclose(np.linalg.norm(inside), 0.5 * np.linalg.norm(rows.mean(0)))


def test_cagrad_where_every_direction_of_the_ball_conflicts():
    """Norms of 1e-24 to 1: the level, and so the linear term, is far below 0."""
    case = fuzz.cases_of(378)[377]
    for dtype in (np.float32, np.float64):
        row = fuzz.judge("cagrad", [case], dtype, chunk=1, most=MOST)
        assert row["compared"] == 1
        assert row["error"] < fuzz.TOLERANCE[dtype]


@pytest.mark.parametrize(
    ("kind", "number", "dtype"),
    [
        # The weights' sum is nearly one small entry of the solution.
        ("imtl_g", 114, np.float32),
        # Norms so different that eigenvalues lose the small ones, though not in float32's digits.
        ("aligned_mtl", 144, np.float64),
    ],
)
def test_cases_that_were_beyond_the_tolerance(kind, number, dtype):
    case = fuzz.cases_of(number + 1)[number]
    row = fuzz.judge(kind, [case], dtype, chunk=1, most=MOST)
    assert row["compared"] == 1
    assert row["error"] < fuzz.TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_residuals_are_those_of_twice_the_precision(dtype):
    rng = np.random.default_rng(0)
    matrix, x = rng.normal(size=(24, 24)).astype(dtype), rng.normal(size=24).astype(dtype)
    right = (matrix @ x).astype(dtype)
    fractions = [[Fraction(float(a)) for a in row] for row in (*matrix, x, right)]
    *rows, factors, b = fractions
    exact = [
        float(y - sum(map(operator.mul, row, factors))) for row, y in zip(rows, b, strict=True)
    ]
    with jax.enable_x64(dtype == np.float64):
        found = jax.jit(spectral._residual)(matrix, x, right)
    np.testing.assert_allclose(found, exact, atol=1e-4 * np.abs(exact).max())
