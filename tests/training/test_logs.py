"""What a run writes down about its tasks' gradients: means over the steps that a task is in."""

import functools
import sys
import types

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from rich.console import Console

from mtmm_jax import balancing, training
from mtmm_jax import train as command
from mtmm_jax.registry import ConfigError
from mtmm_jax.store.workdir import Workdir, stamped
from mtmm_jax.training import logs, wandb_run
from mtmm_jax.training.step_metrics import _diagnostics, waiting_advice

NAMES = ("a", "b", "c", "d")
# a and b are together twice; c meets the others once; d comes alone, and nobody else is there.
PRESENT = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 1]], bool)


def _steps():
    """The metrics of three steps as the device returns them, and the gradients behind them."""
    rng = np.random.default_rng(0)
    gradients = rng.standard_normal((*PRESENT.shape, 5)).astype(np.float32) * PRESENT[:, :, None]
    diagnose = jax.jit(balancing.diagnose)
    metrics = []
    for rows, here in zip(gradients, PRESENT, strict=True):
        evidence = balancing.Evidence(
            np.ones(4, np.float32), here, balancing.geometry_of(rows @ rows.T)
        )
        metrics.append(jax.device_get(diagnose(evidence, np.ones(4, np.float32), np.False_)))
    return metrics, gradients.astype(np.float64)


def _cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def test_means_are_over_the_steps_in_which_the_tasks_are_present():
    metrics, gradients = _steps()
    record = _diagnostics(NAMES, metrics)
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
    metrics, _ = _steps()
    broken = {**metrics[1], "norms": np.full(4, np.nan), "cosines": np.full((4, 4), np.nan)}
    broken["conflict_rate"] = np.float32(0)
    np.testing.assert_equal(
        _diagnostics(NAMES, [metrics[0], broken]), _diagnostics(NAMES, metrics[:1])
    )


def test_methods_without_a_gramian_log_none_of_it():
    metrics = [{"present": PRESENT[0], "weights": np.ones(4), "skipped": np.False_}]
    assert _diagnostics(NAMES, metrics) == {}


class Events:
    """A SummaryWriter that gives every curve's point to `draw`."""

    def __init__(self, draw, *_, **__):
        self._draw, self.file_writer = draw, self

    def add_summary(self, summary, step):
        for value in summary.value:
            self._draw(value.tag, value.simple_value, step)

    def close(self):
        pass


@pytest.mark.parametrize("tasks", [3, 8, 9, 40])
def test_the_journal_has_the_matrix_and_tensorboard_the_pairs_of_few(tasks, tmp_path, monkeypatch):
    drawn = {}

    def draw(tag, value, step):
        drawn[tag] = pytest.approx(value), step

    monkeypatch.setattr(logs, "SummaryWriter", functools.partial(Events, draw))
    names = [f"t{i}" for i in range(tasks)]
    rows = np.random.default_rng(0).uniform(-1, 1, (tasks, tasks)).round(3).tolist()
    rows[0][2] = float("nan")
    metrics = {"conflict_rate": 0.5, "cosines": {"tasks": names, "mean": rows}}
    journal = logs.Journal(tmp_path / "metrics.jsonl", tmp_path / "events", 0)
    journal.write(7, "train", metrics)
    journal.close()
    (record,) = logs.read_journal(tmp_path / "metrics.jsonl")
    np.testing.assert_equal(record, {"step": 7, "split": "train", **metrics})
    assert (tmp_path / "metrics.jsonl").stat().st_size < 16_000
    assert drawn["train/conflict_rate"] == (0.5, 7)
    if tasks > 8:
        assert len(drawn) == 1
    else:
        assert len(drawn) == tasks * (tasks - 1) // 2  # one pair of them unknown, one scalar more
        assert drawn["train/cosines/t0/t1"] == (rows[0][1], 7)
        assert "train/cosines/t0/t2" not in drawn


class FakeWandb(types.ModuleType):
    """What a run needs of `wandb`: a server's memory of runs by id."""

    def __init__(self):
        super().__init__("wandb")
        self.runs, self.asked = {}, []

    def init(self, *, id, resume, dir, config, **settings):
        assert resume == "allow"
        self.asked.append({"id": id, "config": config, **settings})
        if settings["project"] == "locked":
            raise RuntimeError("no API key\nconfigured")
        history = self.runs.setdefault(id, {})
        run = types.SimpleNamespace(step=max(history, default=-1) + 1, closed=False)

        def log(metrics, step):
            run.step = step
            history.setdefault(step, {}).update(metrics)

        run.log, run.finish = log, lambda: setattr(run, "closed", True)
        self.last = run
        return run


@pytest.fixture
def wandb(monkeypatch):
    found = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", found)
    return found


def _journal(folder, from_step=0):
    return logs.Journal(folder / "metrics.jsonl", folder / "events", from_step)


