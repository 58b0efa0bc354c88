"""Linear models of tasks, held against scikit-learn; and mixtures, against their definition."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge

from mtmm_jax.tasks.traits import linear
from mtmm_jax.tasks.traits.linear import linear_class, linear_labels, linear_number
from mtmm_jax.tasks.traits.linear_solver import (
    Features,
    Rotated,
    sigmoid_loss,
    softmax_loss,
    solve_all,
    squared_loss,
)

RNG = np.random.default_rng(0)


def same(values):
    return values


def problem(rows, width, classes=3):
    x = RNG.normal(size=(rows, width)).astype(np.float32) / np.sqrt(width)
    scores = x @ RNG.normal(size=(width, classes)) * 4 + RNG.gumbel(size=(rows, classes))
    return x, scores.argmax(1)


def solutions(loss, x, labels, strength):
    """Scores of the solution in the rows' space, and of that over the features themselves."""
    turned = Rotated.of(Features.of(x))
    kernel, bias = turned.back(*turned.solve(loss, labels, strength, None))
    zero = np.zeros_like(kernel), np.zeros_like(bias)
    other, shift = solve_all(loss, Features.of(x), labels, strength, *zero)
    return x @ kernel + bias, x @ other + shift


@pytest.mark.parametrize("strength", [0.1, 1.0, 30.0])
@pytest.mark.parametrize(("rows", "width"), [(60, 150), (120, 20)])
def test_classes_as_scikit_learn_has_them(rows, width, strength):
    x, y = problem(rows, width)
    wanted = LogisticRegression(C=strength, tol=1e-6, max_iter=5000).fit(x, y).predict_proba(x)
    labels = np.eye(3, dtype=np.float32)[y]
    for scores in solutions(softmax_loss(), x, labels, strength):
        found = np.asarray(jax.nn.softmax(scores.astype(np.float32)))
        np.testing.assert_allclose(found, wanted, atol=3e-3)


@pytest.mark.parametrize(("rows", "width"), [(60, 150), (120, 20)])
def test_labels_and_numbers_as_scikit_learn_has_them(rows, width):
    x, y = problem(rows, width)
    hard = (y == 1).astype(np.float32)[:, None]
    wanted = LogisticRegression(C=5.0, tol=1e-6, max_iter=5000).fit(x, y == 1).predict_proba(x)
    for scores in solutions(sigmoid_loss(), x, hard, 5.0):
        np.testing.assert_allclose(1 / (1 + np.exp(-scores[:, 0])), wanted[:, 1], atol=3e-3)
    number = (x[:, :1] * 3 + 2 + 0.1 * RNG.normal(size=(rows, 1))).astype(np.float32)
    line = Ridge(alpha=0.2).fit(x, number[:, 0]).predict(x)
    for scores in solutions(squared_loss(), x, number, 5.0):
        np.testing.assert_allclose(scores[:, 0], line, atol=3e-3)


def test_sparse_blocks_are_the_same_features():
    x = RNG.normal(size=(9, 30)).astype(np.float32) * (RNG.uniform(size=(9, 30)) < 0.05)
    both = Features.join([Features.of(x), Features.of(np.ones((9, 2), np.float32))])
    assert hasattr(both.blocks[0], "toarray")
    assert not hasattr(both.blocks[1], "toarray")
    kernel = RNG.normal(size=(32, 2)).astype(np.float32)
    whole = np.concatenate([x, np.ones((9, 2), np.float32)], axis=1)
    np.testing.assert_allclose(both @ kernel, whole @ kernel, atol=1e-5)
    np.testing.assert_allclose(both.transposed(whole), whole.T @ whole, atol=1e-4)
    np.testing.assert_array_equal(both.take(np.array([3, 1])).array(), whole[[3, 1]])


def test_the_strength_is_the_one_that_validation_likes_best():
    x, y = problem(80, 200)
    noise = RNG.integers(0, 3, 80)  # labels without a relation: the strongest penalty
    seen, truth = problem(200, 200)
    weak = linear_class(3).fit(Features.of(x), noise, Features.of(seen), truth)
    assert weak.strength == min(linear.STRENGTHS)
    easy = x[:, :1] * 20 + 0 * y[:, None]
    sure = (easy[:, 0] > 0).astype(int)
    strong = linear_class(2).fit(Features.of(easy), sure, Features.of(easy), sure)
    assert strong.strength >= 100


def test_rows_beyond_those_compared_are_used(monkeypatch):
    monkeypatch.setattr(linear, "COMPARED", 40)
    x, y = problem(120, 20)
    found = linear_class(3).fit(Features.of(x), y, Features.of(x), y)
    wanted = LogisticRegression(C=found.strength, tol=1e-6, max_iter=5000).fit(x, y)
    p = np.asarray(jax.nn.softmax(x @ found.kernel + found.bias))
    np.testing.assert_allclose(p, wanted.predict_proba(x), atol=1e-2)


