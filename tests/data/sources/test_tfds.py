"""A small TFDS data set, made here: read by a mapping, in both file formats, no TensorFlow."""

import dataclasses
import io
import json
import shutil
import struct
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
import tensorflow_datasets as tfds
from PIL import Image

from mtmm_jax import data, modalities, targets
from mtmm_jax.batch import Spec
from mtmm_jax.data.pipeline.pipes import Pipe
from mtmm_jax.data.sources.tfds.records import TFRecords
from mtmm_jax.data.sources.tfds.source import tfds as source_of
from mtmm_jax.modalities import ModalityKind
from mtmm_jax.registry import ConfigError, build
from mtmm_jax.targets.kind import TargetKind, blank
from mtmm_jax.text import PADDING, padding_id, read_tokenizer, unknown_id
from tests.data.sources.test_tokenizers import OTHER

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
SIZES = {"train": 60, "test": 12}
WITHHELD = 7  # the example of each split without a label, a caption or a weight


def _file(write) -> io.BytesIO:
    out = io.BytesIO()
    write(out)
    out.seek(0)
    return out


def example(split: str, i: int) -> dict:
    """What is in the data set, also for the tests to compare with."""
    rng = np.random.default_rng([i, len(split)])
    colour = list(COLOURS)[i % 3]
    pixels = np.full((20 + i % 5, 24, 3), COLOURS[colour], np.uint8)
    tone = rng.uniform(-0.5, 0.5, 80).astype(np.float32)
    held = i == WITHHELD
    return {
        "image": _file(lambda out: Image.fromarray(pixels).save(out, "PNG")),
        "label": -1 if held else colour,
        "caption": "" if held else f"A {colour} square number {i}",
        "kind": "even" if i % 2 == 0 else "odd",
        "weight": float("nan") if held else float(i),
        "grade": i % 4,
        "vector": rng.normal(3, 2, 4).astype(np.float32),
        "series": rng.standard_normal((1 + i % 6, 2)).astype(np.float32),
        "wave": (tone * 32768).astype(np.int16),
        "sound": _file(lambda out: soundfile.write(out, tone, 100, format="FLAC")).read(),
        "tags": [j for j in range(3) if (i >> j) & 1],
        "nested": {"flags": np.array([i % 2, i % 3 == 0], np.float32)},
        "objects": [
            {"bbox": tfds.features.BBox(0.1 * j, 0.2, 0.1 * j + 0.1, 0.9), "label": j % 2}
            for j in range(i % 4)
        ],
    }


