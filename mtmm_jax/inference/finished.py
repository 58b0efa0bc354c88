"""A finished run, opened from its workdir: the model and its best parameters."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax

from mtmm_jax.devices.mesh import fits
from mtmm_jax.encoders import backbones
from mtmm_jax.registry import ConfigError
from mtmm_jax.store.checkpoints import restore_from
from mtmm_jax.store.workdir import Workdir
from mtmm_jax.training.experiment import Experiment, assemble, build_source


@dataclasses.dataclass(frozen=True)
class Finished:
    """A finished run: experiment, variables and step."""

    workdir: Workdir
    experiment: Experiment
    step: int
    variables: dict[str, Any]


def open_run(
    path: str | Path,
    config: dict[str, Any] | None = None,
    step: int | str = "best",
    trust_paths: bool = False,
) -> Finished:
    """Opens a workdir at one of its checkpoints, whatever devices it was trained on.

    It opens on one device; with a config, on that config's devices. A mesh that needs more or fewer
    than there are here gives way to one device.

    Args:
        path: the workdir.
        config: with data, when the run is to be evaluated; without, only the spec that the run
            kept is used.
        step: "best" by the validation score, "last", or a step that is kept.
        trust_paths: whether paths in the config of a run that this user did not make are followed.
    """
    workdir = Workdir.at(path)
    stored = workdir.config()
    spec = workdir.spec()
    if config is None:
        experiment = assemble({**stored, "devices": 1}, spec)
    else:
        workdir.check_paths(config, trust_paths)
        backbones.check_kept(workdir.section("model").get("encoders"))
        if not fits(config.get("devices"), jax.device_count()):
            config = {**config, "devices": 1}
        experiment = assemble(config, source=build_source(config, workdir))
        if experiment.source.spec.modalities != spec.modalities:
            raise ConfigError("config.data: gives other modalities than those of the run's spec")
    step, state = restore_from(workdir, step, experiment.shapes, experiment.devices, "--workdir")
    return Finished(workdir, experiment, step, state.variables)
