"""Predictions for the rows of a manifest: in order, by id, whatever is absent or broken."""

import functools
import json
import re
import zipfile

import numpy as np
import pytest
from PIL import Image

from mtmm_jax import predict
from mtmm_jax.inference import export, manifest_batches, prediction, sample
from mtmm_jax.inference.answers import check_document, document
from mtmm_jax.inference.finished import open_run
from mtmm_jax.registry import ConfigError
from mtmm_jax.store.files import sealed
from tests import kept_run

STEPS = [[3.0, 2.0], [1.0, 6.0]]
ROWS = [
    {"id": "whole", "text": "red apple", "age": 50, "colour": "red", "series": STEPS},
    {"id": 7, "text": None, "age": 30.0},
    {"text": "green", "series": "walk.csv", "colour": "mauve"},
    "not a row",
    {"id": "old", "age": "very"},
    {"id": "gone", "image": "gone.png", "text": "apple"},
    {"id": "seen", "image": "a.png", "series": "walk.npy"},
    {"id": "nothing"},
]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return kept_run.kept(tmp_path_factory.mktemp("runs") / "kept")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    lines = [row if isinstance(row, str) else json.dumps(row) for row in ROWS]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    (folder / "walk.csv").write_text("y,x\n2,3\n6,1\n")
    np.save(folder / "walk.npy", np.array(STEPS))
    Image.new("RGB", (20, 30), "red").save(folder / "a.png")
    return folder / "rows.jsonl"


