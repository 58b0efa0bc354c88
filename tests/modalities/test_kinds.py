"""What holds for every row of `MODALITIES`, and for a kind that sets only its dimensions."""

import dataclasses
import html.parser
import json

import numpy as np
import pytest

from mtmm_jax.batch import Modality, Spec
from mtmm_jax.data.inspect.check import check
from mtmm_jax.data.pipeline.augment_jit import AUGMENTATIONS
from mtmm_jax.data.transforms import Form
from mtmm_jax.encoders import ENCODERS
from mtmm_jax.inference.export import entries
from mtmm_jax.modalities import MODALITIES, Kept, is_like, kind_of
from mtmm_jax.modalities.corruption import SEVERITIES, Place
from mtmm_jax.modalities.kind import MASKS
from mtmm_jax.modalities.shown import Example
from mtmm_jax.modalities.units import OverLine, OverPicture, without
from mtmm_jax.registry import ConfigError
from mtmm_jax.text import train_tokenizer
from tests.modalities.made_up import MADE_UP, POINTS

KINDS = {**MODALITIES, **MADE_UP}
SIZE = 7
HOSTILE = "<script>alert('&\"')</script>"
# What the defaults below do not fit.
KNOWN = {
    "image": Modality("image", (16, 16, 3), "float32"),
    "text": Modality("text", (6,), "int32", vocabulary=20),
    "audio": Modality("audio", (1600,), "float32", rate=4000.0),
    "video": Modality("video", (3, 16, 16, 3), "float32", rate=2.0),
    "table": Modality("table", (5,), "float32", names=tuple("vwxyz")),
    "depth": Modality("depth", (16, 12, 1), "float32"),
}
OPTIONS = {"table": {"columns": ["cell"]}, "series": {"column": "cell"}}
NONSENSE = {"text": " ", "table": "age=5"}
TOKENIZER = train_tokenizer(["red apple"], 30).encode()
every = pytest.mark.parametrize("row", KINDS.values(), ids=KINDS)
damages = pytest.mark.parametrize(
    ("row", "name"), [(row, name) for row in KINDS.values() for name in row.corruptions]
)


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    for name, row in MADE_UP.items():
        monkeypatch.setitem(MODALITIES, name, row)


def modality_of(row):
    return KNOWN.get(row.name) or Modality(row.name, (5, 3, 4, 2)[: row.dimensions], "float32")


def entry_of(row, size=SIZE, seed=0):
    """A random batch of one modality in which the second row is absent."""
    modality, rng = modality_of(row), np.random.default_rng(seed)
    shape = (size, *modality.shape)
    if modality.vocabulary:
        x = rng.integers(2, modality.vocabulary, shape).astype(modality.dtype)
    else:
        x = rng.uniform(-1, 1, shape).astype(modality.dtype)
    entry = {"x": x, "present": np.arange(size) != 1}
    if row.mask != "never":
        mask = np.arange(shape[1]) < rng.integers(1, shape[1] + 1, size)[:, None]
        entry["mask"] = mask if row.mask == "always" else mask | (rng.random(mask.shape) < 0.3)
    if x.dtype.kind == "f":
        entry["x"][1] = np.nan
    return entry


