"""The packed emoji asset is what its card says, and its splits keep apart what they must."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mtmm_jax.data.sources.emoji import asset, card, names, pack, splits


@pytest.fixture(scope="module")
def table() -> asset.Table:  # here: the packed one
    return asset.read_table()


def test_it_is_small_enough_to_ship():
    assert asset.size() <= pack.LIMIT == 12_000_000


def test_the_card_agrees_with_the_asset(table):
    stated = (Path(asset.__file__).parent / "CARD.md").read_text(encoding="utf-8")
    assert stated == card.render(table, asset.size())


def test_attributions_ship_with_it():
    text = (Path(asset.__file__).parent / "ATTRIBUTION.md").read_text(encoding="utf-8")
    assert "CC-BY 4.0" in text
    assert all(package in text for package in names.PACKAGES)


def test_concepts_are_unique_and_plain(table):
    assert len({c.code for c in table.concepts}) == len(table.concepts) > 1900
    assert len({c.name for c in table.concepts}) == len(table.concepts)
    assert all(c.name and c.name == c.name.lower().strip() for c in table.concepts)
    tones = {"1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"}
    assert not any(tones & set(c.code.split("-")) for c in table.concepts)
    assert len(table.unique("category")) == 9
    assert {c.year for c in table.concepts} <= set(names.YEARS.values())


def test_splits_are_eighty_ten_ten_in_every_category(table):
    for category in table.unique("category"):
        parts = Counter(c.split for c in table.concepts if c.category == category)
        total = sum(parts.values())
        assert abs(parts["train"] / total - 0.8) < 0.05
        assert min(parts["validation"], parts["test"]) / total > 0.07


def test_every_class_is_seen_in_training(table):
    train = [c for c in table.concepts if c.split == "train"]
    for field in ("category", "subcategory", "year"):
        assert {getattr(c, field) for c in train} == set(table.unique(field))


@pytest.mark.parametrize("style", asset.STYLES)
def test_no_drawing_is_in_two_splits(table, style):
    tiles = asset.read_drawings(asset.FOLDER, style, len(table.concepts))
    split = np.array([c.split for c in table.concepts])
    alike = splits.pairwise(tiles) < splits.SAME_DRAWING
    assert alike.sum() > len(tiles)  # there are duplicates to keep together
    first, second = np.nonzero(alike)
    assert (split[first] == split[second]).all()


def test_two_different_voices_a_name_evenly_spread(table):
    assert len(table.voices) >= 4
    assert all(len(set(c.voices)) == 2 for c in table.concepts)
    for split in asset.SPLITS:
        counts = Counter(v for c in table.concepts if c.split == split for v in c.voices)
        share = np.array(list(counts.values())) / sum(counts.values())
        assert np.abs(share - 1 / len(table.voices)).max() < 0.05
