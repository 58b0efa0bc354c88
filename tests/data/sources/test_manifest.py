"""Manifests and folders of clips: what is read, split, learned from training, and refused."""

import csv
import json
import logging
import os
import struct
import zlib

import jax
import numpy as np
import pytest
import soundfile
from PIL import Image

from mtmm_jax import modalities
from mtmm_jax.batch import Spec
from mtmm_jax.data.sources.manifest import manifest, video_folder
from mtmm_jax.data.sources.manifest.rows import read_rows
from mtmm_jax.modalities.video import read_video
from mtmm_jax.readers import LIMITS, images, video
from mtmm_jax.readers.files import check_path
from mtmm_jax.readers.limits import Unreadable
from mtmm_jax.readers.pictures import decode_image
from mtmm_jax.readers.sounds import decode_audio
from mtmm_jax.registry import ConfigError
from mtmm_jax.targets import TARGETS, columns
from mtmm_jax.text import decode, read_tokenizer
from tests.made_up import packaged

MODALITIES = {
    "photo": {"kind": "image", "column": "image", "size": 16},
    "speech": {"kind": "audio", "rate": 8000, "seconds": 0.5},
    "clip": {"kind": "video", "frames": 4, "size": 8},
    "caption": {"kind": "text", "length": 8, "vocabulary": 60},
    "note": {"kind": "text", "from": "file", "length": 6, "vocabulary": 60},
    "facts": {"kind": "table", "columns": ["age", {"column": "colour", "kind": "category"}]},
}
ANSWERS = {
    "animal": "class",
    "weight": {"kind": "number", "column": "kilos"},
    "tags": "labels",
    "said": {"kind": "tokens", "made_from": ["caption"]},
    "boxes": {"kind": "boxes", "units": "pixels"},
}
NAMES = ("train",) * 6 + ("validation", "test")


