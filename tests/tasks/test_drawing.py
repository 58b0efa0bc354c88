"""What tasks keep for the report's pictures: bins of confidences, labels and predictions."""

import jax
import numpy as np
import pytest

from mtmm_jax.tasks.metrics import monoids
from mtmm_jax.tasks.task import Labels
from tests.tasks import examples


def _states(task, batches):
    """The metric states of several batches of (prediction, y, weight), merged."""
    merged = None
    for prediction, y, weight in batches:
        labels = Labels(y, weight)
        state = {
            key: jax.tree.map(np.asarray, metric.update(prediction, labels))
            for key, metric in task.metrics.items()
        }
        merged = (
            state
            if merged is None
            else {key: task.metrics[key].merge(merged[key], state[key]) for key in state}
        )
    return merged


def test_points_are_labels_and_predictions_of_the_rows_that_count():
    model, name = examples.build("regression")
    task = model.tasks[name]
    target = model.spec.targets[task.target]
    rng = np.random.default_rng(0)
    z = rng.normal(size=(6, np.shape(task.trivial)[0])).astype(np.float32)
    y = rng.normal(5, 2, 6).astype(np.float32)
    y[1:3] = 7.0, np.nan  # fillers
    weight = np.array([1, 0, 0, 1, 1, 1], np.float32)
    states = _states(task, [(z[:3], y[:3], weight[:3]), (z[3:], y[3:], weight[3:])])
    kept = weight > 0
    wanted = np.stack([y, z[:, 0] * target.std + target.mean], 1)[kept]
    np.testing.assert_allclose(task.drawing(states, 3)["points"], wanted, rtol=1e-6)


def test_points_of_a_large_split_are_some_of_it():
    metric = monoids.points(0.0, 1.0)
    size = monoids.DRAWN - 100
    half = {key: np.ones(size, np.float32) for key in ("true", "predicted")}
    assert len(metric.merge(half, half)["true"]) == monoids.DRAWN


@pytest.mark.parametrize("kind", ["classification"])
def test_bins_hold_every_row_that_counts(kind):
    model, name = examples.build(kind)
    task = model.tasks[name]
    classes = np.shape(task.trivial)[0]
    rng = np.random.default_rng(0)
    z = rng.normal(size=(9, classes)).astype(np.float32)
    y = rng.integers(0, classes, 9).astype(np.int32)
    weight = np.ones(9, np.float32)
    weight[4] = 0
    bins = task.drawing(_states(task, [(z, y, weight)]), 3)["calibration"]
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    assert bins[:, 0].sum() == 8
    assert bins[:, 1].sum() == pytest.approx(p.max(1)[weight > 0].sum(), rel=1e-5)
    assert bins[:, 2].sum() == (p.argmax(1) == y)[weight > 0].sum()