class MtmmTiny(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        f = tfds.features
        features = {
            "image": f.Image(shape=(None, None, 3)),
            "label": f.ClassLabel(names=list(COLOURS)),
            "caption": f.Text(),
            "kind": f.Text(),
            "weight": f.Scalar(np.float32),
            "grade": f.Scalar(np.int64),
            "vector": f.Tensor(shape=(4,), dtype=np.float32),
            "series": f.Tensor(shape=(None, 2), dtype=np.float32),
            "wave": f.Tensor(shape=(None,), dtype=np.int16, encoding="bytes"),
            "sound": f.Text(),
            "tags": f.Sequence(f.ClassLabel(names=["p", "q", "r"])),
            "nested": {"flags": f.Tensor(shape=(2,), dtype=np.float32)},
            "objects": f.Sequence(
                {"bbox": f.BBoxFeature(), "label": f.ClassLabel(names=["cat", "dog"])}
            ),
        }
        return tfds.core.DatasetInfo(builder=self, features=f.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in SIZES}

    def _generate_examples(self, split):
        for i in range(SIZES[split]):
            yield i, example(split, i)


MODALITIES = {
    "image": {
        "feature": "image",
        "pipe": "decode|resize(10)|random_crop(8)|flip|normalize(half)",
    },
    "text": {"feature": "caption", "pipe": "lower|tokenize(6, vocabulary=60)|token_dropout"},
    "table": {"feature": ["vector", "grade"], "pipe": "standardise"},
    "series": {"feature": "series", "pipe": "standardise|fit(4)", "rate": 10.0},
    "audio": {"feature": "wave", "kind": "audio", "rate": 100, "pipe": "fit(0.5)|gain"},
    "sound": {"feature": "sound", "kind": "audio", "pipe": "decode|resample(100)|fit(0.5)"},
}
TARGETS = {
    "colour": {"feature": "label"},
    "kind": {"feature": "kind"},
    "grade": {"feature": "grade", "kind": "class"},
    "weight": {"feature": "weight", "made_from": ["text"]},
    "tags": {"feature": "tags"},
    "flags": {"feature": "nested/flags", "classes": ["odd", "third"]},
    "spelling": {"feature": "caption", "kind": "tokens", "pipe": "tokenize(7)"},
    "objects": {"feature": "objects"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tmp_path_factory.mktemp("tfds"))


@pytest.fixture(scope="module")
def source(folder):
    return source_of("mtmm_tiny", modalities=MODALITIES, targets=TARGETS, data_dir=folder)


def number(source, id: int) -> int:
    """Which of `example` a row is: TFDS shuffles."""
    (row,) = source.compose(np.array([id]), None)["targets"]["weight"]["y"].tolist()
    return int(row)


def whole(source, split):
    return source.compose(source.rows[split], None)


def test_batches_pass_the_spec(source):
    for batch in (next(iter(source.train(8))), next(source.batches("test", 8))):
        source.spec.check(batch)
        assert set(batch["inputs"]) == set(MODALITIES)
        assert set(batch["targets"]) == set(TARGETS)
        for name, entry in batch["targets"].items():
            blank = source.spec.targets[name].blank(8)
            for got, wanted in zip(*map(jax.tree.leaves, (entry["y"], blank)), strict=True):
                assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)
    kept = json.loads(json.dumps(source.spec.to_dict()))
    assert Spec.from_dict(kept) == source.spec
    assert "tensorflow" not in sys.modules


def test_validation_is_held_out_of_train(source):
    assert {split: len(rows) for split, rows in source.rows.items()} == {
        "train": 54,
        "validation": 6,
        "test": 12,
    }
    assert len(np.unique(np.concatenate(list(source.rows.values())))) == 72


def test_features_arrive_where_the_mapping_says(source):
    batch = whole(source, "test")
    y = {name: entry["y"] for name, entry in batch["targets"].items()}
    here = {name: entry["present"] for name, entry in batch["targets"].items()}
    order = np.where(here["weight"], y["weight"], WITHHELD).astype(int)
    assert sorted(order) == list(range(12))
    assert np.array_equal(here["colour"], order != WITHHELD)
    assert np.array_equal(y["colour"][here["colour"]], order[here["colour"]] % 3)
    kinds = source.spec.targets["kind"].classes
    assert [kinds[k] for k in y["kind"]] == ["even" if i % 2 == 0 else "odd" for i in order]
    assert np.array_equal(y["grade"], order % 4)
    assert np.array_equal(y["flags"], np.stack([order % 2, order % 3 == 0], 1))
    assert np.array_equal(y["tags"], (order[:, None] >> np.arange(3)) & 1)
    boxes = y["objects"]
    assert boxes["valid"].sum(1).tolist() == (order % 4).tolist()
    last = np.flatnonzero(order % 4 == 3)[0]
    np.testing.assert_allclose(boxes["boxes"][last, 2], [0.2, 0.2, 0.3, 0.9], atol=1e-6)
    assert boxes["classes"][last].tolist() == [0, 1, 0]
    text = batch["inputs"]["text"]
    assert np.array_equal(text["present"], order != WITHHELD)
    for row, i in enumerate(order):
        wanted = np.array(list(COLOURS.values())[i % 3]) / 127.5 - 1
        np.testing.assert_allclose(batch["inputs"]["image"]["x"][row, 4, 4], wanted, atol=1e-6)
        tone = example("test", i)["wave"][:50] / 32768
        np.testing.assert_allclose(batch["inputs"]["audio"]["x"][row], tone, atol=1e-6)
        np.testing.assert_allclose(batch["inputs"]["sound"]["x"][row], tone, atol=1e-4)
        steps = batch["inputs"]["series"]["mask"][row].sum()
        assert steps == min(1 + i % 6, 4)


def test_statistics_are_those_of_the_train_rows(source):
    batch = whole(source, "train")
    weight = batch["targets"]["weight"]
    kept = weight["y"][weight["present"]]
    target = source.spec.targets["weight"]
    assert target.mean == pytest.approx(kept.mean(), rel=1e-5)
    assert target.std == pytest.approx(kept.std(), rel=1e-5)
    assert target.made_from == ("text",)
    for name in ("colour", "kind", "grade"):
        entry, target = batch["targets"][name], source.spec.targets[name]
        counts = np.bincount(entry["y"][entry["present"]], minlength=len(target.classes))
        np.testing.assert_allclose(target.frequencies, counts / counts.sum())
    tags = batch["targets"]["tags"]["y"].mean(0)
    np.testing.assert_allclose(source.spec.targets["tags"].frequencies, tags, atol=1e-6)
    assert source.spec.targets["objects"].length == 3
    table = batch["inputs"]["table"]["x"]
    np.testing.assert_allclose(table.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(table.std(0), 1, atol=1e-4)
    names = source.spec.modalities["table"].names
    assert names == ("vector/0", "vector/1", "vector/2", "vector/3", "grade")
    assert source.spec.modalities["series"].rate == 10.0


def test_labels_can_be_read_back(source):
    target = source.spec.targets["spelling"]
    entry = whole(source, "test")["targets"]["spelling"]
    row = entry["y"][np.flatnonzero(entry["present"])[0]]
    said = "".join(target.classes[i] for i in row if i != PADDING).replace("▁", " ")
    assert said.strip().startswith("a ")
    assert "square" in said


def test_training_is_augmented_by_chance_alone(source):
    rows = source.rows["train"][:6]
    chance = np.random.default_rng(0).random((2, 6, source.draws), np.float32)
    assert source.draws == 2 + 1 + 6 + 1
    a, b, again = (source.compose(rows, c)["inputs"]["audio"]["x"] for c in (*chance, chance[0]))
    assert np.array_equal(a, again)
    assert not np.array_equal(a, b)
    part = source.compose(rows[2:4], chance[0][2:4])
    full = source.compose(rows, chance[0])
    for name in MODALITIES:
        assert np.array_equal(part["inputs"][name]["x"], full["inputs"][name]["x"][2:4])


def test_pipes_can_be_rebuilt_from_the_assets(source):
    kept = json.loads(source.assets["pipes.json"])
    text = Pipe.from_dict(kept["text"]).entry(["A red square number 3"], None)["x"]
    ids = whole(source, "train")["inputs"]["text"]["x"]
    assert (ids == text).all(1).sum() <= 1
    assert source.spec.modalities["text"].vocabulary > ids.max() > 2
    assert json.loads(source.assets["tokenizer.json"])["model"]["type"] == "BPE"


def test_a_text_is_in_the_ids_of_a_tokenizer_that_is_given(source, folder, tmp_path):
    folder = shutil.copytree(folder, tmp_path / "own")  # what is learned is kept next to the data
    made = {"modalities": MODALITIES, "targets": TARGETS, "data_dir": str(folder)}
    found = data.build({"kind": "tfds", "dataset": "mtmm_tiny", **made}, tokenizers={"text": OTHER})
    assert found.assets["tokenizer.json"].decode() == OTHER
    tokenizer = read_tokenizer(OTHER)
    entry = whole(found, "train")["inputs"]["text"]
    assert found.spec.modalities["text"].vocabulary == tokenizer.get_vocab_size()
    np.testing.assert_array_equal(entry["x"][entry["present"], 0], tokenizer.token_to_id("[CLS]"))
    np.testing.assert_array_equal(entry["present"], entry["mask"].any(1))
    plain = whole(source, "train")["inputs"]
    np.testing.assert_array_equal(
        whole(found, "train")["inputs"]["table"]["x"], plain["table"]["x"]
    )
    kept = Pipe.from_dict(json.loads(found.assets["pipes.json"])["text"])
    x = kept.entry(["the cat"], None)
    np.testing.assert_array_equal(x["mask"][0], [True] * 4 + [False] * 2)
    drawn = next(found.train(64, seed=0))["inputs"]["text"]
    known = {*np.unique(entry["x"]), unknown_id(tokenizer), padding_id(tokenizer)}
    assert set(np.unique(drawn["x"])) <= known


def test_reports_can_name_and_show_an_example(source):
    id = int(source.rows["test"][0])
    i = number(source, id)
    said = source.describe(id)
    assert said.startswith("test 0: colour ")
    if i != WITHHELD:
        assert f"colour {list(COLOURS)[i % 3]}" in said
        assert f"weight {float(i)}" in said
    assert source.picture(id).shape == (20 + i % 5, 24, 3)


def test_what_was_learned_is_kept_next_to_the_data(source, folder, monkeypatch):
    files = list(Path(folder).glob("mtmm_tiny/1.0.0/mtmm_jax-*.json"))
    assert len(files) == 1
    from mtmm_jax.data.sources.tfds import source as tfds_source

    def never(*args):
        raise AssertionError("the data were gone through again")

    monkeypatch.setattr(tfds_source, "_learn", never)
    again = source_of("mtmm_tiny", modalities=MODALITIES, targets=TARGETS, data_dir=folder)
    assert again.spec == source.spec
    np.testing.assert_array_equal(
        whole(again, "test")["inputs"]["text"]["x"], whole(source, "test")["inputs"]["text"]["x"]
    )


IMAGE = {"image": {"feature": "image", "pipe": "decode|resize(8)|normalize"}}
COLOUR = {"colour": {"feature": "label"}}


def test_splits_may_be_parts(folder):
    parts = {"train": "train[:50%]", "validation": "train[50%:75%]", "test": "train[75%:]"}
    some = source_of("mtmm_tiny", modalities=IMAGE, targets=COLOUR, splits=parts, data_dir=folder)
    assert [some.split_size(s) for s in ("train", "validation", "test")] == [30, 15, 15]
    every = source_of(
        "mtmm_tiny",
        modalities=IMAGE,
        targets={"weight": {"feature": "weight"}},
        splits=parts,
        data_dir=folder,
    )
    seen = np.concatenate([whole(every, split)["targets"]["weight"]["y"] for split in parts])
    assert len(set(seen.tolist())) == 59  # the one without a weight is a second 0


def as_tfrecord(folder: Path, to: Path) -> str:
    """A copy of the prepared data as TFRecord files (checksums, which nobody reads, are 0)."""
    to.mkdir()
    builder = tfds.builder_from_directory(str(folder))
    for name in ("features.json", *(p.name for p in folder.glob("*.labels.txt"))):
        (to / name).write_bytes((folder / name).read_bytes())
    info = json.loads((folder / "dataset_info.json").read_text())
    (to / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    for split in SIZES:
        records = builder.as_data_source(split, deserialize_method=raw)
        with open(to / f"mtmm_tiny-{split}.tfrecord-00000-of-00001", "wb") as file:
            for record in records:
                file.write(struct.pack("<QI", len(record), 0) + record + b"\0\0\0\0")
    return str(to)


def test_tfrecord_files_are_read_without_tensorflow(source, folder, tmp_path):
    prepared = Path(folder) / "mtmm_tiny" / "1.0.0"
    copy = source_of(
        as_tfrecord(prepared, tmp_path / "copy"), modalities=MODALITIES, targets=TARGETS
    )
    assert copy.spec == source.spec
    rows = np.random.default_rng(0).permutation(72)
    a, b = copy.compose(rows, None), source.compose(rows, None)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))
    part = source_of(
        str(tmp_path / "copy"),
        modalities=IMAGE,
        targets=COLOUR,
        splits={"train": "train[10:40]", "test": "test"},
    )
    assert part.split_size("train") + part.split_size("validation") == 30


def test_a_tfrecord_file_that_was_cut_off_is_named(tmp_path):
    path = tmp_path / "a.tfrecord"
    path.write_bytes(struct.pack("<QI", 3, 0) + b"abc" + b"\0" * 4)
    assert TFRecords([(str(path), 0, 1)]).__getitems__([0]) == [b"abc"]
    with pytest.raises(ConfigError, match="ends before its 2 records"):
        TFRecords([(str(path), 0, 2)])


DAMAGES = {
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "junk": lambda data: bytes(range(256)) * (len(data) // 256 + 1),
    "flipped early": lambda data: data[:40] + bytes([data[40] ^ 4]) + data[41:],
    "flipped late": lambda data: data[:-60] + bytes([data[-60] ^ 1]) + data[-59:],
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("which", ["dataset_info.json", "features.json", "train"])
def test_damaged_prepared_data_are_one_line_with_the_folder(
    source, folder, tmp_path, which, damage
):
    copy = tmp_path / "copy"
    shutil.copytree(Path(folder) / "mtmm_tiny" / "1.0.0", copy)
    (path,) = (p for p in copy.iterdir() if p.name == which or f"-{which}.array" in p.name)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    said = ""
    try:
        found = source_of(str(copy), modalities=IMAGE, targets=COLOUR)
        batch = whole(found, "train")
    except ConfigError as error:
        said = str(error)
    if said:
        assert "\n" not in said
        assert str(copy) in said
        assert "prepare" in said
        return
    other = source.compose(found.rows["train"], None)
    for group, name in (("inputs", "image"), ("targets", "colour")):
        for key in ("present", "x" if group == "inputs" else "y"):
            np.testing.assert_array_equal(batch[group][name][key], other[group][name][key])


class MtmmNeedsTf(MtmmTiny):
    """Like many of TFDS's own: arrays as pictures, which TFDS encodes with TensorFlow."""

    def _generate_examples(self, split):
        for i in range(SIZES[split]):
            yield i, {**example(split, i), "image": np.zeros((8, 8, 3), np.uint8)}


@pytest.mark.skipif("tensorflow" in sys.modules, reason="only where TensorFlow is not there")
def test_a_data_set_that_needs_tensorflow_says_so(tmp_path, capsys):
    with pytest.raises(ConfigError, match=r'mtmm_needs_tf needs Ten.*pip install "mtmm_jax\[tf\]"'):
        source_of("mtmm_needs_tf", modalities=IMAGE, targets=COLOUR, data_dir=str(tmp_path))


def changed(table, name, **changes):
    return {name: {**table[name], **changes}}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"modalities": {}}, "t.modalities: {}; needs a section for each modality"),
        ({"targets": {"a": {"pipe": "x"}}}, "t.targets.a: .*needs a `feature`"),
        ({"modalities": {"a": {"feature": "imag"}}}, "t.modalities.a.feature: .*mean 'image'"),
        ({"modalities": {"a": {"feature": "label/x"}}}, "'label/x': there is nothing inside"),
        ({"modalities": changed(MODALITIES, "text", kind="txt")}, "unknown kind 'txt'"),
        ({"modalities": changed(MODALITIES, "text", kind="image")}, "is no image; it needs"),
        ({"modalities": changed(MODALITIES, "text", rate=3)}, "hyper-parameter of text 'rate'"),
        ({"modalities": changed(MODALITIES, "image", pipe="decode|flop")}, "image.pipe: character"),
        ({"modalities": {"a": {"feature": "wave", "kind": "audio"}}}, "rate: None; the data do"),
        ({"modalities": {"a": {"feature": ["image", "label"]}}}, "is no table"),
        ({"modalities": {"a": {"feature": "objects"}}}, "nothing that a modality is made from"),
        ({"targets": {"a": {"feature": "caption", "kind": "number"}}}, "is no number"),
        ({"targets": {"a": {"feature": "weight", "kind": "class"}}}, "a fraction is a number"),
        ({"targets": {"a": {"feature": "label", "classes": ["x"]}}}, "names them already"),
        ({"targets": {"a": {"feature": "tags", "kind": "boxes"}}}, "is no row of boxes"),
        ({"targets": {"a": {"feature": "objects", "label": "name"}}}, "'name' is no ClassLabel"),
        (
            {"targets": {"a": {"feature": "objects", "length": 0}}},
            "length: 0 is not a whole number",
        ),
        ({"targets": changed(TARGETS, "spelling", pipe="tokenize(4)|token_dropout")}, "at random"),
        ({"targets": changed(TARGETS, "colour", made_from=["smell"])}, "unknown modality 'smell'"),
        ({"splits": {"dev": "test"}}, "t.splits: unknown split 'dev'"),
        ({"splits": {"test": "test"}}, "t.splits: needs a split to train on"),
        ({"splits": {"train": "all[:9]"}}, "'all.:9.' is no split of mtmm_tiny; choices: t"),
        ({"splits": {"train": "train[:0]"}}, "has no examples"),
        ({"splits": {"train": "train[5:]", "test": "train[:6]"}}, "have examples in common"),
        ({"dataset": "mtmm_tinny"}, "t.dataset: TFDS knows no 'mtmm_tinny'.*mtmm_tiny"),
        ({"data_dir": "/nowhere", "prepare": False}, "is not prepared in /nowhere.*prepare=True"),
    ],
)
def test_mistakes_are_named(source, folder, wrong, message):
    config = {"dataset": "mtmm_tiny", "modalities": MODALITIES, "targets": TARGETS}
    with pytest.raises(ConfigError, match=message):
        source_of(**{**config, "data_dir": folder, "where": "t", **wrong})


