"""Early stopping: when it ends a run, what it keeps, and that a resumed run ends the same way."""

import dataclasses
import json
import math
import shutil

import jax
import numpy as np
import pytest
from rich.console import Console

from mtmm_jax import data, training
from mtmm_jax.data.sources.generator import generator
from mtmm_jax.evaluation import skill
from mtmm_jax.registry import ConfigError
from mtmm_jax.store.checkpoints import Checkpoints
from mtmm_jax.store.workdir import Workdir
from mtmm_jax.training import stopping
from mtmm_jax.training.loop import score, train
from mtmm_jax.training.results import course
from mtmm_jax.training.stopping import Progress, StoppingSettings
from tests import toy

CONFIG = {
    "seed": 0,
    "steps": 20,
    "batch_size": 8,
    "devices": 1,
    "data": "few_rows",
    "model": {
        "width": 8,
        "encoders": {"m1": "table_mlp"},
        "fusion": "concat",
        "sharing": "hard",
    },
    "tasks": {"task_1": {"kind": "regression"}, "task_2": {"kind": "regression"}},
    "balancing": "equal",
    # Far too fast: the score rises and falls.
    "optimizer": {"kind": "sgd", "learning_rate": 0.4, "momentum": 0.9},
    "checkpoint": {"every": 1, "keep": 30, "best": "skill"},
    "evaluation": {"every": 1, "batch_size": 16, "log_every": 4, "baselines": False},
    "stopping": {"patience": 3},
}


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    source = dataclasses.replace(generator(size=(64, 16, 16)), workers=0)
    monkeypatch.setitem(data.SOURCES, "few_rows", lambda: source)


def _run(path, **changes):
    """Trains; the experiment, its last step and checkpoint, and what the console showed."""
    experiment = training.assemble({**CONFIG, **changes})
    folder, console = Workdir(path), Console(record=True, quiet=False, width=200)
    folder.claim(experiment.config, experiment.source.spec, {})
    checkpoints = Checkpoints(folder.checkpoints, experiment.config["checkpoint"]["keep"])
    try:
        train(experiment, folder, checkpoints, console)
        last = checkpoints.latest()
        state, _ = checkpoints.restore(last, experiment.shapes)
        return last, state, checkpoints.best(), checkpoints.progress(last), console.export_text()
    finally:
        checkpoints.close()


def _validations(path):
    records = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
    return [r for r in records if r["split"] == "validation"]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "stopped"
    source = dataclasses.replace(generator(size=(64, 16, 16)), workers=0)
    data.SOURCES["few_rows"] = lambda: source
    yield path, _run(path)
    del data.SOURCES["few_rows"]


def test_training_ends_when_the_score_stands_still_and_says_so_in_one_line(stopped):
    path, (last, _, best, progress, text) = stopped
    assert best < last < CONFIG["steps"]
    assert last - best == CONFIG["stopping"]["patience"] == progress["stale"]
    assert progress["step"] == best
    assert progress["last"] == last
    assert [r["step"] for r in _validations(path)] == list(range(1, last + 1))
    line = (
        f"stopped at step {last} of 20: the validation score (skill) has not improved since "
        f"step {best}, in 3 evaluations"
    )
    assert text.splitlines().count(line) == 1


def test_results_say_where_training_stopped_and_which_step_counts(stopped):
    _, (last, _, best, progress, _) = stopped
    found = course(training.assemble(CONFIG), Progress.of(progress), best, last)
    assert found == {
        "steps": 20,
        "last_step": last,
        "stopped_early": True,
        "best_step": best,
        "score": "skill",
        "best_score": progress["best"],
        "improved_at": best,
        "evaluations_since": 3,
    }
    assert not course(training.assemble(CONFIG), Progress.of(progress), best, 20)["stopped_early"]