def picture(seed: int, size=(16, 16)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eight rows with all kinds of files, of which the last ones lack some."""
    root = tmp_path_factory.mktemp("data")
    rows = []
    for i, split in enumerate(NAMES):
        picture(i).save(root / f"{i}.png")
        wave = np.full(2000, 0.1 * (i + 1))
        soundfile.write(root / f"{i}.wav", wave, 8000)
        (root / "clips" / str(i)).mkdir(parents=True)
        for frame in range(12):
            level = (20 * frame, i, 0)
            Image.new("RGB", (8, 8), level).save(root / "clips" / str(i) / f"{frame}.png")
        (root / f"{i}.txt").write_text(f"note of a {split}")
        rows.append(
            {
                "id": f"n{i}",
                "image": f"{i}.png",
                "speech": f"{i}.wav",
                "clip": f"clips/{i}",
                "caption": f"a picture of {['cat', 'dog'][i % 2]}",
                "note": f"{i}.txt",
                "age": i,
                "colour": ["red", "blue"][i % 2],
                "animal": ["cat", "dog"][i % 2],
                "kilos": 10 * i,
                "tags": ["small", "old"][: i % 3],
                "said": "abc"[: 1 + i % 3],
                "boxes": [{"box": [2, 4, 8, 16], "class": "ear"}] * (i % 3),
                "split": split,
            }
        )
    rows[6]["caption"] = "zebra"
    for column in ("image", "speech", "clip", "note", "caption", "age", "colour", "kilos"):
        rows[-1][column] = None
    for column in ("animal", "tags", "said", "boxes"):
        del rows[-1][column]
    write(root / "m.jsonl", rows)
    return root


def write(path, rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def changed(folder, name, change):
    """The manifest under another name, its rows changed in place by `change`."""
    rows = read(folder / "m.jsonl")
    change(rows)
    write(folder / name, rows)
    return folder / name


def build(path, **kwargs):
    return manifest(path, **{"modalities": MODALITIES, "targets": ANSWERS, **kwargs})


def test_every_kind_is_read_by_its_spec(folder):
    source = build(folder / "m.jsonl")
    assert {split: rows.tolist() for split, rows in source.rows.items()} == {
        "train": [0, 1, 2, 3, 4, 5],
        "validation": [6],
        "test": [7],
    }
    batch = next(source.batches("train", 6))
    source.spec.check(batch)
    source.spec.check(next(iter(source.train(4))))
    assert Spec.from_dict(json.loads(json.dumps(source.spec.to_dict()))) == source.spec
    read = {m["kind"] for m in MODALITIES.values()}
    assert read | {"series"} == set(packaged(modalities.MODALITIES))  # series: tests/modalities
    own = set(packaged(TARGETS)) & set(columns())
    assert {t.kind for t in source.spec.targets.values()} == own
    inputs = batch["inputs"]
    want = np.asarray(picture(3)).astype(np.float32) / 127.5 - 1
    np.testing.assert_allclose(inputs["photo"]["x"][3], want, atol=1e-6)
    heard = inputs["speech"]["x"][1]
    assert heard[:2000] == pytest.approx(0.2, abs=1e-4)
    assert not heard[2000:].any()
    red = (inputs["clip"]["x"][2][:, 0, 0, 0] + 1) * 127.5
    assert red.round().tolist() == [20, 80, 140, 200]  # the middle of each of four parts of 12
    assert inputs["clip"]["mask"].all()
    tokenizer = read_tokenizer(source.assets["tokenizer.json"])
    assert decode(tokenizer, inputs["caption"]["x"])[1] == "a picture of dog"
    assert decode(tokenizer, inputs["note"]["x"])[0] == "note of a train"
    assert source.describe(0) == "n0: a picture of cat"
    assert np.array_equal(source.picture(3), np.asarray(picture(3)))


def test_statistics_are_those_of_the_train_split(folder):
    source = build(folder / "m.jsonl")
    targets = source.spec.targets
    assert targets["animal"].classes == ("cat", "dog")
    assert targets["animal"].frequencies == (0.5, 0.5)
    assert targets["weight"].mean == np.mean([0, 10, 20, 30, 40, 50])
    assert targets["weight"].std == pytest.approx(np.std([0, 10, 20, 30, 40, 50]))
    assert targets["tags"].frequencies == pytest.approx((2 / 6, 4 / 6))  # old, small
    assert targets["said"].made_from == ("caption",)
    known = read_tokenizer(source.assets["tokenizer.json"]).get_vocab()
    assert {"c", "n"} <= known.keys()
    assert not {"z", "b", "v", "l"} & known.keys()  # zebra, validation
    facts = source.compose(np.arange(8), None)["inputs"]["facts"]
    assert source.spec.modalities["facts"].names == ("age", "colour=blue", "colour=red")
    age = np.arange(6)
    np.testing.assert_allclose(facts["x"][:6, 0], (age - age.mean()) / age.std(), rtol=1e-5)
    assert facts["x"][:2, 1:].tolist() == [[0, 1], [1, 0]]
    assert json.loads(source.assets["facts_columns.json"])["age"]["mean"] == 2.5


def test_what_a_row_lacks_is_absent(folder):
    batch = next(build(folder / "m.jsonl").batches("test", 1))
    for entry in (*batch["inputs"].values(), *batch["targets"].values()):
        assert entry["present"].tolist() == [False]
    assert batch["weight"].tolist() == [1]


def test_labels_are_what_the_rows_say(folder):
    source = build(folder / "m.jsonl")
    targets = source.compose(np.arange(6), None)["targets"]
    assert targets["animal"]["y"].tolist() == [0, 1] * 3
    assert targets["weight"]["y"].tolist() == [0, 10, 20, 30, 40, 50]
    assert targets["tags"]["y"].tolist() == [[0, 0], [0, 1], [1, 1]] * 2
    names = np.array(source.spec.targets["said"].classes)
    spelt = ["".join(names[row[row > 0]]) for row in targets["said"]["y"]]
    assert spelt == ["a", "ab", "abc"] * 2
    boxes = targets["boxes"]["y"]
    assert boxes["valid"].sum(1).tolist() == [0, 1, 2] * 2
    assert boxes["boxes"][1, 0].tolist() == [2 / 16, 4 / 16, 8 / 16, 1]


@pytest.mark.parametrize("units", ["pixels", "fractions"])
@pytest.mark.parametrize("turned", [False, True])
def test_boxes_stay_on_what_they_are_around(tmp_path, units, turned):
    """A wide picture lies between white bars; its box must still hold the red patch."""
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[4:12, 30:50] = 255, 0, 0
    image, box, size = Image.fromarray(pixels), [4, 30, 12, 50], (20, 60)
    exif = Image.Exif()
    if turned:  # stored on its side, with a note that says so
        exif[0x0112] = 6
        image = image.transpose(Image.Transpose.ROTATE_90)
    image.save(tmp_path / "a.png", exif=exif)
    if units == "fractions":
        box = [side / size[i % 2] for i, side in enumerate(box)]
    write(
        tmp_path / "m.jsonl", [{"im": "a.png", "b": [{"box": box, "class": 1}], "split": "train"}]
    )
    source = manifest(
        tmp_path / "m.jsonl",
        modalities={"im": {"kind": "image", "size": 60}},
        targets={"b": {"kind": "boxes", "units": units, "classes": 2}},
    )
    batch = source.compose(np.array([0]), None)
    x = batch["inputs"]["im"]["x"][0]
    red = (x[..., 0] > 0.9) & (x[..., 1] < -0.9)
    rows, columns = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
    seen = np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]) / 60
    np.testing.assert_allclose(batch["targets"]["b"]["y"]["boxes"][0, 0], seen, atol=1e-6)
    assert batch["targets"]["b"]["y"]["classes"].tolist() == [[1]]


def test_csv_says_the_same_as_jsonl(folder):
    rows = read(folder / "m.jsonl")
    for row in rows:
        row.pop("boxes", None)
        if row.get("tags") is not None:
            row["tags"] = "|".join(row["tags"]) or "|"
    with (folder / "m.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    answers = {name: kind for name, kind in ANSWERS.items() if name != "boxes"}
    want = build(folder / "m.jsonl", targets=answers)
    found = build(folder / "m.csv", targets=answers)
    assert found.spec == want.spec
    assert found.assets == want.assets
    same = jax.tree.map(
        np.array_equal, *(source.compose(np.arange(8), None) for source in (found, want))
    )
    assert all(jax.tree.leaves(same))


def test_shares_are_kept_and_depend_on_the_id_alone(tmp_path):
    shares = {"train": 0.6, "validation": 0.1, "test": 0.3}
    rows = [{"id": f"clip {i}", "a": i} for i in range(2000)]
    write(tmp_path / "m.jsonl", rows)
    write(tmp_path / "more.jsonl", [*rows[::-1][:1500], {"id": "new", "a": 1}])
    kinds = {"modalities": {"t": {"kind": "table", "columns": ["a"]}}, "targets": {}}
    splits = []
    for name, seed in (("m.jsonl", 0), ("more.jsonl", 7)):
        source = manifest(tmp_path / name, split=shares, seed=seed, **kinds)
        splits.append(
            {source.describe(r): s for s, found in source.rows.items() for r in found.tolist()}
        )
    for split, share in shares.items():
        found = sum(1 for value in splits[0].values() if value == split) / 2000
        assert found == pytest.approx(share, abs=0.03)
    splits[1].pop("new")
    assert splits[1].items() <= splits[0].items()


def test_bad_files_weigh_nothing_and_are_reported_once(folder, caplog):
    def spoil(rows):
        rows[1]["image"] = "broken.png"
        rows[3]["speech"] = "gone.wav"
        rows[5]["kilos"] = "heavy"

    (folder / "broken.png").write_bytes((folder / "1.png").read_bytes()[:200])
    source = build(changed(folder, "bad.jsonl", spoil))
    assert source.rows["train"].tolist() == [0, 1, 2, 3, 4]  # a bad value leaves its split
    rows = source.rows["train"]
    batch = source.compose(rows, None)
    source.compose(rows, None)
    assert batch["weight"].tolist() == [1, 0, 1, 0, 1]
    assert batch["inputs"]["photo"]["present"].tolist() == [True, False, True, True, True]
    assert np.isfinite(batch["inputs"]["photo"]["x"]).all()
    assert next(iter(source.train(50)))["weight"].sum() == 30
    messages = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(messages) == 3
    assert [(p.line, p.column, p.about) for p in source.compose.bad.problems] == [
        (2, "image", "undecodable"),
        (4, "speech", "missing"),
        (6, "kilos", "bad value"),
    ]
    assert "bad.jsonl line 4, column 'speech': 'gone.wav' does not exist" in messages[-1]
    assert len(source.compose.bad) == 3


def test_stopping_names_line_column_file_and_reason(folder):
    path = changed(folder, "stop.jsonl", lambda rows: rows[2].update(speech="gone.wav"))
    source = build(path, on_bad="stop")
    with pytest.raises(ConfigError, match=r"line 3, column 'speech': 'gone.wav' does not exist"):
        source.compose(source.rows["train"], None)
    with pytest.raises(ConfigError, match="gone.wav"):
        for _, _ in zip(source.train(6), range(3), strict=False):  # in its threads, too
            pass
    path = changed(folder, "stop.jsonl", lambda rows: rows[2].update(kilos=float("nan")))
    with pytest.raises(ConfigError, match=r"line 3, column 'kilos': nan is not a finite"):
        build(path, on_bad="stop")
    path = changed(folder, "float.jsonl", lambda rows: rows[2].update(colour=1.5))
    guessed = {**MODALITIES, "facts": {"kind": "table", "columns": ["age", "colour"]}}
    with pytest.raises(ConfigError, match=r"line 3, column 'colour': 1.5 is not the name of a cl"):
        build(path, on_bad="stop", modalities=guessed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modalities": {"photo": "picture"}}, "unknown kind 'picture'.*image"),
        ({"modalities": {"photo": "image"}, "targets": {}}, "unknown column .* 'photo'.*image"),
        ({"modalities": {"a": {"kind": "image", "column": "image", "wide": 3}}}, "'wide'.*size"),
        ({"modalities": {"a": {"kind": "image", "size": 0}}}, "modalities.a.size: 0"),
        (
            {"modalities": {"a": {"kind": "audio", "rate": 10}}},
            "rate: 10 is not a whole number",
        ),
        ({"modalities": {"a": {"kind": "video", "rate": 5}}}, "uniform sampling has no rate"),
        ({"modalities": {"a": {"kind": "text", "from": "web"}}}, "from: unknown place 'web'"),
        ({"modalities": {}}, "names none"),
        ({"targets": {"b": {"kind": "class", "column": "animal", "classes": ["cat"]}}}, "dog"),
        (
            {"targets": {"b": {"kind": "class", "column": "animal", "made_from": ["x"]}}},
            "made_from",
        ),
        ({"targets": {"boxes": "boxes"}}, "boxes needs units"),
        ({"split": "animal"}, "line 1, column 'animal': 'cat' is an unknown split; choices: train"),
        ({"split": {"train": 0.5}}, "do not add up"),
        ({"split": {"dev": 1.0}}, "unknown split 'dev'"),
        ({"limits": {"pixel": 3}}, "did you mean 'pixels'"),
        ({"limits": {"pixels": -3}}, "limits.pixels: -3"),
        ({"on_bad": "go"}, "unknown value 'go'.*skip, stop"),
        ({"id": "name"}, "unknown column"),
    ],
)
def test_wrong_settings_are_named_at_construction(folder, change, message):
    with pytest.raises(ConfigError, match=message):
        build(folder / "m.jsonl", **change)


def test_a_class_that_training_lacks_is_kept_and_named(folder, caplog):
    path = changed(folder, "class.jsonl", lambda rows: rows[6].update(animal="cow"))
    target = build(path).spec.targets["animal"]
    assert (target.classes, target.frequencies) == (("cat", "cow", "dog"), (0.5, 0, 0.5))
    assert "1 class has no row in train, 1 rows in all, kept: 'cow' (1)" in caplog.text
    named = {"animal": {"kind": "class", "classes": ["cow", "dog", "cat"]}}
    assert build(path, targets=named).spec.targets["animal"].frequencies == (0, 0.5, 0.5)
    named["animal"]["classes"] = ["dog", "cat"]
    with pytest.raises(ConfigError, match=r"line 7, column 'animal': 'cow' is an unknown class"):
        build(path, targets=named)


def test_without_training_rows_there_is_no_source(folder):
    def hold_out(rows):
        for row in rows:
            row["split"] = "test"

    with pytest.raises(ConfigError, match="no rows for training"):
        build(changed(folder, "none.jsonl", hold_out))


@pytest.mark.parametrize("name", ["../out.png", "/{}/out.png", "link.png", "linked/out.png"])
def test_nothing_outside_the_folder_is_read(tmp_path, name):
    inside = tmp_path / "in"
    inside.mkdir()
    picture(0).save(tmp_path / "out.png")
    picture(0).save(inside / "a.png")
    (inside / "link.png").symlink_to(tmp_path / "out.png")
    (inside / "linked").symlink_to(tmp_path)
    (inside / "fine.png").symlink_to(inside / "a.png")
    names = ("a.png", "fine.png", name.format(tmp_path))
    write(inside / "m.jsonl", [{"im": im, "split": "train"} for im in names])
    source = manifest(inside / "m.jsonl", modalities={"im": "image"}, targets={})
    batch = source.compose(np.arange(3), None)
    assert batch["inputs"]["im"]["present"].tolist() == [True, True, False]
    (problem,) = source.compose.bad.problems
    assert (problem.line, problem.about) == (3, "outside")


@pytest.mark.parametrize("name", ["a/../a.png", "a\\..\\a.png", "/a", "\\a", "c:a", "", "\0", 3])
def test_paths_are_refused_by_their_looks_alone(name):
    with pytest.raises(Unreadable):
        check_path(name)
    assert check_path("a..b/..c.png") == "a..b/..c.png"


def test_headers_alone_are_enough_to_refuse():
    side = (16382).to_bytes(3, "little")
    webp = b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8X" + struct.pack("<II", 10, 2) + side * 2
    with pytest.raises(Unreadable, match="16383 x 16383"):
        decode_image(webp, 16, LIMITS)
    for rate, channels, message in ((2**31, 1, "samples a second"), (8000, 99, "99 channels")):
        form = struct.pack("<HHIIHH", 1, channels, rate, rate, 2 * channels, 16)
        wav = b"WAVEfmt \x10\0\0\0" + form + b"data" + struct.pack("<I", 198) + bytes(198)
        with pytest.raises(Unreadable, match=message):
            decode_audio(b"RIFF" + struct.pack("<I", len(wav)) + wav, 8000, LIMITS)


def test_limits_hold_before_anything_is_decoded(tmp_path):
    picture(0, (30, 40)).save(tmp_path / "a.png")
    huge = bytearray((tmp_path / "a.png").read_bytes())
    huge[16:24] = (90_000).to_bytes(4, "big") * 2
    huge[29:33] = zlib.crc32(huge[12:29]).to_bytes(4, "big")
    (tmp_path / "huge.png").write_bytes(huge)
    soundfile.write(tmp_path / "a.wav", np.zeros(9000), 8000)
    soundfile.write(tmp_path / "a.flac", np.zeros(9000), 8000)
    (tmp_path / "a.txt").write_text("word " * 100)
    frames = [picture(i) for i in range(9)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    rows = [
        {"im": "a.png", "split": "train", "pad": "x"},
        *({"im": name, "split": "train"} for name in ("huge.png", "a.png")),
        *({"so": name, "split": "train"} for name in ("a.wav", "a.flac")),
        {"te": "a.txt", "split": "train"},
        {"vi": "a.gif", "split": "train"},
        {"im": "a.png", "split": "train", "pad": "x" * 999},
    ]
    write(tmp_path / "m.jsonl", rows)
    kinds = {"im": "image", "so": "audio", "te": {"kind": "text", "from": "file"}, "vi": "video"}
    tight = {"pixels": 1200, "seconds": 1.0, "text_bytes": 99, "frames": 8, "row_bytes": 999}
    tiny = {"file_bytes": 50}
    for limits, bad in ((None, {2}), (tight, {2, 4, 5, 6, 7, 8}), (tiny, {1, 2, 3, 4, 5, 7, 8})):
        source = manifest(tmp_path / "m.jsonl", modalities=kinds, targets={}, limits=limits)
        source.compose(source.rows["train"], None)
        problems = source.compose.bad.problems
        assert {problem.line for problem in problems} == bad
        assert {p.about for p in problems} <= {"over a limit", "broken row"}


def test_broken_lines_keep_the_numbers_of_the_others(tmp_path):
    (tmp_path / "m.jsonl").write_bytes(
        b'\xef\xbb\xbf{"a": 1}\n\n{"a": \n[1]\n\xff\xfe\n{"a": "\\ud83d"}\n{"a": "\\ud83d\\ude00"}'
    )
    rows = read_rows(tmp_path / "m.jsonl", LIMITS)
    assert rows.values == [{"a": 1}, {"a": "\N{GRINNING FACE}"}]
    assert rows.lines == [1, 7]
    assert [line for line, _ in rows.broken] == [3, 4, 5, 6]
    (tmp_path / "m.csv").write_bytes(b'a,b\n1,"two\nlines"\n3\n\xff,4\n5,6\n')
    rows = read_rows(tmp_path / "m.csv", LIMITS)
    assert rows.values == [{"a": "1", "b": "two\nlines"}, {"a": "5", "b": "6"}]
    assert rows.lines == [2, 6]
    assert [line for line, _ in rows.broken] == [4, 5]
    for text, message in (("a,a\n1,2\n", "repeated"), ("", "no header")):
        (tmp_path / "m.csv").write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_rows(tmp_path / "m.csv", LIMITS)


def test_pictures_of_any_size_are_framed_as_the_other_sources_frame_them(tmp_path):
    for size in ((16, 16), (40, 23), (5, 90), (200, 300)):
        image = picture(1, size)
        image.save(tmp_path / "a.png")
        found = decode_image((tmp_path / "a.png").read_bytes(), 16, LIMITS)
        planes = images.to_planes(np.asarray(images.pad_square(image.convert("RGBA"))))[None]
        want = (images.plain(planes, 16)[0] + 1) * 127.5
        np.testing.assert_allclose(found.pixels, want, atol=1 if max(size) < 50 else 3)
        assert (found.height, found.width) == size


def test_wav_is_read_alike_by_hand_and_by_the_library(tmp_path):
    wave = np.random.default_rng(0).integers(-(2**15), 2**15, 4000).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", wave, 8000)
    soundfile.write(tmp_path / "a.flac", wave, 8000)
    plain, other = (
        decode_audio((tmp_path / n).read_bytes(), 8000, LIMITS) for n in ("a.wav", "a.flac")
    )
    assert plain.dtype == np.int16
    assert np.array_equal(plain, wave)
    np.testing.assert_allclose(other * 32768, wave, atol=1e-3)
    stereo = np.stack([wave, wave // 2], 1)
    soundfile.write(tmp_path / "b.wav", stereo, 8000)
    mono = decode_audio((tmp_path / "b.wav").read_bytes(), 8000, LIMITS)
    np.testing.assert_allclose(mono * 32768, stereo.mean(1), atol=1e-2)
    quiet = np.zeros(8000, np.int16)
    quiet[3000:5000] = wave[:2000]
    soundfile.write(tmp_path / "c.wav", quiet, 8000)
    assert len(decode_audio((tmp_path / "c.wav").read_bytes(), 8000, LIMITS)) < 2400
    with pytest.raises(Unreadable, match="cut short|format|read|header|Format"):
        decode_audio((tmp_path / "a.flac").read_bytes()[:30], 8000, LIMITS)


def test_frames_are_spread_centred_or_by_rate():
    def sample(*args, **kwargs):
        return video.sample(*args, **kwargs).tolist()

    assert sample(12, 4, "uniform") == [1, 4, 7, 10]
    assert sample(12, 4, "uniform", chance=0.0) == [0, 3, 6, 9]
    assert sample(12, 4, "uniform", chance=0.99) == [2, 5, 8, 11]
    assert sample(2, 4, "uniform") == [0, 0, 1, 1]
    assert sample(12, 4, "centre") == sample(12, 4, "centre", chance=0.1) == [4, 5, 6, 7]
    assert sample(12, 4, "rate", 2.0) == [3, 5, 7, 9]
    assert sample(12, 4, "rate", 2.0, 0.0) == [0, 2, 4, 6]
    assert sample(12, 4, "rate", 2.0, 1.0) == [5, 7, 9, 11]
    assert sample(3, 4, "rate", 2.0) == [0, 2]
    assert video.numbered(["f10.png", "f9.png", "x.txt"]) == ["f9.png", "f10.png"]
    for names in (["a.png"], ["1.png", "01.png"], ["1.txt"]):
        with pytest.raises(ValueError, match="number|frames"):
            video.numbered(names)


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_animations_are_clips(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 8), (20 * i, 0, 0)) for i in range(12)]
    path = tmp_path / f"a.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=50, lossless=True)
    seconds = video.durations(path.read_bytes(), 100)
    assert seconds == pytest.approx([0.05] * 12)
    write(tmp_path / "m.jsonl", [{"clip": path.name, "split": "train"}])

    def red(**options):
        kinds = {"clip": {"kind": "video", "frames": 4, "size": 8, **options}}
        source = manifest(tmp_path / "m.jsonl", modalities=kinds, targets={})
        chance = np.full((1, source.draws), 0.0, np.float32)
        at = [source.compose(np.array([0]), u)["inputs"]["clip"] for u in (None, chance)]
        alone = read_video(path, source.spec.modalities["clip"])
        assert np.array_equal(alone["x"], at[0]["x"])
        assert np.array_equal(alone["mask"], at[0]["mask"])
        return [((e["x"][0, :, 0, 0, 0] + 1) * 127.5 / 20).round()[e["mask"][0]] for e in at]

    assert [x.tolist() for x in red()] == [[1, 4, 7, 10], [0, 3, 6, 9]]
    found = red(sample="rate", rate=10.0)  # of 20 a second
    assert [x.tolist() for x in found] == [[3, 5, 7, 9], [0, 2, 4, 6]]
    assert [x.tolist() for x in red(sample="centre", rate=5.0)] == [[2, 6, 10]] * 2


def test_a_random_stretch_of_a_recording_in_training_only(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.linspace(0.1, 0.9, 8000), 8000)
    write(tmp_path / "m.jsonl", [{"s": "a.wav", "split": "train"}])
    kinds = {"s": {"kind": "audio", "rate": 8000, "seconds": 0.25, "random": True}}
    source = manifest(tmp_path / "m.jsonl", modalities=kinds, targets={})
    starts = [
        source.compose(np.array([0]), u if u is None else np.array([[u]]))["inputs"]["s"]["x"][0, 0]
        for u in (None, 0.0, 0.5, 0.999)
    ]
    assert starts == pytest.approx([0.1, 0.1, 0.4, 0.7], abs=0.01)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    root = tmp_path_factory.mktemp("clips")
    for i in range(30):
        if i != 4:
            (root / "video_frames" / f"c{i}").mkdir(parents=True)
            for frame in range(3):
                picture(i).save(root / "video_frames" / f"c{i}" / f"{frame}.jpg")
        for place in ("text_data", "audio_data"):
            (root / place).mkdir(exist_ok=True)
        (root / "text_data" / f"c{i}.txt").write_text(f"clip {i}")
        soundfile.write(root / "audio_data" / f"c{i}.wav", np.ones(800) * 0.5, 16000)
    return root


def test_folders_of_frames_texts_and_sounds(clips):
    labels = {f"c{i}": ["run", "jump"][i % 2] for i in range(29)}
    (clips / "labels.json").write_text(json.dumps(labels))
    with (clips / "labels.csv").open("w") as file:
        csv.writer(file).writerows([("id", "class"), *labels.items()])
    options = {"video": {"frames": 3, "size": 16}}
    for given in (labels, "labels.json", "labels.csv"):
        source = video_folder(labels=given, root=clips, options=options)
        assert source.spec.targets["label"].classes == ("jump", "run")
        batch = source.compose(np.arange(30), None)
        source.spec.check(batch)
        assert "weight" not in batch
        ids = [source.describe(i) for i in range(30)]
        answer = batch["targets"]["label"]
        lack = [
            [id for id, there in zip(ids, entry["present"], strict=True) if not there]
            for entry in (*batch["inputs"].values(), answer)
        ]
        assert lack == [["c4"], [], [], ["c29"]]
        assert answer["y"][ids.index("c3")] == 0
    assert sum(map(len, source.rows.values())) == 30
    split = video_folder(root=clips, options={"text": {"units": "words", "vocabulary": 9}})
    tokenizer = read_tokenizer(split.assets["tokenizer.json"])
    assert tokenizer.get_vocab_size() == 9
    text = split.compose(np.arange(1), None)["inputs"]["text"]
    assert text["mask"].sum() == 2
    assert text["x"][0, 0] == tokenizer.token_to_id("clip")
    silent = video_folder(root=clips, audios=None)
    assert set(silent.spec.modalities) == {"video", "text"}
    assert not silent.spec.targets


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": "frames"}, "is no folder; give None for no video"),
        ({"labels": {"c99": "run"}}, "1 ids have no file, such as 'c99'"),
        ({"labels": "none.json"}, "cannot read .*none.json"),
        ({"options": {"sound": {}}}, "unknown modality 'sound'"),
    ],
)
def test_wrong_folders_are_named(clips, change, message):
    with pytest.raises(ConfigError, match=message):
        video_folder(root=clips, **change)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    picture(0).save(tmp_path / "b.png")
    write(tmp_path / "m.jsonl", [{"im": im, "split": "train"} for im in ("a.png", "b.png")])
    source = manifest(tmp_path / "m.jsonl", modalities={"im": "image"}, targets={})
    assert source.compose(np.arange(2), None)["weight"].tolist() == [0, 1]
