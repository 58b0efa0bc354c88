"""What holds of every task of the table: a new one is tested by being listed.

One program per task gives all that is looked at; batches differ in their values only.
"""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtmm_jax import tasks
from mtmm_jax.heads.bound_module import row_of
from mtmm_jax.inference.answers import check_document, document
from mtmm_jax.tasks.task import Labels
from mtmm_jax.tasks.traits import arrays_of
from mtmm_jax.tasks.traits.explained import PROJECTION
from tests.made_up import packaged
from tests.tasks import examples
from tests.tasks.quantile import quantile

MADE_UP = {"quantile": quantile}  # that the package does not have
CASES = [*tasks.TASKS, *MADE_UP, *(f"head {name}" for name in examples.other_heads())]
EVERY = pytest.mark.parametrize("case", CASES)
ABSENT = (2, 5)


@pytest.fixture(scope="module", autouse=True)
def made_up():
    with pytest.MonkeyPatch.context() as patch:
        for name, entry in MADE_UP.items():
            patch.setitem(tasks.TASKS, name, entry)
        yield


def built(case):
    kind, _, head = case.partition(" ")
    return examples.build(None, head) if head else examples.build(kind)


def task_of(case):
    model, name = built(case)
    return model.tasks[name]


def _real(x):
    return jnp.issubdtype(x.dtype, jnp.floating)


def _later(prediction):
    """Whether the head computes on in the loss, from features of its own precision."""
    return isinstance(prediction, dict) and "method" in prediction


@functools.cache
def _program(case):
    """`(variables, batch) -> everything`, compiled."""
    model, name = built(case)
    task = model.tasks[name]

    def measure(params, rest, batch):
        predictions, _ = model({**rest, "params": params}, batch["inputs"])
        prediction, labels = predictions[name], task.labels(batch, model.present(batch))
        total, count = task.loss(prediction, labels, None)
        return total, (count, prediction, (labels.y, labels.weight, labels.id))

    def run(variables, batch):
        rest = {key: tree for key, tree in variables.items() if key != "params"}
        both = jax.value_and_grad(measure, has_aux=True)(variables["params"], rest, batch)
        (total, (count, prediction, given)), gradient = both
        labels = Labels(*given)
        half = lambda x: x.astype(jnp.bfloat16) if _real(x) else x  # noqa: E731
        rough = prediction if _later(prediction) else jax.tree.map(half, prediction)
        rows = labels.weight.shape[0]
        trivial = jax.tree.map(lambda x: jnp.broadcast_to(x, (rows, *np.shape(x))), task.trivial)
        return {
            "loss": (total, count),
            "gradient": gradient,
            "prediction": prediction,
            "weight": labels.weight,
            "states": {key: m.update(prediction, labels) for key, m in task.metrics.items()},
            "trivial": {key: m.update(trivial, labels) for key, m in task.metrics.items()},
            "bf16": task.loss(rough, labels, None)[0],
            "outputs": task.outputs(prediction),
        }

    return jax.jit(run)


def measured(case, batch):
    return jax.device_get(_program(case)(_variables(case), batch))


@functools.cache
def _variables(case):
    return examples.variables(built(case)[0])


@functools.cache
def base(case):
    return measured(case, examples.batch(absent=ABSENT))


def computed(case, states):
    found = {}
    for key, metric in task_of(case).metrics.items():
        found |= metric.compute(states[key])
    return found


def _only(rows):
    batch = examples.batch(absent=ABSENT)
    return {**batch, "weight": np.isin(np.arange(examples.ROWS), rows).astype(np.float32)}


def _close(one, other, rtol=1e-4, atol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), one, other)


@EVERY
def test_something_counts_and_what_is_absent_does_not(case):
    found = base(case)
    total, count = found["loss"]
    assert np.isfinite(total)
    assert 0 < count <= examples.ROWS - len(ABSENT)
    assert not found["weight"][list(ABSENT)].any()


@EVERY
def test_fillers_reach_nothing(case):
    other = measured(case, examples.batch(filler=7.0, absent=ABSENT))
    for key in ("loss", "gradient"):
        _close(base(case)[key], other[key], rtol=1e-6, atol=1e-7)
    assert computed(case, base(case)["states"]) == pytest.approx(
        computed(case, other["states"]), nan_ok=True
    )


@EVERY
def test_an_absent_row_is_one_of_no_weight(case):
    batch = examples.batch(absent=(*ABSENT, 6))
    whole = examples.batch(absent=ABSENT)
    weighed = {**whole, "weight": (np.arange(examples.ROWS) != 6).astype(np.float32)}
    one, other = measured(case, batch), measured(case, weighed)
    _close(one["loss"], other["loss"])
    assert computed(case, one["states"]) == pytest.approx(
        computed(case, other["states"]), rel=1e-4, nan_ok=True
    )


