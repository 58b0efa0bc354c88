"""What every kind of label keeps to, by the table."""

import dataclasses
import html.parser
import json

import jax
import numpy as np
import pytest

from mtmm_jax.batch import Spec
from mtmm_jax.data.inspect.check import check
from mtmm_jax.data.inspect.page import Card, page
from mtmm_jax.data.inspect.show import count
from mtmm_jax.data.pipeline.labels import held_out, hide, look
from mtmm_jax.data.pipeline.mixup import blend
from mtmm_jax.registry import ConfigError
from mtmm_jax.targets import TARGETS, columns
from mtmm_jax.targets.classes import class_of
from tests.targets import examples

every_kind = pytest.mark.parametrize("kind", TARGETS)
VOID = {"img", "polygon", "polyline", "rect"}


def forms(tree):
    return jax.tree.map(lambda leaf: (leaf.shape[1:], leaf.dtype), tree)


@every_kind
def test_a_blank_passes_and_other_shapes_are_refused_in_one_line(kind):
    about = examples.target(kind)
    spec = Spec({}, {"y": about})
    batch = {"inputs": {}, "targets": {"y": {"y": about.blank(3), "present": np.ones(3, bool)}}}
    spec.check(batch)
    y = about.blank(3)
    wrong = [
        jax.tree.map(lambda leaf: np.zeros((*leaf.shape, 7), leaf.dtype), y),
        jax.tree.map(lambda leaf: leaf.sum(), y),
        {"y": y},
        [y, y],
    ]
    for one in wrong:
        batch["targets"]["y"]["y"] = one
        with pytest.raises(ConfigError, match="targets.y.y: is .*; the spec says") as error:
            spec.check(batch)
        assert "\n" not in str(error.value)


def test_a_class_may_be_a_probability_for_each_class_and_no_other():
    about = examples.target("class")
    about.check(np.zeros((5, 3), np.float32), "y")
    with pytest.raises(ConfigError, match="y: is float32"):
        about.check(np.zeros((5, 4), np.float32), "y")


def test_an_unknown_kind_is_named():
    with pytest.raises(ConfigError, match="target.kind: unknown value 'clas' .did you mean"):
        examples.target("clas").blank(1)


@every_kind
def test_a_spec_survives_json(kind):
    spec = Spec({}, {"y": examples.target(kind)})
    assert Spec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@every_kind
def test_hidden_labels_keep_shape_and_dtype(kind):
    source, _ = examples.source(kind)
    before, after = (
        one.compose(one.rows["train"], None)["targets"]["y"]
        for one in (source, hide(source, {"y": 0.5}))
    )
    assert forms(before["y"]) == forms(after["y"])
    assert not (after["present"] & ~before["present"]).any()
    assert after["present"].sum() == round(0.5 * before["present"].sum())
    gone = before["present"] & ~after["present"]
    for leaf in jax.tree.leaves(after["y"]):
        assert not leaf[gone].any()
    np.testing.assert_equal(
        *(jax.tree.map(lambda x: x[~gone], one["y"]) for one in (before, after))
    )


@every_kind
def test_rows_of_held_out_classes_leave_and_nothing_else_changes(kind):
    source, _ = examples.source(kind)
    left = held_out(source, {"group": ["q"]})
    batch = left.compose(left.rows["train"], None)
    left.spec.check(batch)
    assert set(batch["targets"]["group"]["y"]) == {0, 2}
    was = source.compose(left.rows["train"], None)
    np.testing.assert_equal(batch["targets"]["y"], was["targets"]["y"])
    if not TARGETS[kind].discrete:
        with pytest.raises(ConfigError, match=f"held_out.y: is a '{kind}' label; only classes"):
            held_out(source, {"y": 1})


@every_kind
def test_mixup_keeps_what_is_absent_and_gives_labels_that_pass(kind):
    source, _ = examples.source(kind)
    batch = source.compose(np.arange(12), None)
    mixed = blend(batch, np.full(12, 0.75, np.float32), source.spec.targets)
    source.spec.check(mixed)
    was, now = batch["targets"]["y"], mixed["targets"]["y"]
    np.testing.assert_array_equal(was["present"], now["present"])
    both = was["present"] & was["present"][np.arange(12) ^ 1]
    assert both.any()
    if TARGETS[kind].mixable is None:
        np.testing.assert_equal(was["y"], now["y"])
        return
    plain = TARGETS[kind].mixable(source.spec.targets["y"], was["y"])
    np.testing.assert_array_equal(now["y"][~both], plain[~both])
    blended = 0.75 * plain + 0.25 * plain[np.arange(12) ^ 1]
    np.testing.assert_allclose(now["y"][both], blended[both], rtol=1e-6)


def shares(y):
    return {"frequencies": np.bincount(y, minlength=3) / len(y)}


def spread(y):
    return {"mean": np.mean(y, dtype=np.float64), "std": np.std(y, dtype=np.float64)}


STATISTICS = {
    "class": shares,
    "number": spread,
    "labels": lambda y: {"frequencies": y.mean(0, dtype=np.float64)},
    "boxes": lambda y: shares(y["classes"][y["valid"]]),
    "path": lambda y: spread(y["points"][y["valid"]]),
}


