"""Vowels: series of varying length with a mask, the official test split."""

import json

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from mtmm_jax.data.sources import packed
from mtmm_jax.data.sources.vowels import asset, vowels
from mtmm_jax.registry import ConfigError, build


@pytest.fixture(scope="module")
def source(cache):
    return vowels(data_dir=str(cache))


def whole(source):
    batch = source.compose(np.arange(640), None)
    return batch["inputs"]["series"], batch["targets"]["speaker"]["y"]


def test_splits_are_the_official_ones_and_a_fifth_for_validation(source):
    assert {name: len(rows) for name, rows in source.rows.items()} == {
        "train": 216,
        "validation": 54,
        "test": 370,
    }
    _, speaker = whole(source)
    assert np.bincount(speaker[source.rows["validation"]]).tolist() == [6] * 9
    official = [31, 35, 88, 44, 29, 24, 40, 50, 29]
    assert np.bincount(speaker[source.rows["test"]]).tolist() == official
    assert source.rows["test"].min() == 270


def test_series_are_those_of_the_asset_standardised_and_masked(source):
    source.spec.check(source.compose(np.arange(8), None))
    series, speaker = whole(source)
    modality = source.spec.modalities["series"]
    assert (modality.shape, modality.rate, len(modality.names)) == ((29, 12), 156.25, 12)
    scale = json.loads(source.assets["series.json"])
    for i, one in enumerate(asset.read()):
        assert series["mask"][i].sum() == len(one.series)
        assert series["mask"][i, : len(one.series)].all()
        back = series["x"][i, : len(one.series)] * scale["std"] + np.array(scale["mean"])
        assert np.allclose(back, one.series, atol=1e-4)
        assert not series["x"][i, len(one.series) :].any()
        assert asset.SPEAKERS[speaker[i]] == one.speaker
    train = source.rows["train"]
    heard = series["x"][train][series["mask"][train]]
    assert np.abs(heard.mean(0)).max() < 1e-4
    assert heard.std(0) == pytest.approx(np.ones(12), abs=1e-3)
    assert source.describe(0) == "speaker 1, utterance 0"
    assert source.picture is None


def test_longer_ones_are_cut(cache, source):
    short = vowels(length=10, data_dir=str(cache))
    series, _ = whole(short)
    assert series["x"].shape == (640, 10, 12)
    assert np.array_equal(series["x"], whole(source)[0]["x"][:, :10])
    assert np.array_equal(series["mask"], whole(source)[0]["mask"][:, :10])


def test_a_linear_classifier_knows_the_speakers(source):
    series, speaker = whole(source)
    mask = series["mask"][..., None]
    mean = (series["x"] * mask).sum(1) / mask.sum(1)
    features = np.hstack([mean, series["x"][:, 0]])
    train, test = source.rows["train"], source.rows["test"]
    model = LogisticRegression(max_iter=1000).fit(features[train], speaker[train])
    assert 0.92 < model.score(features[test], speaker[test]) < 0.995


def test_noise_stays_inside_the_mask(cache):
    source = vowels(noise=0.3, data_dir=str(cache))
    assert (source.draws, source.augment) == (2, True)
    rows = source.rows["train"]
    chance = np.random.default_rng(0).random((len(rows), 2), np.float32)
    noisy, plain = source.compose(rows, chance), source.compose(rows, None)
    source.spec.check(noisy)
    series = noisy["inputs"]["series"]
    difference = series["x"] - plain["inputs"]["series"]["x"]
    assert not difference[~series["mask"]].any()
    assert 0.4 < difference.any((1, 2)).mean() < 0.6
    assert np.array_equal(
        source.compose(rows[:5], chance[:5])["inputs"]["series"]["x"], series["x"][:5]
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"length": 0}, "data.length: 0 is not a whole number from 1"),
        ({"noise": -0.1}, "data.noise: -0.1 is not a number from 0"),
    ],
)
def test_wrong_settings_are_named_before_any_work(wrong, message, monkeypatch):
    monkeypatch.setattr(packed, "load", lambda *_: pytest.fail("worked"))
    with pytest.raises(ConfigError, match=message):
        build({"vowels": vowels}, {"kind": "vowels", **wrong}, where="data")
