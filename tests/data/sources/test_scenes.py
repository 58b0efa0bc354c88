"""Scenes: boxes fit what is drawn, splits keep their concepts, training never ends."""

import dataclasses

import jax
import numpy as np
import pytest

from mtmm_jax.batch import Spec
from mtmm_jax.data.sources.emoji import scenes
from mtmm_jax.data.sources.emoji.scenes import emoji_scenes
from mtmm_jax.readers import images
from mtmm_jax.registry import ConfigError, build

SPLITS = ("train", "validation", "test")


def same(a, b) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


@pytest.fixture(scope="module")
def made(cache):
    return emoji_scenes(size=(300, 100, 100), data_dir=str(cache))


@pytest.fixture(scope="module")
def cast(made):
    return made.compose.args[0]


def test_batches_pass_the_spec(made):
    for batch in (next(iter(made.train(8))), next(made.batches("validation", 8))):
        made.spec.check(batch)
        image = batch["inputs"]["image"]["x"]
        assert (image.shape, image.dtype) == ((8, 64, 64, 3), np.float32)
        assert -1 <= image.min() < image.max() <= 1
    assert Spec.from_dict(made.spec.to_dict()) == made.spec


def test_boxes_are_tight_around_each_emoji_drawn_alone(made, cast, table):
    """Drawn again by whole-picture matrices from the full-size drawing, one emoji at a time."""
    batch = next(made.batches("test", 40))
    scene = scenes.plan(cast, made.rows["test"][:40], None)
    found = batch["targets"]["boxes"]["y"]
    for b in range(40):
        wanted = []
        for i in np.flatnonzero(scene.used[b]):
            side = scene.side[b, i] / 64
            style = ("noto", "twemoji")[scene.style[b, i]]
            planes = table.drawings[style][scene.concept[b, i]][None]
            middle = [
                (at[b, i] + scene.side[b, i] / 2) / 64 - 0.5 for at in (scene.top, scene.left)
            ]
            matrices = [
                images.resize_matrix(64, 64, np.array([side]), np.array([at])) for at in middle
            ]
            y, x = np.nonzero(images.view(planes, *matrices)[0, 3] >= scenes.VISIBLE)
            wanted.append([y.min(), x.min(), y.max() + 1, x.max() + 1])
        valid = found["valid"][b]
        assert valid.tolist() == [True] * len(wanted) + [False] * (6 - len(wanted))
        # The half-size copy and the whole one may disagree on faint pixels at the rim.
        assert np.abs(found["boxes"][b, valid] * 64 - wanted).max() <= 1
        kinds = table.labels["category"][scene.concept[b, scene.used[b]]]
        assert found["classes"][b, valid].tolist() == kinds.tolist()


def test_boxes_hold_all_that_is_seen_and_touch_it(made, cast):
    """On the pictures themselves: white outside the boxes, something at each side of one."""
    rows = made.rows["validation"][:60]
    scene = scenes.plan(cast, rows, None)
    scene = dataclasses.replace(scene, background=np.zeros_like(scene.background))  # white
    pictures, boxes = scenes.render(cast, scene)
    change = (1 - pictures).max(-1) / 2
    for b in range(len(rows)):
        outside = np.ones((64, 64), bool)
        for y0, x0, y1, x1 in boxes[b, scene.used[b]]:
            outside[y0:y1, x0:x1] = False
        assert change[b][outside].max(initial=0) <= scenes.VISIBLE
    alone = [(change[b], boxes[b, 0]) for b in np.flatnonzero(scene.used.sum(1) == 1)]
    edges = [
        [c[y0, x0:x1].max(), c[y1 - 1, x0:x1].max(), c[y0:y1, x0].max(), c[y0:y1, x1 - 1].max()]
        for c, (y0, x0, y1, x1) in alone
    ]
    assert len(alone) > 3
    assert np.median(edges) > 0.05


def test_emoji_hardly_overlap_and_stay_inside(cast, made):
    scene = scenes.plan(cast, made.rows["train"], None)
    _, boxes = scenes.render(cast, scene)
    assert boxes.min() >= 0
    assert boxes.max() <= 64
    assert (boxes[scene.used][:, 2:] > boxes[scene.used][:, :2]).all()
    for b in range(len(boxes)):
        squares = np.stack([scene.top[b], scene.left[b], scene.side[b]], 1)[scene.used[b]]
        for i, (y, x, s) in enumerate(squares):
            for v, u, t in squares[:i]:
                shared = max(min(y + s, v + t) - max(y, v), 0) * max(
                    min(x + s, u + t) - max(x, u), 0
                )
                assert shared <= scenes.OVERLAP * min(s, t) ** 2
    count = np.bincount(scene.used.sum(1), minlength=7)
    assert count[0] == 0
    assert count[1:].min() > 0.5 * count[1:].mean()


