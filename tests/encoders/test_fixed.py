"""Encoders without learned features, held against scikit-learn and loops in NumPy."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
from sklearn.linear_model import LinearRegression

from mtmm_jax.encoders import (
    AudioSummary,
    ImageGradients,
    SeriesSummary,
    TableColumns,
    TextNgrams,
    VideoGradients,
)
from mtmm_jax.encoders.fixed.ngrams import spelled, spelling
from mtmm_jax.encoders.fixed.summaries import over_time
from mtmm_jax.registry import ConfigError
from mtmm_jax.text import encode_with_mask, read_tokenizer, train_tokenizer, train_words

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
    encoder, there = CASES["text"][0], raw[entry["present"]]
    np.testing.assert_array_equal(
        encoder.fit(sparse.csr_matrix(there))["idf"], encoder.fit(there)["idf"]
    )
    for half in (slice(0, 64), slice(64, 128)):
        counts = sparse.csr_matrix(raw[entry["present"]][:, half])
        wanted = TfidfTransformer(sublinear_tf=True).fit_transform(counts).toarray()
        found = vectors[entry["present"]][:, half] * np.sqrt(2)
        np.testing.assert_allclose(found, wanted, atol=1e-5)


SENTENCES = [*TEXTS, "Frogs, frogs and a toad!", "unheard-of amphibians", "a"]


@pytest.mark.parametrize("kind", ["pieces", "words", "wordpiece"])
def test_ngrams_are_those_of_scikit_learn_whatever_the_tokenizer(kind):
    tokenizer = {
        "pieces": lambda: train_tokenizer(SENTENCES, 50),
        "words": lambda: train_words(SENTENCES, 100),
        "wordpiece": lambda: WORDPIECE,
    }[kind]()
    read = read_tokenizer(tokenizer)
    # What of the texts is known, as the tokenizer splits it.
    texts = [" ".join(_words(read, text)) for text in SENTENCES]
    ids, mask = encode_with_mask(read, SENTENCES, 24)
    entry = {"x": ids, "mask": mask, "present": mask.any(1)}
    encoder = TextNgrams(4, vocabulary=read.get_vocab_size(), buckets=2**17, shape=(24,))
    stats = encoder.prepare(tokenizer.encode())
    raw = np.asarray(encoder.apply(variables(encoder, **stats), entry, method="raw_of"))
    for half, options in enumerate(
        (
            {"ngram_range": (1, 2), "token_pattern": r"\S+"},
            {"analyzer": _letters},
        )
    ):
        # Sorted counts of a row are the same, unless two n-grams share one of 2^17 buckets.
        wanted = CountVectorizer(**options).fit_transform(texts).toarray()
        found = raw[:, half * 2**17 : (half + 1) * 2**17]
        for own, other in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(np.sort(own[own > 0]), np.sort(other[other > 0]))
        # N-grams of two texts are in the same buckets where they are the same.
        shared = (found > 0).astype(np.float32) @ (found > 0).T.astype(np.float32)
        both = (wanted > 0).astype(np.float32) @ (wanted > 0).T.astype(np.float32)
        np.testing.assert_array_equal(shared, both)


def _words(read, text):
    """Of a text as its tokens spell it."""
    names = read.get_vocab()
    return "".join(spelling(token, names) for token in read.encode(text).tokens).split()


def _letters(text):
    """`char_wb` of 2 to 5 letters, less the second count of words shorter than that."""
    words = [f" {word} " for word in text.split()]
    return [w[i : i + n] for w in words for n in range(2, 6) for i in range(len(w) - n + 1)]


WORDPIECE = json.dumps(
    {
        "version": "1.0",
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {
                token: i
                for i, token in enumerate(
                    ["[PAD]", "[UNK]", "a", "frog", "##s", "red", "apple", ",", "and", "to", "##ad"]
                )
            },
        },
    }
)


def test_texts_longer_than_the_letters_that_are_read_are_cut():
    letters = np.full((1, 4, 16), ord("x"), np.int32)
    letters[:, :, 0] = ord(" ")
    found = np.asarray(jax.jit(lambda t: spelled(t, 32))(letters))
    assert (found > 0).all()
    assert found[0, -1] == ord(" ")
    nothing = np.asarray(jax.jit(lambda t: spelled(t, 32))(np.zeros_like(letters)))
    assert not nothing.any()


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


def test_without_a_shape_the_error_says_what_to_give():
    with pytest.raises(ConfigError, match=r"SeriesSummary.shape: is missing; .*Modality.shape"):
        SeriesSummary(4)
