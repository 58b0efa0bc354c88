"""What speech is made of: CTC, beams, error rates, alignments and spectra, against plain code."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.fft import dct

from mtmm_jax.batch import Tokens
from mtmm_jax.data.sources.emoji import emoji
from mtmm_jax.encoders.speech import LogMelGRU
from mtmm_jax.layers.alignment import align, expand, warped_distance
from mtmm_jax.layers.spec_augment import SpecAugment
from mtmm_jax.layers.spectrogram import griffin_lim, log_mel, mel_filters, power_of
from mtmm_jax.tasks.ctc import beam_search, ctc, greedy
from mtmm_jax.tasks.metrics import cepstral
from mtmm_jax.tasks.metrics.edit_distance import edit_distances, text_errors
from mtmm_jax.tasks.synthesis import closeness, write_wave
from mtmm_jax.tasks.task import Labels
from tests import toy
from tests.tasks.measured import state

RNG = np.random.default_rng(0)
ALPHABET = ("[PAD]", "[UNK]", " ", "a", "b")


# ---------------------------------------------------------------- CTC


ctc = jax.jit(ctc)
greedy = jax.jit(greedy)


def _log_softmax(x):
    x = np.asarray(x, np.float64)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def _collapse(path):
    merged = [a for a, b in zip(path, (0, *path), strict=False) if a != b]
    return tuple(a for a in merged if a)


def _texts(log_p):
    """Every text with its probability, by going through every path."""
    found = {}
    for path in itertools.product(range(log_p.shape[1]), repeat=len(log_p)):
        text = _collapse(path)
        p = np.exp(sum(frame[i] for frame, i in zip(log_p, path, strict=True)))
        found[text] = found.get(text, 0.0) + p
    return found


def test_ctc_sums_over_all_paths():
    logits = RNG.standard_normal((3, 5, 3)).astype(np.float32)
    labels = np.array([[1, 1, 0], [2, 1, 2], [0, 0, 0]], np.int32)
    mask = np.array([[1, 1, 1, 1, 1], [1, 0, 1, 1, 1], [1, 1, 1, 1, 0]], bool)
    loss, fits = ctc(np.where(mask[..., None], logits, np.float32(np.nan)), mask, labels)
    assert np.all(fits)
    for i, text in enumerate([(1, 1), (2, 1, 2), ()]):
        log_p = _log_softmax(logits[i][mask[i]])
        assert float(loss[i]) == pytest.approx(-np.log(_texts(log_p)[text]), rel=1e-4)


def test_a_label_with_too_few_frames_is_left_out():
    logits = RNG.standard_normal((2, 4, 3)).astype(np.float32)
    labels = np.array([[1, 1, 1], [1, 2, 1]], np.int32)  # the first needs five frames
    mask = np.ones((2, 4), bool)

    @jax.jit
    def slope(z):
        loss, back, fits = jax.vjp(lambda z: ctc(z, mask, labels), z, has_aux=True)
        return loss, fits, back(jnp.ones_like(loss))[0]

    loss, fits, grads = jax.device_get(slope(logits))
    assert fits.tolist() == [False, True]
    assert loss[0] == 0
    assert not grads[0].any()
    assert np.isfinite(grads).all()


def test_greedy_is_the_likeliest_path_closed_up():
    logits = RNG.standard_normal((6, 9, 4)).astype(np.float32)
    mask = np.arange(9) < RNG.integers(3, 10, 6)[:, None]
    ids = np.asarray(greedy(logits, mask))
    for row, z, keep in zip(ids, logits, mask, strict=True):
        text = _collapse(tuple(int(i) for i in z[keep].argmax(-1)))
        assert tuple(row[: len(text)]) == text
        assert not row[len(text) :].any()


@pytest.mark.parametrize("seed", range(3))
def test_a_wide_beam_is_exact_and_a_narrow_one_begins_with_the_best(seed):
    logits = 2 * np.random.default_rng(seed).standard_normal((5, 3))
    log_p = _log_softmax(logits)
    texts = _texts(log_p)
    found = beam_search(log_p, width=len(texts), results=len(texts))
    assert len(found) == len(texts)
    for text, value in found:
        assert np.exp(value) == pytest.approx(texts[text], rel=1e-5)
    best = max(texts, key=texts.get)
    assert found[0][0] == best
    assert beam_search(log_p, width=8)[0][0] == best


def test_the_beam_finds_what_the_likeliest_path_does_not():
    log_p = np.log([[0.6, 0.4], [0.6, 0.4]])  # "" has .36, and "a" .64 over its three paths
    assert beam_search(log_p, width=2)[0][0] == (1,)
    assert not np.asarray(greedy(log_p[None].astype(np.float32), np.ones((1, 2), bool))).any()


# ---------------------------------------------------------------- error rates


@functools.cache
def _plain_distance(a, b):
    if not a or not b:
        return len(a) + len(b)
    return min(
        _plain_distance(a[1:], b) + 1,
        _plain_distance(a, b[1:]) + 1,
        _plain_distance(a[1:], b[1:]) + (a[0] != b[0]),
    )


def test_edit_distances_are_the_recursion():
    texts = ["".join(RNG.choice(list("abc"), RNG.integers(0, 9))) for _ in range(80)]
    pairs = list(zip(texts[:40], texts[40:], strict=True))
    pairs += [("", ""), ("abc", ""), ("", "ab"), ("kitten", "sitting")]
    expected = [_plain_distance(a, b) for a, b in pairs]
    assert expected[-1] == 3
    found = edit_distances(*zip(*pairs, strict=True))
    assert found.tolist() == expected
    assert edit_distances([["one", "two"]], [["one", "too"]]).tolist() == [1]


def test_error_rates_weigh_characters_and_words():
    metric = text_errors(lambda p: p, ALPHABET)
    truth = np.array([[3, 3, 2, 4, 0], [4, 0, 0, 0, 0], [3, 0, 0, 0, 0]], np.int32)  # aa b, b, a
    guess = np.array([[3, 4, 2, 4, 0], [4, 0, 0, 0, 0], [4, 0, 0, 0, 0]], np.int32)  # ab b, b, b
    labels = Labels(truth, np.array([1.0, 1.0, 0.0], np.float32))
    metrics = metric.compute(state(metric, guess, labels))
    assert metrics == pytest.approx({"cer": 1 / 5, "wer": 1 / 3, "exact_match": 1 / 2})


# ---------------------------------------------------------------- alignment and spectra


def test_alignment_is_the_best_of_all_monotonic_paths():
    scores = RNG.standard_normal((3, 3, 6)).astype(np.float32)
    tokens, frames = np.array([3, 2, 1]), np.array([6, 4, 5])
    path = np.asarray(jax.jit(align)(scores, tokens, frames))
    for score, row, n, t in zip(scores, path, tokens, frames, strict=True):
        paths = [
            tuple(np.repeat(np.arange(n), np.diff([0, *cuts, t])))
            for cuts in itertools.combinations(range(1, t), int(n) - 1)
        ]
        best = max(paths, key=lambda p: sum(score[i, j] for j, i in enumerate(p)))
        assert tuple(row[:t]) == best
        assert (row[t:] == n - 1).all()


def test_frames_are_close_to_the_tokens_that_sound_like_them():
    prior = RNG.standard_normal((2, 3, 5)).astype(np.float32)
    mel = RNG.standard_normal((2, 4, 5)).astype(np.float32)
    mask = np.array([[True] * 3, [True, True, False]])
    scores = np.asarray(jax.jit(closeness)(prior, mel, mask))
    distance = np.square(prior[:, :, None] - mel[:, None]).sum(-1) / 2
    np.testing.assert_allclose(scores[0] - scores[0, :1], distance[0, :1] - distance[0], atol=1e-4)
    assert (scores[1].argmax(0) == distance[1, :2].argmin(0)).all()


def test_expansion_repeats_each_token_as_long_as_it_lasts():
    lasts = np.array([[2.0, 0.5, 3.0, 0.0]], np.float32)
    token, progress = map(np.asarray, jax.jit(expand, static_argnums=1)(lasts, 7))
    assert token[0].tolist() == [0, 0, 2, 2, 2, 2, 2]  # 0.5 of a frame has no frame's middle
    np.testing.assert_allclose(progress[0, :5], [0.25, 0.75, 0, 1 / 3, 2 / 3], atol=1e-6)
    assert progress[0, 6] == 1


def test_warping_is_the_plain_recursion():
    cost = RNG.random((4, 6, 7)).astype(np.float32)
    rows, columns = np.array([6, 3, 1, 5]), np.array([7, 7, 4, 1])

    def plain(c, n, m):
        d = np.full((n, m), np.inf)
        for i, j in itertools.product(range(n), range(m)):
            ways = [d[i - 1, j] + c[i, j]] if i else []
            ways += [d[i, j - 1] + c[i, j]] if j else []
            ways += [d[i - 1, j - 1] + 2 * c[i, j]] if i and j else []
            d[i, j] = min(ways) if ways else 2 * c[i, j]
        return d[-1, -1] / (n + m)

    found = jax.jit(warped_distance)(cost, rows, columns)
    expected = [plain(c, n, m) for c, n, m in zip(cost, rows, columns, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@jax.jit
def _distortions(one, other, *counts):
    """Warped, and not."""
    return [cepstral.distortion(one, other, *counts, warp=warp) for warp in (True, False)]


def test_cepstra_are_the_cosine_transform_and_know_no_loudness():
    a = RNG.standard_normal((2, 5, 20)).astype(np.float32)
    expected = dct(a.astype(np.float64) / 2, type=2, axis=-1)[..., 1:14] / 20
    np.testing.assert_allclose(jax.jit(cepstral.cepstrum)(a), expected, atol=1e-5)
    count = np.array([5, 3])
    for far in _distortions(a + 3.0, a, count, count):
        np.testing.assert_allclose(far, 0.0, atol=0.05)


def test_a_slower_sound_is_near_when_warped():
    fast = np.cumsum(RNG.standard_normal((1, 10, 20)), axis=1).astype(np.float32)
    slow = np.pad(np.repeat(fast, 2, axis=1), ((0, 0), (0, 4), (0, 0)))
    fast = np.pad(fast, ((0, 0), (0, 14), (0, 0)))
    warped, straight = _distortions(slow, fast, np.array([20]), np.array([10]))
    assert warped[0] < 0.05
    assert straight[0] > 1.0


def test_filters_are_inverted():
    power = np.abs(RNG.standard_normal((4, 10))) @ np.abs(mel_filters(257, 10, 16_000.0).T)
    bands = power @ mel_filters(257, 10, 16_000.0)
    found = power_of(bands, 257, 16_000.0, iterations=300)
    assert (found >= 0).all()
    np.testing.assert_allclose(found @ mel_filters(257, 10, 16_000.0), bands, rtol=0.02)


def test_griffin_lim_is_heard_as_the_frames_it_is_made_of():
    at = np.arange(8000) / 16_000
    pitch = 2 * np.pi * np.cumsum(120 + 40 * at) / 16_000
    wave = sum(np.sin(k * pitch) / k for k in range(1, 20)) * np.hanning(8000) * 0.3
    hear = jax.jit(functools.partial(log_mel, rate=16_000.0, mels=64, hop=0.008))
    frames = np.asarray(hear(wave[None].astype(np.float32)))[0]
    heard = griffin_lim(frames, 16_000.0, hop=0.008)
    again = np.asarray(hear(heard[None]))[0]
    loud = frames > frames.max() - 6
    assert np.abs(again - frames)[loud].mean() < 0.2
    noise = np.asarray(hear(RNG.standard_normal((1, 8000)).astype(np.float32)))[0]
    assert np.abs(noise[: len(frames)] - frames)[loud].mean() > 2.0


def test_a_wave_is_written_and_not_clipped(tmp_path):
    import soundfile

    wave = np.sin(np.arange(800) / 10).astype(np.float32) * 4
    write_wave(tmp_path / "a.wav", wave, 8000.0)
    back, rate = soundfile.read(tmp_path / "a.wav")
    assert rate == 8000
    np.testing.assert_allclose(back, wave / np.abs(wave).max(), atol=1e-3)


# ---------------------------------------------------------------- encoder and source


def test_what_is_left_out_of_a_spectrogram():
    x = np.ones((32, 40, 12), np.float32)
    module = SpecAugment(times=2, bands=1, time_width=5, band_width=3)

    @jax.jit
    def apply(x):
        return module.apply({}, x, train=True, rngs={"dropout": jax.random.key(0)})

    out = np.asarray(apply(x))
    time, band = (np.asarray(out == 0).all(axis) for axis in (2, 1))
    assert 0 < time.sum(1).max() <= 10
    assert 0 < band.sum(1).max() <= 3
    np.testing.assert_array_equal(out == 0, time[:, :, None] | band[:, None])
    np.testing.assert_array_equal(module.apply({}, x), x)
    half = apply(x[:16])
    np.testing.assert_array_equal(half, out[:16])


def test_what_lies_behind_the_mask_is_not_heard():
    module = LogMelGRU(width=8, rate=4000.0, preset="tiny", mels=12)
    x = RNG.standard_normal((8, 1600)).astype(np.float32)
    mask = np.broadcast_to(np.arange(1600) < 800, (8, 1600))
    one = {
        "x": np.where(mask, x, 0.0).astype(np.float32),
        "mask": mask,
        "present": np.ones(8, bool),
    }
    two = {**one, "x": np.where(np.arange(1600) < 800, one["x"], 9.0).astype(np.float32)}
    variables, apply = toy.variables(module, one), jax.jit(module.apply)
    first, second = (jax.device_get(apply(variables, e)) for e in (one, two))
    kept = np.asarray(first.mask)
    assert 0 < kept.sum() < kept.size
    assert isinstance(first, Tokens)
    np.testing.assert_allclose(second.values[kept], first.values[kept], atol=1e-5)


@functools.cache
def _emoji():
    return emoji(units="characters", text_length=48, image_size=8, speech=True)


def test_emoji_are_spelt_and_spoken():
    source = _emoji()
    batch = next(source.batches("validation", 4))
    source.spec.check(batch)
    written, spoken = source.spec.targets["transcript"], source.spec.targets["speech"]
    assert written.made_from == ("text",)
    assert spoken.made_from == ("audio",)
    for ids, letters, id in zip(
        batch["targets"]["transcript"]["y"], batch["inputs"]["text"]["x"], batch["id"], strict=True
    ):
        assert "".join(written.classes[i] for i in ids if i) == source.describe(int(id))
        np.testing.assert_array_equal(ids[: len(letters)], letters[: len(ids)])
    np.testing.assert_array_equal(batch["targets"]["speech"]["y"], batch["inputs"]["audio"]["x"])


def test_the_label_is_the_recording_without_its_augmentation():
    batch = next(iter(_emoji().train(8, seed=1)))
    heard, said = batch["inputs"]["audio"]["x"], batch["targets"]["speech"]["y"]
    assert np.abs(heard - said).max() > 0.05
    spectra = np.abs(np.fft.rfft(heard, axis=1)), np.abs(np.fft.rfft(said, axis=1))
    for a, b in zip(*spectra, strict=True):  # the same sound, later and softer
        assert np.corrcoef(a, b)[0, 1] > 0.95