def parts_of(row, entry):
    words = None
    if row.units.words:
        words = np.where(entry["mask"], np.arange(entry["mask"].shape[1]) // 2, -1)
    return row.units.parts(modality_of(row), entry, words)


@every
def test_an_example_and_a_random_batch_pass_the_check(row):
    assert row.mask in MASKS
    modality = modality_of(row)
    assert len(modality.shape) == row.dimensions
    spec = Spec({"one": modality}, {})
    assert Spec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    example = spec.example(2)
    spec.check(example)
    assert ("mask" in example["inputs"]["one"]) == (row.mask == "always")
    spec.check({"inputs": {"one": entry_of(row)}, "targets": {}, "weight": np.ones(SIZE)})


def test_masks_are_those_that_exported_programs_take():
    masks = {name: row.mask for name, row in KINDS.items()}
    spec = Spec({name: modality_of(row) for name, row in KINDS.items()}, {})
    masked = {name for name, entry in entries(spec.modalities).items() if "mask" in entry}
    assert masked == {name for name, mask in masks.items() if mask != "never"}
    # What files that were exported before rely on.
    always, maybe = {"text": "always"}, dict.fromkeys(("video", "table", "series"), "maybe")
    kept = {**always, **maybe, "image": "never", "audio": "never"}
    assert kept.items() <= masks.items()


@every
def test_some_encoder_reads_it(row):
    assert any(encoder.accepts(modality_of(row)) for encoder in ENCODERS.values())


@every
def test_units_cover_all_places_and_are_named(row):
    entry, modality = entry_of(row), modality_of(row)
    parts = parts_of(row, entry)
    real = np.ones(entry["x"].shape[:2], bool)
    if "mask" in entry and (row.units.masked or row.units.words):
        real = entry["mask"]
    real = real.reshape(*real.shape, *(1,) * (parts.units.ndim - 2))
    assert ((parts.units >= 0) == np.broadcast_to(real, parts.units.shape)).all()
    assert parts.units.shape == entry["x"].shape[: parts.units.ndim]
    for unit, there in zip(parts.units, parts.there, strict=True):
        named = set(unit[unit >= 0].tolist())
        assert named == set(np.flatnonzero(there)) or not there.any()
    assert not parts.there[~entry["present"]].any()
    if not row.units.words:
        names = row.units.names(modality, parts.count)
        assert len(set(names)) == len(names) == parts.count


@every
def test_without_nothing_is_the_input_and_without_all_is_neutral(row):
    entry = entry_of(row)
    parts = parts_of(row, entry)
    whole = without(entry, parts, np.ones(parts.there.shape, bool))
    np.testing.assert_array_equal(whole["x"], entry["x"])
    nothing = np.asarray(without(entry, parts, np.zeros(parts.there.shape, bool))["x"])
    assert nothing.dtype == entry["x"].dtype
    inside = (parts.units >= 0).reshape(
        *parts.units.shape, *(1,) * (nothing.ndim - parts.units.ndim)
    )
    wanted = np.where(inside, parts.neutral, entry["x"])
    np.testing.assert_array_equal(nothing, wanted)
    assert np.isfinite(parts.neutral[entry["present"]].astype(np.float64)).all()


@every
def test_units_are_drawn_as_data(row):
    entry = entry_of(row)
    count = parts_of(row, entry).count
    values = np.linspace(-1, 1, count)
    drawn = row.units.draw(values, entry["x"][0], modality_of(row))
    if isinstance(drawn, OverPicture):
        assert np.isin(drawn.values, values).all()
        assert drawn.picture.shape == entry["x"].shape[-3:-1]
        assert drawn.picture.min() >= 0
        assert drawn.picture.max() <= 1
    elif isinstance(drawn, OverLine):
        np.testing.assert_array_equal(drawn.values, values)
        assert drawn.seconds > 0
    else:
        assert drawn is None


@damages
def test_damage_keeps_the_form_and_belongs_to_the_row(row, name):
    entry, modality, ids = entry_of(row), modality_of(row), np.arange(SIZE) + 3
    corruption = row.corruptions[name]
    for severity in SEVERITIES:
        changed = corruption(entry, Place(ids, modality), severity)
        for key, value in entry.items():
            assert changed[key].shape == value.shape
            assert changed[key].dtype == value.dtype
            if severity == 0:
                np.testing.assert_array_equal(changed[key], value)
        assert not changed["present"][1]
        if not row.units.words:  # words move up: what is no word's is filler
            np.testing.assert_array_equal(changed["x"][1], entry["x"][1])
        some = np.array([4, 1, 6])
        part = {key: value[some] for key, value in entry.items()}
        again = corruption(part, Place(ids[some], modality), severity)
        for key, value in again.items():
            np.testing.assert_array_equal(value, changed[key][some])


@every
def test_every_kind_can_be_damaged_until_it_is_gone(row):
    changed = row.corruptions["absent"](entry_of(row), Place(np.arange(SIZE), modality_of(row)), 5)
    assert not changed["present"].any()


class Closed(html.parser.HTMLParser):
    """Raises where a tag is not closed, or was not opened."""

    VOID = ("img", "br", "meta", "input")

    def __init__(self, text):
        super().__init__()
        self.open = []
        self.tags = set()
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@every
@pytest.mark.parametrize("level", [0.0, 1.0, -1.0, 1e30, -1e30])
def test_what_is_shown_is_closed_and_escaped(row, level):
    modality, x = modality_of(row), entry_of(row)["x"][0]
    named = tuple(f"{HOSTILE}{i}" for i in range(modality.shape[-1]))
    modality = dataclasses.replace(modality, names=named)
    x = x if x.dtype.kind != "f" else np.full_like(x, level)
    masks = [None]
    if row.mask != "never":
        masks += [np.zeros(len(x), bool), np.arange(len(x)) < 1]
    for mask in masks:
        boxes = [(HOSTILE, np.array([0.0, 0.1, 0.5, 1.0]))]
        example = Example(HOSTILE, modality, x, mask, boxes, lambda ids: HOSTILE)
        text = row.show(example)
        found = Closed(text)
        assert "script" not in found.tags
        assert "<script" not in text


@every
def test_frames_can_be_seen(row):
    if row.frames is not None:
        frames = row.frames(entry_of(row)["x"][0])
        assert frames.dtype == np.uint8
        assert frames.ndim == 4
        assert frames.shape[-1] == 3


@every
def test_a_value_that_is_nonsense_is_refused_in_one_line(row, tmp_path):
    value = NONSENSE.get(row.name, str(tmp_path / "nothing.here"))
    kept = Kept("one", modality_of(row), {"kind": row.name}, lambda _: None, lambda: TOKENIZER)
    with pytest.raises((ConfigError, ValueError, OSError)) as error:
        (row.read or row.row)(value, kept)
    assert "\n" not in str(error.value)


@every
def test_a_cell_that_is_nonsense_is_reported_in_one_line(row, tmp_path):
    cells = [{"a": 1}, {"a": 2}, 5, True, "../up.png", "nothing.here", [[[["x"]]]], [], [[]]]
    rows = [{"cell": cell, "split": "train", "label": i % 2} for i, cell in enumerate(cells)]
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in rows))
    options = {"kind": row.name, **OPTIONS.get(row.name, {"column": "cell"})}
    description = {"modalities": {"one": options}, "targets": {"label": "class"}}
    report = check(path, description)
    assert report.problems
    bad = {problem.line for problem in report.problems if problem.line}
    assert {1, 2, 7} <= bad
    assert all("\n" not in str(problem) for problem in report.problems)


