"""The films: labels where there are labels, statistics of the train split, nothing leaked."""

import json

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from mtmm_jax.data.sources import packed
from mtmm_jax.data.sources.films import asset, columns, films
from mtmm_jax.registry import ConfigError, build
from mtmm_jax.text import UNKNOWN, train_tokenizer

SOME = 1200


@pytest.fixture(scope="module")
def examples(cache) -> packed.Examples:
    return packed.load("films", cache)


@pytest.fixture(scope="module")
def source(examples):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "load", lambda name, data_dir: examples)
        yield films()


@pytest.fixture
def few(examples, monkeypatch):
    """Sources of the first films only, which are quick to make."""
    part = packed.Examples(examples.rows[:SOME], examples.split[:SOME], examples.classes)
    monkeypatch.setattr(packed, "load", lambda name, data_dir: part)
    return films


def whole(source):
    return source.compose(np.arange(sum(map(len, source.rows.values()))), None)


def test_prepared_films_are_those_of_the_asset(examples):
    packed_films = asset.read()
    assert len(examples.rows) == len(packed_films) == 17472
    for i in (0, 5, 9000, 17471):
        row, film = examples.rows[i], packed_films[i]
        assert (row["id"], examples.split[i]) == (i, film.split)
        assert row["title"].decode() == film.title
        assert row["genres"].decode().split("\n") == list(film.genres or ("",))
        for key in ("tomatometer", "metacritic", "box_office", "runtime", "month"):
            value = getattr(film, key)
            assert np.isnan(row[key]) if value is None else row[key] == np.float32(value)


def test_no_title_and_no_identifier_is_in_two_splits(examples):
    rows = zip(examples.rows, examples.split, strict=True)
    seen: dict[str, set] = {}
    for row, split in rows:
        seen.setdefault(row["imdb"].decode(), set()).add(split)
        seen.setdefault(row["title"].decode().casefold(), set()).add(split)
    assert all(len(splits) == 1 for splits in seen.values())
    assert len(seen) < 2 * len(examples.rows) - 500  # there are remakes to keep together


def test_labels_are_missing_where_they_are(source):
    targets = whole(source)["targets"]
    counts = {name: int(entry["present"].sum()) for name, entry in targets.items()}
    assert counts == {
        "genre": 17029,
        "tomatometer": 17453,
        "metacritic": 6811,
        "rating": 2568,
        "box_office": 2754,
    }
    for entry in targets.values():
        assert np.isfinite(entry["y"]).all()
        assert not entry["y"][~entry["present"]].any()
    by_name = {film.title: i for i, film in enumerate(asset.read())}
    at = by_name["12 Angry Men"]
    assert source.describe(at) == "12 Angry Men (1957)"
    assert targets["tomatometer"]["y"][at] == 100
    assert not targets["box_office"]["present"][at]
    genres = source.spec.targets["genre"].classes
    assert [g for g, has in zip(genres, targets["genre"]["y"][at], strict=True) if has] == ["Drama"]
    gross = asset.read()[int(np.argmax(targets["box_office"]["y"]))].box_office
    assert targets["box_office"]["y"].max() == pytest.approx(np.log10(gross))


def test_the_spec_knows_the_train_split(source):
    batch = source.compose(source.rows["train"], None)
    source.spec.check(batch)
    for name, target in source.spec.targets.items():
        entry = batch["targets"][name]
        y = entry["y"][entry["present"]]
        if target.kind == "number":
            assert (y.mean(), y.std()) == pytest.approx((target.mean, target.std), rel=1e-4)
        elif target.kind == "labels":
            assert target.frequencies == pytest.approx(y.mean(0).tolist(), abs=1e-5)
            assert len(target.classes) == 21
        else:
            assert sum(target.frequencies) == pytest.approx(1)
            assert target.frequencies[3] == pytest.approx((y == 3).mean())


def test_numbers_are_standardised_on_train_and_missing_ones_marked(source, examples):
    modality = source.spec.modalities["table"]
    assert len(set(modality.names)) == len(modality.names) == modality.shape[0]
    table = whole(source)["inputs"]["table"]["x"]
    at = {name: i for i, name in enumerate(modality.names)}
    year = table[source.rows["train"], at["year"]]
    assert (year.mean(), year.std()) == pytest.approx((0, 1), abs=1e-4)
    unknown = np.isnan([row["runtime"] for row in examples.rows])
    assert np.array_equal(table[:, at["log_runtime_missing"]], unknown)
    assert not table[unknown, at["log_runtime"]].any()
    assert 0.04 < unknown.mean() < 0.1
    kept = json.loads(source.assets["table.json"])
    scale = kept["scale"]["log_runtime"]
    first = np.log(examples.rows[0]["runtime"])
    assert table[0, at["log_runtime"]] == pytest.approx((first - scale["mean"]) / scale["std"])
    assert tuple(kept["names"]) == modality.names
    american = ["United States" in row["countries"].decode().split("\n") for row in examples.rows]
    assert np.array_equal(table[:, at["country_United States"]], american)
    one = [name for name in modality.names if name.startswith("language_")]
    assert table[:, [at[name] for name in one]].any(1).all()


