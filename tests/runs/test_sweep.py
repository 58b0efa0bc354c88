"""Sweeps, cross-validated task weights, averages and ensembles: the parts, then small real runs."""

import dataclasses
import itertools
import json
import shutil

import flax.linen as nn
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from mtmm_jax import evaluate, predict, sweep
from mtmm_jax.batch import Spec, Target
from mtmm_jax.data.pipeline.folds import fold_of, folds
from mtmm_jax.data.pipeline.mixing import fixed
from mtmm_jax.data.sources.generator import generator
from mtmm_jax.fusion import DECISIONS
from mtmm_jax.inference.finished import open_run
from mtmm_jax.registry import ConfigError
from mtmm_jax.runs import ensembles, fronts, fused, plans, soups, trials
from mtmm_jax.runs import folds as cv
from mtmm_jax.runs.votes import Votes, fused_metrics, learn
from mtmm_jax.store import files
from mtmm_jax.store.workdir import Workdir
from mtmm_jax.tasks import classification

CONFIG = """
from ml_collections import ConfigDict


def get_config():
    mlp = {"kind": "table_mlp"}
    return ConfigDict({
        "seed": 0, "steps": 2, "batch_size": 8, "devices": 1,
        "data": {"kind": "generator", "size": (48, 24, 24), "workers": 0},
        "model": {"width": 8, "encoders": {"m1": mlp, "m2": mlp}, "fusion": {"kind": "concat"}},
        "tasks": {"redundant": {"kind": "classification"}, "task_1": {"kind": "regression"}},
        "balancing": {"kind": "static"},
        "optimizer": {"kind": "sgd", "learning_rate": 1e-1},
        "checkpoint": {"every": 2, "keep": 1, "best": "mean"},
        "evaluation": {"every": 2, "batch_size": 24, "log_every": 2, "baselines": False},
    })
"""


# --- the plan


def test_values_are_parted_at_commas_outside_brackets():
    text = "model.fusion={'kind': 'concat', 'x': [1, 2]},bottleneck,'a,b'"
    assert plans.read_choices("--set", text) == (
        "model.fusion",
        ["{'kind': 'concat', 'x': [1, 2]}", "bottleneck", "'a,b'"],
    )


def test_a_grid_is_every_combination_once_under_its_own_name():
    choices = {"optimizer.learning_rate": ["1e-3", "3e-3"], "model.fusion.kind": ["a", "b", "c"]}
    combinations = plans.grid(choices)
    assert [tuple(c.values()) for c in combinations] == list(itertools.product(*choices.values()))
    planned = plans.named(combinations)
    assert planned[1].name == "02-learning_rate=1e-3-fusion=b"
    assert len({trial.name for trial in planned}) == 6
    assert planned[1].overrides == [
        "--config.optimizer.learning_rate=1e-3",
        "--config.model.fusion.kind=b",
    ]


def test_names_tell_keys_apart_and_are_names_of_folders():
    trial = plans.named([{"a.width": "[1, 2]", "b.width": "x/../y"}])[0]
    assert trial.name == "01-a.width=_1_2_-b.width=x_.._y"


def test_random_trials_are_distinct_in_range_and_a_longer_sweep_begins_with_a_shorter():
    choices = {"kind": ["a", "b"]}
    ranges = {
        "rate": plans.read_range("--log", "rate=1e-4:1e-2", True)[1],
        "width": plans.read_range("--uniform", "width=2:5", False)[1],
        "depth": plans.read_range("--log", "depth=1:8", True)[1],
    }
    many = plans.drawn(choices, ranges, 200, seed=3)
    assert many[:7] == plans.drawn(choices, ranges, 7, seed=3)
    assert many != plans.drawn(choices, ranges, 200, seed=4)
    assert len({tuple(c.values()) for c in many}) == 200
    rates = np.array([float(c["rate"]) for c in many])
    assert rates.min() >= 1e-4
    assert rates.max() <= 1e-2
    assert 0.35 < (rates < 1e-3).mean() < 0.65  # half of the decades, half of the draws
    assert {c["width"] for c in many} == {"2", "3", "4", "5"}
    assert {c["depth"] for c in many} == set("12345678")
    assert {c["kind"] for c in many} == {"a", "b"}
    everything = plans.drawn({"x": list("abcdef")}, {}, 6, seed=0)
    assert {c["x"] for c in everything} == set("abcdef")


