"""What modalities say about labels: estimates against known values, rankings against the truth."""

import numpy as np
import pytest
from scipy import integrate, stats
from sklearn.feature_selection import mutual_info_classif

from mtmm_jax.analysis import pages
from mtmm_jax.analysis.selection import (
    FEWEST,
    labels_of,
    mutual_information,
    rank,
    selection,
)
from mtmm_jax.data.sources.generator import generator
from mtmm_jax.registry import ConfigError

RNG = np.random.default_rng(0)


def _sign_in_noise(amplitude, noise):
    """I(s; a s + noise e) in bits, s a fair sign: h(x) - h(e)."""

    def entropy(x):
        p = 0.5 * sum(stats.norm(sign * amplitude, noise).pdf(x) for sign in (-1, 1))
        return -p * np.log2(p) if p > 0 else 0.0

    far = amplitude + 8 * noise
    whole, _ = integrate.quad(entropy, -far, far, points=[-amplitude, amplitude], limit=200)
    return whole - stats.norm(0, noise).entropy() / np.log(2)


@pytest.mark.parametrize(("amplitude", "noise"), [(1.0, 0.5), (1.0, 1.0), (0.3, 1.0)])
def test_a_sign_in_noise(amplitude, noise):
    sign = RNG.integers(0, 2, 3000)
    x = amplitude * (2 * sign - 1) + noise * RNG.standard_normal(3000)
    found = mutual_information(x, sign, True)
    assert found == pytest.approx(_sign_in_noise(amplitude, noise), abs=0.03)
    other = mutual_info_classif(x[:, None], sign, n_neighbors=3)[0] / np.log(2)
    assert found == pytest.approx(other, abs=0.01)


@pytest.mark.parametrize("correlation", [0.0, 0.6, 0.95])
def test_numbers_with_a_correlation(correlation):
    x, e = RNG.standard_normal((2, 3000))
    y = correlation * x + np.sqrt(1 - correlation**2) * e
    expected = -0.5 * np.log2(1 - correlation**2)
    assert mutual_information(x, 100 * y + 7, False) == pytest.approx(expected, abs=0.05)
    two = np.c_[x, RNG.standard_normal(3000)]  # a second dimension that says nothing
    assert mutual_information(two, y, False) == pytest.approx(expected, abs=0.1)


def test_ties_constants_and_single_rows():
    label = RNG.integers(0, 3, 900)
    assert mutual_information(label, label, True) == pytest.approx(np.log2(3), abs=0.05)
    assert mutual_information(np.zeros(900), label, True) == pytest.approx(0, abs=0.05)
    assert mutual_information(RNG.standard_normal(50), np.arange(50), True) == 0
    assert mutual_information(RNG.standard_normal(50), np.zeros(50), True) == 0
    with pytest.raises(ConfigError, match="needs finite numbers"):
        mutual_information(np.array([1.0, np.nan]), np.zeros(2), True)
    with pytest.raises(ConfigError, match="one label for a row"):
        mutual_information(np.zeros((4, 2)), np.zeros(3), True)


def _generated(**options):
    whole = generator(size=(8, 8, 2000), width=6, tasks=1, noise=0.4, **options)
    batches = list(whole.batches("test", 500))
    features = {
        m: np.concatenate([b["inputs"][m]["x"] for b in batches]).astype(np.float64)
        for m in whole.spec.modalities
    }
    present = {m: np.concatenate([b["inputs"][m]["present"] for b in batches]) for m in features}
    return features, present, labels_of(batches, whole.spec), whole.spec


def test_the_generator_is_ranked_as_it_was_made():
    features, present, labels, spec = _generated(redundancy=1.5, uniqueness=1.5, synergy=0.0)
    ranking = selection(features, present, labels, spec)
    # u_2 is in the second modality alone; what both say is said twice.
    first, second = ranking["unique_2"]
    assert (first["modality"], second["modality"]) == ("m2", "m1")
    assert first["bits"] > 0.3
    assert second["bits"] < 0.05
    assert first["alone"] > 0.3
    for row in ranking["redundant"]:
        assert row["bits"] > 0.3
        assert row["alone"] < 0.15


def test_what_only_both_tell_is_seen_next_to_the_other():
    sign = RNG.choice([-1.0, 1.0], (1500, 2))
    noisy = sign + 0.3 * RNG.standard_normal((1500, 2))
    features = {"a": noisy[:, :1], "b": noisy[:, 1:]}
    present = dict.fromkeys("ab", np.ones(1500, bool))
    for row in rank(features, present, sign.prod(1) > 0, np.ones(1500, bool), True):
        assert row["bits"] < 0.05
        assert row["alone"] > 0.6


def test_features_are_distinguished_and_absent_rows_do_not_count():
    y = RNG.integers(0, 2, 600)
    x = RNG.standard_normal((600, 4))
    x[:, 2] += 2.0 * y
    x[:, 3] = 5.0  # constant
    there, labelled = np.arange(600) % 3 > 0, np.arange(600) % 5 > 0
    x[~there] = np.nan
    (row,) = rank({"a": x}, {"a": there}, np.where(labelled, y, 9), labelled, True)
    assert row["samples"] == (there & labelled).sum()
    assert row["features"][0][0] == 2
    assert len(row["features"]) == 3
    assert row["features"][0][1] > 0.2 > row["features"][1][1]
    few = np.arange(600) < FEWEST - 1
    (row,) = rank({"a": np.ones((600, 2))}, {"a": few}, y, np.ones(600, bool), True)
    assert row["bits"] is None
    lines = pages.selection_rows({"y": [row]})
    assert lines[1] == ["y", "a", "31", "-", "-", "-"]


def test_labels_made_from_a_modality_do_not_rank_it():
    from tests import toy

    batches = [toy.batch(64, seed) for seed in range(2)]
    labels = labels_of(batches, toy.SPEC)
    assert set(labels) == {"kind", "size", "spelling"}
    y, _ = labels["size"]
    assert np.isfinite(y).all()
    assert len(y) == 128
    features = {m: RNG.standard_normal((128, 2)) for m in ("image", "text")}
    ranking = selection(features, dict.fromkeys(features, np.ones(128, bool)), labels, toy.SPEC)
    assert [row["modality"] for row in ranking["spelling"]] == ["image"]
    assert {row["modality"] for row in ranking["kind"]} == {"image", "text"}
    assert ranking["kind"][0]["samples"] == labels["kind"][1].sum()
