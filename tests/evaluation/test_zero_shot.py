"""Classes by name and by example: metrics against NumPy, and rows that training never sees."""

import dataclasses
import itertools
import json
import operator
import types

import jax.numpy as jnp
import numpy as np
import pytest

from mtmm_jax import evaluate
from mtmm_jax.data.pipeline import labels
from mtmm_jax.evaluation import spaces, zero_shot
from mtmm_jax.registry import ConfigError
from mtmm_jax.store.workdir import FORMAT
from mtmm_jax.tasks.traits import Space
from tests.data import small
from tests.data.pipeline.test_labels import build

SEEN = np.array([True, True, False, False])
ALL = np.ones(4, bool)


def _rows(seed=0, count=60, noise=0.8):
    rng = np.random.default_rng(seed)
    classes = rng.normal(size=(4, 6))
    y = rng.integers(0, 4, count)
    return classes[y] + noise * rng.normal(size=(count, 6)), y, classes


def _cosines(x, c):
    return np.array([[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in c] for a in x])


def test_the_nearest_class_is_said_and_classes_count_alike():
    x, y, classes = _rows()
    x = 7 * x  # lengths say nothing
    said = zero_shot.nearest(x, classes, ALL)
    np.testing.assert_array_equal(said, _cosines(x, classes).argmax(1))
    shares = [(said[y == c] == c).mean() for c in range(4)]
    assert zero_shot.class_accuracy(said, y, ALL) == pytest.approx(np.mean(shares))
    assert zero_shot.class_accuracy(said, y, ~SEEN) == pytest.approx(np.mean(shares[2:]))
    unseen = zero_shot.nearest(x, classes, ~SEEN)
    assert set(unseen) == {2, 3}
    assert np.isnan(zero_shot.class_accuracy(said[:0], y[:0], ALL))


def test_seen_classes_pay_an_offset():
    x, y, classes = _rows(noise=1.5)
    for g in (0.0, 0.3, -0.3):
        found = zero_shot.generalised(x, y, classes, SEEN, ALL, g)
        said = (_cosines(x, classes) - g * SEEN).argmax(1)
        a, b = (np.mean([(said[y == c] == c).mean() for c in pair]) for pair in ((0, 1), (2, 3)))
        assert found == pytest.approx({"seen": a, "unseen": b, "harmonic": 2 * a * b / (a + b)})
    assert zero_shot.harmonic(0.0, 0.0) == 0.0
    assert zero_shot.harmonic(0.5, 1.0) == pytest.approx(2 / 3)


def test_the_offset_is_the_best_of_those_tried_and_the_area_that_below_the_curve():
    x, y, classes = _rows(noise=1.5)
    classes[SEEN] *= 1.0
    biased = x + 1.5 * classes[:2].mean(0)
    offset, area = zero_shot.calibrate(biased, y, classes, SEEN, ALL)
    scores = {
        g: zero_shot.generalised(biased, y, classes, SEEN, ALL, g) for g in np.linspace(-1, 1, 41)
    }
    best = max(found["harmonic"] for found in scores.values())
    assert scores[min(scores, key=lambda g: abs(g - offset))]["harmonic"] == best
    assert best > scores[min(scores, key=abs)]["harmonic"]
    points = sorted(
        ((f["unseen"], f["seen"]) for f in scores.values()), key=lambda p: (p[0], -p[1])
    )
    points = [(0, points[0][1]), *points, (points[-1][0], 0)]
    steps = itertools.pairwise(points)
    assert area == pytest.approx(sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in steps))
    perfect, _, _ = _rows(noise=0.0)
    assert zero_shot.calibrate(perfect, y, classes, SEEN, ALL)[1] == pytest.approx(1.0)
    seen = SEEN[y]
    offset, area = zero_shot.calibrate(x[seen], y[seen], classes, SEEN, ALL)
    assert offset == 0
    assert np.isnan(area)


def test_prototypes_are_means_of_drawn_examples():
    x, y, _ = _rows()
    y[y == 3] = 2
    y[0] = 3  # one example only
    found = zero_shot.prototypes(x, y, 2, 5)
    for c in range(3):
        rows = zero_shot.drawn(y, c, 2)
        assert len(rows) == 2
        assert (y[rows] == c).all()
        unit = x[rows] / np.linalg.norm(x[rows], axis=1, keepdims=True)
        np.testing.assert_allclose(found[c], unit.mean(0))
    assert np.isnan(found[3:]).all()
    one = zero_shot.prototypes(x, y, 1, 5)
    np.testing.assert_allclose(one[3], x[0] / np.linalg.norm(x[0]))
    assert zero_shot.drawn(y, 0, 2).tolist() != zero_shot.drawn(y, 0, 2, seed=1).tolist()


# Held out of training.


def test_rows_of_held_out_classes_are_never_trained_on():
    source = build(per_id=2)
    held = labels.held_out(source, {"kind": ["b"]})
    for rows, there in ((held.rows["train"], False), (held.rows["held_out"], True)):
        entry = source.compose(rows, None)["targets"]["kind"]
        of_b = (entry["y"] == 1) & entry["present"]
        assert of_b.all() if there else not of_b.any()
    both = np.concatenate([held.rows["train"], held.rows["held_out"]])
    np.testing.assert_array_equal(np.sort(both), np.sort(source.rows["train"]))
    assert held.spec.targets["kind"].frequencies[1] == 0
    assert sum(held.spec.targets["kind"].frequencies) == pytest.approx(1)
    sizes = held.compose(held.rows["train"], None)["targets"]["size"]["y"]
    assert held.spec.targets["size"].mean == pytest.approx(sizes.mean(), rel=1e-6)
    for split in ("validation", "test"):
        np.testing.assert_array_equal(held.rows[split], source.rows[split])
    batches = iter(dataclasses.replace(held, workers=0).train(16))
    for _ in range(30):
        entry = next(batches)["targets"]["kind"]
        assert not (entry["present"] & (entry["y"] == 1)).any()
    fewer = labels.hide(held, {"kind": 0.5})
    kept = fewer.compose(fewer.rows["train"], None)["targets"]["kind"]["present"]
    had = held.compose(held.rows["train"], None)["targets"]["kind"]["present"]
    assert kept.sum() == round(0.5 * had.sum())


