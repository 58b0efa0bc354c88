"""Labels for a manifest: only what is sure, a person's stay, and the file can be trained on."""

import json

import numpy as np
import pytest

from mtmm_jax import data, predict
from mtmm_jax.batch import Target
from mtmm_jax.inference import labelling
from mtmm_jax.tasks import traits
from tests import kept_run

ROWS = [
    {"id": 1, "text": "red apple", "age": 50, "colour": "red", "split": "train"},
    {"id": 2, "text": "green apple", "kind": "b", "split": "train"},
    {"id": 3, "age": 30.0, "split": "validation"},
    {"id": 4, "text": "a blue car", "tags": ["u"], "split": "train"},
    "not a row",
    {"id": 5, "age": "very", "text": "red", "split": "train"},
    {"id": 6, "split": "test"},
    {"id": 7, "text": "pear", "split": "test"},
]
CLASSES = ("a", "b", "c")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return kept_run.kept(tmp_path_factory.mktemp("runs") / "kept")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in ROWS))
    return path


def _label(workdir, manifest, name="labels.jsonl", *more):
    out = manifest.with_name(name)
    arguments = ("--workdir", str(workdir.path), "--label", str(manifest), "--out", str(out))
    assert predict.main([*arguments, "--batch", "8", *more]) == 0
    queue = out.with_name(f"{out.stem}.ask.jsonl")
    return [
        [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else None
        for path in (out, queue)
    ]


@pytest.fixture(scope="module")
def everything(workdir, manifest):
    """All that the run says, sure or not."""
    return _label(workdir, manifest, "everything.jsonl", "--least", "0", "--ask", "3")


def test_rows_are_labelled_where_the_run_is_sure(workdir, manifest, everything):
    whole, _ = everything
    given = [row for row in ROWS if isinstance(row, dict)]
    sure = sorted(row["kind_confidence"] for row in whole if row.get("kind_confidence"))
    least = (sure[0] + sure[-1]) / 2
    some, _ = _label(workdir, manifest, "some.jsonl", "--least", str(least))
    assert len(whole) == len(some) == len(given)
    for before, all_, few in zip(given, whole, some, strict=True):
        assert {key: few[key] for key in before} == before
        for column in ("kind", "tags"):
            if column in before:
                assert f"{column}_confidence" not in few
                continue
            confidence = all_[f"{column}_confidence"]
            assert few[f"{column}_confidence"] == confidence
            kept = confidence is not None and confidence >= least
            assert few[column] == (all_[column] if kept else None)
        assert few["size"] is None
        assert "size_confidence" not in few or few["size_confidence"] is None
    assert {row["kind"] for row in some} > {None, "b"}
    assert whole[0]["kind"] in CLASSES
    assert isinstance(whole[0]["size"], float)
    for row in (whole[4], whole[5]):  # cannot be read; has nothing to read
        assert [row[name] for name in ("kind", "tags", "size")] == [None] * 3


def test_the_labels_are_those_that_prediction_says(workdir, manifest, everything):
    out = manifest.with_name("predictions.jsonl")
    arguments = ("--workdir", str(workdir.path), "--manifest", str(manifest), "--out", str(out))
    assert predict.main([*arguments, "--batch", "8"]) == 0
    by_id = {row["id"]: row for row in map(json.loads, out.read_text().splitlines())}
    for row in everything[0]:
        if row["kind_confidence" if "kind_confidence" in row else "kind"] is None:
            continue
        answers = by_id[row["id"]]["answers"]
        if "kind_confidence" in row:
            assert row["kind"] == answers["kind"]["prediction"]
            np.testing.assert_allclose(row["kind_confidence"], answers["kind"]["probability"], 1e-4)
        np.testing.assert_allclose(row["size"], answers["size"]["prediction"], rtol=1e-4)


def test_who_is_asked_about_is_least_sure_over_all_labels(everything):
    whole, queue = everything
    assert len(queue) == 3
    doubts = [row["uncertainty"] for row in queue]
    assert doubts == sorted(doubts, reverse=True)
    known = {row["id"]: row for row in whole}
    assert not {5, 6} & {row["id"] for row in queue}  # nothing was read of them
    for row in queue:
        assert ROWS[row["row"] - 1]["id"] == row["id"]
        lacking = {name for name in ("kind", "tags") if known[row["id"]].get(f"{name}_confidence")}
        assert set(row["likely"]) == lacking
        assert next(iter(row["likely"].get("kind", {"": 0}).values())) == pytest.approx(
            known[row["id"]].get("kind_confidence", 0), abs=1e-5
        )


def test_uncertainty_is_the_mean_over_what_may_hold():
    one, several = traits.class_labelling(CLASSES), traits.labels_labelling("uv")
    p = np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]])
    queue = one.distributions({"probability": p})
    found = labelling.uncertainty(queue, "entropy")
    np.testing.assert_allclose(found, [np.log(2) / np.log(3), 0, 1], atol=1e-9)
    np.testing.assert_allclose(labelling.uncertainty(queue, "margin"), [1, 0, 1], atol=1e-9)
    coins = np.array([[0.5, 1.0], [0.9, 0.2]])
    found = labelling.uncertainty(several.distributions({"probability": coins}), "margin")
    np.testing.assert_allclose(found, [(1 + 0) / 2, (0.2 + 0.4) / 2], atol=1e-9)
    assert several.label({"probability": np.array([0.9, 0.2])}) == (["u"], 0.8)
    outputs = {"probability": np.array([0.1, 0.5, 0.4]), "level": 2}
    median = traits.class_labelling(CLASSES, lambda outputs: outputs["level"])
    assert median.label(outputs) == ("c", 0.4)