@pytest.fixture(scope="module")
def answers(workdir, manifest, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "predictions.jsonl"
    arguments = ("--workdir", str(workdir.path), "--manifest", str(manifest), "--out", str(out))
    assert predict.main([*arguments, "--batch", "3"]) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_every_line_has_one_answer_in_order_under_its_id(answers):
    assert [row["line"] for row in answers] == list(range(1, 9))
    ids = [row["id"] for row in answers]
    assert ids == ["whole", 7, 3, 4, "old", "gone", "seen", "nothing"]
    assert [row["line"] for row in answers if "error" in row] == [4, 5, 6]
    assert "is not JSON" in answers[3]["error"]
    assert "line 5, column 'age': 'very' is not a number" in answers[4]["error"]
    assert "'gone.png' does not exist" in answers[5]["error"]
    assert answers[7]["answers"]["kind"] == {"needs": ["fused"]}
    assert answers[1]["answers"]["tags"] == {"needs": ["text"]}


def test_a_row_is_answered_as_the_model_answers_its_values(workdir, answers):
    run = open_run(workdir.path)
    inputs = sample.read_inputs(
        [
            *("--text", "red apple", "--table", '{"age": 50, "colour": "red"}'),
            *("--series", _file(workdir, STEPS)),
        ],
        workdir,
    )
    np.testing.assert_allclose(inputs["table"]["x"], [[1.0, 0.0, 1.0]])
    assert inputs["table"]["mask"].tolist() == [[True] * 3]
    np.testing.assert_allclose(inputs["series"]["x"][0, :2], [[1.0, 0.0], [0.0, 1.0]])
    assert inputs["series"]["mask"].tolist() == [[True, True, False, False, False]]
    _close(answers[0]["answers"], json.loads(json.dumps(prediction.ask(run, inputs))))


def test_one_sample_on_the_command_line_is_answered_as_a_row_of_it(workdir, answers, capsys):
    sample = ("--text", "red apple", "--table", '{"age": 50, "colour": "red"}')
    sample += ("--series", _file(workdir, STEPS))
    assert predict.main(["--workdir", str(workdir.path), *sample, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    check_document(found)
    _close(found, {key: answers[0][key] for key in ("format", "answers")})


def _file(workdir, steps):
    path = workdir.path.parent / "series.npy"
    np.save(path, np.array(steps))
    return str(path)


def _close(found, expected):
    if isinstance(expected, dict):
        assert set(found) == set(expected)
        for key, value in expected.items():
            _close(found[key], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            _close(one, other)
    elif isinstance(expected, float):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    else:
        assert found == expected


def test_tables_and_series_are_scaled_cut_and_masked(workdir, manifest):
    manifest = manifest_batches.open_manifest(manifest, workdir)
    assert manifest.absent == ()
    (_, inputs), *_ = manifest.batches(7)
    # Rows 4 (broken) and 5 (age: "very") are not asked; the last are repeated.
    table, series = inputs["table"], inputs["series"]
    np.testing.assert_allclose(table["x"][:3], [[1, 0, 1], [-1, 0, 0], [0, 0, 0]])
    mask = [[True] * 3, [True, False, False], [False] * 3]  # nobody met mauve
    assert table["mask"][:3].tolist() == mask
    assert table["present"].tolist() == [True, True, *[False] * 5]
    for row in (0, 2, 4):  # in the manifest, .csv with its columns turned round, .npy
        np.testing.assert_allclose(series["x"][row, :2], [[1, 0], [0, 1]])
    assert series["present"].tolist() == [True, False, True, False, True, False, False]
    assert inputs["image"]["present"].tolist() == [*[False] * 4, True, False, False]


def test_csv_has_a_column_for_each_and_what_no_row_has_is_reported(workdir, tmp_path):
    (tmp_path / "a.csv").write_text('text,colour,series\nred,blue,"[[1, 2]]"\n,,\n')
    manifest = manifest_batches.open_manifest(tmp_path / "a.csv", workdir)
    assert manifest.absent == ("image",)
    ((rows, inputs),) = manifest.batches(2)
    assert rows.tolist() == [0, 1]
    assert inputs["table"]["x"][0].tolist() == [0, 1, 0]
    np.testing.assert_array_equal(inputs["series"]["x"][0], np.zeros((5, 2)))
    assert [inputs[name]["present"].tolist() for name in ("text", "table", "series")] == [
        [True, False]
    ] * 3


def test_numbers_without_categories_by_name_or_as_a_list(tmp_path):
    """What sources other than manifests keep: a scale, and columns that say what is missing."""
    from mtmm_jax.batch import Modality, Spec
    from mtmm_jax.data.sources.manifest.rows import Rows
    from mtmm_jax.data.sources.manifest.setting import Setting
    from mtmm_jax.modalities import Kept
    from mtmm_jax.modalities.table import kept_table
    from mtmm_jax.readers.files import Folder
    from mtmm_jax.store.workdir import Workdir

    scale = {"names": ["a", "b"], "scale": {"a": {"mean": 2, "std": 4}}}
    workdir = Workdir(tmp_path / "run")
    workdir.claim({}, Spec({}, {}), {"table.json": json.dumps(scale).encode()})
    modality = Modality("table", (3,), "float32", names=("a", "a_missing", "b"))

    asset = functools.partial(manifest_batches._asset, workdir)
    kept = Kept("t", modality, {"kind": "table"}, asset, None)

    def read(values):
        rows = Rows(tmp_path, values, [1, 2], frozenset(k for row in values for k in row))
        bad = manifest_batches.BadRows(tmp_path, rows.lines, "stop")
        limits = manifest_batches.Limits()
        setting = Setting(rows, Folder(tmp_path, limits), limits, bad)
        found = kept_table(kept, setting)
        return found.batch(np.arange(2), None, None)[0]

    entry = read([{"a": 6, "b": 5}, {"b": 1}])
    np.testing.assert_allclose(entry["x"], [[1, 0, 5], [0, 1, 1]])
    assert entry["mask"].all()
    entry = read([{"t": [6, 0, None]}, {"t": None}])
    np.testing.assert_allclose(entry["x"], [[1, 0, 0], [0, 0, 0]])
    assert entry["mask"].tolist() == [[True, True, False], [False] * 3]


def test_an_exported_file_answers_as_the_run_that_it_is_of(workdir, manifest, answers, tmp_path):
    file, out = tmp_path / "kept.zip", tmp_path / "written.jsonl"
    """Equal documents, of every line, task and key."""
    export.export_run(open_run(workdir.path), file, rows=3)
    arguments = ("--exported", str(file), "--manifest", str(manifest), "--out", str(out))
    assert predict.main([*arguments]) == 0
    written = [json.loads(line) for line in out.read_text().splitlines()]
    for one in (*written, *answers):
        check_document(one)
    _close(written, answers)
    assert {"prediction", "probability", "best"} == set(written[0]["answers"]["kind"])
    assert "similarity" in written[0]["answers"]["pairs"]


def test_a_file_of_some_tasks_answers_for_these(workdir, manifest, answers, tmp_path):
    file, out = tmp_path / "kept.zip", tmp_path / "written.jsonl"
    export.export_run(open_run(workdir.path), file, rows=3, tasks=["level", "tags"])
    assert predict.main(["--exported", str(file), "--manifest", str(manifest),
                         "--out", str(out)]) == 0  # fmt: skip
    written = [json.loads(line) for line in out.read_text().splitlines()]
    _close(written[0]["answers"], {task: answers[0]["answers"][task] for task in ("level", "tags")})


def test_a_file_of_an_earlier_version_is_refused_in_one_line(workdir, manifest, tmp_path, capsys):
    file, old = tmp_path / "kept.zip", tmp_path / "old.zip"
    export.export_run(open_run(workdir.path), file, rows=3, tasks=["size"])
    with zipfile.ZipFile(file) as new, zipfile.ZipFile(old, "w") as into:
        for name in new.namelist():
            content = new.read(name)
            if name == "config.json":
                config = json.loads(content)
                for key in ("tasks", "sha256", "signed"):
                    del config[key]
                content = sealed(config)
            into.writestr(name, content)
    arguments = ("--exported", str(old), "--manifest", str(manifest), "--out", str(tmp_path / "o"))
    assert predict.main([*arguments]) == 2
    error = capsys.readouterr().err
    assert "export the run again" in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"answers": {}}, "format: None is not 1"),
        ({"format": 2, "answers": {}}, "format: 2 is not 1"),
        ({"format": 1}, "needs either answers or an error; has: format"),
        ({"format": 1, "answers": {}, "error": "x"}, "needs either answers or an error"),
        ({"format": 1, "answers": {}, "lien": 3}, "unknown key 'lien'"),
        ({"format": 1, "answers": {}, "line": 0}, "document.line: 0 is not"),
        ({"format": 1, "answers": {"t": 3}}, "document.answers.t: 3 is not"),
        ({"format": 1, "answers": {"t": {"probability": 1.5}}}, "t.probability: 1.5 is not"),
        ({"format": 1, "answers": {"t": {"best": {"a": float("nan")}}}}, "t.best.a: nan is not"),
        ({"format": 1, "answers": {"t": {"prediction": {}}}}, "t.prediction: {} is not"),
        ({"format": 1, "answers": {"t": {"needs": "text"}}}, "t.needs: 'text' is not"),
    ],
)
def test_what_is_no_such_document(found, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_document(found)


def test_documents_may_have_keys_of_other_kinds():
    check_document(document({"t": {"quantiles": {"0.1": 3.0}}, "u": {"needs": ["text"]}}))
    check_document(document(line=3, id="a", error="is not JSON"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--manifest", "x", "--out", "x", "--workdir", "x"), "--workdir: not with --exported"),
        ((), "--exported: predicts the rows of a --manifest only"),
        (("--manifest", "x", "--out", "x"), "is no exported run"),
    ],
)
def test_what_is_no_exported_file(more, message, tmp_path, capsys):
    (tmp_path / "a.zip").write_text("no zip")
    assert predict.main(["--exported", str(tmp_path / "a.zip"), *more]) == 2
    assert message in capsys.readouterr().err


BAD = {
    "stop": (("--on_bad", "stop"), "line 4: is not JSON"),
    "on_bad": (("--on_bad", "halt"), "--on_bad: unknown value 'halt'"),
    "batch": (("--batch", "0"), "--batch: 0 is not"),
    "more": (("--text", "red"), "--text: not with --manifest"),
    "out": (("--out", "/nowhere/x"), "--out: /nowhere/x"),
}


@pytest.mark.parametrize("case", BAD)
def test_requests_that_cannot_be_met(case, workdir, manifest, tmp_path, capsys):
    more, message = BAD[case]
    out = ("--out", str(tmp_path / "x.jsonl"))
    where = ("--workdir", str(workdir.path), "--manifest", str(manifest), *out)
    assert predict.main([*where, *more]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("table", "age=5", "cannot read 'age=5'"),
        ("table", '{"aeg": 5}', "has none of: age, colour=blue, colour=red"),
        ("table", '{"age": true}', "is not a number"),
        ("series", "walk.wav", "cannot read 'walk.wav'"),
    ],
)
def test_one_table_or_series_that_cannot_be_read(name, value, message, workdir):
    with pytest.raises(ConfigError, match=message):
        manifest_batches.read_one(name, value, workdir)


@pytest.mark.parametrize("name", ["text", "left-eye", "-rf", "--", "a b", "%s", "__class__"])
def test_a_modality_of_any_name_is_given_by_its_name(name):
    assert sample.given_inputs([f"--{name}", "red"], ["x", name]) == {name: "red"}
    with pytest.raises(ConfigError, match="predict: unknown modality"):
        sample.given_inputs(["--other", "red"], ["x", name])


def test_a_manifest_without_any_column_of_the_run(workdir, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"txet": "red"}\n')
    with pytest.raises(ConfigError, match="no column that the run reads; wanted one or more of:"):
        manifest_batches.open_manifest(tmp_path / "a.jsonl", workdir)
