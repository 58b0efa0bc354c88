"""Pipes: read and checked when built, right by independent references, the same in any batch."""

import io
import json

import numpy as np
import pytest
import soundfile
from PIL import Image

from mtmm_jax.batch import Spec
from mtmm_jax.chance import stretches
from mtmm_jax.data.pipeline.pipes import Pipe, bind, parse, pipe
from mtmm_jax.data.transforms import TRANSFORMS, Form
from mtmm_jax.registry import ConfigError
from mtmm_jax.text import PADDING, UNKNOWN
from tests.made_up import packaged

RNG = np.random.default_rng(0)
PICTURE, SOUND = Form("image_file"), Form("audio_file")
FLOATS = Form("image", (12, 10, 3), "float32", 0.0, 1.0)
BYTES = Form("image", (12, 10, 3), "uint8", 0, 255)
WAVE = Form("audio", (None,), "float32", rate=100.0)
STRING = Form("string")
SERIES = Form("series", (None, 2), "float32", names=("a", "b"))
TABLE = Form("table", (3,), "float32", names=("a", "b", "c"))


def encoded(pixels, kind="PNG", **options) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


def spoken(wave, rate, kind="WAV") -> bytes:
    out = io.BytesIO()
    soundfile.write(out, wave, rate, format=kind)
    return out.getvalue()


def pixels(height=12, width=10, count=None) -> np.ndarray:
    shape = (height, width, 3) if count is None else (count, height, width, 3)
    return RNG.integers(0, 256, shape, np.uint8)


def ran(text, start, values, chance=None):
    """What a pipe makes of values, unchecked at its end."""
    return pipe(text, start).run(values, chance)[0]


# Reading and checking


def test_a_string_is_read_with_places_and_types():
    calls = parse("decode | fit(2, late = 0.5)|normalize(half)", "p")
    assert [call.name for call in calls] == ["decode", "fit", "normalize"]
    assert (calls[1].args, calls[1].kwargs) == ((2,), {"late": 0.5})
    assert calls[1].place == "character 10, `fit(2, late = 0.5)`"
    assert bind(calls[1], TRANSFORMS["fit"].build, "p", 2) == {"length": 2.0, "late": 0.5}


@pytest.mark.parametrize(
    ("text", "start", "message"),
    [
        ("decode|", PICTURE, r"p: character 8 of 'decode|': cannot read 'nothing'"),
        ("decode|resize(8", PICTURE, r"p: character 8 of .* cannot read 'resize\(8'"),
        ("decode|resiz(8)", PICTURE, r"character 8, `resiz\(8\)`: unknown transform 'resiz' \(did"),
        ("decode|resize(8.5)", PICTURE, "height: 8.5 is not a whole number"),
        ("decode|resize(true)", PICTURE, "height: True is not a whole number"),
        ("decode|resize(a)", PICTURE, "height: 'a' is not a whole number"),
        ("decode|resize", PICTURE, "resize needs height"),
        ("decode|resize(0)", PICTURE, "height: 0 is not a whole number from 1"),
        ("decode|resize(8, 8, 8)", PICTURE, "resize takes height, width; 3 were given"),
        ("decode|resize(8, height=8)", PICTURE, "height is given twice"),
        ("decode|resize(width=8, 8)", PICTURE, "8 without a name after one with a name"),
        ("decode|resize(8, widht=8)", PICTURE, "argument of resize 'widht' .did you mean 'width'"),
        ("decode|resize(8;8)", PICTURE, "cannot read the argument '8;8'"),
        ("decode|flip(nan)", PICTURE, "share: nan is not a number from 0 to 1"),
        ("decode|flip(1.5)", PICTURE, "share: 1.5 is not a number from 0 to 1"),
        ("flip|decode", PICTURE, "flip takes image, and here comes image_file.*takes it: decode"),
        ("decode|trim", SOUND, "trim takes audio, and here comes sound.*takes it: resample"),
        ("tokenize(4)|lower", STRING, r"lower takes string, and here comes text int32\[4\]"),
        ("decode|normalize(vgg)", PICTURE, "unknown normalisation 'vgg'.*cifar, half, imagenet"),
        ("normalize|normalize", FLOATS, "have been normalised already"),
        ("normalize(cifar)|color", FLOATS, "known range: put it before normalize"),
        ("random_crop(16)", FLOATS, r"16 x 16 does not fit into image float32\[12, 10, 3\]"),
        ("random_crop(16, pad=2)", FLOATS, "with 2 pixels around it"),
        ("noise|normalize", BYTES, "needs floats: put it after to_float"),
        ("fit(4)|standardise", SERIES, "put it before fit"),
        ("fit(4.5)", SERIES, "whole number of steps"),
        ("clip(1, 1)", TABLE, "low 1.0 is not below high 1.0"),
        ("decode", PICTURE, r"ends in image uint8\[\?, \?, 3\]; a model needs resize"),
        ("decode|resize(8)", PICTURE, "a model needs normalize after it"),
        ("decode|resample(100)", SOUND, "a model needs fit"),
        ("", STRING, "'' ends in string; a model needs tokenize"),
        ("lower", STRING, "a model needs tokenize"),
    ],
)
def test_mistakes_are_named_when_the_pipe_is_built(text, start, message):
    with pytest.raises(ConfigError, match=message) as error:
        pipe(text, start, "p")
    assert str(error.value).startswith("p: ")


