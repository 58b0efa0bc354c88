"""The properties that torchjd documents for its aggregators, for every method here that has them.

Families of Jacobians `[5, 12]` in float64: of every rank, of rows in a cone, strongly stationary
(positive weights make the sum zero) and weakly so (only some rows cancel), with zero rows.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.balancing.cases import run

K, P = 5, 12
NON_CONFLICTING, PERMUTATION, LINEAR = "non-conflicting", "permutation", "linear under scaling"
STATIONARY, NONZERO = "zero where strongly stationary", "zero only where strongly stationary"

CLAIMS: dict[str, tuple[dict, tuple[str, ...]]] = {
    "equal": ({}, (PERMUTATION, LINEAR)),
    "mgda": ({}, (NON_CONFLICTING, PERMUTATION, STATIONARY)),
    "upgrad": ({"reg": 0.0}, (NON_CONFLICTING, PERMUTATION, LINEAR, STATIONARY, NONZERO)),
    "dualproj": ({"reg": 0.0}, (NON_CONFLICTING, PERMUTATION, STATIONARY)),
    "cagrad": ({"c": 1.0}, (NON_CONFLICTING, PERMUTATION)),
    "nash": ({}, (NON_CONFLICTING, PERMUTATION)),
    "fairgrad": ({}, (NON_CONFLICTING, PERMUTATION)),
    "imtl_g": ({}, (PERMUTATION,)),
    "aligned_mtl": ({}, (PERMUTATION,)),
    "conflict_free": ({}, (PERMUTATION, LINEAR)),
    "pcgrad": ({}, (LINEAR,)),
    "trimmed_mean": ({}, (PERMUTATION,)),
}


def families() -> dict[str, np.ndarray]:
    """Jacobians by name."""
    rng = np.random.default_rng(3)
    out = {}
    for rank in range(1, K + 1):
        out[f"rank {rank}"] = rng.normal(size=(K, rank)) @ rng.normal(size=(rank, P))
    out["cone"] = rng.normal(size=(K, P)) + 2 * rng.normal(size=P)
    out["scaled"] = rng.normal(size=(K, P)) * np.logspace(-2, 2, K)[:, None]
    zero = rng.normal(size=(K, P))
    zero[2] = 0
    out["zero row"], out["zeros"] = zero, np.zeros((K, P))
    strong, weak = rng.normal(size=(2, K, P))
    strong[-1] = -rng.uniform(0.5, 1, K - 1) @ strong[:-1]
    weak[1] = -2 * weak[0]
    out["strongly stationary"], out["weakly stationary"] = strong, weak
    return out


FAMILIES = families()
WELL_POSED = ("rank 5", "cone", "scaled")
PAIRS = [(kind, claim) for kind, (_, claims) in CLAIMS.items() for claim in claims]


def update(kind: str, rows: np.ndarray) -> np.ndarray:
    """The update of one step at equal losses."""
    return run(kind, rows, np.ones(K), **CLAIMS[kind][0])[0]


@pytest.mark.parametrize("kind", CLAIMS)
def test_structure(kind):
    for name, rows in FAMILIES.items():
        found = update(kind, rows)
        assert found.shape == (P,), name
        assert np.isfinite(found).all(), name


@pytest.mark.parametrize(("kind", "claim"), PAIRS)
def test_claim(kind, claim):
    rng = np.random.default_rng(4)
    for name, rows in FAMILIES.items():
        if claim == NON_CONFLICTING:
            found = update(kind, rows)
            products = rows @ found / np.maximum(np.linalg.norm(rows, axis=1), 1e-300)
            if name in WELL_POSED or kind in ("mgda", "upgrad", "dualproj", "cagrad"):
                size = np.linalg.norm(found) + 1e-3 * np.linalg.norm(rows, axis=1).max()
                assert products.min() >= -1e-5 * size, name
        elif claim == PERMUTATION:
            if name in WELL_POSED or name == "zero row":
                found, order = update(kind, rows), rng.permutation(K)
                size = np.linalg.norm(found)
                np.testing.assert_allclose(
                    update(kind, rows[order]), found, atol=1e-6 * size, err_msg=name
                )
        elif claim == LINEAR:
            if name in WELL_POSED:
                a, b = rng.uniform(0.2, 2, size=(2, K))
                parts = [update(kind, rows * c[:, None]) for c in (a, b, 2 * a + 3 * b)]
                expected = 2 * parts[0] + 3 * parts[1]
                np.testing.assert_allclose(
                    parts[2], expected, atol=1e-6 * np.linalg.norm(expected), err_msg=name
                )
        elif claim == STATIONARY:
            if name in ("strongly stationary", "zeros"):
                size = np.linalg.norm(rows, axis=1).max()
                assert np.linalg.norm(update(kind, rows)) <= 1e-6 * size, name
        elif name in (*WELL_POSED, "zero row", "weakly stationary"):
            assert np.linalg.norm(update(kind, rows)) > 1e-3, name
