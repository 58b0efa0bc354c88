"""What a run writes down about its tasks' gradients: means over the steps that a task is in."""

import jax
import numpy as np
import pytest

from mtmm_jax import balancing
from mtmm_jax.training import logs
from mtmm_jax.training.loop import _diagnostics

NAMES = ("a", "b", "c", "d")
# a and b are together twice; c meets the others once; d comes alone, and nobody else is there.
PRESENT = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 1]], bool)


def _steps():
    """The figures of three steps as the device returns them, and the gradients behind them."""
    rng = np.random.default_rng(0)
    gradients = rng.standard_normal((*PRESENT.shape, 5)).astype(np.float32) * PRESENT[:, :, None]
    diagnose = jax.jit(balancing.diagnose)
    figures = []
    for rows, here in zip(gradients, PRESENT, strict=True):
        evidence = balancing.Evidence(np.ones(4, np.float32), here, rows @ rows.T)
        figures.append(jax.device_get(diagnose(evidence, np.ones(4, np.float32), np.False_)))
    return figures, gradients.astype(np.float64)


def _cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def test_means_are_over_the_steps_in_which_the_tasks_are_present():
    figures, gradients = _steps()
    record = _diagnostics(NAMES, figures)
    for i, name in enumerate(NAMES):
        norms = [np.linalg.norm(gradients[s, i]) for s in np.flatnonzero(PRESENT[:, i])]
        np.testing.assert_allclose(record["gradient_norm"][name], np.mean(norms), rtol=1e-5)
    assert record["cosines"]["tasks"] == list(NAMES)
    mean = np.array(record["cosines"]["mean"])
    for i in range(4):
        for j in range(4):
            together = np.flatnonzero(PRESENT[:, i] & PRESENT[:, j])
            cosines = [_cosine(gradients[s, i], gradients[s, j]) for s in together]
            expected = np.mean(cosines) if cosines else np.nan
            np.testing.assert_allclose(mean[i, j], expected, atol=6e-4, err_msg=f"{i}, {j}")
    conflicts = [
        np.mean([g[i] @ g[j] < 0 for i, j in pairs])
        for g, pairs in ((gradients[0], [(0, 1), (0, 2), (1, 2)]), (gradients[1], [(0, 1)]))
    ]
    np.testing.assert_allclose(record["conflict_rate"], np.mean(conflicts), rtol=1e-6)


def test_figures_that_are_not_finite_do_not_count():
    figures, _ = _steps()
    broken = {**figures[1], "norms": np.full(4, np.nan), "cosines": np.full((4, 4), np.nan)}
    broken["conflict_rate"] = np.float32(0)
    np.testing.assert_equal(
        _diagnostics(NAMES, [figures[0], broken]), _diagnostics(NAMES, figures[:1])
    )


def test_methods_without_a_gramian_log_none_of_it():
    figures = [{"present": PRESENT[0], "weights": np.ones(4), "skipped": np.False_}]
    assert _diagnostics(NAMES, figures) == {}


@pytest.mark.parametrize("tasks", [3, 8, 9, 40])
def test_the_journal_has_the_matrix_and_tensorboard_the_pairs_of_few(tasks, tmp_path, monkeypatch):
    drawn = {}

    class Events:
        def __init__(self, *_, **__):
            self.close = lambda: None

        def add_scalar(self, tag, value, step):
            drawn[tag] = value, step

    monkeypatch.setattr(logs, "SummaryWriter", Events)
    names = [f"t{i}" for i in range(tasks)]
    rows = np.random.default_rng(0).uniform(-1, 1, (tasks, tasks)).round(3).tolist()
    rows[0][2] = float("nan")
    figures = {"conflict_rate": 0.5, "cosines": {"tasks": names, "mean": rows}}
    journal = logs.Journal(tmp_path / "metrics.jsonl", tmp_path / "events", 0)
    journal.write(7, "train", figures)
    journal.close()
    (record,) = logs.read_journal(tmp_path / "metrics.jsonl")
    np.testing.assert_equal(record, {"step": 7, "split": "train", **figures})
    assert (tmp_path / "metrics.jsonl").stat().st_size < 16_000
    assert drawn["train/conflict_rate"] == (0.5, 7)
    if tasks > 8:
        assert len(drawn) == 1
    else:
        assert len(drawn) == tasks * (tasks - 1) // 2  # one pair of them unknown, one scalar more
        assert drawn["train/cosines/t0/t1"] == (rows[0][1], 7)
        assert "train/cosines/t0/t2" not in drawn
