"""The page shows what the batches hold: it is read back and compared."""

import base64
import html.parser
import io
import re

import numpy as np
import pytest
import soundfile
from PIL import Image

from mtmm_jax import data
from mtmm_jax.batch import Modality, Spec, Target
from mtmm_jax.data.inspect import show
from mtmm_jax.data.sources.generator import generator
from mtmm_jax.text import encode, read_tokenizer, train_tokenizer

COLOURS = ("red", "green & blue", "yellow")
SAID = ["a small cat", "a large dog", "fat & bold dog"]
TOKENIZER = train_tokenizer(3 * SAID, 60)
LAST = 6  # of the training rows: everything is absent


def everything(*, grey: float = 0.5, tokens: bool = True) -> data.Source:
    """One of each kind, <escaped>.

    Args:
        grey: of the pictures.
        tokens: whether there is a tokenizer.
    """
    tokenizer = read_tokenizer(TOKENIZER)
    spec = Spec(
        {
            "image": Modality("image", (8, 8, 3), "float32"),
            "video": Modality("video", (3, 8, 8, 3), "float32", rate=5.0),
            "audio": Modality("audio", (400,), "float32", rate=8000.0),
            "text": Modality("text", (8,), "int32", vocabulary=60),
            "table": Modality("table", (3,), "float32", names=("height", "width", "gap")),
            "series": Modality("series", (6, 2), "float32", names=("one", "two")),
        },
        {
            "colour": Target("class", classes=COLOURS),
            "soft": Target("class", classes=COLOURS),
            "size": Target("number"),
            "several": Target("labels", classes=COLOURS),
            "caption": Target("tokens", length=8),
            "things": Target("boxes", classes=COLOURS, length=2),
            "spelt": Target("tokens", classes=("[PAD]", "c", "o", "w"), length=4),
            "cry": Target("wave", length=400, rate=8000.0),
            "parts": Target("mask", classes=COLOURS, shape=(2, 2)),
            "way": Target("path", shape=(4, 2)),
        },
    )

    def compose(rows, chance):
        n, here = len(rows), rows < LAST
        ids = encode(tokenizer, [SAID[r % 3] for r in rows], 8)
        video = np.tile(np.arange(3)[None, :, None, None, None] / 3, (n, 1, 8, 8, 3))
        wave = np.sin(np.arange(400) / 5)[None] * (1 + rows[:, None]) / 10
        box = np.tile(np.array([[[0.25, 0.125, 0.75, 0.5], [0, 0, 0, 0]]], np.float32), (n, 1, 1))
        x = {
            "image": np.full((n, 8, 8, 3), grey)
            + (0 if chance is None else chance[:, :1, None, None]),
            "video": video,
            "audio": wave,
            "text": ids,
            "table": np.tile([1.5, -2.0, np.nan], (n, 1)),
            "series": np.tile(np.arange(12.0).reshape(6, 2), (n, 1, 1)),
        }
        y = {
            "colour": (rows % 3).astype(np.int32),
            "soft": np.tile(np.array([0.25, 0.75, 0], np.float32), (n, 1)),
            "size": rows.astype(np.float32),
            "several": np.tile(np.array([1, 0, 1], np.float32), (n, 1)),
            "caption": ids,
            "things": {
                "boxes": box,
                "classes": np.tile([1, 0], (n, 1)),
                "valid": np.tile([True, False], (n, 1)),
            },
            "spelt": np.tile([1, 2, 3, 0], (n, 1)),
            "cry": wave,
            "parts": np.tile([[0, 1], [1, -1]], (n, 1, 1)),
            "way": {
                "points": np.tile(np.arange(8.0).reshape(4, 2), (n, 1, 1)),
                "valid": np.tile([True, True, True, False], (n, 1)),
            },
        }
        inputs = {
            name: {"x": v.astype(spec.modalities[name].dtype), "present": here}
            for name, v in x.items()
        }
        inputs["text"]["mask"] = ids != 0
        inputs["series"]["mask"] = np.tile(np.arange(6) < 4, (n, 1))
        targets = {name: {"y": v, "present": here & (rows != 1)} for name, v in y.items()}
        return {"inputs": inputs, "targets": targets, "id": rows.astype(np.int32)}

    ends = {"train": (0, LAST + 1), "validation": (10, 13), "test": (20, 22)}
    return data.Source(
        name="everything",
        spec=spec,
        rows={split: np.arange(*end) for split, end in ends.items()},
        compose=compose,
        draws=1,
        assets={"tokenizer.json": TOKENIZER.encode()} if tokens else {},
        describe=lambda id: f"example <{id}>",
    )


