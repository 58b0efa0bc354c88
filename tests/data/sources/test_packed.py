"""Packed data sets: from a wheel to an asset, the same bytes each time; what they all share."""

import hashlib
import io
import sqlite3
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mtmm_jax.data.sources import packed
from mtmm_jax.data.sources.digits import asset as digits_asset
from mtmm_jax.data.sources.digits import card as digits_card
from mtmm_jax.data.sources.digits import pack as digits_pack
from mtmm_jax.data.sources.films import asset as films_asset
from mtmm_jax.data.sources.films import card as films_card
from mtmm_jax.data.sources.films import pack as films_pack
from mtmm_jax.data.sources.vowels import asset as vowels_asset
from mtmm_jax.data.sources.vowels import card as vowels_card
from mtmm_jax.data.sources.vowels import pack as vowels_pack
from mtmm_jax.registry import ConfigError

PACKS = {"films": films_pack, "digits": digits_pack, "vowels": vowels_pack}
CARDS = {"films": films_card, "digits": digits_card, "vowels": vowels_card}


@pytest.mark.parametrize("name", PACKS)
def test_the_card_agrees_with_the_asset_which_is_small(name):
    folder = Path(CARDS[name].__file__).parent
    assert (folder / "CARD.md").read_text(encoding="utf-8") == CARDS[name].render()
    size = sum(path.stat().st_size for path in packed.assets(name))
    assert 100_000 < size <= PACKS[name].LIMIT <= 4_000_000
    assert "CC" in (folder / "CARD.md").read_text(encoding="utf-8")


def films_database() -> bytes:
    """Three films: a remake that bears its model's title, and one of little known."""
    row = {
        **dict.fromkeys(("Rating", "Runtime", "Metacritic", "Writer", "Language")),
        "Year": 1950,
        "Released": "1950-01-01",
        "Director": "A. B",
        "Cast": "",
        "Oscars": 0,
        "Genre": "War, Drama, War",
        "Country": "France",
    }
    omdb = [
        {**row, "ID": 1, "imdbID": "tt1", "Title": "Élan!", "Rating": "GP", "Runtime": 90.0},
        {**row, "ID": 2, "imdbID": "tt2", "Title": "elan", "Released": "1950-05-01"},
        {**row, "ID": 3, "imdbID": "tt3", "Title": "Other", "Genre": ""},
    ]
    tomatoes = [
        {"ID": i, "Meter": 50 + i, "BoxOffice": gross, "Production": None, "Reviews": 5}
        for i, gross in ((1, 2e6), (2, 22.8), (3, None))
    ]
    connection = sqlite3.connect(":memory:")
    for table, rows in {"omdb": omdb, "tomatoes": tomatoes}.items():
        columns = ", ".join(f'"{key}"' for key in rows[0])
        connection.execute(f"create table {table} ({columns})")
        marks = ", ".join("?" * len(rows[0]))
        connection.executemany(
            f"insert into {table} values ({marks})", [tuple(row.values()) for row in rows]
        )
    connection.commit()
    data = connection.serialize()
    connection.close()
    return data


def digits_csv(columns: int) -> bytes:
    rows = [[*range(columns), 0]]
    rows += [[round(0.1 * (i * j % 7), 1) for j in range(columns)] + [i % 10] for i in range(40)]
    return "".join(",".join(map(str, row)) + "\r\n" for row in rows).encode()


def vowels_ts(count: int) -> bytes:
    lines = ["#made here", "@classLabel true 1 2 3 4 5 6 7 8 9", "@data"]
    for i in range(count):
        channels = [[0.5 * (i + c + t) for t in range(2 + i % 3)] for c in range(12)]
        values = [",".join(map(str, channel)) for channel in channels]
        lines.append(":".join([*values, str(1 + i % 9)]))
    return ("\n".join(lines) + "\n").encode()


def contents(name: str) -> dict[str, bytes]:
    if name == "films":
        return {films_pack.DATABASE: films_database()}
    if name == "digits":
        columns = [digits_asset.VIEWS[view] for view in digits_pack.SHA256]
        return dict(zip(digits_pack.MEMBERS, map(digits_csv, columns), strict=True))
    return dict(zip(vowels_pack.MEMBERS, map(vowels_ts, (90, 9)), strict=True))


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """Makes a small wheel in the shape of the one that a data set is packed from."""

    def make(name: str) -> Path:
        members = contents(name)
        with zipfile.ZipFile(tmp_path / "made.whl", "w") as archive:
            for member, data in members.items():
                archive.writestr(member, data)
        sums = {member: hashlib.sha256(data).hexdigest() for member, data in members.items()}
        monkeypatch.setattr(PACKS[name], "MEMBERS", sums)
        monkeypatch.setattr(PACKS[name].card, "render", lambda folder: "a card")
        return tmp_path / "made.whl"

    return make


@pytest.mark.parametrize("name", PACKS)
def test_two_runs_give_the_same_bytes_from_a_wheel_or_its_folder(name, wheel, tmp_path):
    source = wheel(name)
    with zipfile.ZipFile(source) as archive:
        archive.extractall(tmp_path / "unpacked")
    for where, out in ((source, "a"), (tmp_path / "unpacked", "b")):
        options = ["--wheel", str(where), "--out", str(tmp_path / out / "assets")]
        assert PACKS[name].main(options) == 0
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / out / "assets").iterdir()}
        for out in ("a", "b")
    )
    assert first == second
    assert first
    assert (tmp_path / "a" / "CARD.md").read_text() == "a card"