@pytest.mark.parametrize("split", SPLITS)
def test_scenes_show_the_concepts_of_their_split(made, cast, table, split):
    rows = made.rows[split]
    chance = np.random.default_rng(0).random((len(rows), made.draws), np.float32)
    for plan in (scenes.plan(cast, rows, None), scenes.plan(cast, rows, chance)):
        shown = np.unique(plan.concept[plan.used])
        assert (table.split[shown] == split).all()
        assert len(shown) > 100


def test_what_found_no_room_leaves_no_gap_among_the_boxes(made, cast, table, monkeypatch):
    rows = made.rows["test"][:30]
    whole = scenes.plan(cast, rows, None)
    used = whole.used & (np.arange(6) != 1)
    monkeypatch.setattr(scenes, "plan", lambda *_: dataclasses.replace(whole, used=used))
    y = made.compose(rows, None)["targets"]["boxes"]["y"]
    _, boxes = scenes.render(cast, whole)
    for b in range(30):
        count = used[b].sum()
        assert y["valid"][b].tolist() == [True] * count + [False] * (6 - count)
        kinds = table.labels["category"][whole.concept[b, used[b]]]
        assert y["classes"][b, :count].tolist() == kinds.tolist()
        np.testing.assert_allclose(y["boxes"][b, :count] * 64, boxes[b, used[b]], atol=1e-4)
    assert used.sum() < whole.used.sum()


def test_labels_agree_with_the_boxes(made):
    batch = next(made.batches("validation", 100))
    boxes = batch["targets"]["boxes"]["y"]
    assert np.array_equal(batch["targets"]["count"]["y"], boxes["valid"].sum(1))
    for row, valid, kinds in zip(
        batch["targets"]["present_categories"]["y"], boxes["valid"], boxes["classes"], strict=True
    ):
        assert np.flatnonzero(row).tolist() == sorted(set(kinds[valid].tolist()))


def test_training_scenes_are_new_in_each_epoch_and_evaluation_scenes_are_fixed(made, cache):
    training = iter(made.train(300))
    first, second = next(training), next(training)
    assert sorted(first["id"]) == sorted(second["id"])
    a, b = (batch["inputs"]["image"]["x"][np.argsort(batch["id"])] for batch in (first, second))
    assert (a != b).any((1, 2, 3)).all()
    assert same(next(iter(made.train(300))), first)
    other = emoji_scenes(size=(40, 10, 10), seed=5, data_dir=str(cache))
    few = next(made.batches("test", 10))
    assert same(next(other.batches("test", 10)), few)
    plain = dataclasses.replace(made, augment=False)
    kept = next(iter(plain.train(300)))
    whole = next(made.batches("train", 300))
    at = kept["id"].argsort()
    assert np.array_equal(kept["inputs"]["image"]["x"][at], whole["inputs"]["image"]["x"])


def test_a_scene_is_its_own(made):
    rows = made.rows["train"][:12]
    chance = np.random.default_rng(1).random((12, made.draws), np.float32)
    whole, part = made.compose(rows, chance), made.compose(rows[4:7], chance[4:7])
    assert same(part, jax.tree.map(lambda x: x[4:7], whole))


@pytest.mark.parametrize(("classes", "number"), [("subcategory", 98), ("emoji", 1)])
def test_other_classes_sizes_and_styles(cache, classes, number):
    source = emoji_scenes(
        classes=classes, most=12, image_size=96, styles="noto", size=(50, 5, 5), data_dir=str(cache)
    )
    batch = next(source.batches("test", 5))
    source.spec.check(batch)
    known = source.spec.targets["boxes"]
    assert (len(known.classes), known.length) == (number, 12)
    assert sum(known.frequencies) == pytest.approx(1)
    assert batch["targets"]["boxes"]["y"]["valid"].sum(1).max() <= 12
    picture = source.picture(int(batch["id"][0]))
    shown = (batch["inputs"]["image"]["x"][0] + 1) * 127.5
    assert picture.dtype == np.uint8
    assert np.abs(picture - shown).max() <= 0.5
    count = batch["targets"]["count"]["y"][0]
    assert count == len(source.describe(int(batch["id"][0])).split(", "))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"classes": "name"}, "data.emoji_scenes.classes: unknown value 'name'.*subcategory"),
        ({"styles": ("apple",)}, "data.emoji_scenes.styles: unknown style 'apple'"),
        ({"most": 0}, r"data.most: 0 is not a whole number from 1 to 64"),
        ({"image_size": 8}, "is not a whole number from 16"),
        ({"size": (1, 2, 0)}, "is not a whole number from 1"),
    ],
)
def test_wrong_settings_are_named(wrong, message):
    with pytest.raises(ConfigError, match=message):
        build({"scenes": emoji_scenes}, {"kind": "scenes", **wrong}, where="data")
