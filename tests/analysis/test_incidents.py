"""What a run went through without ending is named in its report."""

from types import SimpleNamespace

from mtmm_jax.analysis.incidents import incidents
from mtmm_jax.batch import Spec, Target

SPEC = Spec(
    {},
    {
        "kind": Target("class", classes=("a", "b<", "c"), frequencies=(0.5, 0.5, 0.0)),
        "size": Target("number"),
    },
)
TASKS = {"kind": SimpleNamespace(target="kind"), "size": SimpleNamespace(target="size")}


def _record(step, size, skipped=0, diverged=0):
    loss = {"kind": 1.0, "size": size}
    bad = {"kind": 0, "size": diverged}
    return {"split": "train", "step": step, "loss": loss, "skipped": skipped, "diverged": bad}


def test_a_quiet_run_has_no_incidents():
    spec = Spec({}, {"size": Target("number")})
    fine = {"test": {"size": {"mae": 1.0}}}
    assert incidents([_record(1, 2.0)], fine, spec, {"size": TASKS["size"]}) == []


def test_losses_that_are_not_finite_labels_that_are_missing_and_empty_classes_are_named():
    nan = float("nan")
    results = {"test": {"kind": {"accuracy": 0.5}, "size": {"mae": None, "r2": None}}}
    found = incidents([_record(1, nan, 1, 1), _record(2, nan, 2, 1)], results, SPEC, TASKS)
    assert found == [
        "3 updates were not finite and were skipped",
        "kind: no row to train on has c",
        "size: loss or gradient was not finite in 2 steps",
        "size: not known on the test split: mae, r2",
    ]
    found = incidents([_record(1, nan), _record(2, nan)], results, SPEC, TASKS)
    assert "size: no step had a label" in found


def test_a_modality_that_only_test_rows_have_is_named():
    present = {
        "train": {"sound": 0.0, "image": 0.5, "depth": 0.0},
        "test": {"sound": 0.4, "image": 1.0, "depth": 0.0},
    }
    found = incidents([], {"test": {}}, Spec({}, {}), {}, present)
    assert found == [
        "sound: none of the training rows looked at has it, 40% of the test rows do; the model has "
        "hardly learned to read it"
    ]
