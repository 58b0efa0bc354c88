"""Clips: the event is in the motion and nowhere else; the drawing styles are two domains."""

import jax
import numpy as np
import pytest
from scipy import ndimage, stats

from mtmm_jax import data
from mtmm_jax.batch import Spec
from mtmm_jax.chance import uniform
from mtmm_jax.data.sources.emoji import clips
from mtmm_jax.data.sources.emoji.asset import STYLES
from mtmm_jax.data.sources.emoji.clips import EVENTS, emoji_clips
from mtmm_jax.data.sources.emoji.scenes import halve
from mtmm_jax.data.sources.emoji.source import draw
from mtmm_jax.readers import images
from mtmm_jax.registry import ConfigError, build
from mtmm_jax.text import read_tokenizer


def same(a, b) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


@pytest.fixture(scope="module")
def made(cache):
    return emoji_clips(data_dir=str(cache))


def test_batches_pass_the_spec(made):
    for batch in (next(iter(made.train(8))), next(made.batches("validation", 8))):
        made.spec.check(batch)
        video = batch["inputs"]["video"]["x"]
        assert (video.shape, video.dtype) == ((8, 8, 32, 32, 3), np.float32)
        assert -1 <= video.min() < video.max() <= 1
    assert Spec.from_dict(made.spec.to_dict()) == made.spec
    assert made.spec.modalities["video"].rate == 4
    assert made.spec.targets["event"].classes == tuple(EVENTS)


