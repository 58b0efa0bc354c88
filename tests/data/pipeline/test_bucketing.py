"""Batches are as long as they must be, in few lengths; no token is lost, hosts agree."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from mtmm_jax.batch import Modality, Spec
from mtmm_jax.data.pipeline import bucketing
from mtmm_jax.data.pipeline.bucketing import bucket, edges_for, used
from mtmm_jax.registry import ConfigError
from tests.data import small

EDGES = {"text": (2, 4, 6), "series": (3, 8)}


def build(size=60, **changes):
    """Text of 1 to 8 of 8 tokens and a series of 0 to 9 of 10 steps; some rows are absent."""
    plain = small.source("left", size)
    modalities = {
        "image": plain.spec.modalities["image"],
        "text": Modality("text", (8,), "int32", vocabulary=100),
        "series": Modality("series", (10, 2), "float32", rate=1.0),
    }

    def compose(rows, chance):
        batch = plain.compose(rows, chance)
        tokens = np.arange(8) < 1 + rows[:, None] * 7 // 3 % 8
        steps = np.arange(10) < rows[:, None] * 7 // 2 % 10
        places = np.arange(10, dtype=np.float32)[:, None] + np.zeros((len(rows), 1, 1), np.float32)
        present = rows % 7 != 3
        series = {
            "x": (rows[:, None, None] + places + np.zeros(2)).astype(np.float32),
            "mask": steps,
            "positions": places,
            "present": np.ones(len(rows), bool),
        }
        text = {"x": np.where(tokens, 1 + rows[:, None], 0).astype(np.int32), "mask": tokens}
        inputs = {"image": batch["inputs"]["image"], "series": series}
        return {**batch, "inputs": {**inputs, "text": {**text, "present": present}}}

    spec = Spec(modalities, plain.spec.targets)
    changes = {"finish": lambda batch, rows=None: batch, "augment": False, **changes}
    return dataclasses.replace(plain, spec=spec, compose=compose, **changes)


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def kept(entry):
    """All that is not masked, of the rows that are present."""
    mask = entry["mask"] & entry["present"][:, None]
    return {key: entry[key][mask] for key in ("x", "positions") if key in entry}


def smallest(sizes, length):
    return next(size for size in sizes if size >= length)


def batches(source):
    return [*take(source.train(4), 40), *source.batches("test", 4), *source.batches("train", 1)]


def test_batches_are_cut_to_the_smallest_length_that_holds_them():
    plain = build()
    cut = bucket(plain, EDGES)
    assert cut.spec.modalities["text"].shape == (None,)
    assert cut.spec.modalities["series"].shape == (None, 2)
    assert plain.spec.modalities["text"].shape == (8,)
    seen = {name: set() for name in EDGES}
    for before, after in zip(batches(plain), batches(cut), strict=True):
        cut.spec.check(after)
        for name, sizes in (("text", (2, 4, 6, 8)), ("series", (3, 8, 10))):
            one, other = before["inputs"][name], after["inputs"][name]
            longest = max((len(m.nonzero()[0]) for m in one["mask"][one["present"]]), default=0)
            size = smallest(sizes, longest)
            seen[name].add(size)
            for key in one.keys() - {"present"}:
                assert other[key].shape[1] == size
            assert jax.tree.all(jax.tree.map(np.array_equal, kept(one), kept(other)))
        assert np.array_equal(before["inputs"]["image"]["x"], after["inputs"]["image"]["x"])
        for key in ("targets", "id", "weight"):
            assert jax.tree.all(jax.tree.map(np.array_equal, before[key], after[key]))
    assert seen == {"text": {2, 4, 6, 8}, "series": {3, 8, 10}}


def test_a_step_is_traced_once_for_each_combination():
    traced = []

    @jax.jit
    def step(inputs):
        traced.append((inputs["text"]["x"].shape, inputs["series"]["x"].shape))
        return inputs["text"]["x"].sum()

    for batch in batches(bucket(build(), {"text": (4,), "series": (8,)})):
        if len(batch["id"]) == 4:
            step(batch["inputs"])
    assert 1 < len(traced) <= 4
    assert len(set(traced)) == len(traced)


def test_used_is_the_last_unmasked_place_of_rows_that_are_there():
    mask = np.array([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]], bool)
    entry = {"mask": mask, "present": np.array([True, True, False])}
    assert used(entry).tolist() == [3, 0, 0]


def test_hosts_cut_alike():
    cut = bucket(build(), {"text": (2, 4, 6)})
    whole = take(cut.train(8), 20)
    hosts = [take(cut.train(8, shard=(i, 2)), 20) for i in range(2)]
    for step, batch in enumerate(whole):
        halves = [host[step]["inputs"]["text"]["x"] for host in hosts]
        np.testing.assert_array_equal(np.concatenate(halves), batch["inputs"]["text"]["x"])
    longest = [[used(h[i]["inputs"]["text"]).max() for h in hosts] for i in range(20)]
    assert any(a <= 4 < b or b <= 4 < a for a, b in longest)  # alone they would have differed


def test_global_lengths_are_found_once_or_given():
    plain, composed = build(), []

    def compose(rows, chance):
        composed.extend(rows.tolist())
        return plain.compose(rows, chance)

    source = dataclasses.replace(plain, compose=compose)
    rows = np.array([5, 9, 5, 20])
    half = plain.compose(rows[:2], None)
    for given, wanted in ((None, [5, 9, 20]), (lambda r: {"text": np.full(len(r), 5)}, [])):
        cut = bucket(source, {"text": (2, 4, 6)}, lengths=given)
        composed.clear()
        shapes = [cut.finish(half, rows)["inputs"]["text"]["x"].shape for _ in range(2)]
        assert composed == wanted
        assert shapes[0] == shapes[1]
    assert shapes[0] == (2, 6)
    short = bucket(source, {"text": (2, 4, 6)}, lengths=lambda r: {"text": np.ones(len(r), int)})
    with pytest.raises(ConfigError, match="data.bucket.text: a row has length .* lengthens it"):
        short.finish(plain.compose(np.arange(20), None), np.arange(40))


def test_batches_that_vary_already_are_filled_up():
    plain = build()

    def compose(rows, chance):
        batch = plain.compose(rows, chance)
        text = batch["inputs"]["text"]
        size = max(int(used(text).max()), 1)
        short = {key: text[key][:, :size] for key in ("x", "mask")}
        return {**batch, "inputs": {**batch["inputs"], "text": {**text, **short}}}

    text = dataclasses.replace(plain.spec.modalities["text"], shape=(None,))
    spec = Spec({**plain.spec.modalities, "text": text}, plain.spec.targets)
    source = dataclasses.replace(plain, spec=spec, compose=compose)
    filled = batches(bucket(source, {"text": (3, 8)}))
    assert {batch["inputs"]["text"]["x"].shape[1] for batch in filled} == {3, 8}
    for before, after in zip(batches(plain), filled, strict=True):
        one, other = before["inputs"]["text"], after["inputs"]["text"]
        assert np.array_equal(kept(one)["x"], kept(other)["x"])
    with pytest.raises(ConfigError, match=r"data.bucket.text: a row has length \d; listed: \(3,\)"):
        batches(bucket(source, {"text": (3,)}))


def test_a_modality_that_a_batch_lacks_is_left_out():
    plain = build()
    cut = bucket(plain, EDGES)
    batch = plain.compose(np.arange(4), None)
    inputs = {name: entry for name, entry in batch["inputs"].items() if name != "text"}
    assert set(cut.finish({**batch, "inputs": inputs}, np.arange(4))["inputs"]) == {
        "image",
        "series",
    }


def test_buckets_add_up():
    once = bucket(build(), EDGES)
    twice = bucket(bucket(build(), {"text": EDGES["text"]}), {"series": EDGES["series"]})
    for one, other in zip(batches(once), batches(twice), strict=True):
        assert jax.tree.all(jax.tree.map(np.array_equal, one, other))


def padding(values, edges, batch_size):
    """The mean length of the bucket over all batches there are."""
    edges = sorted(edges)
    return np.mean(
        [smallest(edges, max(batch)) for batch in itertools.product(values, repeat=batch_size)]
    )


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("count", [1, 2, 3, 9])
@pytest.mark.parametrize("seed", range(4))
def test_edges_are_the_best_there_are(count, batch_size, seed):
    values = np.random.default_rng(seed).integers(1, 30, 7).tolist()
    edges = edges_for(values, count, batch_size)
    assert list(edges) == sorted(set(edges))
    assert len(edges) <= count
    assert edges[-1] == max(values)
    distinct = sorted(set(values))
    best = min(
        padding(values, (*some, distinct[-1]), batch_size)
        for n in range(min(count, len(distinct)))
        for some in itertools.combinations(distinct[:-1], n)
    )
    assert padding(values, edges, batch_size) == pytest.approx(best)


def test_edges_of_a_source():
    source = build()
    found = bucketing.lengths(source, "text")
    rows = source.rows["train"]
    assert found.tolist() == np.where(rows % 7 != 3, 1 + rows * 7 // 3 % 8, 0).tolist()
    assert edges_for(found, 100) == tuple(range(1, 9))
    assert edges_for([5, 5, 5], 4) == (5,)
    assert edges_for([0, 0], 1) == (1,)
    assert len(bucketing.lengths(source, "series", "test")) == len(source.rows["test"])


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda: bucket(build(), {"image": (8,)}), "unknown modality with a mask 'image'; choices"),
        (lambda: bucket(build(), {"text": (4, 2)}), "data.bucket.text: (4, 2); needs positive"),
        (
            lambda: bucket(build(), {"text": (0, 2)}),
            "data.bucket.text[0]: 0 is not a whole number from 1",
        ),
        (lambda: bucket(build(), {"text": 4}), "data.bucket.text: 4 is not a list"),
        (lambda: bucket(build(), {}), "data.bucket: {}; needs lengths"),
        (lambda: bucketing.lengths(build(), "text", "dev"), "unknown split 'dev'"),
        (lambda: edges_for([], 2), "edges_for: 2 buckets of [0] lengths"),
        (lambda: edges_for([3], 0), "edges_for: 0 buckets"),
    ],
)
def test_refusals(act, said):
    with pytest.raises(ConfigError) as error:
        act()
    assert said in str(error.value)