def test_another_plan_in_the_same_folder_is_refused_with_its_difference(tmp_path):
    base = ConfigDict({"seed": 0, "steps": 5, "devices": 1})
    plan = plans.plan_of(base, plans.named([{"seed": "1"}, {"seed": "2"}]))
    folder = tmp_path / "sweep"
    assert plans.claim(folder, "sweep.json", plan)["plan"] == plan
    free = {**plan, "config": {**plan["config"], "devices": 4}}
    assert plans.claim(folder, "sweep.json", free)["plan"] == plan
    other = {**plan, "config": {**plan["config"], "steps": 6}}
    with pytest.raises(ConfigError, match="config.steps: 5 -> 6"):
        plans.claim(folder, "sweep.json", other)
    with pytest.raises(ConfigError, match="trials.02-seed=2"):
        plans.claim(folder, "sweep.json", {**plan, "trials": {"01-seed=1": {"seed": "1"}}})
    with pytest.raises(ConfigError, match="is not empty and has no sweep.json"):
        plans.claim(tmp_path, "sweep.json", plan)


def test_two_sweeps_do_not_write_one_folder(tmp_path):
    plan = plans.plan_of({"steps": 2}, [])
    with plans.held(tmp_path / "sweep", "sweep.json") as stale:
        assert stale == ""
        plans.claim(tmp_path / "sweep", "sweep.json", plan)
        with (
            pytest.raises(ConfigError, match=r"another process trains in .*sweep: process \d+ on"),
            plans.held(tmp_path / "sweep", "sweep.json"),
        ):
            pass
    with plans.held(tmp_path / "sweep", "sweep.json"):
        assert plans.claim(tmp_path / "sweep", "sweep.json", plan)["plan"] == plan
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("")
    with (
        pytest.raises(ConfigError, match="is not empty and has no sweep.json"),
        plans.held(other, "sweep.json"),
    ):
        pass
    assert [path.name for path in other.iterdir()] == ["mine.txt"]


