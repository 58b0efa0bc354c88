"""The best and worst rows of a pass, against a sorted list of the losses."""

import dataclasses

import jax
import numpy as np
import pytest

from mtmm_jax.evaluation import extremes
from mtmm_jax.tasks.task import Labels
from tests.tasks import examples


@pytest.fixture(scope="module")
def found():
    """A classification's logits of 40 rows, in batches of 10, and the merged state."""
    model, name = examples.build("classification")
    task = model.tasks[name]
    rng = np.random.default_rng(0)
    classes = np.shape(task.trivial)[0]
    logits = rng.normal(0, 2, (40, classes)).astype(np.float32)
    logits[7] = np.nan
    y = rng.integers(0, classes, 40).astype(np.int32)
    weight = np.ones(40, np.float32)
    weight[[2, 3, 4, 5, 11]] = 0
    ids = rng.permutation(1000)[:40].astype(np.int32)
    program = jax.jit(lambda z, y, w, i: extremes.extremes(task, z, Labels(y, w, i)))
    states = [
        jax.device_get(program(logits[s], y[s], weight[s], ids[s]))
        for s in (slice(i, i + 10) for i in range(0, 40, 10))
    ]
    merged = states[0]
    for state in states[1:]:
        merged = extremes.merge(merged, state)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    loss = -log_p[np.arange(40), y]
    loss[7] = np.inf
    return merged, loss, weight, ids, y, logits


@pytest.mark.parametrize(("end", "sign"), [("worst", -1), ("best", 1)])
def test_rows_are_those_of_a_sorted_list(found, end, sign):
    merged, loss, weight, ids, y, logits = found
    order = [i for i in np.argsort(sign * loss, kind="stable") if weight[i] > 0][: extremes.SHOWN]
    np.testing.assert_array_equal(merged[end]["id"], ids[order])
    np.testing.assert_array_equal(merged[end]["y"], y[order])
    np.testing.assert_array_equal(merged[end]["prediction"], logits[order])


def test_a_split_without_labels_has_no_rows(found):
    merged = found[0]
    nothing = jax.tree.map(np.copy, merged)
    for end in nothing.values():
        end["id"][:] = -1
    both = extremes.merge(nothing, nothing)
    assert all((both[end]["id"] == -1).all() for end in both)
    np.testing.assert_array_equal(
        extremes.merge(nothing, merged)["worst"]["id"], merged["worst"]["id"]
    )


@dataclasses.dataclass
class _Rows:
    """Three rows whose ids are not their numbers."""

    rows: dict

    def compose(self, rows, chance):
        del chance
        return {"id": np.asarray(rows) * 10, "x": np.asarray(rows, np.float32)}

    def batches(self, split, size):
        for start in range(0, len(self.rows[split]), size):
            yield self.compose(self.rows[split][start : start + size], None)


def test_inputs_are_found_by_id():
    source = _Rows({"test": np.array([1, 2, 10])})
    found = extremes.inputs_of(source, "test", {10, 100}, 2)
    assert {i: float(batch["x"][0]) for i, batch in found.items()} == {10: 1.0, 100: 10.0}
