"""A run that diverges keeps the batches, says why, and ends; a full disk or a broken checkpoint is
one line."""

import dataclasses
import errno
import json
import os
import re
import shutil
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from mtmm_jax import data, training
from mtmm_jax.benchmarks.reliability import crash_recovery
from mtmm_jax.benchmarks.speed import overhead
from mtmm_jax.data.sources.generator import generator
from mtmm_jax.registry import ConfigError
from mtmm_jax.store import config as configs
from mtmm_jax.store import workdir
from mtmm_jax.store.checkpoints import Checkpoints
from mtmm_jax.store.workdir import Workdir
from mtmm_jax.training.faults import Diverged, Faults, diverged, replay
from mtmm_jax.training.logs import Journal
from mtmm_jax.training.loop import train
from tests.data import small
from tests.training import small_run

CONFIG = {
    "seed": 0,
    "steps": 12,
    "batch_size": 8,
    "devices": 1,
    "data": "poisoned",
    "model": {
        "width": 8,
        "encoders": {"m1": "table_mlp"},
        "fusion": "concat",
        "sharing": "hard",
    },
    "tasks": {"task_1": {"kind": "regression"}, "task_2": {"kind": "regression"}},
    "balancing": "equal",
    "optimizer": {"kind": "sgd", "learning_rate": 0.05, "momentum": 0.9},
    "checkpoint": {"every": 2, "keep": 2, "best": "mean"},
    "evaluation": {"every": 100, "batch_size": 16, "log_every": 4, "baselines": False},
}


def _source(steps, poison):
    """The generator with something wrong in the batches of these steps, of the first epoch."""
    clean = dataclasses.replace(generator(size=(160, 16, 16)), workers=0)
    batches = clean.train(8, seed=0)
    ids = [next(batches)["id"] for _ in range(20)]
    bad = np.concatenate([ids[step - 1] for step in steps])

    def compose(rows, chance):
        batch = clean.compose(rows, chance)
        for key, name in poison:
            entry = batch[key][name]
            what = "x" if key == "inputs" else "y"
            hit = np.isin(batch["id"], bad).reshape(-1, *[1] * (entry[what].ndim - 1))
            entry[what] = np.where(hit, np.float32(np.nan), entry[what])
        return batch

    return dataclasses.replace(clean, compose=compose)


def _run(path, monkeypatch, bad, poison, **changes):
    monkeypatch.setitem(data.SOURCES, "poisoned", lambda: _source(bad, poison))
    experiment = training.assemble({**CONFIG, **changes})
    folder = Workdir(path)
    folder.claim(experiment.config, experiment.source.spec, {})
    checkpoints = Checkpoints(folder.checkpoints, experiment.config["checkpoint"]["keep"])
    try:
        train(experiment, folder, checkpoints, Console(quiet=True))
    finally:
        checkpoints.close()
    return experiment


LABEL, INPUT = [("targets", "task_2")], [("inputs", "m1")]


