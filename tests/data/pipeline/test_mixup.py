"""Mixup: neighbours blended, labels with them, in shards and inside jit as on the host."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mtmm_jax.batch import Modality, Spec, Target
from mtmm_jax.data.pipeline.augment_jit import uniform
from mtmm_jax.data.pipeline.mixup import blend, mixup, mixup_jit, weights
from mtmm_jax.data.pipeline.source import Source
from mtmm_jax.keys import example_keys
from mtmm_jax.registry import ConfigError

SPEC = Spec(
    modalities={
        "image": Modality("image", (4, 4, 3), "float32"),
        "series": Modality("series", (5, 2), "float32"),
        "text": Modality("text", (3,), "int32", vocabulary=9),
    },
    targets={
        "kind": Target("class", classes=("a", "b", "c")),
        "size": Target("number"),
        "tags": Target("labels", classes=("p", "q")),
        "words": Target("tokens", length=2),
        "things": Target("boxes", classes=("x",), length=2),
    },
)


def batch(rows, chance=None):
    """Each row's example by its number, with holes; NaN where nothing is."""
    out = {"inputs": {}, "targets": {}, "id": np.asarray(rows, np.int32)}
    rng = [np.random.default_rng(int(row)) for row in rows]

    def present(share):
        return np.array([r.random() < share for r in rng])

    for name, modality in SPEC.modalities.items():
        x = np.stack([r.random(modality.shape) * 8 for r in rng]).astype(modality.dtype)
        out["inputs"][name] = {"x": x, "present": present(0.8)}
    lengths = np.array([r.integers(1, 6) for r in rng])
    out["inputs"]["series"]["mask"] = np.arange(5) < lengths[:, None]
    for name, target in SPEC.targets.items():
        y = target.blank(len(rows))
        if name in ("kind", "words"):
            y = y + np.stack([r.integers(0, 3, y.shape[1:]) for r in rng]).astype(np.int32)
        elif name != "things":
            y = y + np.stack([r.random(y.shape[1:]) for r in rng]).astype(np.float32)
        out["targets"][name] = {"y": y, "present": present(0.8)}
    for entry in (*out["inputs"].values(), *out["targets"].values()):
        values = entry.get("x", entry.get("y"))
        if not isinstance(values, dict) and values.dtype == np.float32:
            values[~entry["present"]] = np.nan
    return out


SOURCE = Source(
    name="made",
    spec=SPEC,
    rows={"train": np.arange(64), "validation": np.arange(64, 80), "test": np.arange(80, 96)},
    compose=batch,
    draws=0,
    assets={},
    describe=str,
)


def one_hot(y):
    return np.eye(3, dtype=np.float32)[y]


def test_each_row_is_blended_with_its_neighbour():
    plain, w = batch(range(41)), np.random.default_rng(0).random(41).astype(np.float32)
    mixed = blend(plain, w, SPEC.targets)
    SPEC.check(mixed)
    count = dict.fromkeys(("image", "kind", "size", "tags", "alone"), 0)
    for i in range(41):
        j = min(i ^ 1, 40)
        pair = i != j

        def entry(room, name, key, i=i, j=j):
            here = plain[room][name]["present"]
            return here[i] and here[j], plain[room][name][key][i], plain[room][name][key][j]

        both, a, b = entry("inputs", "image", "x")
        wanted = w[i] * a + (1 - w[i]) * b if both and pair else a
        np.testing.assert_allclose(mixed["inputs"]["image"]["x"][i], wanted, atol=1e-5)
        count["image"] += both and pair
        moved = pair and (both or entry("inputs", "series", "x")[0])
        count["alone"] += not moved
        for name in ("kind", "size", "tags"):
            both, a, b = entry("targets", name, "y")
            if name == "kind":
                a, b = one_hot(a), one_hot(b)
            wanted = w[i] * a + (1 - w[i]) * b if both and moved else a
            np.testing.assert_allclose(mixed["targets"][name]["y"][i], wanted, atol=1e-5)
            count[name] += both and moved
    assert min(count.values()) > 0
    for room, name in (("inputs", "text"), ("targets", "words"), ("targets", "things")):
        assert mixed[room][name] is plain[room][name]
    for room in ("inputs", "targets"):
        for name, entry in mixed[room].items():
            assert np.array_equal(entry["present"], plain[room][name]["present"])