@every_kind
def test_statistics_are_those_of_numpy(kind):
    about = examples.target(kind)
    y = examples.labels(about, 50)
    found = about.described_by(y)
    assert about.described_by(about.blank(0)) == about
    known = STATISTICS[kind](y) if kind in STATISTICS else {}
    for name, value in known.items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=1e-5)
    same = {f.name: getattr(about, f.name) for f in dataclasses.fields(about) if f.name in known}
    assert dataclasses.replace(found, **same) == about
    assert (found != about) == bool(known) == (TARGETS[kind].describe is not None)


@every_kind
def test_no_statistic_sees_the_filler_of_an_absent_label(kind):
    source, every = examples.source(kind)
    train, about = source.rows["train"], source.spec.targets["y"]
    rows = train[train % 3 != 1]
    mine = jax.tree.map(lambda leaf: leaf[rows], every)
    counted = count(source, "train", len(train))
    assert counted.present["y"] == pytest.approx(len(rows) / len(train))
    traits = TARGETS[kind]
    if traits.count is not None:
        np.testing.assert_array_equal(counted.values["y"], traits.count.of(about, mine))
        assert np.isfinite(counted.values["y"]).all()
    if traits.kept:
        np.testing.assert_equal(look(source).y["y"], mine)
        described = hide(source, {"y": 1.0}).spec.targets["y"]
        assert described == about.described_by(mine)


@every_kind
def test_a_number_or_class_for_each_row_or_none(kind):
    traits = TARGETS[kind]
    assert traits.value is not None or not traits.discrete
    if traits.value is not None:
        assert traits.value(examples.labels(examples.target(kind), 9)).shape == (9,)
    soft = np.array([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3]], np.float32)
    np.testing.assert_array_equal(class_of(soft), [1, 0])


@every_kind
def test_standardised_and_undone_is_what_it_was(kind):
    about = examples.target(kind)
    y = examples.labels(about, 9)
    back = about.undo(about.standardise(y))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), y, back)


def test_numbers_and_paths_are_standardised():
    for kind, leaf in (("number", lambda y: y), ("path", lambda y: y["points"])):
        about = examples.target(kind)
        y = examples.labels(about, 9)
        np.testing.assert_allclose(leaf(about.standardise(y)), (leaf(y) - 2) / 3, rtol=1e-6)


class Closed(html.parser.HTMLParser):
    """Tags that are open, and all that there were."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags = [], set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


@every_kind
def test_labels_are_shown_closed_and_escaped(kind):
    about = examples.target(kind)
    for seed in range(5):
        y = jax.tree.map(lambda leaf: leaf[0], examples.labels(about, 1, seed))
        for one in (about, dataclasses.replace(about, classes=())):
            if one.classes or kind == "tokens":  # the text is the tokenizer's
                shown = TARGETS[kind].html(one, y, lambda ids: examples.HOSTILE[2])
                found = Closed(shown)
                assert not found.open
                assert not found.tags & {"script", "b"}
    blank = jax.tree.map(lambda leaf: leaf[0], about.blank(1))
    assert isinstance(TARGETS[kind].html(about, blank, str), str)


@every_kind
def test_a_page_of_labels_is_escaped(kind):
    source, _ = examples.source(kind)
    batch = next(source.batches("train", 6))
    counted = {split: count(source, split, 20) for split in source.rows}
    text = page(source, Card("made", {}, "", "", "some"), counted, batch)
    assert "<script" not in text
    assert "<b>bold" not in text


NONSENSE = (
    *(True, {}, [], "", " ", "nan", 1e39, -1, "x" * 300, [[1], [2, 3]], [None], ["a", {}], "[1,"),
    *([True], [[[[[[[[[[1]]]]]]]]]], [{"box": [0, 0, 1, 1]}], [{"box": [0, 1, 1], "class": "a"}]),
    *([{"box": [1, 1, 0, 0], "class": "a"}], [{"box": [0, "x", 1, 1], "class": "a"}]),
)


@pytest.mark.parametrize("kind", columns())
def test_nonsense_in_a_column_is_a_reason_of_one_line(kind, tmp_path):
    fine = {
        "class": "a",
        "number": 1.5,
        "labels": ["a"],
        "tokens": "a",
        "boxes": [{"box": [0, 0, 0.5, 0.5], "class": "a"}],
    }.get(kind, 1)
    rows = [{"text": "hello", "y": fine, "split": "train"}] * 2
    rows += [{"text": "hello", "y": cell, "split": "train"} for cell in NONSENSE]
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"units": "fractions", "of": "picture"} if kind == "boxes" else {}
    inputs = {"text": "text", **({"picture": "image"} if kind == "boxes" else {})}
    if kind == "boxes":
        rows[0]["picture"] = None
        path.write_text("".join(json.dumps({"picture": None, **row}) + "\n" for row in rows))
    report = check(path, {"modalities": inputs, "targets": {"y": {"kind": kind, **options}}})
    found = [problem for problem in report.problems if problem.column == "y"]
    assert len({problem.line for problem in found}) >= 8
    assert all(problem.line > 2 and "\n" not in str(problem) for problem in found)
    assert all(problem.reason for problem in found)