def test_films_are_read_as_meant(wheel, tmp_path):
    out = tmp_path / "a" / "assets"
    assert films_pack.main(["--wheel", str(wheel("films")), "--out", str(out)]) == 0
    first, second, third = films_asset.read(out)
    assert (first.title, first.month, first.rating, first.runtime) == ("Élan!", None, "PG", 90.0)
    assert (second.month, second.rating, second.box_office) == (5, "", None)
    assert (first.box_office, first.tomatometer, third.tomatometer) == (2e6, 51, 53)
    assert (first.genres, third.genres, first.languages) == (("Drama", "War"), (), ())
    assert first.split == second.split


def test_digits_and_vowels_are_read_as_written(wheel, tmp_path):
    for name in ("digits", "vowels"):
        options = ["--wheel", str(wheel(name)), "--out", str(tmp_path / name / "assets")]
        assert PACKS[name].main(options) == 0
    view = digits_asset.read_view("mor", tmp_path / "digits" / "assets")
    table = np.loadtxt(io.BytesIO(digits_csv(6)), np.float32, delimiter=",", skiprows=1)
    assert np.array_equal(view, table[:, :-1])
    labels, _ = digits_asset.read_labels(tmp_path / "digits" / "assets")
    assert [int(label) for label in labels] == table[:, -1].tolist()
    utterances = vowels_asset.read(tmp_path / "vowels" / "assets")
    assert [one.split for one in utterances].count("validation") == 18
    assert {one.split for one in utterances[90:]} == {"test"}
    assert np.array_equal(
        utterances[4].series, [[0.5 * (4 + c + t) for c in range(12)] for t in range(3)]
    )
    assert [one.speaker for one in utterances[:9]] == list("123456789")


def test_another_release_is_refused_before_anything_is_written(wheel, tmp_path, capsys):
    source = wheel("vowels")
    for where, message in ((source, "no bokeh_sampledata"), (tmp_path / "none.whl", "none.whl")):
        options = ["--wheel", str(where), "--out", str(tmp_path / "out")]
        assert films_pack.main(options) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "bokeh_sampledata" / "_data").mkdir(parents=True)
    (tmp_path / films_pack.DATABASE).write_bytes(films_database())
    assert films_pack.main(["--wheel", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "another release" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_asset_that_is_too_large_is_refused(wheel, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(vowels_pack, "LIMIT", 10)
    options = ["--wheel", str(wheel("vowels")), "--out", str(tmp_path / "out")]
    assert vowels_pack.main(options) == 2
    assert "at most 10 may ship" in capsys.readouterr().err


def test_dealing_ignores_order_keeps_equals_together_and_cuts_strata_alike():
    keys, strata = [str(i // 2) for i in range(400)], ["a", "a", "b", "b"] * 100
    held = {"validation": 0.1, "test": 0.2}
    dealt = packed.deal(keys, held, strata)
    assert dealt[::2] == dealt[1::2]
    for stratum in "ab":
        own = [split for split, s in zip(dealt, strata, strict=True) if s == stratum]
        assert [own.count(split) for split in ("train", *held)] == [140, 20, 40]
    assert packed.deal(keys[::-1], held, strata[::-1]) == dealt[::-1]
    assert packed.deal(keys, held) != dealt


def test_groups_join_titles_and_identifiers():
    films = [("1", "Solaris"), ("2", "SOLÁRIS!"), ("2", "Solaris, longer"), ("3", "Stalker")]
    first, second, third, fourth = films_pack.groups(films)
    assert first == second == third != fourth
    assert films_pack.plain("!!!") == "!!!"


def test_scales_come_from_known_training_values():
    values = np.array([[1.0, 5.0], [3.0, 5.0], [np.nan, 5.0], [100.0, 7.0]])
    mean, std = packed.scale(values, np.array([True, True, True, False]))
    assert mean.tolist() == [2, 5]
    assert std.tolist() == [1, 1]


def test_noise_is_small_on_half_and_decided_by_chance():
    chance = np.random.default_rng(0).random((4000, 2), np.float32)
    out = packed.noisy(np.zeros((4000, 30), np.float32), 0.2, chance)
    assert out.dtype == np.float32
    level = out.std(1)
    assert 0.47 < (level > 0).mean() < 0.53
    assert 0.08 < level[level > 0].mean() < 0.12
    assert np.array_equal(packed.noisy(np.zeros((5, 30), np.float32), 0.2, chance[:5]), out[:5])


def test_choices_are_checked():
    assert packed.checked("a", "ab", "here", "letter") == ("a",)
    for wrong in ("c", (), ("a", "a")):
        with pytest.raises(ConfigError, match="here"):
            packed.checked(wrong, "ab", "here", "letter")


def test_importing_the_packed_sets_is_light():
    heavy = "tensorflow", "tensorflow_datasets", "grain", "tokenizers", "scipy.signal", "sqlite3"
    modules = ", ".join(f"mtmm_jax.data.sources.{name}" for name in PACKS)
    code = f"import sys, {modules}; print([m for m in {heavy!r} if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["digits", "vowels"])
def test_preparing_needs_no_tensorflow(name, tmp_path):
    code = (
        "import sys; from mtmm_jax.data.sources import packed; "
        f"examples = packed.load({name!r}, sys.argv[1]); "
        "print(len(examples.rows), 'tensorflow' in sys.modules)"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    assert said.stdout.split() == [{"digits": "2000", "vowels": "640"}[name], "False"]
    assert [path.name.split("-")[0] for path in tmp_path.iterdir()] == [name]
    assert f"preparing the {name} data set" in said.stderr