def test_masked_places_count_as_nothing_and_the_masks_join():
    plain = batch(range(2))
    entry = plain["inputs"]["series"]
    entry["present"][:] = True
    entry["x"] = np.ones((2, 5, 2), np.float32)
    entry["mask"] = np.arange(5) < np.array([[2], [4]])
    entry["x"][0, 2:] = np.nan
    entry["x"][1, 4:] = 99
    w = np.array([0.25, 1.0], np.float32)
    mixed = blend(plain, w, SPEC.targets)["inputs"]["series"]
    assert mixed["mask"].tolist() == [[True] * 4 + [False]] * 2
    assert mixed["x"][0, :, 0].tolist() == [1, 1, 0.75, 0.75, 0]
    assert mixed["x"][1, :, 0].tolist() == [1, 1, 1, 1, 0]


@pytest.mark.parametrize("alpha", [0.1, 0.2, 1.0, 4.0])
def test_weights_are_betas(alpha):
    u = np.random.default_rng(0).random(20_000, np.float32)
    got, beta = weights(u, alpha), stats.beta(alpha, alpha)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, beta.ppf(u), atol=2e-3)
    # Float32 rounds what is nearly 1 to 1, many of them for a small alpha: the lower half will do.
    low = got[got < 0.5]
    assert len(low) == pytest.approx(10_000, rel=0.05)
    assert stats.kstest(low, lambda w: 2 * beta.cdf(w)).pvalue > 0.01
    np.testing.assert_allclose(weights(1 - u, alpha), 1 - got, atol=2e-3)
    np.testing.assert_allclose(weights(jnp.asarray(u), alpha), got, atol=1e-4)


def test_soft_labels_can_be_mixed_again():
    w = np.full(8, 0.5, np.float32)
    once = blend(batch(range(8)), w, SPEC.targets)
    twice = blend(once, w, SPEC.targets)
    np.testing.assert_allclose(twice["targets"]["kind"]["y"].sum(1), 1, atol=1e-6)


def test_a_source_is_mixed_in_training_only():
    source = mixup(SOURCE, 1.0)
    assert source.draws == 1
    train = next(iter(source.train(8)))
    SPEC.check(train)
    assert train["targets"]["kind"]["y"].shape == (8, 3)
    plain = next(iter(SOURCE.train(8)))
    assert np.array_equal(train["id"], plain["id"])
    evaluation = next(source.batches("test", 8))
    assert evaluation["targets"]["kind"]["y"].shape == (8,)
    quiet = dataclasses.replace(source, augment=False)
    assert next(iter(quiet.train(8)))["targets"]["kind"]["y"].shape == (8,)


def test_the_sources_own_chance_stays_its_own():
    def compose(rows, chance):
        made = batch(rows)
        made["inputs"]["image"]["x"][:] = 0 if chance is None else chance[:, :1, None, None]
        made["inputs"]["image"]["present"][:] = False
        return made

    plain = dataclasses.replace(SOURCE, compose=compose, draws=2)
    a, b = next(iter(plain.train(8))), next(iter(mixup(plain).train(8)))
    assert np.array_equal(a["inputs"]["image"]["x"], b["inputs"]["image"]["x"])


@pytest.mark.parametrize("count", [2, 4])
def test_shards_of_even_size_are_the_whole_batch(count):
    source = mixup(SOURCE, 0.5)
    whole = next(iter(source.train(16)))
    parts = [next(iter(source.train(16, shard=(i, count)))) for i in range(count)]
    joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    jax.tree.map(np.testing.assert_array_equal, joined, whole)


def test_inside_jit_it_is_the_same():
    keys = example_keys(jax.random.key(0), 0, jnp.arange(12))
    plain = batch(range(12))
    wanted = blend(plain, weights(np.asarray(uniform(keys, 1)[:, 0]), 0.3), SPEC.targets)
    got = jax.jit(lambda keys, batch: mixup_jit(keys, batch, SPEC.targets, 0.3))(keys, plain)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), got, wanted)
    dtypes = [jax.tree.map(lambda x: np.dtype(x.dtype), tree) for tree in (got, wanted)]
    assert dtypes[0] == dtypes[1]


@pytest.mark.parametrize("alpha", [0, -1.0, float("nan"), float("inf")])
def test_a_wrong_alpha_is_named(alpha):
    with pytest.raises(ConfigError, match=f"data.mixup: {alpha} is not a number from 0.001"):
        mixup(SOURCE, alpha)