@pytest.mark.parametrize("degrees", [0, 90, 180, 270, 37])
def test_turning_agrees_with_other_ways_to_turn(degrees):
    random = np.random.default_rng(0)
    planes = images.to_planes(random.integers(0, 255, (2, 32, 32, 4), np.uint8))
    planes = ndimage.gaussian_filter(planes, (0, 0, 3, 3))
    turned = clips.turn(planes, np.full(2, np.pi * degrees / 180)).astype(int)
    padded = np.pad(planes, ((0, 0), (0, 0), (8, 8), (8, 8)))
    if degrees % 90 == 0:
        wanted = np.rot90(padded, -degrees // 90, (2, 3))
    else:
        wanted = ndimage.rotate(
            padded.astype(float), -degrees, (3, 2), reshape=False, order=1, mode="constant"
        )
    assert turned.shape == (2, 4, 48, 48)
    assert np.abs(turned - wanted).max() <= 1


def test_what_leaves_on_one_side_comes_in_on_the_other():
    shifts = np.arange(-16, 16) / 32
    rings = clips._ring_matrix(32, 32, np.ones(32), shifts)
    for ring, shift in zip(rings, shifts, strict=True):
        np.testing.assert_allclose(ring, np.roll(np.eye(32), round(shift * 32), axis=0), atol=1e-5)


def watch(chance, frames=8, size=48):
    """Where a black square on white is seen: its mass `[B, T, size, size]`, and the events."""
    planes = np.zeros((len(chance), 4, 32, 32), np.uint8)
    planes[:, 3] = 255
    event, ring = clips.paths(chance[:, :7], frames)
    video = clips.film(planes, ring, size, np.zeros((len(chance), 9)))
    return (1 - video).mean(-1) / 2, event


def test_events_are_what_they_are_called():
    """Seen in the pixels: the mass's middle (on the ring) and its amount, frame by frame."""
    mass, event = watch(uniform(7, 3, np.arange(160)))
    wave = np.exp(2j * np.pi * np.arange(48) / 48)
    middle = {"down": mass.sum(3) @ wave, "across": mass.sum(2) @ wave}
    step = {k: np.angle(v[:, 1:] / v[:, :-1]) / (2 * np.pi) for k, v in middle.items()}
    area = mass.sum((2, 3))
    growth = np.diff(np.log(area), axis=1)
    assert set(event.tolist()) == set(range(8))
    for name, way, sign in (
        ("left", "across", -1),
        ("right", "across", 1),
        ("up", "down", -1),
        ("down", "down", 1),
    ):
        mine = event == list(EVENTS).index(name)
        assert (step[way][mine] * sign > 0.05).all()
        other = {"across": "down", "down": "across"}[way]
        assert np.abs(step[other][mine]).max() < 0.01
        assert np.abs(growth[mine]).max() < 0.05
    for name, sign in (("grow", 1), ("shrink", -1)):
        mine = event == list(EVENTS).index(name)
        # All but the one step on which the size goes round.
        assert ((growth[mine] * sign > 0.02).sum(1) >= 6).all()
        assert max(np.abs(step[way][mine]).max() for way in step) < 0.02
    shaking = event == list(EVENTS).index("shake")
    jumps = step["across"][shaking]
    assert (jumps[:, 1:] * jumps[:, :-1] < 0).all()
    assert np.abs(jumps).min() > 0.08
    spinning = event == list(EVENTS).index("spin")
    assert max(np.abs(step[way][spinning]).max() for way in step) < 0.01
    assert np.abs(growth[spinning]).max() < 0.05
    overlap = (mass[:, 1:] * mass[:, :-1]).sum((2, 3)) / np.square(mass[:, 1:]).sum((2, 3))
    assert overlap[spinning].max() < 0.995


def test_a_single_frame_says_nothing_of_the_event():
    """Every place on the ring is as likely in every frame, whatever the event."""
    event, ring = clips.paths(uniform(7, 1, np.arange(16000)), 8)
    p_values = [
        stats.kstest(ring[event == e, frame, direction], "uniform").pvalue
        for e in range(8)
        for frame in (0, 4, 7)
        for direction in range(4)
    ]
    assert min(p_values) > 0.01 / len(p_values)
    assert np.bincount(event).min() > 1800


def test_words_and_speech_do_not_depend_on_the_event(made):
    rows = made.rows["train"][:64]
    chance = uniform(made.draws, 0, np.arange(64))
    moved = chance.copy()
    moved[:, : clips._MOTION] = uniform(clips._MOTION, 1, np.arange(64))
    a, b = made.compose(rows, chance), made.compose(rows, moved)
    assert same(
        {k: a["inputs"][k] for k in ("text", "audio")},
        {k: b["inputs"][k] for k in ("text", "audio")},
    )
    assert (a["targets"]["event"]["y"] != b["targets"]["event"]["y"]).mean() > 0.7
    assert not np.array_equal(a["inputs"]["video"]["x"], b["inputs"]["video"]["x"])


def test_words_and_speech_are_those_of_emoji(made, source):
    ours, theirs = next(made.batches("test", 32)), next(source.batches("test", 32))
    assert np.array_equal(ours["id"], theirs["id"])
    assert same(ours["inputs"]["text"], theirs["inputs"]["text"])
    assert same(ours["inputs"]["audio"], theirs["inputs"]["audio"])
    for target in ("category", "subcategory"):
        assert same(ours["targets"][target], theirs["targets"][target])
    assert made.assets == source.assets


def test_the_box_is_around_the_larger_part_of_what_is_seen_last():
    """Seen in the pixels: a black triangle, which a frame's edge cuts in every other clip."""
    planes = np.zeros((120, 4, 32, 32), np.uint8)
    planes[:, 3] = 255 * np.tri(32)
    chance = uniform(7, 5, np.arange(120))
    event, ring = clips.paths(chance, 8)
    found = clips.places(planes, ring[:, -1])
    video = clips.film(planes, ring, 96, np.zeros((120, 9)))
    seen = (1 - video[:, -1]).mean(-1) / 2 > 0.15
    assert {"spin", "grow", "left"} <= {list(EVENTS)[e] for e in event}
    cut = 0
    for mask, box in zip(seen, found, strict=True):
        for visible, (low, high) in ((mask.any(1), box[0::2]), (mask.any(0), box[1::2])):
            edges = np.flatnonzero(np.diff(np.pad(visible, 1).astype(int)))
            parts = edges.reshape(-1, 2)
            cut += len(parts) > 1
            start, stop = max(parts, key=lambda part: part[1] - part[0])
            if len(parts) > 1 and abs(np.diff(parts)[0] - np.diff(parts)[1]) < 4:
                continue  # which part is larger is a matter of a pixel
            np.testing.assert_allclose((low, high), (start / 96, stop / 96), atol=0.021)
    assert cut > 60


def test_a_clips_box_is_that_of_its_last_frame(made, table):
    rows = made.rows["test"][:32]
    found = next(made.batches("test", 32))["targets"]["where"]["y"]
    assert found["valid"].all()
    _, ring = clips.paths(uniform(clips._MOTION, clips._SALT, rows)[:, :7], 8)
    planes = halve(draw(table, STYLES, rows)[2])
    np.testing.assert_allclose(found["boxes"][:, 0], clips.places(planes, ring[:, -1]), atol=1e-6)


def test_the_ten_topics_are_the_categories_with_vehicles_apart(made, table):
    target, wide = made.spec.targets["topic"], made.spec.targets["category"]
    assert target.classes == (*wide.classes, "Vehicles")
    assert min(target.frequencies) > 0.02
    batch = next(made.batches("test", 256))
    topic, category = (batch["targets"][name]["y"] for name in ("topic", "category"))
    names = [table.classes["subcategory"][i] for i in table.labels["subcategory"][batch["id"]]]
    moves = np.array([name in ("transport-ground", "transport-water", "transport-air")
                      for name in names])  # fmt: skip
    assert 2 < moves.sum() < len(moves) / 4
    assert (topic[moves] == 9).all()
    assert (topic == category)[~moves].all()
    assert {wide.classes[i] for i in category[moves]} == {"Travel & Places"}


@pytest.mark.parametrize("text", ["name", "name+keywords"])
def test_words_may_be_whole_words(cache, table, text):
    source = emoji_clips(units="words", text=text, data_dir=str(cache))
    tokenizer = read_tokenizer(source.assets["tokenizer.json"])
    assert source.spec.modalities["text"].vocabulary == tokenizer.get_vocab_size() <= 2000
    batch = next(source.batches("validation", 64))
    source.spec.check(batch)
    known = {w for n, s in zip(table.names, table.split, strict=True) if s == "train"
             for w in n.lower().split()}  # fmt: skip
    tokens = batch["inputs"]["text"]
    for concept, ids, mask in zip(batch["id"], tokens["x"], tokens["mask"], strict=True):
        words = table.names[concept].lower().split()
        got = [tokenizer.id_to_token(i) for i in ids[mask]][: len(words)]
        if text == "name":
            assert got == [word if word in known else "[UNK]" for word in words]
        else:
            assert all(a in (b, "[UNK]") for a, b in zip(got, words, strict=False))


def test_training_clips_are_new_in_each_epoch_and_evaluation_clips_are_fixed(made, cache, table):
    training = iter(made.train(64))
    a = next(training)
    fixed = made.compose(2 * a["id"], None)
    assert (a["targets"]["event"]["y"] != fixed["targets"]["event"]["y"]).any()
    assert same(next(iter(made.train(64))), a)
    other = emoji_clips(seed=3, data_dir=str(cache))
    assert same(next(other.batches("test", 16)), next(made.batches("test", 16)))
    for split in ("train", "validation", "test"):
        assert (table.split[made.rows[split] // 2] == split).all()


def test_a_clip_is_its_own(made):
    rows, chance = made.rows["train"][:12], uniform(made.draws, 5, np.arange(12))
    whole, part = made.compose(rows, chance), made.compose(rows[4:7], chance[4:7])
    assert same(part["targets"], jax.tree.map(lambda x: x[4:7], whole["targets"]))
    for name, entry in part["inputs"].items():
        np.testing.assert_allclose(entry["x"], whole["inputs"][name]["x"][4:7], atol=1e-5)


def test_other_sizes(cache):
    source = emoji_clips(
        frames=5,
        image_size=64,
        seconds=1.0,
        styles="noto",
        text="name+keywords",
        data_dir=str(cache),
    )
    batch = next(source.batches("test", 3))
    source.spec.check(batch)
    assert batch["inputs"]["video"]["x"].shape == (3, 5, 64, 64, 3)
    assert source.describe(int(batch["id"][0]))
    assert source.picture(int(batch["id"][0])).shape == (64, 64, 3)


def test_the_two_styles_are_two_domains_with_the_same_concepts(cache):
    noto, twemoji = (
        data.SOURCES["emoji"](styles=[style], data_dir=str(cache)) for style in ("noto", "twemoji")
    )
    assert noto.rows.keys() == twemoji.rows.keys()
    for split in noto.rows:
        a, b = (next(s.batches(split, 64)) for s in (noto, twemoji))
        assert np.array_equal(a["id"], b["id"])
        for target in ("category", "subcategory", "year"):
            assert same(a["targets"][target], b["targets"][target])
        apart = np.abs(a["inputs"]["image"]["x"] - b["inputs"]["image"]["x"]).max((1, 2, 3))
        assert (apart > 0.1).mean() > 0.95
        assert same(a["inputs"]["text"], b["inputs"]["text"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"frames": 3}, "data.frames: 3 is not a whole number from 4"),
        ({"image_size": 8}, "data.image_size: 8 is not a whole number from 16"),
        ({"units": "letters"}, "data.emoji_clips.units: unknown value 'letters'; .*words"),
        ({"text": "label"}, "data.emoji_clips.text: unknown value 'label'"),
        ({"styles": ()}, "data.emoji_clips.styles: .* one or more"),
        ({"seconds": 0}, "data.seconds: 0 is not a number above 0"),
    ],
)
def test_wrong_settings_are_named(wrong, message):
    with pytest.raises(ConfigError, match=message):
        build({"clips": emoji_clips}, {"kind": "clips", **wrong}, where="data")