def test_month_is_a_circle():
    months = {"month": np.array([12.0, 3.0, np.nan])}
    made = columns.table(months, ["month"], np.ones(3, bool))
    assert made.values == pytest.approx(np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1.0]]), abs=1e-6)


def test_no_label_and_no_relative_of_one_is_an_input(source):
    names = " ".join(source.spec.modalities["table"].names)
    for leak in ("review", "oscar", "meter", "critic", "box", "rating", "genre", "listed"):
        assert leak not in names
    table, targets = whole(source)["inputs"]["table"]["x"], whole(source)["targets"]
    for name in ("tomatometer", "metacritic", "box_office"):
        entry = targets[name]
        known = table[entry["present"]].astype(np.float64)
        known = known[:, known.std(0) > 0]
        relation = np.corrcoef(known.T, entry["y"][entry["present"]])[-1, :-1]
        assert np.abs(relation).max() < 0.5


def test_a_linear_model_reaches_the_known_level_and_no_more(source):
    """Tomatometer by text .18, with the table .21 or so; a leak would be far above."""
    batch = whole(source)
    ids, mask = batch["inputs"]["text"]["x"], batch["inputs"]["text"]["mask"]
    row, _ = np.nonzero(mask)
    shape = (len(ids), source.spec.modalities["text"].vocabulary)
    words = csr_matrix((np.ones(len(row), np.float32), (row, ids[mask])), shape)
    words.data[:] = 1
    words = words.multiply(1 / np.maximum(np.sqrt(words.sum(1)), 1)).tocsr()
    entry = batch["targets"]["tomatometer"]
    train, test = (
        np.intersect1d(source.rows[split], np.flatnonzero(entry["present"]))
        for split in ("train", "test")
    )
    model = Ridge(alpha=10.0, solver="lsqr").fit(words[train], entry["y"][train])
    assert 0.12 < r2_score(entry["y"][test], model.predict(words[test])) < 0.3


def test_augmentation_makes_words_unknown_and_nothing_else(source):
    rows = source.rows["train"][:64]
    chance = np.random.default_rng(0).random((64, source.draws), np.float32)
    plain, changed = source.compose(rows, None), source.compose(rows, chance)
    source.spec.check(changed)
    words, before = changed["inputs"]["text"]["x"], plain["inputs"]["text"]["x"]
    assert set(words[words != before]) == {UNKNOWN}
    assert 0.05 < (words != before)[plain["inputs"]["text"]["mask"]].mean() < 0.15
    assert np.array_equal(changed["inputs"]["text"]["mask"], plain["inputs"]["text"]["mask"])
    assert np.array_equal(changed["inputs"]["table"]["x"], plain["inputs"]["table"]["x"])


def test_a_film_without_the_chosen_texts_has_none(few, examples):
    source = few(text="writer", text_length=12, vocabulary=400, augment=False)
    batch = whole(source)
    written = np.array([bool(row["writer"]) for row in examples.rows[:SOME]])
    assert 0.5 < written.mean() < 0.95
    assert np.array_equal(batch["inputs"]["text"]["present"], written)
    assert batch["inputs"]["text"]["x"].shape == (SOME, 12)
    assert source.spec.modalities["text"].vocabulary <= 400
    assert not source.augment


def test_the_tokenizer_is_trained_on_the_train_split_only(few, examples):
    rows = zip(examples.rows[:SOME], examples.split[:SOME], strict=True)
    training = [row["title"].decode() for row, split in rows if split == "train"]
    source = few(text=("title",), vocabulary=300)
    assert source.assets["tokenizer.json"].decode() == train_tokenizer(training, 300)


def test_columns_known_later_are_there_for_the_asking(few):
    names = few(columns=("oscars", "reviews", "listed")).spec.modalities["table"].names
    assert names[0] == "log_oscars"
    assert {"log_reviews", "log_cast_listed"} <= set(names)
    assert "year" not in names


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"text": ("plot",)}, "data.films.text: unknown field 'plot'.*cast, director"),
        ({"columns": ("votes",)}, "data.films.columns: unknown column 'votes'.*year"),
        ({"columns": ()}, "one or more different columns"),
        ({"text_length": 0}, "data.text_length: 0 is not a whole number from 1"),
        ({"vocabulary": -1}, "data.vocabulary: -1 is not a whole number from 1"),
    ],
)
def test_wrong_settings_are_named_before_any_work(wrong, message, monkeypatch):
    monkeypatch.setattr(packed, "load", lambda *_: pytest.fail("worked"))
    with pytest.raises(ConfigError, match=message):
        build({"films": films}, {"kind": "films", **wrong}, where="data")