def test_the_same_command_again_trains_no_further(stopped):
    path, (last, *_) = stopped
    before = (path / "metrics.jsonl").read_bytes()
    assert _run(path)[0] == last
    assert (path / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("back", [1, 2])
def test_killed_and_resumed_ends_at_the_same_step_with_the_same_bits(stopped, tmp_path, back):
    path, (last, state, best, progress, _) = stopped
    copy = shutil.copytree(path, tmp_path / "copy")
    for step in range(last - back + 1, last + 1):
        shutil.rmtree(copy / "checkpoints" / str(step))
    again = _run(copy)
    assert again[0] == last
    assert again[2:4] == (best, progress)
    jax.tree.map(np.testing.assert_array_equal, again[1], state)
    assert [r["step"] for r in _validations(copy)] == list(range(1, last + 1))


def test_without_the_section_training_ends_at_its_last_step(stopped, tmp_path):
    _, (stopped_at, *_) = stopped
    last, _, _, progress, text = _run(tmp_path / "whole", stopping=None, steps=stopped_at + 1)
    assert last == progress["last"] == stopped_at + 1
    assert "stopped at" not in text


def test_evaluations_before_pruning_is_through_do_not_count(tmp_path):
    """The first score is that of step 4, and nothing is learned after it."""
    prune = {"share": 0.5, "begin": 0, "end": 4, "every": 1}
    optimizer = {"kind": "sgd", "learning_rate": 1e-30, "prune": prune}
    last, _, _, progress, _ = _run(tmp_path / "pruned", optimizer=optimizer, stopping=2)
    assert (last, progress["step"], progress["stale"]) == (6, 4, 2)


def test_progress_counts_evaluations_without_an_improvement():
    settings = StoppingSettings(2, least=0.1)
    progress = Progress()
    scores, expected = [0.5, 0.55, 0.7, -math.inf, 0.79], [0, 1, 0, 1, 2]
    for step, (value, stale) in enumerate(zip(scores, expected, strict=True)):
        progress = progress.after(step, value, settings)
        assert (progress.stale, progress.ended(settings)) == (stale, stale == 2)
    assert (progress.best, progress.step, progress.last) == (0.7, 2, 4)
    assert Progress.of(json.loads(json.dumps(progress._asdict()))) == progress
    assert Progress.of(json.loads(json.dumps(Progress()._asdict()))) == Progress()
    assert not progress.ended(None)


def test_scores_that_are_no_numbers_are_no_improvement():
    progress = Progress()
    for step in (1, 2):
        progress = progress.after(step, -math.inf, None)
    assert progress.stale == 2
    assert "since the beginning, in 2 evaluations" in progress.since("mean")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (0, "stopping: 0 is not a whole number from 1 upwards"),
        ("soon", "stopping: 'soon' is not"),
        ({}, "stopping: needs patience"),
        ({"patience": 2.0}, r"stopping.patience: 2.0 is not a whole number"),
        ({"patience": 2, "least": -1}, "stopping.least: -1 is not a number from 0 upwards"),
        ({"patience": 2, "least": math.nan}, "stopping.least: nan is not"),
        ({"patiense": 2}, r"stopping.patiense: unknown key 'patiense' \(did you mean 'patience'"),
    ],
)
def test_impossible_sections_are_named(section, message):
    with pytest.raises(ConfigError, match=message):
        training.assemble({**CONFIG, "stopping": section})


def test_the_patience_alone_is_a_section():
    assert stopping.read(5) == stopping.read({"patience": 5}) == StoppingSettings(5, 0.0)
    assert stopping.read(None) is None
    config = training.apply_overrides(training.load("emoji"), ["--config.stopping=5"])
    assert config.stopping == 5
    config = training.apply_overrides(config, ["--config.stopping={'patience': 3}"])
    assert training.apply_overrides(config, ["--config.stopping=2"]).stopping == 2


@pytest.mark.parametrize(
    ("headline", "smaller", "metric", "trivial", "expected"),
    [
        ("accuracy", False, 0.8, 0.6, 0.5),
        ("accuracy", False, 1.0, 0.2, 1.0),
        ("accuracy", False, 0.3, 0.6, -0.75),
        ("r2", False, -5.0, -0.01, -1.0),  # clipped: one task does not drown the others
        ("mae", True, 1.0, 4.0, 0.75),
        ("mae", True, 0.0, 4.0, 1.0),
        ("cer", True, 3.0, 1.0, -1.0),
        ("accuracy", False, 0.9, 1.0, None),  # one class only: nothing to be better at
        ("mae", True, 0.1, 0.0, None),
        ("accuracy", False, math.nan, math.nan, None),  # no label in the split
        ("r2", False, math.nan, 0.0, -1.0),  # the model broke down
        ("mae", True, math.inf, 1.0, -1.0),
        ("accuracy", False, 0.5, math.inf, None),
    ],
)
def test_skill_is_the_share_of_the_way_from_trivial_to_perfect(
    headline, smaller, metric, trivial, expected
):
    task = dataclasses.replace(
        toy.build().tasks["kind"], headline=headline, smaller=(headline,) if smaller else ()
    )
    found = skill.skill(task, metric, trivial)
    assert math.isnan(found) if expected is None else found == pytest.approx(expected)


def test_the_mean_skill_is_over_the_tasks_that_have_one():
    experiment = training.assemble(CONFIG)
    names, r2 = tuple(experiment.model.tasks), 0.4
    results = {name: {"r2": r2} for name in names}
    flat = {name: {"r2": 0.0} for name in names}
    assert score(experiment, results, trivial=lambda: flat) == pytest.approx(r2)
    some = {**flat, names[0]: {"r2": math.nan}}
    results[names[1]]["r2"] = 0.9
    assert score(experiment, results, trivial=lambda: some) == pytest.approx(0.9)
    none = {name: {"r2": math.nan} for name in names}
    assert score(experiment, results, trivial=lambda: none) == -np.inf


def test_choices_of_the_best_checkpoint_are_named():
    wrong = {**CONFIG, "checkpoint": {**CONFIG["checkpoint"], "best": "skil"}}
    with pytest.raises(ConfigError, match=r"best: .*did you mean 'skill'.*: mean, skill"):
        training.assemble(wrong)