def test_a_kind_that_is_only_a_row_is_an_array(folder, monkeypatch):
    row = ModalityKind("answers", dimensions=1)
    monkeypatch.setitem(modalities.MODALITIES, "answers", row)
    options = {"dataset": "mtmm_tiny", "targets": COLOUR, "data_dir": folder, "where": "t"}
    section = {"feature": "nested/flags", "kind": "answers"}
    built = source_of(**options, modalities={"one": section})
    batch = next(built.batches("test", 4))
    built.spec.check(batch)
    assert built.spec.modalities["one"] == modalities.Modality("answers", (2,), "float32")
    assert set(np.unique(batch["inputs"]["one"]["x"])) <= {0.0, 1.0}
    flat = dataclasses.replace(row, name="flat", dimensions=2)
    monkeypatch.setitem(modalities.MODALITIES, "flat", flat)
    for feature in ("series", "vector"):  # of any length; of one dimension
        wrong = {"feature": feature, "kind": "flat"}
        with pytest.raises(ConfigError, match="no flat; it needs numbers of 2 fixed dimensions"):
            source_of(**options, modalities={"one": wrong})


def test_it_can_be_built_from_a_config(folder):
    config = {"kind": "tfds", "dataset": "mtmm_tiny", "modalities": IMAGE, "targets": COLOUR}
    built = build({"tfds": source_of}, {**config, "data_dir": folder}, where="data")
    assert dataclasses.asdict(built.spec.modalities["image"])["shape"] == (8, 8, 3)
    assert built.draws == 0


def test_a_label_of_a_new_kind_is_read_as_an_array(folder, monkeypatch):
    kind = TargetKind(blank=blank(np.float32, lambda target: target.shape))
    monkeypatch.setitem(targets.TARGETS, "numbers", kind)
    labels = {"pose": {"feature": "vector", "kind": "numbers"}, "weight": {"feature": "weight"}}
    built = source_of("mtmm_tiny", modalities=IMAGE, targets=labels, data_dir=folder)
    assert built.spec.targets["pose"] == targets.Target("numbers", shape=(4,))
    batch = built.compose(built.rows["train"], None)
    built.spec.check(batch)
    pose, weight = (batch["targets"][name] for name in ("pose", "weight"))
    assert pose["present"].all()
    for y, i in zip(pose["y"][weight["present"]], weight["y"][weight["present"]], strict=True):
        np.testing.assert_array_equal(y, example("train", int(i))["vector"])
    labels["pose"]["feature"] = "series"
    with pytest.raises(ConfigError, match="is no label of kind numbers; it needs numbers of a"):
        source_of("mtmm_tiny", modalities=IMAGE, targets=labels, data_dir=folder)