def test_processes_share_devices_and_cores():
    cores = [0, 2, 4, 6]
    on_cpu = trials.places(2, "cpu", 1, cores)
    assert on_cpu == [({"NPROC": "2"}, {0, 2}), ({"NPROC": "2"}, {4, 6})]
    assert [own for _, own in trials.places(3, "cpu", 1, [0, 1])] == [{0}, {1}, {0}]
    on_gpu = [environment for environment, _ in trials.places(3, "gpu", 2, cores, "5,7")]
    assert [e["CUDA_VISIBLE_DEVICES"] for e in on_gpu] == ["5", "7", "5"]
    assert on_gpu[0]["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.45"
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION" not in trials.places(2, "gpu", 2, cores)[0][0]
    assert trials.places(2, "tpu", 4, cores)[1][0]["TPU_VISIBLE_CHIPS"] == "1"
    with pytest.raises(ConfigError, match="5 processes for 4 TPU chips"):
        trials.places(5, "tpu", 4, cores)


# --- comparing


def test_the_pareto_front_is_that_of_a_loop_over_pairs():
    rng = np.random.default_rng(0)
    for tasks in (1, 2, 3):
        merits = rng.integers(0, 4, (40, tasks)).astype(float)  # many equal ones
        merits[rng.random(merits.shape) < 0.1] = np.nan
        known = np.where(np.isnan(merits), -np.inf, merits)
        expected = [
            not any(
                all(b >= a for a, b in zip(row, other, strict=True))
                and any(b > a for a, b in zip(row, other, strict=True))
                for other in known.tolist()
            )
            for row in known.tolist()
        ]
        assert fronts.pareto_front(merits).tolist() == expected


def _outcome(**merits):
    falling = {"err"}
    shown = {n: v if v is None else -v if n in falling else v for n, v in merits.items()}
    return fronts.Outcome(shown, dict.fromkeys(merits, "metric"), merits)


def test_scores_are_over_the_tasks_that_all_have_and_unknown_figures_come_last():
    outcomes = {
        "01-x": _outcome(acc=0.5, err=-2.0),
        "02-x": _outcome(acc=0.9, err=np.nan),
        "03-x": _outcome(acc=0.6, err=-1.0, more=7.0),
    }
    tasks = fronts.shared_tasks(list(outcomes.values()))
    assert tasks == ("acc", "err")
    scores = {name: fronts.score(o, tasks) for name, o in outcomes.items()}
    assert fronts.ranked(scores) == ["03-x", "01-x", "02-x"]
    by_acc = {name: fronts.score(o, tasks, "acc") for name, o in outcomes.items()}
    assert fronts.ranked(by_acc)[0] == "02-x"
    with pytest.raises(ConfigError, match="--by: unknown task 'more'; choices: acc, err, mean"):
        fronts.score(outcomes["03-x"], tasks, "more")
    table = fronts.table(
        outcomes, {name: {"k": name} for name in (*outcomes, "04-x")}, failed=["04-x"]
    )
    columns = {column.header: list(column.cells) for column in table.columns}
    assert columns["run"] == ["03", "01", "02", "04"]
    assert columns["err metric"][:3] == ["1.0000", "2.0000", "-"]
    assert columns["score"][-1] == "failed"
    assert columns["*"][:3] == ["*", "", "*"]


@pytest.mark.parametrize("names", [("acc",), ("acc", "err"), ("acc", "err", "a", "b")])
def test_every_pair_of_tasks_is_drawn(names):
    outcomes = {
        f"{i:02d}-x": _outcome(**dict(zip(names, row, strict=True)))
        for i, row in enumerate(np.random.default_rng(1).random((6, len(names))), start=1)
    }
    assert fronts.picture(outcomes).startswith(b"\x89PNG")


# --- folds


def test_folds_are_disjoint_cover_all_and_leave_the_test_split_alone():
    source = generator(size=(30, 11, 9), seed=2)
    parts = [folds(source, 4, i, seed=5) for i in range(4)]
    held = [set(part.rows["validation"].tolist()) for part in parts]
    whole = set(range(41))
    assert set.union(*held) == whole
    assert sum(map(len, held)) == 41
    assert {len(rows) for rows in held} == {10, 11}
    for part, out in zip(parts, held, strict=True):
        assert set(part.rows["train"].tolist()) == whole - out
        np.testing.assert_array_equal(part.rows["test"], source.rows["test"])
    assert held != [set(folds(source, 4, i, seed=6).rows["validation"].tolist()) for i in range(4)]


def test_labels_are_described_by_what_a_fold_trains_on():
    source = generator(size=(30, 10, 9), seed=2)
    part = folds(source, 3, 1)
    y = source.compose(part.rows["train"], None)["targets"]
    assert part.spec.targets["task_1"].mean == pytest.approx(y["task_1"]["y"].mean(), abs=1e-6)
    assert part.spec.targets["task_1"].std == pytest.approx(y["task_1"]["y"].std(), abs=1e-6)
    share = part.spec.targets["redundant"].frequencies[1]
    assert share == pytest.approx(y["redundant"]["y"].mean())
    assert part.spec.modalities == source.spec.modalities


def test_rows_of_one_id_share_a_fold_whatever_their_order():
    ids = np.array([7, 3, 9, 3, 100, 7, 42, 11])
    fold = fold_of(ids, 3, seed=1)
    assert fold[0] == fold[5]
    assert fold[1] == fold[3]
    order = np.random.default_rng(0).permutation(len(ids))
    np.testing.assert_array_equal(fold_of(ids[order], 3, seed=1), fold[order])
    assert np.bincount(fold_of(np.arange(11), 4)).tolist() == [3, 3, 3, 2]


def test_impossible_folds_are_refused():
    source = generator(size=(6, 2, 2))
    with pytest.raises(ConfigError, match="--cv: 9 is not a number of folds from 2 to 8"):
        folds(source, 9, 0, where="--cv")
    with pytest.raises(ConfigError, match="2 is not a fold from 0 to 1"):
        folds(source, 2, 2)
    mixed = dataclasses.replace(
        source, parts=(np.arange(3), np.arange(3, 6)), mixing=fixed((0.5, 0.5))
    )
    with pytest.raises(ConfigError, match="mixes 2 parts"):
        folds(mixed, 2, 0)


def test_candidates_have_mean_one_and_are_distinguished():
    found = cv.candidates(["1,2", "2,4", "3,1"], "0.5,1,2", ("a", "b"))
    assert list(found) == ["0.6667-1.333", "1.5-0.5", "1.333-0.6667", "1-1"]
    for weights in found.values():
        assert np.mean(weights) == pytest.approx(1.0)
    grid = cv.candidates([], "0.5,1,2", ("a", "b", "c"))
    assert len(grid) == 9
    ratios = {tuple(np.round(np.divide(w, w[0]), 6)) for w in grid.values()}
    assert ratios == {(1.0, b, c) for b in (0.5, 1.0, 2.0) for c in (0.5, 1.0, 2.0)}


@pytest.mark.parametrize(
    ("weights", "grid", "message"),
    [
        (["1,2,3"], None, "has 3 numbers; the 2 tasks are: a, b"),
        (["1,x"], None, "is no list of numbers"),
        (["1,-1"], None, "numbers of 0 or more"),
        (["0,0"], None, "all are 0"),
        ([], None, "needs candidates"),
    ],
)
def test_bad_weights_are_refused(weights, grid, message):
    with pytest.raises(ConfigError, match=message):
        cv.candidates(weights, grid, ("a", "b"))


# --- averages and votes


def test_an_average_is_exact_and_keeps_dtypes():
    rng = np.random.default_rng(0)
    trees = [
        {"params": {"w": rng.standard_normal((3, 2)).astype(np.float32), "n": np.int32(i)}}
        for i in (1, 2, 6)
    ]
    found = soups.average(trees)
    expected = np.mean([t["params"]["w"].astype(np.float64) for t in trees], axis=0)
    np.testing.assert_array_equal(found["params"]["w"], expected.astype(np.float32))
    assert found["params"]["w"].dtype == np.float32
    assert found["params"]["n"] == 3
    odd = {"params": {"w": np.zeros((3, 5), np.float32), "m": np.int32(0)}}
    with pytest.raises(ConfigError, match="b is another model than a: .*params/m.*params/w: "):
        soups.average([trees[0], odd], ["a", "b"])


def _task(classes=3):
    label = Target("class", classes=tuple("abc"[:classes]))
    spec = Spec({}, {"kind": label})
    return classification(
        "kind", spec, make_head=lambda *a, **k: nn.Dense(classes), where="tasks.kind", reads=("m",)
    )


def _votes(seed=0, rows=60, noise=0.3):
    """Three runs: one that knows, one that guesses, one that is absent and says NaN."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, rows).astype(np.int32)
    knows = 3 * np.eye(3)[y] + noise * rng.standard_normal((rows, 3))
    guesses = 4 * rng.standard_normal((rows, 3))
    values = np.stack([knows, guesses, np.full((rows, 3), np.nan)], 1).astype(np.float32)
    present = np.tile([True, True, False], (rows, 1))
    batch = {
        "targets": {"kind": {"y": y, "present": np.ones(rows, bool)}},
        "weight": np.ones(rows, np.float32),
        "id": np.arange(rows, dtype=np.int32),
    }
    return Votes({"kind": values}, {"kind": present}, batch)


@pytest.mark.parametrize("kind", ["weighted", "learned"])
def test_a_rule_learns_whom_to_believe_and_hears_nobody_who_is_absent(kind):
    task, votes = _task(), _votes()
    rule = DECISIONS[kind](("knows", "guesses", "absent"))
    params = learn(task, rule, lambda fused: fused, votes)
    fresh = _votes(seed=1)
    fused = rule.apply({"params": params}, fresh.values["kind"], fresh.present["kind"])
    right = np.asarray(fused).argmax(-1) == fresh.batch["targets"]["kind"]["y"]
    mean = fresh.values["kind"][:, :2].mean(1).argmax(-1) == fresh.batch["targets"]["kind"]["y"]
    assert right.mean() > 0.9 > mean.mean()
    if kind == "weighted":
        assert params["scores"][0] > params["scores"][1] + 1


def test_a_rule_does_not_learn_from_what_tells_nothing():
    votes = _votes()
    rng = np.random.default_rng(5)
    values = votes.values["kind"].copy()
    values[:, 0] = 4 * rng.standard_normal((60, 3))
    rule = DECISIONS["weighted"](("a", "b", "c"))
    params = learn(_task(), rule, lambda fused: fused, votes.replace(values={"kind": values}))
    assert np.abs(params["scores"][0] - params["scores"][1]) < 1.5
    assert learn(_task(), DECISIONS["mean"](("a",)), lambda fused: fused, votes) == {}


def test_figures_count_the_rows_in_which_somebody_answers():
    votes = _votes(noise=3.0)
    present = votes.present["kind"].copy()
    present[:50] = False
    votes = votes.replace(present={"kind": present})
    model = type("Tasks", (), {"tasks": {"kind": _task()}})

    def answer(said):
        return {"kind": said.values["kind"][:, 0]}, {"kind": said.present["kind"].any(1)}

    found = fused_metrics(model, answer, [votes])["kind"]["accuracy"]
    expected = votes.values["kind"][50:, 0].argmax(-1) == votes.batch["targets"]["kind"]["y"][50:]
    whole = votes.values["kind"][:, 0].argmax(-1) == votes.batch["targets"]["kind"]["y"]
    assert found == pytest.approx(expected.mean())
    assert found != pytest.approx(whole.mean())


# --- runs


def _main(command, *words):
    with jax.numpy_dtype_promotion("standard"):
        return command.main([str(word) for word in words])


ENCODERS = "model.encoders={'m1': 'table_mlp'},{'m2': 'table_mlp'},{'m1': 'nope'}"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def swept(config, tmp_path_factory):
    """Four of six: two rates of a model of m1, one of m2, and one that is refused."""
    folder = tmp_path_factory.mktemp("runs") / "sweep"
    words = ("--config", config, "--workdir", folder, "--set", ENCODERS)
    words += ("--set", "optimizer.learning_rate=0.1,0.3", "--random", "4", "--seed", "0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MTMM_JAX_CACHE", "")
        assert _main(sweep, *words) == 0
    return folder, words


def _runs(folder):
    return sorted(p.name for p in folder.iterdir() if (p / "results.json").exists())


def test_a_sweep_compares_its_trials_and_names_those_that_failed(swept):
    folder, _ = swept
    record = json.loads((folder / "sweep.json").read_text())
    assert len(record["plan"]["trials"]) == 4
    assert len(_runs(folder)) == 3
    assert len(record["failed"]) == 1
    assert all("unknown kind 'nope'" in reason for reason in record["failed"].values())
    scores = {name: trial["score"] for name, trial in record["validation"].items()}
    assert set(scores) == set(_runs(folder))
    assert scores[record["best"]] == max(scores.values())
    assert any(trial["on_front"] for trial in record["validation"].values())
    results = Workdir(folder / record["best"]).read("results.json")["validation"]
    expected = (results["redundant"]["accuracy"] + results["task_1"]["r2"]) / 2
    assert scores[record["best"]] == pytest.approx(expected)
    assert (folder / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert "test" in (folder / f"{record['best']}.log").read_text()


def test_a_sweep_goes_on_where_it_stopped_and_shows_the_test_split_of_the_best_only(
    swept, capsys, monkeypatch
):
    folder, words = swept
    monkeypatch.setenv("MTMM_JAX_CACHE", "")
    names = _runs(folder)
    results = json.loads((folder / names[-1] / "results.json").read_text())
    before = {name: (folder / name / "results.json").stat().st_mtime_ns for name in names}
    shutil.rmtree(folder / names[-1])
    assert _main(sweep, *words, "--by", "task_1") == 0
    out = capsys.readouterr().out
    assert "4 trials" in out
    assert "2 of them done" in out
    assert out.count("step 2, validation") == 1
    assert out.count("test, run") == out.count("macro_f1") == 1
    assert json.loads((folder / names[-1] / "results.json").read_text()) == results
    after = {name: (folder / name / "results.json").stat().st_mtime_ns for name in names}
    assert {name for name in names if before[name] != after[name]} == {names[-1]}
    record = json.loads((folder / "sweep.json").read_text())
    metrics = {name: trial["metrics"]["task_1"] for name, trial in record["validation"].items()}
    assert record["best"] == max(metrics, key=metrics.get)


def _pair(swept, encoder):
    """The two runs of one model, by their rates."""
    folder, _ = swept
    plan = json.loads((folder / "sweep.json").read_text())["plan"]["trials"]
    return [
        folder / name
        for name, changes in plan.items()
        if encoder in changes["model.encoders"] and (folder / name / "results.json").exists()
    ]


def test_an_average_is_a_run_that_evaluates(swept, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MTMM_JAX_CACHE", "")
    one, other = _pair(swept, "m1")
    folder = tmp_path / "soup"
    words = ("--average", f"{one},{other}", "--workdir", folder)
    assert _main(sweep, *words) == 0
    runs = [open_run(path).variables for path in (one, other, folder)]
    for a, b, mean in zip(*map(jax.tree.leaves, runs), strict=True):
        np.testing.assert_allclose(np.asarray(mean), (np.asarray(a) + np.asarray(b)) / 2, atol=1e-7)
    results = json.loads((folder / "soup.json").read_text())["results"]["test"]
    assert set(results) == {"average", str(one), str(other)}
    _same(results[str(one)], json.loads((one / "results.json").read_text())["test"])
    capsys.readouterr()
    assert _main(evaluate, "--workdir", folder, "--json") == 0
    _same(json.loads(capsys.readouterr().out)["results"], results["average"])
    written = (folder / "results.json").stat().st_mtime_ns
    assert _main(sweep, *words) == 0
    assert (folder / "results.json").stat().st_mtime_ns == written
    assert _main(sweep, "--average", f"{other},{one}", "--workdir", folder) == 2
    assert "is another average" in capsys.readouterr().err
    assert _main(sweep, "--average", f"{one},{other}", "--workdir", one) == 2
    assert "holds a run" in capsys.readouterr().err
    third = _pair(swept, "m2")[0]
    assert _main(sweep, "--average", f"{one},{third}", "--workdir", tmp_path / "no") == 2
    assert "encoders/m1/" in capsys.readouterr().err


def test_runs_of_other_modalities_are_fused_and_abstain(swept, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MTMM_JAX_CACHE", "")
    paths = (_pair(swept, "m1")[0], _pair(swept, "m2")[0])
    both = ",".join(map(str, paths))
    assert _main(evaluate, "--workdirs", both, "--json") == 0
    results = json.loads(capsys.readouterr().out)
    for path in paths:
        _same(results[str(path)], json.loads((path / "results.json").read_text())["test"])
    assert results["fused"] not in (results[str(paths[0])], results[str(paths[1])])
    assert _main(evaluate, "--workdirs", both, "--json", "--only", "m1") == 0
    seen = json.loads(capsys.readouterr().out)
    _same(seen["fused"], seen[str(paths[0])])
    _same(seen["fused"], results[str(paths[0])])
    assert seen[str(paths[1])]["task_1"]["r2"] is None
    # The mean of logits and of values, by hand, from the runs themselves.
    ensemble = ensembles.open_runs(paths)
    said = fused.votes(ensemble, fused.sources(ensemble), "test")[0]
    alone = [run.experiment.model(run.variables, _said_of(run))[0] for run in ensemble.runs]
    expected = np.mean([np.asarray(p["redundant"]) for p in alone], axis=0)
    together = ensemble.fuse(ensemble.params, said.values, said.present)
    np.testing.assert_allclose(together["redundant"], expected, atol=1e-6)


def _same(found, other):
    """Metrics of tasks, equal but for rounding."""
    assert found.keys() == other.keys()
    for task, figures_of in found.items():
        assert figures_of == pytest.approx(other[task], abs=1e-5, nan_ok=True)


def _said_of(run):
    source = generator(size=(48, 24, 24))
    batch = next(source.batches("test", 24))["inputs"]
    return {name: batch[name] for name in run.experiment.model.encoders}


def test_a_learned_rule_is_stored_and_opened_again(swept, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MTMM_JAX_CACHE", "")
    paths = (_pair(swept, "m1")[0], _pair(swept, "m2")[0])
    both, folder = ",".join(map(str, paths)), tmp_path / "fused"
    words = ("--ensemble", both, "--rule", "learned", "--workdir", folder)
    assert _main(sweep, *words) == 0
    assert "trained on validation" in capsys.readouterr().out.replace("\n", " ")
    record = json.loads((folder / "ensemble.json").read_text())
    assert record["rules"] == {"redundant": "learned", "task_1": "learned"}
    assert _main(evaluate, "--workdirs", folder, "--json") == 0
    again = json.loads(capsys.readouterr().out)
    _same(again["fused"], record["results"]["test"]["fused"])
    assert _main(evaluate, "--workdirs", both, "--rule", "learned") == 2
    assert "'learned' is learned, which python -m mtmm_jax.sweep" in capsys.readouterr().err
    ensemble = fused.open_ensemble([folder])
    shown = _said_of(ensemble.runs[0])["m1"]
    one = {"m1": {"x": shown["x"][:1], "present": np.ones(1, bool)}}
    (first,) = ensembles.predict(ensemble, [one, {}])
    (other,) = ensembles.predict(ensembles.open_runs(paths), [one, {}])
    alone = ensemble.runs[0].experiment.model(ensemble.runs[0].variables, one)[0]
    np.testing.assert_allclose(other["redundant"], np.asarray(alone["redundant"])[0], atol=1e-6)
    assert np.isfinite(first["redundant"]).all()
    assert not np.allclose(first["redundant"], other["redundant"])
    assert list(ensembles.predict(ensemble, [{}, {}])) == [{"redundant": None, "task_1": None}]


def test_rows_of_a_manifest_are_asked_of_several_runs(swept, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MTMM_JAX_CACHE", "")
    paths = (_pair(swept, "m1")[0], _pair(swept, "m2")[0])
    both, out = ",".join(map(str, paths)), tmp_path / "said.jsonl"
    ensemble = ensembles.open_runs(paths)
    seen = [_said_of(run)[f"m{i}"]["x"][:2] for i, run in enumerate(ensemble.runs, start=1)]
    x, y = (part.tolist() for part in seen)
    rows = [{"id": "a", "m1": x[0], "m2": y[0]}, {"m2": y[1]}, {"m1": "?"}, {}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ("--manifest", tmp_path / "rows.jsonl", "--out", out, "--batch", 2)
    assert _main(predict, "--workdirs", both, *words) == 0
    assert "3 rows predicted, 1 bad" in capsys.readouterr().out
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in lines] == ["a", 2, 3, 4]
    assert "error" in lines[2]
    assert lines[3]["answers"]["redundant"] == {"needs": ["fused"]}

    def entry(part, row):
        return {"x": part[row : row + 1], "present": np.ones(1, bool)}

    for row, inputs in (
        (0, [{"m1": entry(seen[0], 0)}, {"m2": entry(seen[1], 0)}]),
        (1, [{}, {"m2": entry(seen[1], 1)}]),
    ):
        (alone,) = ensembles.predict(ensemble, inputs)
        expected = json.loads(json.dumps(ensembles.answers(ensemble, alone)))
        best = expected["redundant"].pop("best")
        assert lines[row]["answers"]["redundant"].pop("best") == pytest.approx(best, abs=1e-5)
        for task, answer in expected.items():
            assert lines[row]["answers"][task] == pytest.approx(answer, abs=1e-5)
    assert (
        _main(predict, "--workdirs", both, "--manifest", tmp_path / "none.jsonl", *words[2:]) == 2
    )


def test_product_is_of_classes_and_numbers_are_averaged(swept):
    paths = (_pair(swept, "m1")[0], _pair(swept, "m2")[0])
    ensemble = ensembles.open_runs(paths, "product")
    assert ensemble.used == {"redundant": "product", "task_1": "mean"}
    assert fused.remarks(ensemble.rule, ensemble.used, {"words": "no number"}) == [
        "task_1 is fused by mean: product is not for its kind",
        "words is not fused: no number",
    ]


def test_the_winner_is_best_on_average_over_folds_and_went_through_all():
    def fold(acc, err):
        return dataclasses.asdict(_outcome(acc=acc, err=err))

    record = {
        "plan": {"folds": 2},
        "failed": {"2-1": "fold 2: the loss is not finite"},
        "scores": {
            "1-1": {"0": fold(0.5, -2.0), "1": fold(0.5, -2.0)},
            "1-2": {"0": fold(0.9, -3.0), "1": fold(0.3, -0.4)},
            "2-1": {"0": fold(1.0, 0.0)},
            "1-3": {"0": fold(1.0, None), "1": fold(1.0, None)},
        },
    }
    record["scores"]["1-3"]["0"]["metrics"]["err"] = None
    assert cv.winner(record) == "1-2"
    assert cv.winner(record, "acc") == "1-3"
    assert cv.fold_scores(record)["1-2"] == pytest.approx([-1.05, -0.05])
    table = cv.table(record)
    columns = {column.header: list(column.cells) for column in table.columns}
    assert columns["weights"] == ["1-2", "1-1", "1-3"]
    assert columns["acc metric"][0] == "0.6000 ± 0.3000"
    assert columns["score"][-1] == "- ± -"
    del record["scores"]["1-1"], record["scores"]["1-2"], record["scores"]["1-3"]
    with pytest.raises(ConfigError, match="no candidate went through all folds: 2-1: fold 2"):
        cv.winner(record)


def test_weights_are_cross_validated_and_the_winner_is_trained(
    config, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("MTMM_JAX_CACHE", "")
    folder = tmp_path / "cv"
    words = ("--config", config, "--workdir", folder, "--cv", "2")
    words += ("--weights", "3,1")
    assert _main(sweep, *words) == 0
    out = capsys.readouterr().out
    assert "1 candidates x 2 folds = 2 runs" in out
    record = json.loads((folder / "cv.json").read_text())
    outcomes = record["scores"]["1.5-0.5"]
    scores = [np.mean(list(outcomes[i]["merits"].values())) for i in "01"]
    assert record["table"]["1.5-0.5"]["score"]["mean"] == pytest.approx(np.mean(scores))
    assert record["table"]["1.5-0.5"]["score"]["std"] == pytest.approx(np.std(scores))
    winner = json.loads((folder / "winner" / "config.json").read_text())
    assert winner["balancing"]["weights"] == record["plan"]["candidates"][record["winner"]]
    assert (folder / "winner" / "results.json").exists()
    fold = folder / "folds" / "1.5-0.5" / "0"
    assert not (fold / "checkpoints").exists()
    assert not (fold / "results.json").exists()  # nothing of the test split
    # Taken up again: only what is missing is run, to the same metrics.
    lost = record["scores"]["1.5-0.5"].pop("1")
    unsealed = {k: v for k, v in record.items() if k not in (files.DIGEST, files.SIGNATURE)}
    (folder / "cv.json").write_bytes(files.sealed(unsealed))
    journals = {p: p.stat().st_mtime_ns for p in folder.glob("folds/*/*/metrics.jsonl")}
    assert _main(sweep, *words) == 0
    again = json.loads((folder / "cv.json").read_text())
    assert again["scores"]["1.5-0.5"]["1"] == lost
    changed = {p for p, when in journals.items() if p.stat().st_mtime_ns != when}
    assert changed == {folder / "folds" / "1.5-0.5" / "1" / "metrics.jsonl"}
    assert _main(sweep, *words, "--seed", "1") == 2
    assert "holds another plan: seed: 0 -> 1" in capsys.readouterr().err


# --- mistakes

BAD = {
    "key": (("--set", "optimizr.kind=a,b"), "did you mean 'optimizer'?"),
    "type": (("--set", "steps=1,many"), "'many' is str; needs int"),
    "nothing": ((), "--set: name a value to vary"),
    "twice": (("--set", "seed=1,2", "--set", "seed=3"), "'seed' is varied twice"),
    "equal": (("--set", "seed=1,1"), "names a value twice"),
    "bracket": (("--set", "seed=[1,2"), "not closed"),
    "range": (("--log", "seed=0:9", "--random", "3"), "both above 0"),
    "draws": (("--set", "seed=1,2", "--random", "3"), "there are 2 combinations"),
    "lonely": (("--set", "seed=1,2", "--log", "steps=1:9"), "--log: needs --random N"),
    "by": (("--set", "seed=1,2", "--by", "task1"), "did you mean 'task_1'?"),
    "modes": (("--set", "seed=1,2", "--cv", "3"), "--set: belongs to a sweep, not to --cv"),
    "rule": (("--set", "seed=1,2", "--rule", "max"), "--rule: belongs to --ensemble"),
    "zero": (("--set", "seed=1,2", "--parallel", "0"), "is not a whole number from 1 upwards"),
    "chooser": (
        ("--cv", "2", "--weights", "1,2", "--config.balancing=pcgrad"),
        "add --config.balancing=static",
    ),
    "folds": (("--cv", "1", "--weights", "1,2"), "--cv: 1 is not a whole number from 2"),
}


@pytest.mark.parametrize("case", BAD)
def test_mistakes_are_reported_before_any_write(config, tmp_path, case, capsys, monkeypatch):
    monkeypatch.setenv("MTMM_JAX_CACHE", "")
    words, message = BAD[case]
    assert _main(sweep, "--config", config, "--workdir", tmp_path / "new", *words) == 2
    err = capsys.readouterr().err
    assert message in err
    assert not (tmp_path / "new").exists()


def test_commands_take_one_run_or_several(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MTMM_JAX_CACHE", "")
    for command in (evaluate, predict):
        assert _main(command) == 2
        assert "--workdirs a,b" in capsys.readouterr().err
        assert _main(command, "--workdir", tmp_path, "--rule", "max") == 2
        assert "--rule: belongs to --workdirs" in capsys.readouterr().err
        assert _main(command, "--workdirs", f"{tmp_path},{tmp_path}") == 2
        assert "two or more different runs" in capsys.readouterr().err


@pytest.mark.slow
def test_trials_side_by_side_are_those_in_turn(config, swept, tmp_path, capsys, monkeypatch):
    folder, words = tmp_path / "next", list(swept[1])
    words[words.index("--workdir") + 1] = folder
    assert _main(sweep, *words, "--parallel", "2") == 0, capsys.readouterr().err
    names = _runs(folder)
    assert names == _runs(swept[0])
    for name in names:
        ours, theirs = (Workdir(at / name).read("results.json") for at in (folder, swept[0]))
        for split in ("validation", "test"):
            _same(ours[split], theirs[split])
    failed = json.loads((folder / "sweep.json").read_text())["failed"]
    assert len(failed) == 1
    assert all("unknown kind 'nope'" in reason for reason in failed.values())