def test_the_file_is_a_manifest(everything, manifest):
    source = data.build(
        {
            "kind": "manifest",
            "path": str(manifest.with_name("everything.jsonl")),
            "modalities": {"text": {"kind": "text", "length": 4}},
            "targets": {
                "kind": {"kind": "class", "classes": list(CLASSES)},
                "tags": {"kind": "labels", "classes": ["u", "v"]},
                "size": {"kind": "number"},
            },
        }
    )
    assert source.spec.targets["kind"] == Target("class", CLASSES, source_shares(everything))
    batch = next(source.batches("train", 4))
    assert batch["targets"]["tags"]["present"].tolist() == [True, True, True, False]


def source_shares(everything):
    kinds = [row["kind"] for row in everything[0] if row["split"] == "train" and row["kind"]]
    return tuple(kinds.count(name) / len(kinds) for name in CLASSES)


BAD = {
    "least": (("--least", "2"), "--least: 2.0 is not a number from 0 to 1"),
    "ask": (("--ask", "-1"), "--ask: -1 is not a whole number"),
    "by": (("--by", "luck"), "--by: unknown uncertainty 'luck'"),
    "itself": (("--out", "rows.jsonl"), "is the manifest itself"),
    "ending": (("--out", "labels.csv"), "labels.csv: unknown ending"),
    "folder": (("--out", "../elsewhere.jsonl"), "from which its rows name their files; choose"),
    "nowhere": (("--out", "none/x.jsonl"), "--out: there is no folder"),
    "both": (("--manifest", "x"), "--manifest: not with --label"),
    "more": (("--text", "red"), "--text: not with --label"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_labelled(case, workdir, manifest, capsys):
    more, message = BAD[case]
    given = [str(manifest.parent / v) if k == "--out" else v for k, v in zip(("", *more), more)]  # noqa: B905
    where = ["--workdir", str(workdir.path), "--label", str(manifest)]
    out = [] if "--out" in more else ["--out", str(manifest.with_name("x.jsonl"))]
    assert predict.main([*where, *out, *given]) == 2
    assert message in capsys.readouterr().err
    assert not manifest.with_name("x.jsonl").exists()


def test_options_of_labelling_alone(capsys):
    assert predict.main(["--workdir", "x", "--least", "0.5", "--text", "a"]) == 2
    assert "--least: belongs to --label MANIFEST" in capsys.readouterr().err
