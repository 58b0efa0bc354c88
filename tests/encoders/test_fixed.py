"""Encoders without learned features, held against scikit-learn and loops in NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import sparse
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.linear_model import LinearRegression

from mtmm_jax.encoders import (
    AudioSummary,
    ImageGradients,
    SeriesSummary,
    TableColumns,
    TextNgrams,
    VideoGradients,
)
from mtmm_jax.encoders.fixed.ngrams import letters_of
from mtmm_jax.encoders.fixed.summaries import over_time
from mtmm_jax.text import encode_with_mask, read_tokenizer, train_tokenizer

ROWS = 6
RNG = np.random.default_rng(0)
TEXTS = ["a red apple", "two red apples", "green frog", "a frog, a frog", "", "sky"]
TOKENIZER = train_tokenizer([t for t in TEXTS if t] * 3, 60)


def text_entry():
    ids, mask = encode_with_mask(read_tokenizer(TOKENIZER), TEXTS, 8)
    return {"x": ids, "mask": mask, "present": mask.any(1)}


def dense(shape, dtype=np.float32, **extra):
    x = RNG.uniform(-1, 1, (ROWS, *shape)).astype(dtype)
    return {"x": x, "present": np.arange(ROWS) != 2, **extra}


STEPS = np.arange(9) < RNG.integers(3, 10, (ROWS, 1))
CASES = {
    "text": (TextNgrams(4, vocabulary=60, buckets=64, shape=(8,)), text_entry()),
    "image": (ImageGradients(4, cells=3, shape=(20, 26, 3)), dense((20, 26, 3))),
    "grey": (ImageGradients(4, cells=2, shape=(12, 12, 1)), dense((12, 12, 1))),
    "video": (VideoGradients(4, cells=2, shape=(5, 12, 12, 3)), dense((5, 12, 12, 3))),
    "audio": (AudioSummary(4, rate=1000.0, mels=8, shape=(400,)), dense((400,))),
    "series": (SeriesSummary(4, shape=(9, 3)), dense((9, 3), mask=STEPS)),
    "table": (TableColumns(4, shape=(5,)), dense((5,), mask=RNG.uniform(size=(ROWS, 5)) < 0.8)),
}


def variables(encoder, **stats):
    found = {
        name: np.full(shape, value, dtype)
        for name, (shape, dtype, value) in encoder.statistics().items()
    }
    return {"batch_stats": {**found, **stats}}


@pytest.fixture(scope="module")
def fitted():
    """Case -> raw features of all rows, statistics of them, vectors."""
    found = {}
    for name, (encoder, entry) in CASES.items():
        first = encoder.prepare(TOKENIZER.encode() if name == "text" else None)
        both = jax.jit(
            lambda v, e, encoder=encoder: (
                encoder.apply(v, e, method="raw_of"),
                encoder.apply(v, e, method="vectors"),
            )
        )
        raw = np.asarray(both(variables(encoder, **first), entry)[0])
        stats = {**first, **encoder.fit(raw[entry["present"]])}
        dirty = {**entry, "x": np.array(entry["x"])}
        if entry["x"].dtype.kind == "f":
            dirty["x"][~entry["present"]] = np.nan
        vectors = np.asarray(both(variables(encoder, **stats), dirty)[1])
        found[name] = raw, stats, vectors
    return found


@pytest.mark.parametrize("name", CASES)
def test_vectors_are_finite_of_about_unit_length_and_zero_where_absent(fitted, name):
    encoder, entry = CASES[name]
    vectors = fitted[name][2]
    assert vectors.shape == (ROWS, encoder.size)
    assert np.isfinite(vectors).all()
    assert not vectors[~entry["present"]].any()
    length = np.sqrt(np.square(vectors[entry["present"]]).sum(1).mean())
    assert length == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_without_rows_statistics_are_finite(name):
    encoder, _ = CASES[name]
    raw = {"text": encoder.size, "table": 10}.get(name, encoder.size)
    assert all(np.isfinite(v).all() for v in encoder.fit(np.zeros((0, raw))).values())


def test_ngrams_are_weighted_as_scikit_learn_weights_them(fitted):
    _, entry = CASES["text"]
    raw, _, vectors = fitted["text"]
    for half in (slice(0, 64), slice(64, 128)):
        counts = sparse.csr_matrix(raw[entry["present"]][:, half])
        wanted = TfidfTransformer(sublinear_tf=True).fit_transform(counts).toarray()
        found = vectors[entry["present"]][:, half] * np.sqrt(2)
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_ngrams_count_tokens_pairs_and_letters(fitted):
    _, entry = CASES["text"]
    raw = fitted["text"][0]
    tokens = entry["mask"].sum(1)
    np.testing.assert_array_equal(raw[:, :64].sum(1), 2 * tokens - (tokens > 0))
    names = read_tokenizer(TOKENIZER).get_vocab()
    names = {id: name for name, id in names.items()}
    grams = [
        sum(len(letters_of(names[id], 64)) for id in row[mask] if names[id][0] != "[")
        for row, mask in zip(entry["x"], entry["mask"], strict=True)
    ]
    np.testing.assert_array_equal(raw[:, 64:].sum(1), grams)


def test_letters_know_the_edge_of_a_word_and_its_continuation():
    count = 2**20
    assert len(letters_of("▁frog", count)) == 4 + 3 + 2 + 1  # " frog"
    assert set(letters_of("##og", count)) < set(letters_of("▁frog", count))
    assert letters_of("▁FROG", count) == letters_of("Ġfrog", count)
    assert letters_of("▁", count) == []


def reference_gradients(picture: np.ndarray, cells: int) -> np.ndarray:
    """HOG by loops: 6 x 6 pixels a cell, 9 angles, blocks of 2 x 2, cut at .2."""
    side = cells * 6
    histograms = np.zeros((cells, cells, 9))
    edge = np.pad(picture, ((1, 1), (1, 1), (0, 0)), mode="edge")
    for i, j in itertools.product(range(side), range(side)):
        dy, dx = edge[i + 2, j + 1] - edge[i, j + 1], edge[i + 1, j + 2] - edge[i + 1, j]
        c = int((dy**2 + dx**2).argmax())
        angle = np.arctan2(dy[c], dx[c]) % np.pi / np.pi * 9
        low, share = int(angle) % 9, angle % 1
        strength = np.hypot(dy[c], dx[c])
        histograms[i // 6, j // 6, low] += (1 - share) * strength
        histograms[i // 6, j // 6, (low + 1) % 9] += share * strength
    blocks = []
    for i, j in itertools.product(range(cells - 1), range(cells - 1)):
        corners = [histograms[i + a, j + b] for a in (0, 1) for b in (0, 1)]
        block = np.concatenate(corners)
        block = np.minimum(block / np.sqrt((block**2).sum() + 1e-4), 0.2)
        blocks.append(block / np.sqrt((block**2).sum() + 1e-4))
    return np.concatenate(blocks)


def test_gradients_are_those_of_a_loop_over_pixels():
    encoder = ImageGradients(4, cells=2, shape=(12, 12, 3))
    x = RNG.uniform(-1, 1, (2, 12, 12, 3)).astype(np.float32)
    entry = {"x": x, "present": np.ones(2, bool)}
    raw = encoder.apply(variables(encoder), entry, method="raw_of")
    for row, picture in zip(raw, x, strict=True):
        np.testing.assert_allclose(row[:36], reference_gradients(picture, 2), atol=2e-3)


def test_a_plain_picture_has_no_gradients_and_one_colour():
    encoder = ImageGradients(4, cells=2, shape=(12, 12, 3))
    entry = {"x": np.full((1, 12, 12, 3), 0.3, np.float32), "present": np.ones(1, bool)}
    raw = np.asarray(encoder.apply(variables(encoder), entry, method="raw_of"))[0]
    assert np.abs(raw[:36]).max() < 1e-3
    assert np.sort(raw[-64:])[-1] == pytest.approx(1.0, abs=1e-5)
    assert np.abs(np.sort(raw[-64:])[:-1]).max() < 1e-6


def test_statistics_over_time_leave_masked_steps_out():
    x = RNG.normal(size=(3, 7, 2)).astype(np.float32)
    mask = np.arange(7) < np.array([[7], [4], [0]])
    noisy = np.where(mask[..., None], x, np.nan)
    found = np.asarray(jax.jit(over_time)(noisy, mask)).reshape(3, 9, 2)
    assert np.isfinite(found).all()
    assert np.abs(found[2]).max() < 1e-5
    part = x[1, :4]
    wanted = [part.mean(0), part.std(0), part.min(0), part.max(0)]
    wanted.append(np.abs(np.diff(part, axis=0)).mean(0))
    np.testing.assert_allclose(found[1, :5], wanted, atol=1e-5)
    thirds = np.array_split(x[0], [2, 5])  # steps 0-1, 2-4, 5-6 have their middle there
    np.testing.assert_allclose(found[0, 5:8], [t.mean(0) for t in thirds], atol=1e-5)
    line = np.broadcast_to(np.arange(6.0, dtype=np.float32)[:, None], (1, 6, 1))
    steps = jax.jit(over_time)(jnp.asarray(line), np.ones((1, 6), bool))
    assert float(steps[0, -1]) == pytest.approx(6.0, rel=1e-4)  # from end to end


def test_a_linear_model_of_columns_is_piecewise_linear():
    encoder = TableColumns(4, knots=4, shape=(1,))
    x = np.linspace(-2, 2, 64, dtype=np.float32)[:, None]
    entry = {"x": x, "mask": np.ones_like(x, bool), "present": np.ones(64, bool)}
    raw = np.concatenate([x, np.zeros_like(x)], axis=1)
    stats = encoder.fit(raw)
    vectors = encoder.apply(variables(encoder, **stats), entry, method="vectors")
    knot = stats["quantiles"][1, 0]
    bent = np.where(x[:, 0] > knot, 3 * (x[:, 0] - knot), 0) - x[:, 0]
    assert LinearRegression().fit(vectors, bent).score(vectors, bent) == pytest.approx(1, abs=1e-5)