def test_a_pipe_knows_what_it_gives():
    image = pipe("decode|resize_short(9)|random_crop(8, 6)|flip|color|cut_out|normalize", PICTURE)
    assert (image.draws, image.out.shape) == (2 + 1 + 3 + 4, (8, 6, 3))
    audio = pipe("decode|resample(100)|fit(0.5, late=0.1)|gain|noise", SOUND)
    assert (audio.draws, audio.modality().shape, audio.modality().rate) == (4, (50,), 100.0)
    text = pipe("lower|tokenize(5)|token_dropout", STRING)
    assert (text.draws, text.modality().dtype, text.unfitted) == (5, "int32", True)
    known = Form("image_file", (20, 30, 3))
    assert pipe("decode|resize_short(10)|normalize", known).out.shape == (10, 15, 3)
    assert pipe("", TABLE).modality().names == ("a", "b", "c")


# What the transforms do


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF"])
def test_pictures_are_decoded(kind):
    grey = np.repeat(pixels()[..., :1], 3, -1)  # a GIF has 256 colours
    options = {"lossless": True} if kind == "WEBP" else {}
    value = ran("decode|resize(12, 10)|normalize", PICTURE, [encoded(grey, kind, **options)])
    np.testing.assert_allclose(value[0], grey / 127.5 - 1, atol=1e-5)


def test_jpegs_are_turned_and_transparency_shows_white():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it upright
    flat = np.zeros((8, 16, 3), np.uint8)
    flat[:, :8] = 255
    data = encoded(flat, "JPEG", exif=exif)
    value = ran("decode|resize(16, 8)|to_float", PICTURE, [data])
    np.testing.assert_allclose(value[0, :7], 1, atol=0.05)
    np.testing.assert_allclose(value[0, 9:], 0, atol=0.05)
    clear = np.zeros((4, 4, 4), np.uint8)
    assert (ran("decode|resize(4)|to_float", PICTURE, [encoded(clear)]) == 1).all()


def test_a_broken_file_is_named():
    with pytest.raises(ConfigError, match=r"pipe: character 1, `decode`: cannot decode a picture"):
        ran("decode|resize(4)|normalize", PICTURE, [b"not a picture"])
    with pytest.raises(ConfigError, match="cannot decode a sound"):
        ran("decode|resample(10)|fit(1)", SOUND, [b"not a sound"])


def test_resizing_bytes_and_floats_is_the_same():
    x = pixels(24, 30, count=2)
    small = ran("resize(9, 7)|to_float", Form("image", (24, 30, 3), "uint8", 0, 255), x)
    floats = ran("to_float|resize(9, 7)", Form("image", (24, 30, 3), "uint8", 0, 255), x)
    assert small.shape == floats.shape == (2, 9, 7, 3)
    np.testing.assert_allclose(small, floats, atol=1.5 / 255)


