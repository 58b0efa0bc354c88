"""Splits by hash, class, group and time, and what becomes of rare classes."""

import collections
import json

import pytest

from mtmm_jax.data.sources.manifest import manifest
from mtmm_jax.registry import ConfigError
from mtmm_jax.targets.rare import OTHER

SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}
COUNTS = {"common": 61, "usual": 32, "rare": 3, "single": 1}


def table(tmp_path):
    names = [name for name, count in COUNTS.items() for _ in range(count)]
    rows = [
        {
            "id": f"r{i}",
            "text": f"text {i}",
            "kind": name,
            "group": f"g{i % 12}",
            "day": f"2024-01-{1 + i % 28:02d}",
        }
        for i, name in enumerate(names)
    ]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path, rows


def split_of(path, rows, split=SHARES, target="class", **more):
    source = manifest(
        path, modalities={"text": "text"}, targets={"kind": target}, split=split, **more
    )
    return source, {rows[r]["id"]: s for s, found in source.rows.items() for r in found.tolist()}


def test_seed_0_is_the_hash_of_the_id_and_others_differ(tmp_path):
    path, rows = table(tmp_path)
    plain, zero, one = (
        split_of(path, rows, {**SHARES, **more})[1] for more in ({}, {"seed": 0}, {"seed": 1})
    )
    assert plain == zero
    assert plain != one


def test_stratified_divides_each_class_and_rare_ones_go_to_train(tmp_path):
    path, rows = table(tmp_path)
    _, found = split_of(path, rows, {**SHARES, "stratified": "kind"})
    counts = collections.Counter((row["kind"], found[row["id"]]) for row in rows)
    assert counts["common", "validation"] in (6, 7)
    assert counts["usual", "test"] in (3, 4)
    assert counts["rare", "train"] == 3
    assert counts["single", "train"] == 1


@pytest.mark.parametrize("more", [{}, {"stratified": "kind"}, {"seed": 3}])
def test_groups_never_straddle_splits(tmp_path, more):
    path, rows = table(tmp_path)
    _, found = split_of(path, rows, {**SHARES, "group": "group", **more})
    splits = collections.defaultdict(set)
    for row in rows:
        splits[row["group"]].add(found[row["id"]])
    assert all(len(one) == 1 for one in splits.values())
    assert len(set(found.values())) > 1


def test_time_orders_the_splits(tmp_path):
    path, rows = table(tmp_path)
    _, found = split_of(path, rows, {**SHARES, "time": "day"})
    days = collections.defaultdict(set)
    for row in rows:
        days[found[row["id"]]].add(row["day"])
    assert max(days["train"]) < min(days["validation"])
    assert max(days["validation"]) < min(days["test"])


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({**SHARES, "stratify": "kind"}, "unknown split 'stratify'.*did you mean 'stratified'"),
        ({**SHARES, "seed": -1}, "split.seed: -1"),
        ({**SHARES, "stratified": "kin"}, "did you mean 'kind'"),
        ({**SHARES, "time": "day", "group": "group"}, "time: not with group"),
        ({**SHARES, "time": "text"}, "no rows for training"),
        ({"train": "most"}, "split.train: 'most'"),
    ],
)
def test_wrong_splits_are_named(tmp_path, split, message):
    path, rows = table(tmp_path)
    with pytest.raises(ConfigError, match=message):
        split_of(path, rows, split)


@pytest.mark.parametrize("to", ["keep", OTHER, "drop"])
def test_rare_classes(tmp_path, to, caplog):
    path, rows = table(tmp_path)
    target = {"kind": "class", "rare": {"below": 5, "to": to}}
    source, _ = split_of(path, rows, {**SHARES, "stratified": "kind"}, target)
    classes = {
        "keep": ("common", "rare", "single", "usual"),
        OTHER: ("common", OTHER, "usual"),
        "drop": ("common", "usual"),
    }[to]
    assert source.spec.targets["kind"].classes == classes
    assert sum(source.spec.targets["kind"].frequencies) == pytest.approx(1)
    batch = source.compose(source.rows["train"], None)["targets"]["kind"]
    assert (~batch["present"]).sum() == (4 if to == "drop" else 0)
    assert ("under 5 rows in train, 4 rows in all" in caplog.text) == (to != "keep")


def test_a_class_that_only_the_test_has_is_no_error(tmp_path, caplog):
    path, rows = table(tmp_path)
    for i, row in enumerate(rows):
        row["split"] = "test" if row["kind"] == "rare" else ("train", "val")[i % 5 == 0]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source, _ = split_of(path, rows, "split")
    at = source.spec.targets["kind"].classes.index("rare")
    assert source.spec.targets["kind"].frequencies[at] == 0
    assert "no row in train" in caplog.text
    dropped, _ = split_of(path, rows, "split", {"kind": "class", "rare": {"to": "drop"}})
    assert "rare" not in dropped.spec.targets["kind"].classes


@pytest.mark.parametrize(
    ("rare", "message"),
    [
        ({"below": 0}, "rare.below: 0"),
        ({"to": "merge"}, "rare.to: 'merge'"),
        ({"under": 3}, "unknown key 'under'"),
    ],
)
def test_wrong_options_of_rare_classes_are_named(tmp_path, rare, message):
    path, rows = table(tmp_path)
    with pytest.raises(ConfigError, match=message):
        split_of(path, rows, SHARES, {"kind": "class", "rare": rare})
