"""Batches: right by their spec, complete, resumable to the example, and the same in shards."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from mtmm_jax import data
from mtmm_jax.batch import Spec
from mtmm_jax.registry import ConfigError, build
from mtmm_jax.text import PADDING, UNKNOWN, encode, read_tokenizer, train_tokenizer

OF_FILES = ("tfds", "manifest", "video_folder")  # have tests of their own, with files


def same(a, b) -> bool:
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


def take(iterator, count: int) -> list:
    return [next(iterator) for _ in range(count)]


@pytest.mark.parametrize("name", [n for n in data.SOURCES if n not in OF_FILES])
def test_batches_pass_the_spec(name, build_source):
    source = build_source(name)
    batches = [next(iter(source.train(8))), next(source.batches("validation", 8))]
    for batch in batches:
        source.spec.check(batch)
        assert set(batch["inputs"]) == set(source.spec.modalities)
        assert set(batch["targets"]) == set(source.spec.targets)
        for target, entry in batch["targets"].items():
            kind = source.spec.targets[target]
            blank = jax.tree.map(lambda leaf: leaf.dtype, kind.blank(1))
            assert jax.tree.map(lambda leaf: leaf.dtype, entry["y"]) == blank
            if kind.kind == "class":
                assert sum(kind.frequencies) == pytest.approx(1)
                assert len(kind.frequencies) == len(kind.classes) > entry["y"].max()
    assert jax.tree.structure(batches[0]) == jax.tree.structure(batches[1])
    kept = json.loads(json.dumps(source.spec.to_dict()))
    assert Spec.from_dict(kept) == source.spec


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_pass_holds_every_example_once(source, split):
    size = 100
    batches = list(source.batches(split, size))
    assert len(batches) == -(-source.split_size(split) // size)
    weight = np.concatenate([batch["weight"] for batch in batches])
    assert weight.sum() == source.split_size(split)
    assert len(weight) == len(batches) * size
    ids = np.concatenate([batch["id"] for batch in batches])
    style = np.concatenate([batch["targets"]["style"]["y"] for batch in batches])
    assert (ids[weight == 0] == -1).all()
    examples = set(zip(ids[weight > 0].tolist(), style[weight > 0].tolist(), strict=True))
    assert len(examples) == source.split_size(split)
    assert same(batches[0], next(source.batches(split, size)))


def test_splits_share_no_concept(source):
    def concepts(split):
        batches = source.batches(split, 512)
        return {i for batch in batches for i in batch["id"][batch["weight"] > 0].tolist()}

    parts = [concepts(split) for split in ("train", "validation", "test")]
    assert sum(map(len, parts)) == len(set.union(*parts))


@pytest.mark.parametrize("stop", [0, 1, 5])
def test_resuming_is_exact(source, stop):
    whole = take(iter(source.train(16)), 9)
    iterator = iter(source.train(16))
    take(iterator, stop)
    state = json.loads(json.dumps(iterator.get_state()))
    take(iterator, 2)  # what was read ahead or after must not matter
    again = iter(source.train(16))
    again.set_state(state)
    assert same(take(again, 9 - stop), whole[stop:])
    iterator.set_state(state)
    assert same(take(iterator, 9 - stop), whole[stop:])


@pytest.mark.parametrize("count", [2, 4])
def test_shards_make_up_the_global_batch(source, count):
    whole = take(iter(source.train(16)), 3)
    parts = [take(iter(source.train(16, shard=(i, count))), 3) for i in range(count)]
    for step, batch in enumerate(whole):
        shards = [part[step] for part in parts]
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *shards)
        assert same(joined, batch)


def test_an_epoch_holds_every_example_once_in_a_new_order(source):
    size = source.size
    assert source.epoch_steps(size) == 1
    plain = dataclasses.replace(source, compose=lambda rows, _: {"id": rows})
    first, second = (batch["id"] for batch in take(iter(plain.train(size)), 2))
    assert sorted(first) == sorted(second) == sorted(source.rows["train"])
    assert (first != second).any()
    other = next(iter(plain.train(size, seed=1)))["id"]
    assert (first != other).any()


def test_augmentation_depends_on_chance_alone(source):
    rows = source.rows["train"][:8]
    chance = np.random.default_rng(0).random((2, 8, source.draws), np.float32)
    a, b, again = (source.compose(rows, c) for c in (chance[0], chance[1], chance[0]))
    assert same(a, again)
    for modality in ("image", "audio", "text"):
        assert not np.array_equal(a["inputs"][modality]["x"], b["inputs"][modality]["x"])
    assert same(a["targets"]["category"], b["targets"]["category"])


def test_augmentation_can_be_switched_off(source):
    plain = dataclasses.replace(source, augment=False)
    batch = next(iter(plain.train(8)))
    rows = 2 * batch["id"] + batch["targets"]["style"]["y"]
    assert same(batch["inputs"], source.compose(rows, None)["inputs"])


def test_values_are_in_range(source):
    for batch in (next(iter(source.train(64))), next(source.batches("test", 64))):
        image, sound = (batch["inputs"][m]["x"] for m in ("image", "audio"))
        assert -1 <= image.min() < -0.5 < 0.5 < image.max() <= 1
        assert 0.1 < np.abs(sound).max() < 2
        text = batch["inputs"]["text"]
        assert np.array_equal(text["mask"], text["x"] != PADDING)
        assert text["mask"].any(1).all()
        assert text["x"].max() < source.spec.modalities["text"].vocabulary


def test_training_meets_the_unknown_token(source):
    batch = next(iter(source.train(64)))
    share = (batch["inputs"]["text"]["x"] == UNKNOWN).sum() / batch["inputs"]["text"]["mask"].sum()
    assert 0.03 < share < 0.2


def test_the_tokenizer_is_trained_on_the_train_split_only(source, table):
    words = zip(table.names, table.keywords, table.split, strict=True)
    training = [
        " ".join([name, *(k for k in keywords if k not in name)])
        for name, keywords, split in words
        if split == "train"
    ]
    assert source.assets["tokenizer.json"].decode() == train_tokenizer(training, 2000)
    assert train_tokenizer(training, 2000) == train_tokenizer(training[::-1], 2000)
    known = read_tokenizer(source.assets["tokenizer.json"])
    assert known.get_vocab_size() == source.spec.modalities["text"].vocabulary
    ids = encode(known, ["Grinning  FACE", "grinning face", "ж", "piñata", "pinata"], 6)
    assert np.array_equal(ids[0], ids[1])
    assert UNKNOWN in ids[2]
    assert np.array_equal(ids[3], ids[4])
    assert ids[0, -1] == PADDING
    assert known.decode(ids[0].tolist()) == "grinning face"


def test_keywords_one_style_and_other_sizes(cache):
    source = data.SOURCES["emoji"](
        text="name+keywords",
        image_size=24,
        styles="twemoji",
        seconds=1.0,
        text_length=40,
        data_dir=str(cache),
    )
    batch = next(source.batches("test", 4))
    source.spec.check(batch)
    assert batch["inputs"]["image"]["x"].shape == (4, 24, 24, 3)
    assert source.spec.targets["style"].classes == ("twemoji",)
    assert source.size == len(source.rows["train"])
    assert batch["inputs"]["text"]["mask"].sum(1).mean() > 8


def test_reports_can_name_and_show_a_concept(source):
    batch = next(source.batches("test", 2))
    picture = source.picture(int(batch["id"][0]), "noto")
    assert (picture.shape, picture.dtype) == ((64, 64, 3), np.uint8)
    assert source.describe(int(batch["id"][0])) == source.describe(int(batch["id"][1]))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"text": "label"}, r"data.emoji.text: unknown value 'label'.*name\+keywords"),
        ({"styles": ("apple",)}, "unknown style 'apple'.*noto, twemoji"),
        ({"styles": ()}, "one or more"),
        ({"seconds": 0}, "data.seconds: 0 is not a number above 0"),
        ({"imagesize": 32}, "did you mean 'image_size'"),
    ],
)
def test_wrong_settings_are_named(wrong, message):
    with pytest.raises(ConfigError, match=message):
        build(data.SOURCES, {"kind": "emoji", **wrong}, where="data")


def test_wrong_splits_shards_and_batch_sizes_are_named(source):
    with pytest.raises(ConfigError, match=r"unknown split 'dev'.*test, train, validation"):
        source.split_size("dev")
    with pytest.raises(ConfigError, match="10 does not divide into 4"):
        source.train(10, shard=(0, 4))
    with pytest.raises(ConfigError, match=r"shard: \(2, 2\)"):
        source.train(10, shard=(2, 2))


def test_importing_data_is_light():
    heavy = "tensorflow", "tensorflow_datasets", "grain", "tokenizers", "scipy.signal"
    code = f"import sys, mtmm_jax.data; print([m for m in {heavy!r} if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
