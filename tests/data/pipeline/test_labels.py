"""Hidden labels stay hidden, the same ones everywhere; shares of labelled rows are exact."""

import collections
import dataclasses
import gc
import json

import jax
import numpy as np
import pytest

from mtmm_jax.batch import Target
from mtmm_jax.chance import uniform
from mtmm_jax.data.pipeline import labels
from mtmm_jax.registry import ConfigError
from tests.data import small


def build(size=200, per_id=1, **changes):
    """`left`, with ids that several rows share, and labels of every kind; 1 of 5 has no `kind`."""
    plain = small.source("left", size)
    several = Target("labels", ("p", "q"), frequencies=(0.5, 0.5))
    spots = Target("boxes", ("p",), length=2)
    targets = {"kind", "size", "several", "spots"}
    spec = dataclasses.replace(
        plain.spec,
        targets={
            **plain.spec.targets,
            "size": Target("number", mean=0.0, std=1.0),
            "several": several,
            "spots": spots,
        },
    )

    def compose(rows, chance):
        batch = plain.compose(rows, chance)
        ids = (rows // per_id).astype(np.int32)
        kind = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 2], np.int32)[ids % 10]
        here = np.ones(len(rows), bool)
        y = {
            "kind": (kind, ids % 5 != 1),
            "size": ((ids + 1).astype(np.float32), here),
            "several": ((uniform(2, 9, ids) < 0.5).astype(np.float32), here),
            "spots": (jax.tree.map(lambda x: x + 1, spots.blank(len(rows))), here),
        }
        entries = {name: {"y": y[name][0], "present": y[name][1]} for name in targets}
        return {**batch, "targets": entries, "id": ids}

    return dataclasses.replace(plain, spec=spec, compose=compose, **changes)


def whole(source, split="train"):
    """All rows of a split as one batch."""
    return source.compose(source.rows[split], None)


def same(a, b):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


@pytest.mark.parametrize("share", [0.05, 0.25, 0.5, 1.0, 0])
def test_a_share_of_each_class_is_kept(share):
    source = build()
    before, after = whole(source), whole(labels.hide(source, {"kind": share}))
    was, kept = (b["targets"]["kind"]["present"] for b in (before, after))
    assert not (kept & ~was).any()
    y = before["targets"]["kind"]["y"]
    assert kept.sum() == round(share * was.sum())
    for k in range(3):
        assert abs(kept[y == k].sum() - share * was[y == k].sum()) < 1
    assert same(before["targets"]["size"], after["targets"]["size"])
    assert same(before["inputs"], after["inputs"])
    assert same(after["targets"]["kind"]["y"][kept], y[kept])


@pytest.mark.parametrize("target", ["size", "several", "spots"])
def test_labels_of_any_kind_are_hidden_values_included(target):
    batch = whole(labels.hide(build(), {target: 0.3}))
    entry = batch["targets"][target]
    assert entry["present"].sum() == 60
    for leaf in jax.tree.leaves(entry["y"]):
        assert not leaf[~entry["present"]].any()
    assert leaf[entry["present"]].any()


def test_validation_and_test_stay():
    source = build()
    hidden = labels.hide(source, {"kind": 0.1, "size": 0.0})
    for split in ("validation", "test"):
        assert same(whole(source, split), whole(hidden, split))
        assert same(next(source.batches(split, 4)), next(hidden.batches(split, 4)))
    assert not next(hidden.batches("train", 8))["targets"]["size"]["present"].any()


def test_the_draw_is_by_id_and_seed_and_a_smaller_share_is_part_of_a_larger():
    source = build(per_id=2)

    def kept(share, seed=0, target="kind"):
        batch = whole(labels.hide(source, {target: share}, seed))
        return set(batch["id"][batch["targets"][target]["present"]].tolist())

    assert len(kept(0.2)) == 16  # of 80 ids with a label
    batch = whole(labels.hide(source, {"kind": 0.2}))
    rows = collections.Counter(batch["id"][batch["targets"]["kind"]["present"]].tolist())
    assert set(rows.values()) == {2}
    assert kept(0.2) == kept(0.2)
    assert kept(0.1) < kept(0.2) < kept(0.6)
    assert kept(0.2) != kept(0.2, seed=1)
    assert kept(0.5, target="size") != kept(0.5, target="several")


def test_the_spec_knows_the_kept_labels_only():
    hidden = labels.hide(build(), {"kind": 0.5, "size": 0.1, "several": 0.2, "spots": 0.5})
    batch = whole(hidden)["targets"]

    def kept(target):
        return batch[target]["y"][batch[target]["present"]]

    targets = hidden.spec.targets
    counts = np.bincount(kept("kind"), minlength=3)
    np.testing.assert_allclose(targets["kind"].frequencies, counts / counts.sum())
    np.testing.assert_allclose(targets["several"].frequencies, kept("several").mean(0), rtol=1e-6)
    assert targets["size"].mean == pytest.approx(kept("size").mean())
    assert targets["size"].std == pytest.approx(kept("size").std())
    assert targets["spots"] == build().spec.targets["spots"]
    assert targets["kind"].classes == ("a", "b", "c")
    none = labels.hide(build(), {"kind": 0})
    assert none.spec.targets["kind"] == build().spec.targets["kind"]


