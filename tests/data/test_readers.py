"""Single files go through the source's own preprocessing; bad ones are named in one line."""

import numpy as np
import pytest
import soundfile
from PIL import Image

from mtmm_jax.modalities import MODALITIES, Kept
from mtmm_jax.modalities.audio import read_audio
from mtmm_jax.modalities.image import read_image
from mtmm_jax.modalities.text import encode_text
from mtmm_jax.readers.audio import resample, trim
from mtmm_jax.registry import ConfigError


@pytest.fixture(scope="module")
def batch(source):
    return next(source.batches("test", 2))


def inputs_match(entry, batch, modality, atol):
    assert entry["x"].dtype == batch["inputs"][modality]["x"].dtype
    assert entry["present"].tolist() == [True]
    np.testing.assert_allclose(entry["x"], batch["inputs"][modality]["x"][:1], atol=atol)


def test_a_saved_picture_reads_as_the_source_shows_it(source, batch, tmp_path):
    Image.fromarray(source.picture(int(batch["id"][0]), "noto")).save(tmp_path / "a.png")
    entry = read_image(tmp_path / "a.png", source.spec.modalities["image"])
    inputs_match(entry, batch, "image", atol=0.02)  # rounded to 8 bits once more


def test_a_saved_utterance_reads_as_the_source_plays_it(source, batch, table, tmp_path):
    start, stop = table.spans[batch["id"][0], 0]
    soundfile.write(tmp_path / "a.wav", table.speech[start:stop], 16000)
    entry = read_audio(tmp_path / "a.wav", source.spec.modalities["audio"])
    inputs_match(entry, batch, "audio", atol=1e-6)


def test_a_text_reads_as_the_source_encodes_it(source, batch):
    name = source.describe(int(batch["id"][0]))
    tokenizer = source.assets["tokenizer.json"]
    entry = encode_text(name.upper(), source.spec.modalities["text"], tokenizer)
    inputs_match(entry, batch, "text", atol=0)
    assert np.array_equal(entry["mask"], batch["inputs"]["text"]["mask"][:1])


def test_pictures_of_any_shape_and_mode(source, tmp_path):
    modality = source.spec.modalities["image"]
    for mode, size in (("L", (10, 200)), ("P", (64, 64)), ("CMYK", (300, 40)), ("1", (1, 1))):
        path = tmp_path / f"{mode}.tiff"
        Image.new(mode, size).save(path)
        x = read_image(path, modality)["x"]
        assert x.shape == (1, 32, 32, 3)
        assert np.isfinite(x).all()
    Image.new("RGB", (5000, 3000), "red").save(tmp_path / "large.jpg")
    x = read_image(tmp_path / "large.jpg", modality)["x"]
    assert x[0, 16, 16].tolist() == pytest.approx([1, -1, -1], abs=0.05)
    assert x[0, 0, 0].tolist() == pytest.approx([1, 1, 1])  # padding is white


def test_sound_of_any_rate_and_channels(source, tmp_path):
    modality = source.spec.modalities["audio"]
    tone = np.sin(2 * np.pi * 440 * np.arange(22050) / 44100)
    silence = np.zeros(11025)
    wave = np.concatenate([silence, tone, silence])
    soundfile.write(tmp_path / "a.flac", np.stack([wave, wave], 1) * 0.5, 44100)
    x = read_audio(tmp_path / "a.flac", modality)["x"][0]
    assert np.flatnonzero(np.abs(x) > 0.1)[0] < 500  # silence before it dropped
    heard = x[1000:8000]
    peak = np.argmax(np.abs(np.fft.rfft(heard))) * 16000 / len(heard)
    assert peak == pytest.approx(440, abs=5)
    assert np.abs(heard).max() == pytest.approx(0.5, abs=0.02)


def test_trimming_silence_alone_keeps_it():
    assert len(trim(np.zeros(100, np.float32), 100)) == 100
    assert resample(np.ones(3), 5, 5) is not None


@pytest.mark.parametrize("kind", ["image", "audio"])
@pytest.mark.parametrize("what", ["missing", "folder", "empty", "garbage", "cut short"])
def test_bad_files_are_named_in_one_line(source, tmp_path, kind, what):
    path = tmp_path / ("a.png" if kind == "image" else "a.flac")
    if what == "folder":
        path.mkdir()
    elif what == "empty":
        path.write_bytes(b"")
    elif what == "garbage":
        path.write_bytes(bytes(range(256)) * 9)
    elif what == "cut short":
        noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
        if kind == "image":
            Image.fromarray(noise).save(path)
        else:
            soundfile.write(path, noise.ravel().astype(np.int16), 16000)
        path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ConfigError) as error:
        kept = Kept(kind, source.spec.modalities[kind], {}, None, None)
        MODALITIES[kind].read(path, kept)
    message = str(error.value)
    assert str(path) in message
    assert "accepted: " in message
    assert "\n" not in message


def test_a_sound_without_samples_is_refused(source, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(0, np.float32), 16000)
    with pytest.raises(ConfigError, match="no samples"):
        read_audio(tmp_path / "a.wav", source.spec.modalities["audio"])


def test_a_text_without_words_is_refused(source):
    with pytest.raises(ConfigError, match="no word"):
        encode_text("  ", source.spec.modalities["text"], source.assets["tokenizer.json"])