def test_wandb_has_tensorboards_figures_and_a_run_goes_on_in_its_own(wandb, tmp_path, monkeypatch):
    drawn = {}

    def draw(tag, value, step):
        drawn.setdefault(step, {})[tag] = value

    monkeypatch.setattr(logs, "SummaryWriter", functools.partial(Events, draw))
    Workdir(tmp_path).write("config.json", stamped({"steps": 6}, {}))
    settings = wandb_run.check(ConfigDict({"project": "emoji", "tags": ("a", "b")}))
    wandb_run.keep(tmp_path, settings)
    journal = _journal(tmp_path)
    for step in (2, 4):
        journal.write(step, "train", {"loss": {"a": step / 2, "b": float("nan")}, "rate": 0.5})
    journal.write(4, "validation", {"a": {"accuracy": 0.25}})
    journal.close()
    assert wandb.last.closed
    ((id, history),) = wandb.runs.items()
    assert history == drawn
    assert drawn[4] == {
        "train/loss/a": 2.0,
        "train/rate": 0.5,
        "validation/a/accuracy": 0.25,
    }
    # Killed; the checkpoint was of step 2. What is repeated stands, what is new is added.
    wandb_run.keep(tmp_path, settings)
    journal = _journal(tmp_path, from_step=2)
    for step in (4, 6):
        journal.write(step, "train", {"rate": 0.25})
    journal.close()
    assert set(wandb.runs) == {id}
    assert history[4]["train/rate"] == 0.5
    assert history[6] == {"train/rate": 0.25}
    assert [asked["config"] for asked in wandb.asked] == [{"steps": 6}] * 2
    assert wandb.asked[0]["tags"] == ["a", "b"]
    # Without for a while, and again with: still the same run.
    wandb_run.keep(tmp_path, None)
    _journal(tmp_path, 6).close()
    assert len(wandb.asked) == 2
    wandb_run.keep(tmp_path, settings)
    _journal(tmp_path, 6).close()
    assert wandb.asked[2]["id"] == id


def test_who_does_not_ask_gets_no_wandb(tmp_path):
    assert wandb_run.check(None) is None
    wandb_run.keep(tmp_path, None)
    assert wandb_run.open_wandb(tmp_path) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("emoji", "config.wandb: 'emoji': needs None or a section"),
        ({}, "config.wandb: needs a `project`"),
        ({"project": 5}, "config.wandb: needs a `project`"),
        ({"projct": "x"}, "config.wandb.projct: unknown key 'projct' .did you mean 'project'"),
        ({"project": "x", "mode": "off"}, "config.wandb.mode: unknown mode 'off'"),
    ],
)
def test_settings_of_wandb_are_checked(wandb, settings, message):
    with pytest.raises(ConfigError, match=message):
        wandb_run.check(settings)


def test_wandb_that_is_not_installed_or_refuses(wandb, tmp_path, monkeypatch):
    wandb_run.keep(tmp_path, {"project": "locked"})
    with pytest.raises(ConfigError, match="config.wandb: no API key configured; --config.wandb="):
        wandb_run.open_wandb(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"not installed: pip install 'mtmm_jax\[wandb\]'"):
        wandb_run.check({"project": "emoji"})


def test_train_refuses_wandb_and_windows_before_the_data_are_read(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr(command, "prepare_jax", lambda: None)
    monkeypatch.setattr(training, "assemble", None)
    config = tmp_path / "config.py"
    config.write_text("from tests.training.small_run import get_config")
    arguments = ["--config", str(config), "--workdir", str(tmp_path / "run")]
    for more, message in (
        (["--config.wandb={'project': 'x'}"], "pip install 'mtmm_jax[wandb]'"),
        (["--profile", "10:20"], "--profile: '10:20': needs steps=FIRST:LAST"),
        (["--profile", "steps=3:9"], "needs 1 <= FIRST <= LAST <= 6"),
        (["--peak", "-1"], "--peak: -1.0 is not a number above 0"),
    ):
        assert command.main([*arguments, *more]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_console_says_how_long_steps_wait_for_data(capsys):
    console = Console(width=200, force_terminal=False)
    watch = logs.Watch(console, 4, 0, ("a",))
    for step, share in ((1, 0.0), (2, 0.1), (3, 0.93), (4, 0.5)):
        watch._spoke = -100.0
        watch.update(step, [1.0], [1.0], share, "more data.workers")
    lines = capsys.readouterr().out.splitlines()
    assert ["waiting for data" in line for line in lines] == [False, False, True, True, True]
    assert "steps spend 93% of their time waiting for data: more data.workers" in lines[2]
    assert "waiting for data 93%" in lines[3]
    assert "waiting for data 50%" in lines[4]


def test_what_to_do_about_waiting_is_about_the_config():
    source = types.SimpleNamespace(workers=3)
    assert "data.workers (3 now)" in waiting_advice(source, {"kind": "films"})
    assert "data.decoded" not in waiting_advice(source, {"kind": "manifest", "decoded": None})
    assert "data.decoded = None" in waiting_advice(source, {"kind": "manifest", "decoded": False})
