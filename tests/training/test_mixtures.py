"""Runs over several data sets: shares follow the validation, and the checkpoint knows them."""

import json

import jax
import pytest

from mtmm_jax import data, training
from mtmm_jax.registry import ConfigError
from mtmm_jax.train import fit
from mtmm_jax.training import loop
from tests.data.small import source

CONFIG = {
    "seed": 0,
    "steps": 4,
    "batch_size": 8,
    "devices": 1,
    "data": {
        "kind": "mixture",
        "sources": {"left": "left", "right": "right"},
        "mixing": {"kind": "performance", "per": "step"},
    },
    "model": {
        "width": 8,
        "encoders": {"text": "text_bag"},
        "fusion": "concat",
        "sharing": "hard",
    },
    "tasks": {"kind": {"kind": "classification"}, "size": {"kind": "regression"}},
    "balancing": {"kind": "equal"},
    "optimizer": {"kind": "sgd", "learning_rate": 0.01},
    "checkpoint": {"every": 2, "keep": 1, "best": "mean"},
    "evaluation": {"every": 2, "batch_size": 8, "log_every": 1, "baselines": False},
}


@pytest.fixture(autouse=True)
def _sources(monkeypatch):
    monkeypatch.setitem(data.SOURCES, "left", lambda: source("left"))
    monkeypatch.setitem(data.SOURCES, "right", lambda: source("right"))


def test_a_run_follows_its_validation(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "headlines", lambda model, results: {"kind": 0.9, "size": 0.1})
    fit(training.assemble(CONFIG), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["split"] == "train"]
    shares = [line["data_shares"] for line in steps]
    assert shares[0] == shares[1] == [0.5, 0.5]
    assert shares[2] == shares[3]
    assert shares[2][1] > 0.6  # right carries both tasks, left only the easy one
    assert steps[1]["absent"]["size"] + steps[0]["absent"]["size"] == 1


def test_gradients_of_tasks_that_never_meet_are_refused():
    only = {"right": {"kind": "right", "rename": {"kind": "sort"}}, "left": "left"}
    config = {
        **CONFIG,
        "data": {**CONFIG["data"], "sources": only},
        "tasks": {"kind": "classification", "size": "regression"},
        "balancing": {"kind": "pcgrad"},
    }
    with pytest.raises(ConfigError, match="data.mixing: a step holds one source and so one task"):
        training.assemble(config)
    training.assemble({**config, "balancing": {"kind": "uncertainty"}})
    both = {**config, "tasks": {**config["tasks"], "sort": "classification"}}
    training.assemble(both)


def test_augmentation_in_the_step_is_checked_and_follows_the_step():
    alone = {"data": {"kind": "right", "in_step": {"text": "token_dropout(0.5)"}}}
    experiment = training.assemble({**CONFIG, **alone})
    step, state = jax.jit(experiment.step()), experiment.init()
    start = state
    batch = next(experiment.source.train(8))
    losses = []
    for _ in range(2):
        frozen, metrics = step(state, batch)
        losses.append(float(metrics["losses"][0]))
        state = state.replace(step=frozen.step)
    assert losses[0] != losses[1]
    plain = training.assemble({**CONFIG, "data": "right"})
    assert float(jax.jit(plain.step())(start, batch)[1]["losses"][0]) not in losses
    with pytest.raises(ConfigError, match="data.in_step.text: .*crop takes image, not text"):
        training.assemble({**CONFIG, "data": {"kind": "right", "in_step": {"text": "crop"}}})
