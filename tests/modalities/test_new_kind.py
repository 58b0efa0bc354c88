"""A kind that is only a row goes from a manifest through every command, with no edit elsewhere."""

import dataclasses
import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from mtmm_jax import analyze, data, evaluate, export, predict, train
from mtmm_jax.data.inspect import check, show
from mtmm_jax.inference.export import entries
from mtmm_jax.inference.sample import read_values
from mtmm_jax.modalities import MODALITIES
from mtmm_jax.store.workdir import Workdir
from tests.modalities import made_up

CONFIG = """
from ml_collections import ConfigDict


def get_config():
    return ConfigDict({config})
"""


@pytest.fixture(scope="module", autouse=True)
def _registered():
    with pytest.MonkeyPatch.context() as patch:
        made_up.register(patch)
        yield
    assert not made_up.MADE_UP.keys() & MODALITIES.keys()


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return made_up.manifest(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def workdir(manifest, tmp_path_factory):
    """Of two steps with encoders that were there before: one of pictures, one of anything."""
    folder = tmp_path_factory.mktemp("run")
    config = {
        "seed": 0,
        "steps": 2,
        "batch_size": 4,
        "devices": 1,
        "data": {**made_up.DATA, "path": str(manifest)},
        "model": {
            "width": 8,
            "encoders": {
                "depth": {"kind": "vit", "preset": "tiny", "patch": 4},
                "points": {"kind": "perceiver", "preset": "tiny", "latents": 4},
            },
            "fusion": "concat",
            "sharing": "hard",
        },
        "tasks": {"shape": {"kind": "classification"}},
        "balancing": {"kind": "equal"},
        "optimizer": {"kind": "sgd", "learning_rate": 0.05},
        "checkpoint": {"every": 2, "keep": 1, "best": "mean"},
        "evaluation": {"every": 2, "batch_size": 4, "log_every": 1, "baselines": False},
    }
    (folder / "config.py").write_text(CONFIG.format(config=ConfigDict(config).to_dict()))
    path = folder / "workdir"
    assert train.main(["--config", str(folder / "config.py"), "--workdir", str(path)]) == 0
    return path


def test_check_reads_every_row(manifest, tmp_path, capsys):
    assert check.main([str(manifest), "--modality", "depth=depth:scan", "--target", "shape=class",
                       "--modality", "points=points"]) == 0  # fmt: skip
    assert "nothing wrong" in capsys.readouterr().out
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    rows[3] |= {"scan": "9999.npy", "points": [[1, 2, 3]]}
    rows[7]["points"] = [[1, 2], [3]]
    broken = manifest.with_name("broken.jsonl")
    broken.write_text("".join(json.dumps(row) + "\n" for row in rows))
    description = {key: made_up.DATA[key] for key in ("modalities", "targets")}
    problems = [str(problem) for problem in check.check(broken, description).problems]
    broken.unlink()
    assert len(problems) == 3
    assert all("\n" not in problem for problem in problems)
    assert "does not exist" in problems[1] or "does not exist" in problems[0]


def test_show_draws_them(manifest, tmp_path):
    page = tmp_path / "page.html"
    options = [f"--config.{key}={json.dumps(value)}" for key, value in made_up.DATA.items()]
    options = [option for option in options if not option.startswith("--config.kind")]
    assert show.main(["manifest", "--out", str(page), "--png", str(tmp_path / "sheet.png"),
                      f"--config.path={manifest}", *options]) == 0  # fmt: skip
    text = page.read_text()
    assert "alt=depth" in text
    assert "20 × 3" in text
    assert (tmp_path / "sheet.png").stat().st_size > 500


def test_training_evaluation_and_robustness(workdir, capsys):
    assert evaluate.main(["--workdir", str(workdir), "--json"]) == 0
    assert "shape" in json.loads(capsys.readouterr().out)["results"]
    assert analyze.main(["--workdir", str(workdir), "--examples", "4"]) == 0
    found = json.loads((workdir / "analysis.json").read_text())["robustness"]
    damages = found["shape"]["modalities"]
    assert {name: set(found) for name, found in damages.items()} == {
        name: set(row.corruptions) for name, row in made_up.MADE_UP.items()
    }


def test_one_file_is_predicted_and_explained(workdir, manifest, tmp_path, capsys):
    files = ["--depth", str(manifest.with_name("1.npy"))]
    files += ["--points", str(manifest.with_name("1_cloud.npy"))]
    assert predict.main(["--workdir", str(workdir), *files, "--json"]) == 0
    assert "shape" in json.loads(capsys.readouterr().out)["answers"]
    listed = ["--points", json.dumps(np.load(manifest.with_name("1_cloud.npy")).tolist())]
    assert predict.main(["--workdir", str(workdir), *listed]) == 0
    capsys.readouterr()
    explain = ["--workdir", str(workdir), *files, "--explain", str(tmp_path), "--json"]
    assert predict.main(explain) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["names"]["depth"][0] == "row 1, column 1 (top left)"
    assert found["names"]["points"] == [f"part {i + 1} of 16" for i in range(16)]
    assert "data:image/png" in (tmp_path / "explanation.html").read_text()


def test_files_and_batches_are_read_alike(workdir, manifest):
    files = {"depth": "2.npy", "points": "2_cloud.npy"}
    given = {name: str(manifest.with_name(file)) for name, file in files.items()}
    found = read_values(given, Workdir(workdir))
    source = data.build({**made_up.DATA, "path": str(manifest)})
    batch = source.compose(np.array([2]), None)["inputs"]
    for name, entry in found.items():
        np.testing.assert_array_equal(entry["x"], batch[name]["x"])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("depth", "nothing.npy", "cannot read nothing.npy: does not exist"),
        ("points", "[[1, 2, 3]]", "is an array of shape [1, 3]; wanted [20, 3]"),
        ("points", '[["1", "2", "3"]]', "not a number"),
        ("points", "[[1, 2], [3]]", "different lengths"),
    ],
)
def test_nonsense_is_refused_in_one_line(name, value, message, workdir, capsys):
    assert predict.main(["--workdir", str(workdir), f"--{name}", value]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_export_and_a_manifest_of_predictions(workdir, manifest, tmp_path, capsys):
    file, out = tmp_path / "run.zip", tmp_path / "predictions.jsonl"
    assert export.main(["--workdir", str(workdir), "--out", str(file), "--batch", "4"]) == 0
    for run in (("--workdir", str(workdir)), ("--exported", str(file))):
        assert predict.main([*run, "--manifest", str(manifest), "--out", str(out)]) == 0
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        assert len(rows) == 24
        assert all("answers" in row for row in rows)


def test_a_kind_with_a_mask_is_cut_or_filled_up(tmp_path, monkeypatch):
    row = dataclasses.replace(made_up.POINTS, name="clouds", mask="maybe")
    monkeypatch.setitem(MODALITIES, "clouds", row)
    clouds = [np.full((n, 3), 1 + i).tolist() for i, n in enumerate((2, 5, 4, 1))]
    clouds += [None, [], [[1, 2]]]
    rows = [{"cloud": x, "label": i % 2, "split": "train"} for i, x in enumerate(clouds)]
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in rows))
    section = {"kind": "manifest", "path": str(path), "targets": {"label": "class"}}
    options = {"kind": "clouds", "shape": [4, 3]}
    source = data.build({**section, "modalities": {"cloud": options}})
    batch = source.compose(np.arange(7), None)
    source.spec.check(batch)
    entry = batch["inputs"]["cloud"]
    assert entry["mask"].sum(1).tolist() == [2, 4, 4, 1, 0, 0, 0]
    assert entry["present"].tolist() == [True] * 4 + [False] * 3
    assert entry["x"].sum((1, 2)).tolist() == [6, 24, 36, 12, 0, 0, 0]
    assert [problem.line for problem in source.compose.bad.problems] == [6, 7]
    assert "mask" in entries({"cloud": source.spec.modalities["cloud"]})["cloud"]


def test_a_number_is_no_array(tmp_path, monkeypatch):
    row = dataclasses.replace(made_up.POINTS, name="line", dimensions=1, mask="maybe")
    monkeypatch.setitem(MODALITIES, "line", row)
    np.save(tmp_path / "0.npy", np.float32(1))
    np.save(tmp_path / "1.npy", np.ones(3, np.float32))
    rows = [{"line": f"{i}.npy", "label": i, "split": "train"} for i in range(2)]
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in rows))
    description = {"modalities": {"line": "line"}, "targets": {"label": "class"}}
    (problem,) = check.check(path, description).problems
    assert str(problem).endswith("is an array of shape []; wanted [3]")
