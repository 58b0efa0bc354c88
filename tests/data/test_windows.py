"""Long recordings by windows, and what `check` guesses of recordings and rasters."""

import io

import numpy as np
import pytest
import soundfile
from PIL import Image

from mtmm_jax import data
from mtmm_jax.modalities import MODALITIES
from mtmm_jax.modalities.audio import read_audio
from mtmm_jax.readers import audio
from mtmm_jax.registry import ConfigError

RATE = 8000


def _wave(seconds):
    """A tone whose loudness says where one is, never silent."""
    t = np.arange(round(seconds * RATE))
    return (0.2 + 0.7 * t / len(t)) * np.where(t % 2, 1.0, -1.0)


def _file(wave, format="WAV"):
    out = io.BytesIO()
    soundfile.write(out, wave, RATE, format=format, subtype="FLOAT" if format == "WAV" else None)
    return out.getvalue()


def test_stretches_are_the_middles_of_equal_parts():
    wave = np.arange(100.0)
    np.testing.assert_array_equal(
        audio.stretches(wave, 4, 5), [n for s in (10, 35, 60, 85) for n in range(s, s + 5)]
    )
    np.testing.assert_array_equal(audio.stretches(wave, 1, 5), range(5))
    np.testing.assert_array_equal(audio.stretches(wave, 1, 5, 1.0), range(95, 100))
    np.testing.assert_array_equal(audio.stretches(wave, 20, 5), wave)
    np.testing.assert_array_equal(audio.stretches(wave, 21, 5), wave)
    for place in np.linspace(0, 1, 11):
        assert audio.stretches(wave, 3, 33, place).shape == (99,)


@pytest.mark.parametrize("random", [False, True])
def test_a_long_recording_is_heard_from_end_to_end(tmp_path, random):
    wave = _wave(5.0).astype(np.float32)
    (tmp_path / "long.wav").write_bytes(_file(wave))
    (tmp_path / "short.wav").write_bytes(_file(wave[:1000]))
    names = ["long.wav", "short.wav"] * 6
    lines = "\n".join(["sound,y", *(f"{name},{i}" for i, name in enumerate(names))])
    (tmp_path / "t.csv").write_text(lines)
    column = {"kind": "audio", "column": "sound", "rate": RATE, "seconds": 0.5, "windows": 3,
              "random": random}  # fmt: skip
    source = data.build(
        {
            "kind": "manifest", "path": str(tmp_path / "t.csv"), "modalities": {"sound": column},
            "targets": {"y": "number"},
            "split": {"train": 0.5, "validation": 0.25, "test": 0.25},
        }
    )  # fmt: skip
    modality = source.spec.modalities["sound"]
    assert modality.shape == (12000,)
    rows = np.arange(2)
    x = source.compose(rows, None)["inputs"]["sound"]["x"]
    parts = [wave[s : s + 4000] for s in (4666, 18000, 31333)]
    np.testing.assert_allclose(x[0], np.concatenate(parts), atol=1e-4)
    np.testing.assert_allclose(x[1, :1000], wave[:1000], atol=1e-4)
    assert not x[1, 1000:].any()
    alone = read_audio(tmp_path / "long.wav", modality, 3)["x"][0]
    np.testing.assert_array_equal(alone, x[0])
    if random:
        ends = [source.compose(rows, np.full((2, 1), c))["inputs"]["sound"]["x"][0]
                for c in (0.0, 1.0)]  # fmt: skip
        np.testing.assert_allclose(ends[0][:4000], wave[:4000], atol=1e-4)
        np.testing.assert_allclose(ends[1][-4000:], wave[-4000:], atol=1e-4)


def test_windows_out_of_range_are_refused(tmp_path):
    (tmp_path / "t.csv").write_text("sound,y\na.wav,1\n")
    column = {"kind": "audio", "column": "sound", "windows": 0}
    with pytest.raises(ConfigError, match="windows"):
        data.build({"kind": "manifest", "path": str(tmp_path / "t.csv"),
                    "modalities": {"sound": column}, "targets": {"y": "number"}})  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "wanted"),
    [
        ([0.3] * 20, {"seconds": 0.5}),
        ([1.2] * 20, {"seconds": 1.5}),
        ([1.2] * 20 + [30.0], {"seconds": 1.5}),  # one of 21 is longer
        ([7.0] * 20, {"seconds": 2.0, "windows": 4}),
        ([60.0], {"seconds": 2.0, "windows": 5}),
    ],
)
def test_recordings_are_as_long_as_most_of_them(seconds, wanted):
    contents = [_file(np.ones(round(s * RATE), np.float32) / 2) for s in seconds]
    assert MODALITIES["audio"].guess([*contents, b"RIFF....WAVE no sound"]) == wanted
    assert MODALITIES["audio"].guess([b"nothing"]) == {}


def _npy(x):
    out = io.BytesIO()
    np.save(out, x)
    return out.getvalue()


def _png(x):
    out = io.BytesIO()
    Image.fromarray(x).save(out, "PNG")
    return out.getvalue()


DEPTH = np.arange(70 * 80, dtype=np.uint16).reshape(70, 80) % 4000


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (_png(np.zeros((8, 8, 3), np.uint8)), {}),
        (_png(np.zeros((8, 8), np.uint8)), {}),
        (_png(DEPTH), {"channels": 1, "range": [0.0, 4095.0]}),
        (_npy(np.zeros((8, 9, 6), np.uint8)), {"channels": 6}),
        (
            _npy(np.linspace(-1.5, 2.5, 192, dtype=np.float32).reshape(8, 8, 3)),
            {"channels": 3, "range": [-1.5, 2.5]},
        ),
        (_npy(DEPTH), {"channels": 1, "range": [0.0, 4095.0]}),
    ],
)
def test_channels_and_range_of_pictures_are_looked_up(content, wanted):
    assert MODALITIES["image"].guess([content, b"no picture"]) == {"size": 64, **wanted}


def test_arrays_are_pictures_or_series_by_their_shape():
    def kinds(x):
        return [name for name, row in MODALITIES.items() if row.claims(_npy(x))]

    assert kinds(np.zeros((8, 9, 6))) == ["image"]
    assert kinds(DEPTH) == ["image"]
    assert kinds(np.zeros((100, 3))) == ["series"]
    assert kinds(np.zeros(5)) == kinds(np.zeros((2, 2, 2, 2))) == []
    assert kinds(np.array([{}], dtype=object)) == []
    guess = MODALITIES["series"].guess
    assert guess([_npy(np.zeros((100, 3))), _npy(np.zeros((9, 3)))]) == {
        "length": 100, "channels": 3,
    }  # fmt: skip
    assert guess([b""]) == {}