@EVERY
def test_the_order_of_rows_does_not_matter(case):
    order = np.random.default_rng(0).permutation(examples.ROWS)
    mixed = measured(case, jax.tree.map(lambda x: x[order], examples.batch(absent=ABSENT)))
    _close(base(case)["loss"], mixed["loss"])
    assert computed(case, base(case)["states"]) == pytest.approx(
        computed(case, mixed["states"]), rel=1e-4, nan_ok=True
    )


@EVERY
def test_parts_merge_into_the_whole(case):
    task = task_of(case)
    parts = [measured(case, _only(rows)) for rows in (range(4), range(4, examples.ROWS))]
    total, count = (sum(values) for values in zip(*(p["loss"] for p in parts), strict=True))
    assert count == base(case)["loss"][1]
    if not task.traits.compares_rows:
        np.testing.assert_allclose(total, base(case)["loss"][0], rtol=1e-4)
    merged = {
        key: metric.merge(*(part["states"][key] for part in parts))
        for key, metric in task.metrics.items()
    }
    assert computed(case, merged) == pytest.approx(
        computed(case, base(case)["states"]), rel=1e-4, nan_ok=True
    )


@EVERY
def test_every_parameter_of_the_head_has_a_finite_gradient(case):
    _, name = built(case)
    heads = base(case)["gradient"]["heads"][name]
    for leaf in jax.tree.leaves(base(case)["gradient"]):
        assert np.isfinite(leaf).all()
    moved = [bool(np.any(leaf)) for leaf in jax.tree.leaves(heads)]
    assert any(moved)
    still = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(heads)
        if not np.any(leaf)
    ]
    assert still == STILL.get(case, [])


STILL = {}  # case -> parameters that this batch gives no gradient, by design


@EVERY
def test_without_a_label_nothing_counts_and_metrics_are_not_numbers(case):
    found = measured(case, _only(()))
    assert found["loss"] == (0.0, 0.0)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(found["gradient"]))
    assert all(math.isnan(value) for value in computed(case, found["states"]).values())


@EVERY
def test_predictions_of_half_precision_have_a_finite_loss(case):
    if _later(base(case)["prediction"]):
        pytest.skip("its loss reads features and parameters, which nobody rounds")
    exact, rough = base(case)["loss"][0], base(case)["bf16"]
    assert rough.dtype == np.float32
    np.testing.assert_allclose(rough, exact, rtol=0.1, atol=0.1)


@EVERY
def test_metrics_and_answers_are_json(case):
    task, found = task_of(case), base(case)
    values = computed(case, found["states"])
    assert {task.headline, *task.smaller, *task.secondary} <= set(values)
    assert all(type(value) is float and math.isfinite(value) for value in values.values())
    for prediction in (*(row_of(found["prediction"], i) for i in range(2)), task.trivial):
        decoded = task.decode(prediction)
        wave = decoded.pop("wave", None)  # the only one that is a file in the end
        assert wave is None or np.isfinite(wave).all()
        assert decoded or wave is not None
        json.dumps(decoded, allow_nan=False)


@EVERY
def test_every_metric_has_an_interval_around_it_or_a_reason(case):
    task, found = task_of(case), base(case)
    nothing = measured(case, _only(()))["states"]
    for key, metric in task.metrics.items():
        if metric.intervals is None:
            continue
        values, known = metric.compute(found["states"][key]), metric.intervals(found["states"][key])
        assert set(known) == set(values)
        for name, one in known.items():
            if isinstance(one, str):
                assert " " in one
                continue
            assert np.isfinite(one[:2]).all()
            assert one.low <= one.high
            if one.method != "bootstrap":  # whose percentiles follow a metric's bias, of six rows
                assert one.low - 1e-5 <= values[name] <= one.high + 1e-5
        empty = metric.intervals(nothing[key])
        assert set(empty) == set(values)
        assert all(isinstance(one, str) for one in empty.values())


WITHOUT = ("adversarial", "detection", "reconstruction", "segmentation")


def test_headlines_have_intervals_but_for_those_of_pixels_boxes_and_values():
    for kind in packaged(tasks.TASKS).keys() - MADE_UP.keys():
        task, states = task_of(kind), base(kind)["states"]
        known = {}
        for key, metric in task.metrics.items():
            known |= metric.intervals(states[key]) if metric.intervals is not None else {}
        assert isinstance(known.get(task.headline, ""), str) == (kind in WITHOUT), kind


@EVERY
def test_the_trivial_prediction_is_scored(case):
    task, found = task_of(case), computed(case, base(case)["trivial"])
    assert math.isfinite(found[task.headline])
    assert set(found) == set(computed(case, base(case)["states"]))