def test_normalisation_is_the_formula():
    x = pixels(count=2)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    got = ran("normalize(imagenet)", BYTES, x)
    np.testing.assert_allclose(got, (x / 255 - mean) / std, atol=1e-5)
    np.testing.assert_allclose(ran("to_float|normalize(imagenet)", BYTES, x), got, atol=1e-5)


def test_grayscale_is_pillows():
    x = pixels(count=1)
    wanted = np.asarray(Image.fromarray(x[0]).convert("L"))
    got = ran("grayscale|to_float", BYTES, x)[0] * 255
    assert np.ptp(got, axis=-1).max() == 0
    np.testing.assert_allclose(got[..., 0], wanted, atol=1.01)


def test_crops_are_slices():
    x = pixels(count=3)
    chance = np.array([[0, 0], [0.999, 0.999], [0.5, 0.5]], np.float32)
    got = ran("random_crop(6, 4)|to_float", BYTES, x, chance) * 255
    np.testing.assert_allclose(got[0], x[0, :6, :4], atol=1e-3)
    np.testing.assert_allclose(got[1], x[1, 6:, 6:], atol=1e-3)
    np.testing.assert_allclose(got[2], x[2, 3:9, 3:7], atol=1e-3)
    plain = ran("random_crop(6, 4)|to_float", BYTES, x) * 255
    np.testing.assert_allclose(plain, x[:, 3:9, 3:7], atol=1e-3)
    assert np.array_equal(plain, ran("center_crop(6, 4)|to_float", BYTES, x) * 255)
    padded = ran("random_crop(12, 10, pad=2)|to_float", BYTES, x, chance) * 255
    np.testing.assert_allclose(padded[0, 2:, 2:], x[0, :-2, :-2], atol=1e-3)
    np.testing.assert_allclose(padded[0, :2], 127, atol=1e-3)


@pytest.mark.parametrize("crop", ["center_crop(8)", "random_crop(8)", "random_crop(8, pad=1)"])
def test_a_picture_too_small_for_its_crop_gets_a_margin(crop):
    small = np.full((4, 20, 3), 255, np.uint8)
    u = np.full((1, 2), 0.5, np.float32)
    for chance in (None, u) if crop.startswith("random") else (None,):
        value = ran(f"decode|{crop}|to_float", PICTURE, [encoded(small)], chance)
        np.testing.assert_allclose(value[0, 2:6], 1)
        np.testing.assert_allclose(value[0, [0, 1, 6, 7]], 127 / 255, atol=0.01)


def test_flip_color_cut_out_and_noise_are_what_they_say():
    x = RNG.random((2, 12, 10, 3), np.float32)
    got = ran("flip", FLOATS, x, np.array([[0.4], [0.6]], np.float32))
    assert np.array_equal(got[0], x[0, :, ::-1])
    assert np.array_equal(got[1], x[1])
    u = np.array([[1, 1, 1], [0.5, 0.5, 0]], np.float32)
    got = ran("color(0.1, 0.2, 1)", FLOATS, x, u)
    grey = x @ np.array([0.299, 0.587, 0.114])
    vivid = 2 * x[0] - grey[0, ..., None]
    np.testing.assert_allclose(got[0], np.clip((vivid - 0.5) * 1.2 + 0.6, 0, 1), atol=1e-5)
    np.testing.assert_allclose(got[1], np.repeat(grey[1, ..., None], 3, -1), atol=1e-5)
    got = ran("cut_out(0.5)", FLOATS, x, np.array([[0.4, 1, 0, 0], [0.6, 1, 0, 0]], np.float32))
    assert (got[0, :5, :5] == 0.5).all()
    assert np.array_equal(got[0, 5:], x[0, 5:])
    assert np.array_equal(got[1], x[1])
    flat = np.full((64, 12, 10, 3), 0.5, np.float32)
    u = np.stack([np.linspace(0, 1, 64), RNG.random(64)], 1).astype(np.float32)
    spread = ran("noise(0.1)", FLOATS, flat, u).std(axis=(1, 2, 3))
    assert (spread[:32] == 0).all()
    np.testing.assert_allclose(spread[32:], 0.2 * (u[32:, 0] - 0.5), rtol=0.2)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG"])
