"""Digits in six views: standardised, aligned, missing by a rule, and as hard as is known."""

import json

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from mtmm_jax.data.sources import packed
from mtmm_jax.data.sources.digits import asset, digits
from mtmm_jax.registry import ConfigError, build

# Accuracy of a linear classifier on one view, as known from outside this package.
KNOWN = {"fac": 0.970, "pix": 0.958, "kar": 0.946, "fou": 0.810, "zer": 0.804, "mor": 0.724}


@pytest.fixture(scope="module")
def make(cache):
    return lambda **options: digits(data_dir=str(cache), **options)


def whole(source):
    return source.compose(np.arange(2000), None)


def present(source) -> np.ndarray:
    return np.stack([entry["present"] for entry in whole(source)["inputs"].values()], 1)


def test_views_are_those_of_the_asset_standardised_on_train(make):
    source = make()
    batch = whole(source)
    source.spec.check(batch)
    assert list(batch["inputs"]) == list(asset.VIEWS)
    scales = json.loads(source.assets["tables.json"])
    for name, entry in batch["inputs"].items():
        train = entry["x"][source.rows["train"]].astype(np.float64)
        assert np.abs(train.mean(0)).max() < 1e-4
        assert train.std(0) == pytest.approx(np.ones(asset.VIEWS[name]), abs=1e-4)
        raw = entry["x"] * np.array(scales[name]["std"]) + np.array(scales[name]["mean"])
        assert np.allclose(raw, asset.read_view(name), rtol=1e-4, atol=1e-2)
        assert len(source.spec.modalities[name].names) == asset.VIEWS[name]
    assert [source.split_size(s) for s in ("train", "validation", "test")] == [1599, 200, 201]
    assert np.bincount(batch["targets"]["digit"]["y"]).tolist() == [200] * 10
    assert source.describe(1999) == "digit 9, number 1999"
    assert source.picture is None


def test_equal_pictures_are_in_one_split(make):
    source = make(views="pix")
    pictures = [row.tobytes() for row in asset.read_view("pix")]
    split = {int(row): name for name, rows in source.rows.items() for row in rows}
    seen: dict[bytes, set] = {}
    for i, picture in enumerate(pictures):
        seen.setdefault(picture, set()).add(split[i])
    assert len(seen) == 1994
    assert all(len(splits) == 1 for splits in seen.values())


@pytest.mark.parametrize("view", KNOWN)
def test_a_linear_classifier_reaches_the_known_level(make, view):
    source = make(views=[view])
    x, y = (whole(source)[key] for key in ("inputs", "targets"))
    x, y = x[view]["x"], y["digit"]["y"]
    train = source.rows["train"]
    held = np.concatenate([source.rows["validation"], source.rows["test"]])
    model = LogisticRegression(C=0.3, tol=0.01).fit(x[train], y[train])
    assert model.score(x[held], y[held]) == pytest.approx(KNOWN[view], abs=0.04)
    pair = np.isin(y, (6, 9))
    model = LogisticRegression(C=0.3, tol=0.01).fit(x[train[pair[train]]], y[train[pair[train]]])
    score = model.score(x[held[pair[held]]], y[held[pair[held]]])
    assert score < 0.75 if view in ("fou", "zer", "mor") else score > 0.95


def test_views_are_missing_by_id_and_one_always_stays(make):
    source = make(missing=0.5)
    there = present(source)
    assert np.array_equal(there, present(make(missing=0.5)))
    assert (there != present(make(missing=0.5, seed=1))).any()
    assert there.any(1).all()
    assert 0.47 < there.mean() < 0.54
    assert there.sum(1).min() == 1
    assert np.abs(there.mean(0) - there.mean()).max() < 0.04
    assert present(make()).all()
    more = present(make(missing=0.9))
    assert (there | ~more).all()  # what is missing at .5 is missing at .9


def test_a_views_luck_does_not_depend_on_the_others(make):
    both = present(make(missing=0.3, views=("kar", "mor")))
    every = present(make(missing=0.3))[:, [2, 5]]
    alone = ~every.any(1)  # where one had to stay
    assert np.array_equal(both[~alone], every[~alone])


def test_views_can_be_missing_in_training_only(make):
    source = make(missing=0.4, missing_in="train")
    there = present(source)
    assert not there[source.rows["train"]].all()
    assert there[source.rows["validation"]].all()
    assert there[source.rows["test"]].all()


def test_noise_is_for_training_and_small(make):
    source = make(noise=0.1, views=("kar", "mor"))
    assert (source.draws, source.augment) == (4, True)
    assert (make().draws, make().augment) == (0, False)
    rows = source.rows["train"][:256]
    chance = np.random.default_rng(0).random((256, 4), np.float32)
    noisy, plain = source.compose(rows, chance), source.compose(rows, None)
    source.spec.check(noisy)
    changed = {}
    for name in ("kar", "mor"):
        difference = noisy["inputs"][name]["x"] - plain["inputs"][name]["x"]
        changed[name] = difference.any(1)
        assert 0.4 < changed[name].mean() < 0.6
        assert 0.01 < difference.std() < 0.06
    assert (changed["kar"] != changed["mor"]).any()
    part = source.compose(rows[:9], chance[:9])["inputs"]["kar"]["x"]
    assert np.array_equal(part, noisy["inputs"]["kar"]["x"][:9])
    batch = next(iter(source.train(8)))
    assert not np.array_equal(
        batch["inputs"]["kar"]["x"], source.compose(batch["id"], None)["inputs"]["kar"]["x"]
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"views": ("pixels",)}, "data.digits.views: unknown view 'pixels'.*fac, fou"),
        ({"views": ()}, "one or more different views"),
        ({"missing_in": ("dev",)}, "data.digits.missing_in: unknown split 'dev'"),
        ({"noise": -1}, "data.noise: -1 is not a number from 0"),
        ({"missing": 1.0}, "data.missing: 1.0 is not a number from 0, below 1"),
    ],
)
def test_wrong_settings_are_named_before_any_work(wrong, message, monkeypatch):
    monkeypatch.setattr(packed, "load", lambda *_: pytest.fail("worked"))
    with pytest.raises(ConfigError, match=message):
        build({"digits": digits}, {"kind": "digits", **wrong}, where="data")