def _records(path):
    lines = (path / "metrics.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if r["split"] == "train"]


def test_a_task_that_diverges_is_kept_and_replays_to_the_same_losses(tmp_path, monkeypatch):
    _run(
        tmp_path, monkeypatch, (6,), LABEL, steps=8, checkpoint={**CONFIG["checkpoint"], "keep": 4}
    )
    assert [p.name for p in (tmp_path / "diverged").iterdir()] == ["step-6.npz"]
    counts = [r["diverged"] for r in _records(tmp_path)]
    assert counts == [{"task_1": 0, "task_2": n} for n in (0, 1)]
    for start in (4, 0):
        again = replay(tmp_path, 6)
        assert again.start == start
        assert again.tasks == ("task_2",)
        assert np.isnan(again.batch["targets"]["task_2"]["y"]).all()
        assert np.isfinite(again.recorded["task_1"])
        np.testing.assert_equal(again.losses, again.recorded)
        for step in (2, 4):
            shutil.rmtree(tmp_path / "checkpoints" / str(step), ignore_errors=True)
    with pytest.raises(ConfigError, match="no batch of step 7 in .*; there: 6"):
        replay(tmp_path, 7)


@pytest.mark.usefixtures("uncached")
@pytest.mark.parametrize(("devices", "poison"), [(1, INPUT), (2, LABEL)])
def test_a_run_that_learns_nothing_any_more_ends_and_says_where(
    tmp_path, monkeypatch, devices, poison
):
    """From step 6 on nothing is finite: six steps over three log intervals, a checkpoint inside."""
    tasks = {"task_2": CONFIG["tasks"]["task_2"]} if poison is LABEL else CONFIG["tasks"]
    changes = {"devices": devices, "tasks": tasks, "abort_after": 5, "dumps": 1}
    with pytest.raises(Diverged) as caught:
        _run(tmp_path, monkeypatch, range(7, 21), poison, steps=20, **changes)
    said = str(caught.value)
    assert "5 steps in a row, 7 to 11, learned nothing: not finite: " + ", ".join(tasks) in said
    assert f"{tmp_path / 'diverged' / 'step-7.npz'}" in said
    assert f"go back to checkpoint 10 (there: 8, 10) in {tmp_path / 'checkpoints'}" in said
    assert _records(tmp_path)[-1]["step"] == 12
    if poison is INPUT:  # skipped: what is saved on the way is what was there before
        steps = [r["skipped"] for r in _records(tmp_path)]
        assert steps == [0, 2, 4]
        again = replay(tmp_path, 7)
        assert again.metrics["skipped"]
        np.testing.assert_equal(again.losses, again.recorded)


def _metrics_of(step, lost, names=2):
    losses = np.full(names, np.nan if lost else 1.0, np.float32)
    return {"losses": losses, "present": np.isfinite(losses), "skipped": np.False_, "step": step}


def _watcher(tmp_path, monkeypatch, **changes):
    monkeypatch.setitem(data.SOURCES, "poisoned", lambda: _source((1,), ()))
    experiment = training.assemble({**CONFIG, **changes})
    checkpoints = Checkpoints(tmp_path / "checkpoints", 1)
    iterator = experiment.source.train(8, seed=0)
    return Faults(experiment, Workdir(tmp_path), checkpoints, iterator.get_state())


@pytest.mark.parametrize("interval", [1, 3, 7])
def test_lost_steps_are_counted_over_log_intervals(tmp_path, monkeypatch, interval):
    lost = [True, True, True, False, True, True, True, True, True, True, True]
    metrics = [_metrics_of(i + 1, bad) for i, bad in enumerate(lost)]
    watcher = _watcher(tmp_path, monkeypatch, abort_after=5, dumps=2)
    with pytest.raises(Diverged, match="5 steps in a row, 5 to 9, .*no checkpoint is there"):
        for start in range(0, len(metrics), interval):
            part = metrics[start : start + interval]
            watcher.look(start + len(part), part)
    # Two that came first, and that with which the last row began.
    kept = sorted(p.name for p in (tmp_path / "diverged").iterdir())
    assert kept == ["step-1.npz", "step-2.npz", "step-5.npz"]


def test_a_run_may_be_set_never_to_end_and_to_keep_nothing(tmp_path, monkeypatch):
    watcher = _watcher(tmp_path, monkeypatch, abort_after=None, dumps=0)
    assert watcher.look(200, [_metrics_of(i, True) for i in range(1, 201)]) == []
    assert not (tmp_path / "diverged").exists()


def test_absent_is_not_diverged():
    losses = np.array([0.0, np.nan, 2.0, 3.0, np.inf], np.float32)
    present = np.array([False, False, False, True, True])
    found = diverged({"losses": losses, "present": present})
    assert found.tolist() == [False, True, True, False, True]


def test_batches_are_found_again_after_the_shares_of_the_data_changed(tmp_path, monkeypatch):
    for name in ("left", "right"):
        monkeypatch.setitem(data.SOURCES, name, lambda name=name: small.source(name))
    mixing = {"kind": "performance", "per": "step"}
    mixed = {"kind": "mixture", "sources": {"left": "left", "right": "right"}, "mixing": mixing}
    config = {**small_run.get_config().to_dict(), "devices": 1, "data": mixed}
    experiment = training.assemble(config)
    iterator = experiment.source.train(8, seed=0)
    watcher = Faults(experiment, Workdir(tmp_path), None, iterator.get_state())
    seen = []
    for scores in ([0.9, 0.1], [0.1, 0.9], None):
        seen += [next(iterator) for _ in range(4)]
        if scores:
            iterator.observe(np.array(scores))
            watcher.remixed(iterator.get_state())
    for step, batch in enumerate(seen, 1):
        jax.tree.map(np.testing.assert_array_equal, watcher.batch(step), batch)


# Disks and checkpoints.


@flax.struct.dataclass
class _State:
    step: Any
    params: Any


def _state(step, **params):
    return _State(jnp.int32(step), {name: jnp.full(size, 1.5) for name, size in params.items()})


def _three(folder):
    checkpoints = Checkpoints(folder, 3)
    for step in (1, 2, 3):
        checkpoints.save(_state(step, w=4, b=2), None, {"step": step})
    checkpoints.close()
    return folder


DAMAGES = {
    "emptied": lambda path: path.write_bytes(b""),
    "garbled": lambda path: path.write_bytes(b"x" * path.stat().st_size),
    "removed": lambda path: path.unlink(),
    "without its metadata": lambda path: path.name != "_CHECKPOINT_METADATA" or path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_one_line_that_offers_the_older_ones(tmp_path, damage):
    folder = _three(tmp_path / "checkpoints")
    for path in [p for p in (folder / "3").rglob("*") if p.is_file()]:
        DAMAGES[damage](path)
    checkpoints = Checkpoints(folder, 3)
    assert checkpoints.latest() == 3
    with pytest.raises(ConfigError) as caught:
        checkpoints.restore(3, _state(0, w=4, b=2))
    said = str(caught.value)
    assert re.search(r"checkpoint 3 in .* cannot be read: it is damaged \(", said)
    assert said.endswith(f"remove {folder / '3'} to resume without it; others: [1, 2]")
    assert "\n" not in said
    shutil.rmtree(folder / "3")
    again = Checkpoints(folder, 3)
    assert again.latest() == 2
    state, iterator = again.restore(2, _state(0, w=4, b=2))
    assert (int(state.step), iterator) == (2, {"step": 2})


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"w": 5, "b": 2}, r"another model: params/w is \(4,\) there, \(5,\) here;"),
        ({"w": 4, "b": 2, "c": 1}, r"another model: params/c is missing there, \(1,\) here;"),
        ({"b": 2}, r"another model: params/w is \(4,\) there, missing here;"),
        ({"x": 4, "y": 2}, r"params/x is missing there, \(4,\) here and 3 more differ;"),
    ],
)
def test_a_checkpoint_of_another_model_says_what_differs(tmp_path, wanted, message):
    checkpoints = Checkpoints(_three(tmp_path / "checkpoints"), 3)
    with pytest.raises(ConfigError, match=f"{message} .*others: \\[1, 2\\]"):
        checkpoints.restore(3, _state(0, **wanted))
    with pytest.raises(ConfigError, match="no such step; remove .*: \\[1, 2, 3\\]"):
        checkpoints.restore(4, _state(0, w=4, b=2))