def test_a_kind_that_is_like_another_is_taken_where_that_is(monkeypatch):
    depth, cloud = (KNOWN.get(name) or modality_of(MADE_UP[name]) for name in MADE_UP)
    assert depth.is_a("image")
    assert depth.is_a("video", "depth")
    assert not depth.is_a("video")
    assert not Modality("image", (4, 4, 3), "float32").is_a("depth")
    assert not cloud.is_a(*set(MODALITIES) - {"points"})
    assert is_like("unheard of", ["unheard of"])
    assert not is_like("unheard of", ["image"])
    assert Form("depth", (4, 4, 1), "float32").is_a("image")
    for name, encoder in ENCODERS.items():
        wanted = encoder.accepts(Modality("image", (16, 12, 1), "float32"))
        assert encoder.accepts(depth) == wanted, name
    assert depth.is_a(*AUGMENTATIONS["flip"].takes)
    deeper = dataclasses.replace(POINTS, name="deeper", like=("depth",))
    monkeypatch.setitem(MODALITIES, "deeper", deeper)
    assert is_like("deeper", ["image"])


def test_an_unknown_kind_is_named():
    with pytest.raises(
        ConfigError, match=r"unknown kind of modality 'imgae' \(did you mean 'image"
    ):
        kind_of(Modality("imgae", (4, 4, 3), "float32"))
