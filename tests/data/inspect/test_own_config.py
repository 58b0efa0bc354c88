"""A stranger's folder in every form: checked, a config written that every command takes."""

import json

import pytest

from mtmm_jax import data, training
from mtmm_jax.data.inspect import check as checks
from mtmm_jax.data.inspect import show
from mtmm_jax.data.pipeline.source import split_sizes
from mtmm_jax.data.sources.manifest.rows import read_rows
from mtmm_jax.readers.limits import Limits
from mtmm_jax.registry import ConfigError
from tests.data import stranger

TABLES = ("t.csv", "t.tsv", "t.jsonl", "t.parquet")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("odd")
    rows = stranger.draw(root)
    for name in TABLES:
        stranger.write_table(root, rows, name)
    stranger.write_classes(root / "classes", rows)
    stranger.write_hub(root / "hub", rows)
    return root


def checked(root, name, tmp_path, *options):
    """The report and the path of the config."""
    own, report = tmp_path / "own.py", tmp_path / "report.json"
    arguments = [str(root / name), "--write", str(own), "--json", str(report), *options]
    assert checks.main(arguments) in (0, 1)
    return json.loads(report.read_text()), own


def roles(report):
    return {one["name"]: (one["role"], one["kind"]) for one in report["columns"]}


@pytest.mark.parametrize("name", TABLES)
def test_columns_are_the_same_in_every_form(root, name, tmp_path):
    report, own = checked(root, name, tmp_path)
    assert roles(report) == {
        "id": ("id", ""),
        "photo": ("modality", "image"),
        "sound": ("modality", "audio"),
        "caption": ("modality", "text"),
        "shape": ("target", "class"),
        "colour": ("target", "class"),
        "stars": ("target", "class"),
        "weight": ("target", "number"),
        "price": ("target", "number"),
        "day": ("time", ""),
        "maker_id": ("group", ""),
    }
    assert [p["about"] for p in report["problems"]] == ["undecodable"]
    assert {"rare classes", "empty cells"} <= {p["about"] for p in report["doubts"]}
    assert len(own.read_text().splitlines()) <= 25
    source = training.assemble(training.load(str(own))).source
    used = split_sizes(source)
    assert sum(used.values()) == 120
    assert sum(report["splits"].values()) == 119  # all but the picture that cannot be decoded


@pytest.mark.parametrize(("name", "target"), [("classes", "label"), ("hub", "colour")])
def test_folders_are_tables(root, name, target, tmp_path):
    report, own = checked(root, name, tmp_path)
    assert report["splits"] == {"train": 96, "validation": 12, "test": 12}
    source = training.assemble(training.load(str(own))).source
    assert split_sizes(source) == report["splits"]
    assert target in source.spec.targets
    assert source.spec.modalities["image"].shape == (64, 64, 3)


def test_labels_make_the_other_columns_inputs(root, tmp_path):
    report, own = checked(root, "t.csv", tmp_path, "--label", "shape")
    lines = own.read_text().splitlines()
    assert len(lines) <= 25
    assert max(map(len, lines)) <= 100
    assert roles(report)["price"] == ("table", "number")
    assert roles(report)["colour"] == ("table", "category")
    source = training.assemble(training.load(str(own))).source
    assert set(source.spec.targets) == {"shape"}
    assert "colour=red" in source.spec.modalities["table"].names


def test_the_written_config_is_checked_and_shown(root, tmp_path, capsys):
    _, own = checked(root, "t.csv", tmp_path)
    more = ["--config.data.modalities.photo.size=8"]
    own.write_text(
        own.read_text().replace(
            '"kind": "manifest",', '"kind": "manifest", "in_step": {"photo": "flip"},'
        )
    )
    assert checks.main(["--config", str(own), *more]) == 1
    assert "described by" in capsys.readouterr().out
    page = tmp_path / "page.html"
    assert show.main(["--config", str(own), "--out", str(page), "--count", "3", *more]) == 0
    assert "nebula" in page.read_text()
    config = training.load(str(own))
    assert training.assemble(config).hooks  # the augmentation


def test_columns_in_memory():
    columns = {"text": [f"a {i} of many words here" for i in range(20)], "kind": list("ab") * 10}
    split = {"train": 0.5, "test": 0.5}
    described = {"modalities": {"text": "text"}, "targets": {"kind": "class"}, "split": split}
    report = checks.check(columns, described)
    assert (report.rows, report.problems) == (20, [])
    source = data.build(
        {
            "kind": "manifest",
            "path": columns,
            **described,
        }
    )
    assert source.spec.targets["kind"].classes == ("a", "b")


def spoilt(tmp_path, name):
    path = tmp_path / name
    content = {
        "b.csv": b"a;a\n1;2\n",
        "b.tsv": b"",
        "b.jsonl": None,
        "b.parquet": b"PAR1 no",
    }[name]
    if content is None:
        path.write_bytes(b"[1]\n")
    else:
        path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("b.csv", "empty or repeated names"),
        ("b.tsv", "has no header"),
        ("b.jsonl", "has no modality"),
        ("b.parquet", "cannot be read as Parquet"),
    ],
)
def test_a_wrong_table_is_one_line(tmp_path, name, message, capsys):
    assert checks.main([str(spoilt(tmp_path, name))]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_wrong_folders_and_columns_are_one_line(tmp_path):
    with pytest.raises(ConfigError, match="without metadata.jsonl"):
        read_rows(tmp_path, Limits())
    (tmp_path / "train" / "a").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    with pytest.raises(ConfigError, match="'b', which is none"):
        read_rows(tmp_path, Limits())
    with pytest.raises(ConfigError, match="different numbers of rows"):
        read_rows({"a": [1], "b": [1, 2]}, Limits())
    with pytest.raises(ConfigError, match="is no table"):
        read_rows([1], Limits())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a table, or --config"),
        (["--config", "emoji"], "cannot read the description"),
        (["t.csv", "--label", "price_"], "did you mean 'price'"),
        (["t.csv", "--config.steps=3"], "overrides need --config"),
        (["t.csv", "--wrong"], "is not understood"),
    ],
)
def test_refusals_of_check(root, arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(root)
    assert checks.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