def test_the_rows_are_looked_through_once(capsys):
    source, composed = build(), collections.Counter()

    def compose(rows, chance, inner=source.compose):
        composed.update(rows.tolist())
        return inner(rows, chance)

    source = dataclasses.replace(source, compose=compose)
    known = len(labels._SEEN)
    hidden = labels.hide(labels.hide(source, {"kind": 0.5}), {"size": 0.5})
    labels.semi(hidden, "kind")
    labels.semi(labels.hide(source, {"kind": 0.1}), "kind")
    assert composed == collections.Counter(source.rows["train"].tolist())
    assert capsys.readouterr().err.count("200 training rows of left") == 1
    fewer = dataclasses.replace(source, rows={"train": np.arange(50)})
    assert len(labels.look(fewer).rows) == 50
    del source, hidden, fewer, compose
    gc.collect()
    assert len(labels._SEEN) <= known


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_batches_hold_the_share_of_labelled_rows(share):
    source = labels.semi(labels.hide(build(), {"kind": 0.1}), "kind", share)
    seen = collections.Counter()
    iterator = source.train(8)
    for _ in range(100):
        batch = next(iterator)
        present = batch["targets"]["kind"]["present"]
        assert present.sum() == share * 8
        seen.update(batch["id"][present].tolist())
    assert len(seen) == 16
    assert max(seen.values()) - min(seen.values()) <= 1
    assert sorted(np.concatenate(source.parts)) == list(range(200))
    assert iterator.shares == (share, 1 - share)


@pytest.mark.parametrize("stop", [0, 3])
def test_resuming_is_exact(stop):
    def source():
        return labels.semi(labels.hide(build(), {"kind": 0.1}), "kind", 0.3)

    iterator = source().train(8)
    take(iterator, stop)
    state = json.loads(json.dumps(iterator.get_state()))
    rest = take(iterator, 40)
    again = source().train(8)
    again.set_state(state)
    assert same(take(again, 40), rest)


def test_shards_make_up_the_global_batch():
    source = labels.semi(labels.hide(build(), {"kind": 0.1}), "kind", 0.3)
    parts = [take(source.train(8, shard=(i, 2)), 4) for i in range(2)]
    for step, batch in enumerate(take(source.train(8), 4)):
        joined = jax.tree.map(lambda a, b: np.concatenate([a, b]), parts[0][step], parts[1][step])
        assert same(joined, batch)


def test_a_target_that_a_batch_lacks_has_no_label_there():
    plain = build()

    def compose(rows, chance):
        batch = plain.compose(rows, chance)
        targets = {"size": batch["targets"]["size"]} if rows[0] < 256 else batch["targets"]
        return {**batch, "targets": targets}

    source = dataclasses.replace(
        plain, compose=compose, rows={"train": np.arange(400), "test": np.arange(3)}
    )
    assert not labels.look(source).present["kind"][:256].any()
    hidden = labels.hide(source, {"kind": 0.5})
    assert set(hidden.compose(np.arange(4), None)["targets"]) == {"size"}
    assert 0 < hidden.compose(np.arange(256, 400), None)["targets"]["kind"]["present"].sum() < 72


def test_only_labelled_rows_are_one_part():
    hidden = labels.hide(build(), {"kind": 0.1})
    source = labels.semi(hidden, "kind", 1)
    assert not source.parts
    seen = labels.look(hidden)
    np.testing.assert_array_equal(source.rows["train"], seen.rows[seen.present["kind"]])
    assert next(iter(source.train(8)))["targets"]["kind"]["present"].all()
    assert source.split_size("test") == hidden.split_size("test")


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda: labels.hide(build(), {"colour": 0.5}), "data.hide: unknown target 'colour'"),
        (
            lambda: labels.hide(build(), 0.5),
            "data.hide: 0.5 is not a section whose values are a number from 0 to 1",
        ),
        (
            lambda: labels.hide(build(), {"kind": 2}),
            "data.hide.kind: 2 is not a number from 0 to 1",
        ),
        (
            lambda: labels.hide(build(), {"kind": "few"}),
            "data.hide.kind: 'few' is not a number from 0 to 1",
        ),
        (lambda: labels.hide(build(), {"kind": 0.001}), "0.001 of 160 labelled ids is none"),
        (lambda: labels.semi(build(), "colour"), "data.semi.target: unknown target 'colour'"),
        (
            lambda: labels.semi(build(), "kind", 2),
            "data.semi.labelled: 2 is not a number above 0, up to 1",
        ),
        (lambda: labels.semi(build(), "size"), "none has no 'size' label"),
        (lambda: labels.semi(labels.hide(build(), {"size": 0}), "size"), "none has a 'size' label"),
        (lambda: labels.semi(labels.semi(build(), "kind"), "kind"), "mixes 2 parts already"),
    ],
)
def test_refusals(act, said):
    with pytest.raises(ConfigError, match=said):
        act()
