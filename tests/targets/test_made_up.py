"""A kind of label that only its test knows goes everywhere, with nothing else changed."""

import dataclasses
import json

import numpy as np
import pytest

from mtmm_jax.batch import Spec
from mtmm_jax.data import build
from mtmm_jax.data.inspect import check, show
from mtmm_jax.data.pipeline.folds import folds
from mtmm_jax.data.pipeline.labels import held_out, hide
from mtmm_jax.data.pipeline.mixup import mixup
from mtmm_jax.registry import ConfigError
from mtmm_jax.targets import TARGETS, Count, TargetKind
from mtmm_jax.targets.kind import blank
from mtmm_jax.tasks.task import find_target
from tests.targets import examples

NUMBERS = TargetKind(blank=blank(np.float32, lambda target: target.shape))
RATING = dataclasses.replace(TARGETS["number"], like=("number",))


@pytest.fixture
def numbers(monkeypatch):
    monkeypatch.setitem(TARGETS, "numbers", NUMBERS)


@pytest.fixture
def path(tmp_path, numbers):
    """Rows with four numbers each, one of them absent, in the last split as JSON in a text."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(24):
        y = rng.normal(size=4).tolist()
        split = "train" if i < 16 else "validation" if i < 20 else "test"
        rows.append({"id": i, "split": split, "text": f"row {i} of {i % 3}", "pose": y})
    rows[3]["pose"] = None
    rows[21]["pose"] = json.dumps(rows[21]["pose"])
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "m.jsonl"


CONFIG = {
    "kind": "manifest",
    "modalities": {"text": {"kind": "text", "vocabulary": 60}},
    "targets": {"pose": "numbers"},
}


def test_its_batches_pass(path):
    source = build({**CONFIG, "path": str(path)})
    about = source.spec.targets["pose"]
    assert (about.kind, about.shape) == ("numbers", (4,))
    batch = source.compose(source.rows["train"], None)
    source.spec.check(batch)
    assert (~batch["targets"]["pose"]["present"]).nonzero()[0].tolist() == [3]
    y = json.loads(json.loads(path.read_text().splitlines()[21])["pose"])
    test = source.compose(source.rows["test"], None)["targets"]["pose"]["y"]
    np.testing.assert_allclose(test[1], y, rtol=1e-6)
    assert Spec.from_dict(json.loads(json.dumps(source.spec.to_dict()))) == source.spec


def test_it_is_hidden_folded_and_left_unmixed(path):
    source = build({**CONFIG, "path": str(path)})
    hidden = hide(source, {"pose": 0.4})
    batch = hidden.compose(hidden.rows["train"], None)
    hidden.spec.check(batch)
    assert batch["targets"]["pose"]["present"].sum() == 6
    assert hidden.spec == source.spec
    assert folds(source, 4, 0).spec == source.spec
    mixed = mixup(source)
    chance = np.full((16, mixed.draws), 0.5)
    after = mixed.compose(mixed.rows["train"], chance)["targets"]["pose"]
    np.testing.assert_equal(after, source.compose(source.rows["train"], None)["targets"]["pose"])


def test_check_and_show_take_it(path, tmp_path, capsys):
    arguments = [str(path), "--modality", "text=text", "--target", "pose=numbers"]
    assert check.main(arguments) == 0
    assert "nothing wrong" in capsys.readouterr().out
    out = tmp_path / "page.html"
    options = [f"--config.{key}={json.dumps(CONFIG[key])}" for key in ("modalities", "targets")]
    assert show.main(["manifest", "--out", str(out), f"--config.path={path}", *options]) == 0
    first = json.loads(path.read_text().splitlines()[0])["pose"]
    text = out.read_text()
    assert ", ".join(f"{np.float32(value):.5g}" for value in first) in text
    assert "numbers; labelled: train 94%" in text


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ([1, 2, 3], r"has numbers of shape \[3\], not \[4\]"),
        ([[1, 2], [3]], "has lists of different lengths"),
        ([1, 2, 3, "x"], "is not a number"),
        ("[1, 2", "is no list of numbers"),
        ({"a": 1}, "is not a number"),
    ],
)
def test_a_cell_of_another_shape_is_a_bad_row(path, cell, reason):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[5]["pose"] = cell
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ConfigError, match=f"line 6, column 'pose': .*{reason}"):
        build({**CONFIG, "path": str(path), "on_bad": "stop"})
    assert 5 not in build({**CONFIG, "path": str(path)}).rows["train"]


def test_several_arrays_need_a_column_of_their_own(path, monkeypatch):
    pair = lambda target, n: {"a": np.zeros(n, np.float32), "b": np.zeros(n, bool)}  # noqa: E731
    monkeypatch.setitem(TARGETS, "numbers", TargetKind(blank=pair))
    with pytest.raises(ConfigError, match="targets.pose.kind: a numbers label is several arrays"):
        build({**CONFIG, "path": str(path)})
    source, _ = examples.source("numbers")
    assert hide(source, {"y": 0.5}).spec == source.spec


def test_whole_numbers_stay_whole(path, monkeypatch):
    monkeypatch.setitem(
        TARGETS, "numbers", TargetKind(blank=blank(np.int32, lambda target: target.shape))
    )
    with pytest.raises(ConfigError, match="has a number that is not whole"):
        build({**CONFIG, "path": str(path), "on_bad": "stop"})


def test_options_of_a_column_are_checked(path):
    config = {**CONFIG, "path": str(path), "targets": {"pose": {"kind": "numbers", "shape": [0]}}}
    with pytest.raises(ConfigError, match=r"targets.pose.shape\[0\]: 0 is not a whole"):
        build(config)
    config["targets"] = {"pose": {"kind": "numbers", "colour": 1}}
    with pytest.raises(ConfigError, match="unknown hyper-parameter of numbers 'colour'"):
        build(config)


def test_a_kind_that_claims_a_column_is_guessed(path, monkeypatch, capsys):
    looks = lambda values: {"shape": [4]} if isinstance(values[0], list) else None  # noqa: E731
    monkeypatch.setitem(TARGETS, "numbers", dataclasses.replace(NUMBERS, guess=looks))
    assert check.main([str(path)]) == 0
    assert "target numbers, shape [4]" in " ".join(capsys.readouterr().out.split())


def test_a_kind_like_another_is_taken_by_its_tasks(monkeypatch):
    about = examples.target("number")
    spec = Spec({}, {"stars": dataclasses.replace(about, kind="rating"), "group": about})
    monkeypatch.setitem(TARGETS, "rating", RATING)
    assert find_target("stars", None, "number", spec, "tasks.stars")[1].kind == "rating"
    with pytest.raises(ConfigError, match="'stars' is a 'rating' label; the task needs 'class'"):
        find_target("stars", None, "class", spec, "tasks.stars")
    with pytest.raises(ConfigError, match="labels of kind 'number': stars, group"):
        find_target("sun", None, "number", spec, "tasks.sun")
    assert not about.is_a("rating")


def test_what_it_counts_is_drawn(monkeypatch):
    lengths = Count(lambda target, y: np.linalg.norm(y, axis=1))
    monkeypatch.setitem(TARGETS, "numbers", dataclasses.replace(NUMBERS, count=lengths))
    source, every = examples.source("numbers", shape=(4,))
    train = source.rows["train"]
    found = show.count(source, "train", len(train)).values["y"]
    mine = every[train[train % 3 != 1]]
    np.testing.assert_allclose(found, np.sqrt((mine**2).sum(1)), rtol=1e-6)


def test_classes_of_a_kind_that_says_no_more_are_held_out(monkeypatch):
    one = TargetKind(blank=blank(np.int32, lambda target: ()), value=np.asarray, discrete=True)
    monkeypatch.setitem(TARGETS, "letter", dataclasses.replace(one, small=False))
    source, every = examples.source("letter")
    left = held_out(source, {"y": [examples.HOSTILE[1]]})
    train = source.rows["train"]
    gone = train[(train % 3 != 1) & (every[train] == 1)]
    assert len(gone)
    np.testing.assert_array_equal(left.rows["train"], np.setdiff1d(train, gone))
    assert left.spec.targets["y"] == source.spec.targets["y"]