class _Full:
    """A checkpointer on a full disk, at once or in the background."""

    def __init__(self, error, when):
        self.error, self.when, self.latest = error, when, None

    def save_checkpointables_async(self, *args, **kwargs):
        if self.when == "save":
            raise self.error

    def wait(self):
        if self.when == "wait":
            raise self.error


FULL = {
    "system": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "tensorstore": ValueError("RESOURCE_EXHAUSTED: Failed to write [os_error_code='28']"),
}


@pytest.mark.parametrize("when", ["save", "wait"])
@pytest.mark.parametrize("error", FULL)
def test_a_full_disk_is_one_line_that_says_where_the_run_goes_on(
    tmp_path, monkeypatch, error, when
):
    folder = _three(tmp_path / "checkpoints")
    checkpoints = Checkpoints(folder, 3)
    monkeypatch.setattr(checkpoints, "_orbax", _Full(FULL[error], when))
    with pytest.raises(ConfigError, match="No space left on device. Make room, .* from step 3"):
        checkpoints.save(_state(4, w=4, b=2), None, {"step": 4})
        checkpoints.wait()
    for other in (OSError(errno.EINVAL, "broken"), ValueError("a mistake")):
        monkeypatch.setattr(checkpoints, "_orbax", _Full(other, when))
        with pytest.raises(type(other), match="broken|a mistake"):
            checkpoints.save(_state(4, w=4, b=2), None, {"step": 4})
            checkpoints.wait()