class Page(html.parser.HTMLParser):
    """Tags with their attributes, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, text):
        self.text.append(text)

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """`run(*words)` -> the page as it stands, and what was printed."""
    monkeypatch.setitem(data.SOURCES, "everything", everything)
    monkeypatch.setitem(data.SOURCES, "generator", generator)

    def run(name, *words):
        out = tmp_path / "folder" / "page.html"
        assert show.main([name, "--out", str(out), *words]) == 0
        assert f"wrote {out}" in capsys.readouterr().out
        return out.read_text(encoding="utf-8")

    return run


def payload(uri: str) -> tuple[str, io.BytesIO]:
    kind, encoded = re.fullmatch(r"data:([\w/]+);base64,(.*)", uri).groups()
    return kind, io.BytesIO(base64.b64decode(encoded))


def test_the_page_needs_nothing_else_and_escapes_what_it_says(run):
    text = run("everything")
    page = Page(text)
    assert "://" not in text
    for tag in ("img", "audio"):
        assert all(attributes["src"].startswith("data:") for attributes in page.all(tag))
    assert not page.all("link")
    assert not page.all("script")
    assert not page.all("b") or all("escaped" not in str(t) for t in page.tags)
    assert "example <3>" in page.text
    assert any("One of each kind, <escaped>." in part for part in page.text)
    assert "prefers-color-scheme: dark" in text


def test_pictures_clips_and_sounds_can_be_read_back(run):
    page = Page(run("everything", "--config.grey=-0.25"))
    uris = [attributes["src"] for attributes in page.all("img")]
    media = [payload(uri) for uri in uris]
    # A picture, a clip, the strip of its frames; and a mask, but for the row without labels.
    assert len(media) == 3 * LAST + LAST - 1
    mask = np.asarray(Image.open(media[3][1]))
    assert (mask[0, 1] == mask[1, 0]).all()
    assert (mask[0, 0] != mask[0, 1]).any()
    assert mask[1, 1].tolist() == [255] * 3
    kind, first = media[0]
    picture = np.asarray(Image.open(first))
    assert (kind, picture.shape) == ("image/png", (8, 8, 3))
    assert (picture == round(0.75 * 127.5)).all()
    kind, clip = media[1]
    clip = Image.open(clip)
    assert (kind, clip.n_frames) == ("image/webp", 3)
    shown = []
    for t in range(3):
        clip.seek(t)
        clip.load()
        assert clip.info["duration"] == 200
        shown.append(np.asarray(clip.convert("RGB")).mean() / 127.5 - 1)
    np.testing.assert_allclose(shown, [0, 1 / 3, 2 / 3], atol=0.01)
    assert Image.open(media[2][1]).size == (24, 8)
    kind, sound = payload(page.all("audio")[2]["src"])
    wave, rate = soundfile.read(sound)
    assert (kind, rate) == ("audio/wav", 8000)
    np.testing.assert_allclose(wave, np.sin(np.arange(400) / 5) * 0.2, atol=1e-4)


def test_words_numbers_and_plots(run):
    text = run("everything")
    page = Page(text)
    assert page.text.count("a small cat") == 2 + 2  # text and caption of rows 0 and 3
    cells = {part for part in page.text if part.strip()}
    assert {"height", "1.5", "-2", "–"} <= cells
    assert "nan" not in text.replace("finance", "")
    lines = page.all("polyline")
    assert len(lines) == 2 * LAST + 2 * (LAST - 1)  # series, and the paths of labelled rows
    assert len(lines[2]["points"].split()) == 3  # of a path what is valid
    assert len(lines[0]["points"].split()) == 4  # masked steps are left out
    assert "4 steps, 2 channels" in cells


def test_labels_by_name_and_boxes_in_their_place(run):
    text = run("everything")
    example = text[text.index("example &lt;2&gt;") : text.index("example &lt;3&gt;")]
    said = dict(re.findall(r"<dt[^>]*>(\w+)</dt><dd[^>]*>(.*?)</dd>", example))
    assert said["colour"] == "yellow"
    assert said["soft"] == "green &amp; blue 75%, red 25%"
    assert said["size"] == "2"
    assert re.findall(r">([^<>]+)</span>", said["several"]) == ["red", "yellow"]
    assert said["caption"] == "fat &amp; bold dog"
    assert said["spelt"] == "cow"
    assert "<audio" in said["cry"]
    assert said["parts"].count("■") == 2
    assert said["things"].count("■") == 1
    assert "green &amp; blue" in said["things"]
    box = Page(example).all("rect")
    assert len(box) == 1
    place = [float(box[0][key]) for key in ("y", "x", "height", "width")]
    assert place == [0.25, 0.125, 0.5, 0.375]


def test_what_is_absent_is_shown_as_absent(run):
    text = run("everything")
    example = text[text.index(f"example &lt;{LAST}&gt;") :]
    assert example.count(">absent<") == 6 + 10
    unlabelled = text[text.index("example &lt;1&gt;") : text.index("example &lt;2&gt;")]
    assert unlabelled.count(">absent<") == 10
    assert not Page(unlabelled).all("rect")


def test_statistics_are_those_of_the_labels(run):
    source = everything()
    train = show.count(source, "train", 100)
    assert train.total == train.sample == 7
    assert train.present["image"] == pytest.approx(6 / 7)
    assert train.present["colour"] == pytest.approx(5 / 7)
    assert train.values["size"].tolist() == [0, 2, 3, 4, 5]
    assert train.values["colour"].sum(0).tolist() == [2, 1, 2]
    assert train.values["soft"].mean(0).tolist() == [0.25, 0.75, 0]
    assert train.values["things"].sum(0).tolist() == [0, 5, 0]
    words = np.array([len(encode(read_tokenizer(TOKENIZER), [s], 8).nonzero()[1]) for s in SAID])
    assert train.values["caption"].tolist() == words[[0, 2, 0, 1, 2]].tolist()
    assert show.count(source, "train", 3).sample == 3
    text = run("everything")
    assert "train 71%, validation 0%, test 0%" in text
    means = re.search(r"<h3>size</h3>.*?<tr><td>train(.*?)</table>", text)[1]
    assert re.findall(r"n>([\d.]+)", means) == ["2.8", "1.72", "0.000", "5"]
    shares = re.search(r"<h3>colour</h3>.*?</div></div>.*?</div></div>", text)[0]
    assert re.findall(r"<b>([\d.]+)%", text[text.index(shares) :])[:3] == ["40.0", "20.0", "40.0"]


def test_augmentation_split_count_and_settings(run, tmp_path):
    plain, changed = run("everything"), run("everything", "--augment")
    assert "7 examples of train, without augmentation" in plain
    assert "7 examples of train, as training sees them" in changed
    assert plain != changed
    few = run("everything", "--split", "test", "--count", "1", "--config.tokens=false")
    assert "1 examples of test" in few
    assert re.search(r"<code>.*tokens&quot;: false", few)
    no_words = run("everything", "--config.tokens=false")
    assert "ids " in no_words
    assert "a small cat" not in no_words


def test_the_emoji_page_has_its_card_and_its_sheet(run, cache, tmp_path):
    sheet = tmp_path / "sheets" / "emoji.png"
    text = run(
        "emoji",
        f"--config.data_dir={cache}",
        '--config.styles=["noto"]',
        "--count",
        "8",
        "--sample",
        "64",
        "--png",
        str(sheet),
    )
    assert "Data card: emoji" in text
    assert "grinning face" in text
    with Image.open(sheet) as image:
        assert image.size[0] > 6 * 140
        assert np.asarray(image).std() > 20


def test_the_generators_page_has_its_docstring(run):
    text = run("generator", "--config.size=[60,10,10]", "--config.missing=0.4", "--count", "12")
    assert "Modalities `m1..mM`" in text
    assert "Data card" not in text
    assert text.count(">absent<") > 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["emojis"], "show: unknown source 'emojis' (did you mean 'emoji'?)"),
        (["everything", "--split", "dev"], "--split: unknown split 'dev'"),
        (["everything", "--count", "0"], "--count: 0 is not a whole number from 1"),
        (["everything", "--augment", "--split", "test"], "examples of test are never augmented"),
        (["generator", "--augment"], "--augment: generator has no augmentation"),
        (["generator", "--png", "x.png"], "--png: generator has no pictures"),
        (["everything", "--config.gray=1"], "did you mean 'grey'?"),
        (["everything", "--grey=1"], "cannot make sense of '--grey=1'"),
        (["everything", "--config.a=1", "--config.a.b=2"], "a has been given a value already"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(run, words, message, tmp_path, capsys):
    out = tmp_path / "page.html"
    assert show.main([*words, "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_page_that_cannot_be_written_is_named(run, tmp_path, capsys):
    assert show.main(["everything", "--out", str(tmp_path)]) == 2
    assert f"{tmp_path}: cannot be written" in capsys.readouterr().err


def test_settings_are_read_as_what_they_look_like():
    words = ["a=1", "b=0.5", "c=true", "d=[1, 2]", "e=('x', 'y')", "f=name+keywords", "g.h=null"]
    assert show.options([f"--config.{word}" for word in words]) == {
        "a": 1,
        "b": 0.5,
        "c": True,
        "d": [1, 2],
        "e": ("x", "y"),
        "f": "name+keywords",
        "g": {"h": None},
    }


def test_help_lists_the_sources():
    text = show.parser().format_help()
    assert "--config.KEY=VALUE" in text
    assert "emoji: About 1,900 emoji" in text