def test_sounds_are_decoded_mixed_resampled_and_fitted(kind):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(22050) / 44100)
    data = spoken(np.stack([tone, tone], 1), 44100, kind)
    x = ran("decode|resample(16000)|fit(1.0)", SOUND, [data])[0]
    assert (x.shape, x.dtype) == ((16000,), np.float32)
    heard = np.abs(np.fft.rfft(x[1000:7000]))
    assert np.argmax(heard) * 16000 / 6000 == pytest.approx(440, abs=3)
    assert np.abs(x[1000:7000]).max() == pytest.approx(0.5, abs=0.03)
    assert np.abs(x[8200:]).max() < 0.01


def test_fitting_places_and_cuts():
    u = np.array([[0.999], [0.999], [0.0]], np.float32)
    waves = [np.ones(30, np.float32), np.arange(80, dtype=np.float32), np.ones(30, np.float32)]
    got = ran("fit(0.5, late=0.1)", WAVE, waves, u)
    assert np.flatnonzero(got[0]).tolist() == list(range(10, 40))
    assert np.array_equal(got[1], waves[1][30:])
    assert np.flatnonzero(got[2]).tolist() == list(range(30))
    plain = ran("fit(0.5, late=0.1)", WAVE, waves)
    assert np.array_equal(plain[1], waves[1][:50])
    quiet = np.concatenate([np.zeros(50), np.ones(10), np.zeros(50)]).astype(np.float32)
    assert np.flatnonzero(ran("trim|fit(0.5)", WAVE, [quiet])[0]).tolist() == list(range(2, 12))


def test_gain_is_a_factor():
    u = np.array([[0.0], [0.5]], np.float32)
    got = ran("fit(0.1)|gain(0.5, 2.5)", WAVE, [np.ones(10, np.float32)] * 2, u)
    np.testing.assert_allclose(got, [[0.5] * 10, [1.5] * 10])


def test_text_is_lowered_tokenised_and_kept():
    texts = ["Red cat", "blue CAT", "red dog"] * 3
    fitted = pipe("lower|tokenize(4, vocabulary=50)|token_dropout(0.5)", STRING).fit(texts)
    modality = fitted.modality()
    assert 2 < modality.vocabulary <= 50
    entry = fitted.entry(["RED dog", None], None)
    assert entry["present"].tolist() == [True, False]
    assert np.array_equal(entry["mask"], entry["x"] != PADDING)
    assert not entry["x"][1].any()
    u = np.array([[0.4, 0.6, 0.4, 0.4]] * 2, np.float32)
    dropped = fitted.entry(["RED dog", None], u)["x"]
    assert dropped[0, 0] == UNKNOWN
    assert dropped[0, 1] == entry["x"][0, 1]
    assert not dropped[0, 2:].any()
    again = Pipe.from_dict(json.loads(json.dumps(fitted.to_dict())))
    assert again.modality() == modality
    assert np.array_equal(again.entry(["red dog"], None)["x"], entry["x"][:1])


def test_tables_are_standardised_by_the_train_split_and_clipped():
    train = RNG.normal(5, 3, (50, 3)).astype(np.float32)
    train[:, 2] = 7
    train[0, 0] = np.nan
    fitted = pipe("standardise|clip(-2, 2)", TABLE).fit(list(train))
    x = fitted.run(train, None)[0]
    wanted = (train[:, :2] - np.nanmean(train[:, :2], 0)) / np.nanstd(train[:, :2], 0)
    np.testing.assert_allclose(x[1:, :2], np.clip(wanted[1:], -2, 2), atol=1e-4)
    assert (x[:, 2] == 0).all()
    assert x[0, 0] == 0
    again = Pipe.from_dict(json.loads(json.dumps(fitted.to_dict())))
    assert np.array_equal(again.run(train, None)[0], x)


def test_series_are_standardised_filled_up_and_masked():
    train = [RNG.normal(2, 3, (n, 2)).astype(np.float32) for n in (3, 9, 5)]
    fitted = pipe("standardise|fit(6)|noise(0.1)", SERIES).fit(train)
    every = np.concatenate(train)
    wanted = (train[0] - every.mean(0)) / every.std(0)
    entry = fitted.entry([train[0], None, train[1]], None)
    np.testing.assert_allclose(entry["x"][0, :3], wanted, atol=1e-4)
    assert entry["mask"].sum(1).tolist() == [3, 0, 6]
    noisy = fitted.entry([train[0], None, train[1]], np.ones((3, 2), np.float32))
    assert not np.array_equal(noisy["x"][0, :3], entry["x"][0, :3])
    assert not noisy["x"][~noisy["mask"]].any()