def test_a_number_of_classes_is_drawn():
    source = build()
    sets = set()
    for seed in range(8):
        held = labels.held_out(source, {"kind": 2}, seed)
        frequencies = held.spec.targets["kind"].frequencies
        assert sorted(f > 0 for f in frequencies) == [False, False, True]
        sets.add(frequencies)
    assert len(sets) > 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"knid": 1}, "held_out: unknown target 'knid'"),
        ({"size": 1}, "held_out.size: is a 'number' label"),
        ({"kind": 3}, "held_out.kind: 3 of 3 classes"),
        ({"kind": ["z"]}, "held_out.kind: unknown class 'z'"),
        ({"kind": "a"}, "held_out.kind: 'a' is not a whole number from 1 upwards, or a list"),
        ({}, "needs classes, or their number"),
    ],
)
def test_what_cannot_be_held_out(given, message):
    with pytest.raises(ConfigError, match=message):
        labels.held_out(build(), given)


# Of a model.


class _Nearest:
    """A model in whose space a picture's class is its first value, a text's its first word."""

    spec = small.source("left").spec
    space = Space(operator.itemgetter("vectors"), None)
    tasks = {"pairs": types.SimpleNamespace(space=space, reads=("image", "text"))}  # noqa: RUF012

    def __call__(self, variables, inputs):
        def vectors(name):
            entry = inputs[name]
            x = entry["x"].reshape(len(entry["x"]), -1)[:, 0].astype(jnp.int32)
            return jnp.eye(4)[jnp.where(entry["present"], x, 3)]

        return {"pairs": {"vectors": {name: vectors(name) for name in ("image", "text")}}}, {}


def _source(monkeypatch, asked):
    plain = build(per_id=2)
    compose = plain.compose

    def shown(rows, chance):
        batch = compose(rows, chance)
        y = batch["targets"]["kind"]["y"]
        image = {**batch["inputs"]["image"]}
        image["x"] = np.broadcast_to(y[:, None, None, None], image["x"].shape).astype(np.float32)
        return {**batch, "inputs": {**batch["inputs"], "image": image}}

    def encode(tokenizer, texts, length):
        asked.append(list(texts))
        ids = np.array([["a", "b", "c"].index(text) for text in texts])
        return np.tile(ids[:, None], (1, length)), np.ones((len(texts), length), bool)

    monkeypatch.setattr(spaces, "read_tokenizer", lambda text: text)
    monkeypatch.setattr(spaces, "encode_with_mask", encode)
    rows = {**plain.rows, "validation": np.arange(300, 340), "test": np.arange(400, 440)}
    assets = {"tokenizer.json": b"{}"}
    whole = dataclasses.replace(plain, rows=rows, compose=shown, assets=assets)
    return labels.held_out(whole, {"kind": ["b"]})


def test_a_model_that_tells_all_apart_is_always_right(monkeypatch):
    asked = []
    source = _source(monkeypatch, asked)
    found = zero_shot.measure(_Nearest(), {}, source, "kind", 32, examples=(1, 500))
    assert asked == [["a", "b", "c"]]
    assert found["unseen_classes"] == ["b"]
    names, few = found["names"], found["examples"]
    for accuracies in (names, few["1"]):
        for key in ("seen", "unseen", "together_seen", "together_unseen", "calibrated_harmonic"):
            assert accuracies[key] == 1.0
        assert accuracies["area"] == pytest.approx(1.0)
    assert (names["chance_seen"], names["chance_unseen"]) == (0.5, 1.0)
    assert "unseen" not in few["500"]  # no class has so many
    held = source.compose(source.rows["held_out"], None)
    rows = held["inputs"]["image"]["present"] & held["targets"]["kind"]["present"]
    assert found["rows"]["unseen"] > rows.sum()  # and those of the test split


def test_what_cannot_be_predicted(monkeypatch):
    source = _source(monkeypatch, [])
    with pytest.raises(ConfigError, match="--zero_shot: unknown label 'knd'"):
        zero_shot.measure(_Nearest(), {}, source, "knd", 8)
    with pytest.raises(ConfigError, match="'size' is a 'number' label; choices: kind"):
        zero_shot.measure(_Nearest(), {}, source, "size", 8)
    with pytest.raises(ConfigError, match="no retrieval task reads a text and 'audio'"):
        zero_shot.measure(_Nearest(), {}, source, "kind", 8, modality="audio")
    with pytest.raises(ConfigError, match="the data left keep no tokenizer"):
        zero_shot.measure(_Nearest(), {}, dataclasses.replace(source, assets={}), "kind", 8)


def test_the_command_checks_before_it_opens_a_run(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"format": FORMAT}))
    where = ["--workdir", str(tmp_path), "--zero_shot", "kind"]
    assert evaluate.main([*where, "--only", "image"]) == 2
    assert "--zero_shot: has splits and modalities of its own" in capsys.readouterr().err