@EVERY
def test_outputs_are_rows_and_agree_with_answers_and_labels(case):
    task, found = task_of(case), base(case)
    outputs = found["outputs"]
    assert outputs
    for value in outputs.values():
        assert value.shape[0] == examples.ROWS
        assert np.isfinite(value).all()
    for i in range(3):
        row = {key: value[i] for key, value in outputs.items()}
        decoded = task.decode(row_of(found["prediction"], i))
        said = decoded.get("prediction")
        if isinstance(said, float):
            numbers = np.concatenate([np.ravel(x).astype(np.float64) for x in row.values()])
            assert np.isclose(numbers, said, rtol=1e-4).any()
        if "best" in decoded and np.ndim(row.get("probability", 0.0)) == 1:
            for value in decoded["best"].values():
                assert np.isclose(row["probability"], value, rtol=1e-4, atol=1e-6).any()
        if task.labelling is not None:
            label, confidence = task.labelling.label(row)
            if isinstance(said, float):
                assert label == pytest.approx(said, rel=1e-4)
            else:
                assert sorted(label) == sorted(said)
            assert confidence is None or 0 <= confidence <= 1


@EVERY
def test_outputs_restore_a_prediction_of_the_same_metrics(case):
    task, found = task_of(case), base(case)
    if task.restore is None:
        pytest.skip("its outputs do not hold all that its metrics read")
    batch = examples.batch(absent=ABSENT)
    model, _ = built(case)

    @jax.jit
    def update(prediction, batch):
        labels = task.labels(batch, model.present(batch))
        return {key: metric.update(prediction, labels) for key, metric in task.metrics.items()}

    states = jax.device_get(update(task.restore(found["outputs"]), batch))
    expected = computed(case, found["states"])
    assert computed(case, states) == pytest.approx(expected, rel=1e-3, nan_ok=True)


@EVERY
def test_outputs_are_answered_as_the_prediction_is_decoded(case):
    """What an exported file says is what the run says; all kinds of the package can."""
    task, found = task_of(case), base(case)
    for i in range(3):
        said = task.answer({key: value[i] for key, value in found["outputs"].items()})
        if said is None:
            assert case not in packaged(tasks.TASKS) or case in MADE_UP
            return
        expected = task.decode(row_of(found["prediction"], i))
        _alike(said, expected)
        for one in (said, expected):
            one.pop("wave", None)
            one.pop("rate", None)
        check_document(document({"t": expected}))


def _alike(one, other):
    if isinstance(other, dict):
        assert one.keys() == other.keys()
        for key in other:
            _alike(one[key], other[key])
    elif isinstance(other, str):
        assert one == other
    elif isinstance(other, list) and np.asarray(other).dtype != np.float64:
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            _alike(a, b)
    else:
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=2e-4)


@EVERY
def test_what_the_report_draws_and_what_is_looked_up_are_rows_of_the_split(case):
    task, states = task_of(case), base(case)["states"]
    drawn = {key: np.asarray(x) for key, x in task.drawing(states, 3).items()}
    for key, array in drawn.items():
        sort, _, name = key.partition("/")
        if sort == "confusion":
            assert array.shape[0] == array.shape[1]
            assert array.sum() > 0
        elif sort == "calibration":
            assert array.shape[1] == 3
            assert array[:, 0].sum() > 0
        elif sort == "points":
            assert array.shape == (examples.ROWS - len(ABSENT), 2)
        else:
            assert sort in ("query", "answer")
            assert len(array) == len(drawn[f"query/{name}"]) == 3
            assert set(array.flat) <= set(range(examples.ROWS)) - set(ABSENT)
    if "confusion" in task.metrics:
        assert "confusion" in drawn
    if task.space is None:
        return
    vectors = task.space.vectors(base(case)["prediction"])
    for read, (candidates, ids) in task.space.gallery([states, states]).items():
        assert ids.tolist() == [i for i in range(examples.ROWS) if i not in ABSENT]
        np.testing.assert_allclose(candidates, vectors[read][ids], rtol=1e-5)


@EVERY
def test_what_a_task_has_by_default_takes_any_prediction(case):
    """Its outputs are rows, and the scalar of its explanation is the length of the prediction."""

    @jax.jit
    def default(prediction):
        answer = PROJECTION.answer(prediction)
        return arrays_of(prediction), PROJECTION.value(prediction, answer)

    arrays, values = jax.device_get(default(base(case)["prediction"]))
    assert arrays
    assert all(x.shape[0] == examples.ROWS for x in arrays.values())
    rows = [x.reshape(examples.ROWS, -1) for x in arrays.values() if x.dtype == np.float32]
    expected = np.linalg.norm(np.concatenate(rows, axis=1).astype(np.float64), axis=1)
    np.testing.assert_allclose(values, expected, rtol=1e-4)


# Some of them: the same Python is traced, and each eager operation is a program.
@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("head ")][::4])
def test_eager_is_jitted(case):
    """The loss and the outputs; not the model, which takes a minute op by op."""
    model, _ = built(case)
    task, found, batch = task_of(case), base(case), examples.batch(absent=ABSENT)
    with jax.disable_jit():
        labels = task.labels(batch, model.present(batch))
        total = task.loss(found["prediction"], labels, None)
        outputs = task.outputs(found["prediction"])
    _close(total, found["loss"])
    _close(outputs, found["outputs"])
