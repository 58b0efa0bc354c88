"""Series in a manifest: lists and files, standardised by the train split, read again by a run."""

import json

import numpy as np
import pytest

from mtmm_jax import data
from mtmm_jax.data.inspect.check import check
from mtmm_jax.inference.manifest_batches import read_one
from mtmm_jax.modalities import column_of
from mtmm_jax.registry import ConfigError
from mtmm_jax.store.workdir import Workdir

WALK = {"kind": "series", "column": "steps", "length": 4, "names": ["x", "y"], "rate": 10}


@pytest.fixture
def path(tmp_path):
    """Rows as lists, as `.csv` with a header in another order, and as `.npy`."""
    walks = [np.array([[t, 10 * t + i] for t in range(2 + i)], float) for i in range(4)]
    (tmp_path / "1.csv").write_text("y,x\n" + "".join(f"{y},{x}\n" for x, y in walks[1]))
    np.save(tmp_path / "2.npy", walks[2])
    cells = [walks[0].tolist(), "1.csv", "2.npy", json.dumps(walks[3].tolist()), None]
    splits = ("train", "train", "train", "test", "train")
    rows = [
        {"steps": cell, "split": split, "label": i % 2}
        for i, (cell, split) in enumerate(zip(cells, splits, strict=True))
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "m.jsonl"


def section(path):
    return {
        "kind": "manifest",
        "path": str(path),
        "modalities": {"walk": WALK},
        "targets": {"label": "class"},
    }


def test_steps_are_standardised_by_the_train_split_and_cut_or_filled(path):
    source = data.build(section(path))
    modality = source.spec.modalities["walk"]
    assert (modality.shape, modality.rate, modality.names) == ((4, 2), 10.0, ("x", "y"))
    batch = source.compose(np.arange(5), None)
    source.spec.check(batch)
    entry = batch["inputs"]["walk"]
    assert entry["present"].tolist() == [True, True, True, True, False]
    assert entry["mask"].sum(1).tolist() == [2, 3, 4, 4, 0]
    seen = np.array([[t, 10 * t + i] for i in range(3) for t in range(2 + i)], float)
    kept = json.loads(source.assets["walk.json"])
    np.testing.assert_allclose(kept["mean"], seen.mean(0))
    np.testing.assert_allclose(kept["std"], seen.std(0))
    wanted = (np.array([[0, 2], [1, 12], [2, 22], [3, 32]]) - seen.mean(0)) / seen.std(0)
    np.testing.assert_allclose(entry["x"][2], wanted, rtol=1e-6)
    assert not entry["x"][0, 2:].any()


def test_a_finished_run_reads_them_alike(path, tmp_path):
    source = data.build(section(path))
    config = {"data": section(path), "model": {"encoders": {"walk": "series_gru"}}}
    workdir = Workdir(tmp_path / "run")
    workdir.claim(config, source.spec, source.assets)
    entry = read_one("walk", str(path.with_name("2.npy")), workdir)
    wanted = source.compose(np.array([2]), None)["inputs"]["walk"]
    for key in wanted:
        np.testing.assert_array_equal(entry[key], wanted[key])


def test_what_is_no_series_is_a_problem(path):
    with path.open("a") as file:
        for cell in ("walk.wav", [[1]], [[1, "a"]], []):
            file.write(json.dumps({"steps": cell, "split": "train", "label": 0}) + "\n")
    report = check(path, {"modalities": {"walk": WALK}, "targets": {"label": "class"}})
    assert [problem.line for problem in report.problems] == [6, 7, 8, 9]
    assert all("is no series: " in problem.reason for problem in report.problems)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "data.length: 0 is not a whole number from 1"),
        ({"channels": 3}, "data.channels: 3 are not the 2 of `names`"),
        ({"names": "xy"}, "data.names: 'xy' is not a list"),
        ({"rate": -1}, "data.rate: -1 is not a number above 0"),
        ({"lenght": 3}, "did you mean 'length'"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ConfigError) as error:
        column_of({**WALK, **options}, "walk", "data")
    assert message in str(error.value)
