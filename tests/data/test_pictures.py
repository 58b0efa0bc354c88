"""Pictures are what Pillow's own resize makes of them on their square; sounds what soxr makes."""

import io

import numpy as np
import pytest
import soundfile
import soxr
from PIL import Image

from mtmm_jax.readers import LIMITS
from mtmm_jax.readers.audio import trim
from mtmm_jax.readers.pictures import decode_image
from mtmm_jax.readers.sounds import decode_audio

SHAPES = ((16, 16), (40, 23), (5, 90), (47, 48), (300, 200))


def smooth(size, channels: int) -> Image.Image:
    """Blobs of some twenty pixels, with edges between them."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (size[1] // 20 + 2, size[0] // 20 + 2, channels), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def squared(image: Image.Image) -> Image.Image:
    side = max(image.size)
    square = Image.new("RGB", (side, side), "white")
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("side", [16, 64])
def test_an_opaque_picture_is_resized_as_pillow_does(size, side):
    image = smooth(size, 3)
    want = squared(image).resize((side, side), Image.Resampling.BILINEAR)
    found = decode_image(encoded(image), side, LIMITS)
    assert found.pixels.dtype == np.uint8
    assert (found.height, found.width) == size[::-1]
    # One level by rounding in the other order; a box filter first where it shrinks a lot.
    near = 1 if max(size) <= 3 * side else 3
    np.testing.assert_allclose(found.pixels, np.asarray(want).astype(int), atol=near)


@pytest.mark.parametrize("size", SHAPES)
def test_transparency_is_what_compositing_at_full_size_gives(size):
    image = smooth(size, 4)
    white = Image.alpha_composite(Image.new("RGBA", size, "white"), image).convert("RGB")
    want = squared(white).resize((64, 64), Image.Resampling.BILINEAR)
    found = decode_image(encoded(image), 64, LIMITS).pixels
    near = 2 if max(size) <= 192 else 4
    np.testing.assert_allclose(found, np.asarray(want).astype(int), atol=near)


@pytest.mark.parametrize("palette", [False, True])
@pytest.mark.parametrize("side", [8, 24, 96])
def test_a_transparent_colour_does_not_bleed(palette, side):
    """Red that is not there, next to white that is: no pink on any side of the edge."""
    pixels = np.full((48, 48, 4), 255, np.uint8)
    pixels[:, 19:] = 255, 0, 0, 0
    image = Image.fromarray(pixels)
    if palette:
        image = Image.new("P", (48, 48), 0)
        image.putpalette([255, 255, 255, 255, 0, 0])
        image.paste(1, (19, 0, 48, 48))
        data = encoded(image, transparency=1)
    else:
        data = encoded(image)
    assert decode_image(data, side, LIMITS).pixels.min() == 255


def test_an_opaque_picture_of_the_wanted_size_is_taken_as_it_is():
    for channels in (3, 4):
        pixels = np.array(smooth((32, 32), channels))
        pixels[..., 3:] = 255
        found = decode_image(encoded(Image.fromarray(pixels)), 32, LIMITS).pixels
        assert np.array_equal(found, pixels[..., :3])


def test_one_pixel_by_very_many_needs_no_square_of_them():
    data = encoded(Image.new("RGB", (100_000, 1), "red"))
    found = decode_image(data, 16, LIMITS)
    assert found.pixels.shape == (16, 16, 3)
    assert (found.height, found.width) == (1, 100_000)
    assert found.pixels[0].min() == 255


def test_grey_of_16_bits_and_cmyk_keep_their_tones():
    grey = Image.fromarray(np.full((8, 8), 32768, np.uint16))
    assert decode_image(encoded(grey), 4, LIMITS).pixels == pytest.approx(128, abs=1)
    cmyk = Image.new("RGB", (8, 8), (200, 30, 60)).convert("CMYK")
    found = decode_image(encoded(cmyk, "TIFF"), 4, LIMITS).pixels
    np.testing.assert_allclose(found[0, 0], (200, 30, 60), atol=1)


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 48_000])
def test_a_recording_of_another_rate_is_resampled_as_soxr_does(rate, tmp_path):
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, 44_100).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", wave, 44_100, subtype="FLOAT")
    found = decode_audio((tmp_path / "a.wav").read_bytes(), rate, LIMITS)
    np.testing.assert_allclose(found, soxr.resample(wave, 44_100, rate), atol=1e-6)
    assert len(found) == rate


def test_trimming_keeps_what_is_loud_and_its_margin():
    wave = np.zeros(1000, np.float32)
    wave[[300, 500]] = 1, 0.5
    wave[100] = 0.01  # under the floor
    assert np.array_equal(trim(wave, 1000), wave[280:521])
    assert np.array_equal(trim(wave[300:501], 1000), wave[300:501])
    for quiet in (np.zeros(0, np.float32), np.zeros(9, np.float32)):
        assert np.array_equal(trim(quiet, 1000), quiet)
