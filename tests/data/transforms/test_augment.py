"""The picture matrices and augmentations do what they say, on cases small enough to know."""

import numpy as np
import pytest

from mtmm_jax.data.transforms import augment
from mtmm_jax.readers import images

ONE, ZERO = np.ones(1, np.float32), np.zeros(1, np.float32)


@pytest.mark.parametrize(("source", "size"), [(64, 32), (64, 64), (64, 24), (16, 40), (1, 8)])
def test_an_opaque_picture_stays_opaque_and_even(source, size):
    planes = np.full((1, 4, source, source), 255, np.uint8)
    planes[:, :3] = 51
    matrix = images.resize_matrix(source, size, ONE, ZERO)
    seen = images.view(planes, matrix, matrix)
    np.testing.assert_allclose(seen[:, 3], 1, atol=1e-5)
    np.testing.assert_allclose(seen[:, :3], 0.2, atol=1e-5)


def test_the_same_size_is_the_same_picture():
    np.testing.assert_allclose(images.resize_matrix(8, 8, ONE, ZERO)[0], np.eye(8), atol=1e-6)


def test_mirroring_and_shifting():
    flipped = images.resize_matrix(8, 8, ONE, ZERO, np.array([True]))[0]
    np.testing.assert_allclose(flipped, np.eye(8)[::-1], atol=1e-6)
    shifted = images.resize_matrix(8, 8, ONE, 0.25 * ONE)[0]
    np.testing.assert_allclose(shifted, np.eye(8, k=-2), atol=1e-6)


def test_shrinking_does_not_alias():
    stripes = np.zeros((1, 4, 64, 64), np.uint8)
    stripes[..., ::2] = 255
    shown = images.plain(stripes, 16)
    assert np.ptp(shown[0, 2:-2, 2:-2]) < 0.05


def test_transparency_shows_the_background():
    planes = images.to_planes(np.full((1, 4, 4, 4), 0, np.uint8))
    assert (images.plain(planes, 4) == 1).all()
    half = images.to_planes(np.full((1, 4, 4, 4), [200, 100, 0, 128], np.uint8))
    over_black = images.composite(images.view(half, np.eye(4)[None], np.eye(4)[None]), 0)
    np.testing.assert_allclose(over_black[0, :, 0, 0], [0.394, 0.196, 0], atol=0.01)


def test_an_examples_augmentation_is_its_own():
    random = np.random.default_rng(0)
    planes = images.to_planes(random.integers(0, 255, (6, 64, 64, 4), np.uint8))
    chance = random.random((6, augment.IMAGE_DRAWS), np.float32)
    flippable = np.array([True, False] * 3)
    whole = augment.image(planes, 32, chance, flippable)
    part = augment.image(planes[2:4], 32, chance[2:4], flippable[2:4])
    assert whole.shape == (6, 32, 32, 3)
    assert whole.dtype == np.float32
    assert np.array_equal(whole[2:4], part)


def test_speech_is_placed_cut_and_scaled():
    speech = np.full(1000, 16384, np.int16)
    noise = np.zeros(500, np.float32)
    spans = np.array([[0, 100], [200, 800]])
    chance = np.tile(np.array([0.5, 0, 0.5, 0], np.float32), (2, 1))
    out = augment.audio(speech, spans, 200, chance, noise, latest=60)
    assert np.flatnonzero(out[0]).tolist() == list(range(30, 130))
    assert (out[1] == 0.5).all()


def test_noise_is_added_to_half():
    speech, noise = np.zeros(100, np.int16), np.ones(500, np.float32)
    chance = np.array([[0.5, 1, 0, 0.2], [0.5, 0.4, 0, 0.2]], np.float32)
    out = augment.audio(speech, np.array([[0, 100]] * 2), 200, chance, noise, latest=0)
    np.testing.assert_allclose(out[0], 0.02, rtol=1e-5)
    assert (out[1] == 0).all()


def test_dropped_tokens_become_unknown_and_padding_stays():
    ids = np.array([[5, 6, 0, 0]], np.int32)
    assert augment.text(ids, np.zeros((1, 4), np.float32)).tolist() == [[1, 1, 0, 0]]
    assert augment.text(ids, np.ones((1, 4), np.float32)).tolist() == [[5, 6, 0, 0]]