@pytest.mark.parametrize("known", [[2], [0, 3]])
def test_classes_without_a_row_are_never_predicted(known):
    x = RNG.normal(size=(30, 4)).astype(np.float32)
    y = np.array(known)[RNG.integers(0, len(known), 30)]
    truth = RNG.integers(0, 4, 30)  # validation has the others, too
    fit = linear_class(4).fit(Features.of(x), y, Features.of(x), truth)
    scores = x @ fit.kernel + fit.bias
    assert np.isfinite(scores).all()
    assert set(scores.argmax(1)) <= set(known)


def test_labels_that_always_or_never_hold_have_finite_models():
    x = RNG.normal(size=(30, 4)).astype(np.float32)
    y = np.stack([np.ones(30), np.zeros(30), x[:, 0] > 0], axis=1).astype(np.float32)
    fit = linear_labels(3).fit(Features.of(x), y, Features.of(x[:0]), y[:0])
    p = 1 / (1 + np.exp(-(x @ fit.kernel + fit.bias)))
    assert np.isfinite(p).all()
    assert p[:, 0].min() > 0.9
    assert p[:, 1].max() < 0.1


@pytest.mark.parametrize("bad", [np.zeros((20, 3)), np.ones((20, 3)), np.eye(20, 3) * 1e4])
def test_degenerate_features_give_finite_models(bad):
    x, y = bad.astype(np.float32), RNG.integers(0, 2, 20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit = linear_class(2).fit(Features.of(x), y, Features.of(x), y)
        number = linear_number(same, 1, same, same).fit(
            Features.of(x), y.astype(np.float32), Features.of(x), y.astype(np.float32)
        )
    for one in (fit, number):
        assert np.isfinite(one.kernel).all()
        assert np.isfinite(one.bias).all()


def test_mixtures_are_those_of_probabilities_and_of_densities():
    weights = np.array([[0.25, 0.75], [1.0, 0.0]], np.float32)
    z = RNG.normal(size=(2, 2, 3)).astype(np.float32)
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    mixed = linear_class(3).mix(jnp.asarray(z), jnp.asarray(weights))
    np.testing.assert_allclose(np.exp(mixed), np.einsum("bep,be->bp", p, weights), rtol=1e-5)
    s = 1 / (1 + np.exp(-z))
    mixed = linear_labels(3).mix(jnp.asarray(z), jnp.asarray(weights))
    wanted = np.einsum("bep,be->bp", s, weights)
    np.testing.assert_allclose(1 / (1 + np.exp(-np.asarray(mixed))), wanted, rtol=1e-5)
    # A normal distribution with the mean and variance of draws from either.
    chosen = RNG.uniform(size=200_000) < weights[0, 0]
    deviation = np.exp(0.5 * np.where(chosen, z[0, 0, 1], z[0, 1, 1]))
    draws = np.where(chosen, z[0, 0, 0], z[0, 1, 0]) + deviation * RNG.normal(size=200_000)
    found = linear_number(same, 2, same, same).mix(jnp.asarray(z[..., :2]), jnp.asarray(weights))
    assert float(found[0, 0]) == pytest.approx(draws.mean(), abs=0.02)
    assert float(found[0, 1]) == pytest.approx(np.log(draws.var()), abs=0.02)


def test_rows_are_stacked_as_they_are():
    thin = RNG.normal(size=(4, 30)).astype(np.float32) * (RNG.uniform(size=(4, 30)) < 0.05)
    full = RNG.normal(size=(3, 30)).astype(np.float32)
    for parts, is_sparse in (([thin, thin[:2]], True), ([thin, full], False)):
        stacked = Features.stack([Features.of(part) for part in parts])
        assert hasattr(stacked.blocks[0], "toarray") == is_sparse
        np.testing.assert_array_equal(stacked.array(), np.concatenate(parts))


def test_sparse_rows_are_rotated_as_dense_ones():
    thin = RNG.normal(size=(12, 200)).astype(np.float32) * (RNG.uniform(size=(12, 200)) < 0.05)
    full = RNG.normal(size=(12, 3)).astype(np.float32)
    both = Features.join([Features.of(thin), Features.of(full)])
    assert [hasattr(block, "toarray") for block in both.blocks] == [True, False]
    turned, thin = Rotated.of(both), np.concatenate([thin, full], axis=1)
    centred = thin - thin.mean(0)
    np.testing.assert_allclose(turned.z @ turned.turn.T, centred, atol=1e-5)
    np.testing.assert_allclose(turned.z.T @ turned.z, np.diag(turned.values), atol=1e-4)
    np.testing.assert_allclose(turned.center, thin.mean(0), atol=1e-6)
