"""A config of a small run for tests and, as a file, for the commands that they start."""

import dataclasses
import threading

import jax
from ml_collections import ConfigDict

from mtmm_jax import data
from tests.data.small import source


def small(hanging: int = -1):
    """The source `right`; on process number `hanging` the second batch never comes."""
    whole = source("right")
    if jax.process_index() != hanging:
        return dataclasses.replace(whole, workers=0)
    calls = []

    def compose(rows, chance):
        calls.append(rows)
        if len(calls) > 1:
            threading.Event().wait()
        return whole.compose(rows, chance)

    return dataclasses.replace(whole, compose=compose, workers=0)


data.SOURCES["small_run"] = small


def get_config():
    return ConfigDict(
        {
            "seed": 0,
            "steps": 6,
            "batch_size": 8,
            "devices": {"kind": "mesh"},
            "data": {"kind": "small_run"},
            "model": {
                "width": 8,
                "encoders": {"text": "text_bag"},
                "fusion": "concat",
                "sharing": "hard",
            },
            "tasks": {"kind": {"kind": "classification"}, "size": {"kind": "regression"}},
            "balancing": {"kind": "pcgrad"},
            "optimizer": {"kind": "sgd", "learning_rate": 0.05, "momentum": 0.9},
            "checkpoint": {"every": 2, "keep": 1, "best": "mean"},
            "evaluation": {"every": 3, "batch_size": 8, "log_every": 1, "baselines": False},
        }
    )