# How pipes are run

CASES = {
    "image": (
        "decode|resize_short(14)|random_crop(12, pad=2)|flip|color|cut_out|normalize(half)|noise",
        PICTURE,
        [encoded(pixels(h, w)) for h, w in ((20, 30), (14, 14), (40, 16), (15, 15), (9, 9))],
    ),
    "audio": (
        "decode|resample(100)|trim|fit(0.5, late=0.2)|gain|noise(0.1)",
        SOUND,
        [spoken(RNG.uniform(-1, 1, n), r) for n, r in ((90, 200), (99, 100), (20, 50), (9, 100))],
    ),
    "text": (
        "lower|tokenize(5)|token_dropout(0.4)",
        STRING,
        ["a red cat", "the DOG", "one two three four five six", "x"],
    ),
    "series": (
        "clip(-1, 1)|standardise|fit(6)|noise(0.2)",
        SERIES,
        [RNG.standard_normal((n, 2)).astype(np.float32) for n in (2, 6, 9, 4)],
    ),
    "table": ("standardise|clip|noise(0.2)", TABLE, list(RNG.random((4, 3), np.float32))),
}


def test_every_transform_is_run_somewhere():
    used = {call.name for text, _, _ in CASES.values() for call in parse(text, "p")}
    assert used >= set(packaged(TRANSFORMS)) - {"resize", "center_crop", "grayscale", "to_float"}


@pytest.mark.parametrize("case", CASES)
def test_an_example_comes_out_the_same_in_any_batch(case):
    text, start, values = CASES[case]
    built = pipe(text, start).fit(values)
    chance = RNG.random((len(values), built.draws), np.float32)
    chance[:2] = np.float32([[0.9], [0.1]])  # so that each random stage acts on one of them
    for u in (chance, None):
        whole = built.entry(values, u)
        Spec({"m": built.modality()}, {}).check({"inputs": {"m": whole}, "targets": {}})
        order = RNG.permutation(len(values))
        mixed = built.entry([values[i] for i in order], None if u is None else u[order])
        assert np.array_equal(mixed["x"], whole["x"][order])
        for i, value in enumerate(values):
            alone = built.entry([None, value], None if u is None else u[[0, i]])
            np.testing.assert_allclose(alone["x"][1], whole["x"][i], atol=1e-6)
            assert not alone["x"][0].any()
    assert not np.array_equal(built.entry(values, chance)["x"], built.entry(values, None)["x"])


@pytest.mark.parametrize("case", ["series", "table"])
def test_inputs_are_not_written_to(case):
    text, start, values = CASES[case]
    built = pipe(text, start).fit(values)
    before = [value.copy() for value in values]
    built.entry(values, RNG.random((len(values), built.draws), np.float32))
    assert all(np.array_equal(a, b) for a, b in zip(before, values, strict=True))


def test_every_draw_is_used_and_no_other():
    """Changing one number changes the result of a pipe in which every random stage acts."""
    built = pipe("random_crop(8, pad=2)|flip|color|cut_out(0.6, 1.0)|noise(0.5)", FLOATS)
    x = RNG.random((1, 12, 10, 3), np.float32)
    base = np.full((1, built.draws), 0.9, np.float32)
    reference = built.run(x, base)[0]
    for i in range(built.draws):
        u = base.copy()
        u[0, i] = 0.05
        changed = not np.array_equal(built.run(x, u)[0], reference)
        share_of_one = i == 6  # the cut-out's share is 1: any number is below it
        assert changed != share_of_one, i


def test_white_noise_is_white():
    got = stretches(np.array([0.1, 0.7], np.float32), (50, 40))
    assert got.shape == (2, 50, 40)
    assert got.mean() == pytest.approx(0, abs=0.06)
    assert got.std() == pytest.approx(1, abs=0.06)
    assert abs(np.corrcoef(got[0].ravel(), got[1].ravel())[0, 1]) < 0.1