def test_a_full_disk_under_the_journal_ends_the_run_in_one_line(tmp_path, monkeypatch):
    def full(self, *args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Journal, "write", full)
    with pytest.raises(ConfigError, match=f"cannot write to {tmp_path}: No space left.*resumes"):
        _run(tmp_path, monkeypatch, (1,), (), steps=4)


def test_a_file_that_is_not_written_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(number):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    workdir.write(tmp_path / "a", b"old")
    monkeypatch.setattr(workdir.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        workdir.write(tmp_path / "a", b"new")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a", b"old")]


def test_the_limits_are_checked_and_may_change_while_a_run_goes_on(tmp_path):
    for key, value in (("abort_after", 0), ("abort_after", "x"), ("dumps", -1), ("dumps", None)):
        with pytest.raises(ConfigError, match=f"config.{key}: {value!r} is not a whole number"):
            training.check_config({**CONFIG, key: value})
    config = configs.apply_overrides(training.load("emoji"), ["--config.abort_after=None"])
    training.check_config(config)
    folder, spec = Workdir(tmp_path / "run"), small.source("right").spec
    assert not folder.claim(CONFIG, spec, {})
    assert folder.claim({**CONFIG, "abort_after": None, "dumps": 9}, spec, {})
    with pytest.raises(ConfigError, match="holds the run of another config: seed: 0 -> 1"):
        folder.claim({**CONFIG, "seed": 1}, spec, {})


# The benchmarks' own arithmetic.


@pytest.mark.parametrize(
    ("before", "now", "resumed", "lost"),
    [
        ([], [5], 0, []),
        ([5, 10], [5, 10], 10, []),
        ([5, 10], [10, 15], 10, []),  # 5 made room
        ([5, 10], [15], 10, [5, 10]),  # and here too early
        ([5, 10], [5, 10], 5, [10]),  # there, and not found
        ([5, 10], [15, 20], 10, []),
    ],
)
def test_a_checkpoint_is_lost_unless_later_ones_took_its_place(before, now, resumed, lost):
    assert crash_recovery.KEEP == 2
    assert crash_recovery.lost(before, now, resumed) == lost


def test_the_bare_loop_runs_in_turns_with_the_loop(monkeypatch):
    clock = iter(float(2**i) for i in range(100))
    monkeypatch.setattr(overhead.time, "perf_counter", lambda: next(clock))
    bare = []
    turns = overhead.Turns(small.source("right"), ["a", "b", "c"], lambda: bare.append(1))
    iterator = iter(turns.train(8))
    given = [next(iterator) for _ in range(2 * overhead.WINDOW + 1)]
    assert set(given) == {"a", "b", "c"}
    assert len(bare) == 3
    # The clock is read at: start 1, bare until 2; loop until 4, bare from 8 to 16; until 32, ...
    window = overhead.WINDOW
    assert turns.loop == [(4 - 2) / window, (32 - 16) / window]
    assert turns.alone == [(2 - 1) / window, (16 - 8) / window, (128 - 64) / window]
