"""An exported file says what the run says, without the model's code, for any batch."""

import dataclasses
import json
import shutil
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest

from mtmm_jax import export as command
from mtmm_jax.batch import Spec, Target
from mtmm_jax.heads.ordinal import Cumulative
from mtmm_jax.inference import export, exported
from mtmm_jax.inference import outputs as units
from mtmm_jax.inference.finished import open_run
from mtmm_jax.inference.prediction import opened
from mtmm_jax.registry import ConfigError
from mtmm_jax.tasks import TASKS
from tests import kept_run

ROWS = 5


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return open_run(kept_run.kept(tmp_path_factory.mktemp("runs") / "kept").path)


@pytest.fixture(scope="module")
def file(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "kept.zip"
    arguments = ("--workdir", str(run.workdir.path), "--out", str(out))
    assert command.main([*arguments, "--platforms", "cpu,cuda,tpu"]) == 0
    return out


@pytest.fixture(scope="module")
def model(file):
    return exported.load(file)


def inputs(rows=ROWS, seed=0):
    """With holes, as NaN."""
    rng, found = np.random.default_rng(seed), {}
    for name, modality in kept_run.SPEC.modalities.items():
        here = rng.random(rows) < 0.7
        if modality.kind == "text":
            x = rng.integers(0, 9, (rows, *modality.shape)).astype(np.int32)
        else:
            x = rng.standard_normal((rows, *modality.shape)).astype(np.float32)
            x[~here] = np.nan
        found[name] = {"x": x, "present": here}
        if modality.kind != "image":
            found[name]["mask"] = rng.random((rows, modality.shape[0])) < 0.8
    return found


def _same(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


def test_any_batch_and_absent_modalities_as_the_run_says(run, model):
    predict = jax.jit(units.answers(run.experiment.model, kept_run.TASKS))
    whole, few, nobody = inputs(), 3, np.zeros(ROWS, bool)
    expected = jax.device_get(predict(run.variables, whole))
    _same(model.predict(whole), expected)
    found = model.predict(jax.tree.map(lambda x: x[:few], whole))
    _same(found, jax.tree.map(lambda x: x[:few], expected))
    assert found["kind"]["probability"].shape == (few, 3)
    absent = {name: {**entry, "present": nobody} for name, entry in whole.items()}
    part = {"text": whole["text"]}
    found = model.predict(part)
    _same(found, jax.device_get(predict(run.variables, {**absent, **part})))
    assert not found["pairs"]["present"].any()
    np.testing.assert_array_equal(found["kind"]["present"], whole["text"]["present"])


def test_runs_where_there_is_none_of_our_code(file, model, tmp_path):
    """The reader that the file carries, with JAX and NumPy and the package out of reach."""
    with zipfile.ZipFile(file) as found:
        (tmp_path / "load.py").write_bytes(found.read("load.py"))
    given = inputs()
    np.savez(tmp_path / "in.npz", **{f"{m}:{k}": x for m, e in given.items() for k, x in e.items()})
    program = """
import sys
class Closed:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("mtmm_jax", "flax", "optax", "orbax", "flatbuffers"):
            raise ImportError(name)
sys.meta_path.insert(0, Closed())
import numpy as np
import load
given = {}
for name, x in np.load("in.npz").items():
    modality, key = name.split(":")
    given.setdefault(modality, {})[key] = x
found = load.load(sys.argv[1]).predict(given)
np.savez("out.npz", **{f"{t}:{k}": x for t, one in found.items() for k, x in one.items()})
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(file)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found, expected = np.load(tmp_path / "out.npz"), model.predict(given)
    assert set(found) == {f"{t}:{k}" for t, found in expected.items() for k in found}
    for name, x in found.items():
        task, key = name.split(":")
        np.testing.assert_allclose(x, expected[task][key], atol=1e-5)


def test_the_file_says_what_it_holds(run, file, model):
    assert Spec.from_dict(model.spec) == run.experiment.model.spec
    assert model.assets["tokenizer.json"] == kept_run.TOKENIZER.encode()
    assert model.tasks["kind"]["classes"] == ["a", "b", "c"]
    assert model.tasks["pairs"]["reads"] == ["text", "series"]
    assert set(model.tasks["size"]["outputs"]) == {"value", "std", "present"}
    with zipfile.ZipFile(file) as found:
        about = json.loads(found.read("program.json"))
    assert about["platforms"] == ["cpu", "cuda", "tpu"]
    assert about["rows"] is model.rows is None


def test_one_batch_size_some_tasks_and_the_same_bytes_again(run, tmp_path):
    paths = [tmp_path / name for name in ("a.zip", "b.zip")]
    for path in paths:
        export.export_run(run, path, rows=2, tasks=["size"])
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip", "b.zip"]
    small = exported.load(paths[0])
    assert set(small.predict(inputs(2))) == {"size"}
    with pytest.raises(ValueError, match="3 rows; this file was exported for batches of 2"):
        small.predict(inputs(3))


def test_a_model_without_programs_for_any_batch_says_what_to_do(run, tmp_path):
    class Picky:
        def __getattr__(self, name):
            return getattr(run.experiment.model, name)

        def __call__(self, variables, inputs):
            np.ones(inputs["text"]["x"].shape[0])  # a number is needed here
            return run.experiment.model(variables, inputs)

    picky = dataclasses.replace(run.experiment, model=Picky())
    with pytest.raises(ConfigError, match="a program for batches of one size may do: --batch N"):
        export.export_run(dataclasses.replace(run, experiment=picky), tmp_path / "a.zip")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"imag": {}}, "unknown modality 'imag'; choices: image, series, table, text"),
        ({"text": {"y": 0}}, "inputs.text: unknown key 'y'; choices: x, present, mask"),
        ({"text": {"mask": np.ones((ROWS, 6), bool)}}, "inputs.text: has no 'x'"),
        ({"table": {"x": np.zeros((2, 3), np.float32)}}, "one number of rows"),
        ({"table": {"x": np.zeros((ROWS, 4), np.float32)}}, r"needs float32\[5, 3\]"),
        ({"table": {"x": np.zeros((ROWS, 3))}}, r"is float64\[5, 3\]"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(model, change, message):
    with pytest.raises(ValueError, match=message):
        model.predict({**inputs(), **change})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 0}, "--batch: 0"),
        ({"platforms": ("cpu", "gpu")}, "--platforms: unknown platform 'gpu'"),
        ({"platforms": ()}, "--platforms: is empty"),
        ({"tasks": ["knid"]}, "did you mean 'kind'"),
        ({"path": "/nowhere/a.zip"}, "--out: /nowhere/a.zip"),
    ],
)
def test_bad_requests_are_refused_before_anything_is_traced(run, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        export.export_run(run, **{"path": tmp_path / "x.zip", **changes})


def test_the_command_says_what_is_wrong(capsys, tmp_path):
    assert command.main(["--workdir", "no", "--out", "x", "--batch", "many"]) == 2
    assert "--batch: 'many'" in capsys.readouterr().err


TARGETS = {
    "kind": Target("class", classes=tuple("abcde"), frequencies=(0.2,) * 5),
    "tags": Target("labels", classes=("u", "v", "w"), frequencies=(0.5, 0.1, 0.3)),
    "size": Target("number", mean=10.0, std=2.0),
    "mask": Target("mask", classes=("sky", "ground"), shape=(2, 3)),
    "path": Target("path", mean=1.0, std=3.0, shape=(2, 2)),
    "words": Target("tokens", classes=("", "a", "b", " "), length=4),
}
CASES = {
    "classification": ("kind", (5,), {}),
    "multilabel": ("tags", (3,), {}),
    "ordinal": ("kind", (4,), {}),
    "regression": ("size", (2,), {"loss": "gaussian"}),
    "segmentation": ("mask", (2, 3, 2), {}),
    "waypoints": ("path", (4,), {}),
}


@pytest.mark.parametrize("kind", CASES)
def test_units_are_those_that_a_person_reads(kind):
    target, shape, options = CASES[kind]
    spec = Spec({}, TARGETS)

    def make_head(head, **context):
        del head, context
        return Cumulative(5, ()) if kind == "ordinal" else None

    given = {"make_head": make_head, "where": "tasks.t", "reads": ("fused",)}
    task = TASKS[kind](target, spec, **given, **options)
    z = np.random.default_rng(0).standard_normal((3, *shape)).astype(np.float32)
    if kind == "ordinal":
        z = -np.sort(-z)
    exported = jax.device_get(task.outputs(z))
    for i in range(3):
        decoded = task.decode(z[i])
        if kind in ("classification", "multilabel", "ordinal"):
            p = dict(zip(TARGETS[target].classes, exported["probability"][i], strict=True))
            for name, value in decoded["best"].items():
                np.testing.assert_allclose(p[name], value, rtol=1e-5)
        if kind == "ordinal":
            assert TARGETS[target].classes[exported["level"][i]] == decoded["prediction"]
        if kind == "regression":
            found = [exported["value"][i], exported["std"][i]]
            np.testing.assert_allclose(found, [decoded["prediction"], decoded["std"]], rtol=1e-5)
            wide = {
                "value": exported["value"][i],
                "std": 30 * exported["std"][i],
            }  # near the soft clip
            np.testing.assert_allclose(task.answer(wide)["std"], 30 * decoded["std"], rtol=1e-5)
        if kind == "segmentation":
            assert exported["mask"][i].tolist() == decoded["mask"]
        if kind == "waypoints":
            np.testing.assert_allclose(exported["points"][i], decoded["path"], atol=1e-4)


def _calling_back():
    """A program that holds a call of Python, as `jax.pure_callback` makes it."""

    def loud(x):
        return jax.pure_callback(lambda y: y, jax.ShapeDtypeStruct((), np.float32), x)

    return jax.jit(loud).lower(np.float32(1)).as_text()


def test_programs_that_call_back_into_python_are_refused():
    with pytest.raises(ValueError, match="the program calls .*callback.*, which is code of its"):
        exported._check_calls(_calling_back())
    exported._check_calls(jax.jit(lambda x: x * 2).lower(np.float32(1)).as_text())


def _with_member(file, folder, name, content):
    copy = shutil.copy(file, folder / "other.zip")
    with zipfile.ZipFile(copy, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return copy


def test_files_that_would_fill_the_memory_or_lead_out_are_refused(file, tmp_path):
    bomb = _with_member(file, tmp_path, "assets/bomb", bytes(exported.ASSET_BYTES + 1))
    with pytest.raises(ValueError, match=r"is no exported run, or damaged: assets/bomb has 67,108"):
        exported.load(bomb)
    slip = _with_member(file, tmp_path, "assets/../../escaped", b"x")
    with pytest.raises(ConfigError, match="leads out of"), opened(slip):
        pass
    assert not (tmp_path.parent / "escaped").exists()


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9])
def test_a_cut_or_flipped_file_is_one_line(file, tmp_path, share):
    data = file.read_bytes()
    at = int(share * (len(data) - 1))
    for broken in (data[:at], data[:at] + bytes([data[at] ^ 8]) + data[at + 1 :]):
        (tmp_path / "broken.zip").write_bytes(broken)
        try:
            with opened(tmp_path / "broken.zip"):
                continue
        except ConfigError as error:
            said = str(error)
        assert "broken.zip" in said
        assert "\n" not in said
