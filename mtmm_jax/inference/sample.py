"""One sample on the command line: files and texts as the inputs of a batch of one."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from mtmm_jax.inference.manifest_batches import kept_of, read_one
from mtmm_jax.modalities import kind_of
from mtmm_jax.registry import ConfigError, choose


def read_inputs(rest: Sequence[str], workdir: Any) -> dict[str, Any]:
    """The files and texts on the command line as the inputs of a batch of one."""
    return read_values(given_inputs(rest, modalities_read(workdir)), workdir)


def modalities_read(workdir: Any) -> list[str]:
    """Those that a run reads."""
    encoders = workdir.section("model", "encoders")
    return [name for name in workdir.spec().modalities if encoders.get(name) is not None]


def given_inputs(rest: Sequence[str], modalities: Sequence[str]) -> dict[str, str]:
    """Modality -> what the command line gives of it: one or more."""
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for i, name in enumerate(modalities):  # a name is no attribute: "left-eye", "__class__"
        options.add_argument(f"--{name}", dest=f"given {i}")
    try:
        given, unknown = options.parse_known_args(rest)
    except argparse.ArgumentError as error:
        raise ConfigError(str(error)) from error
    for word in unknown:
        choose(word.split("=")[0].removeprefix("--"), modalities, "predict", "modality")
    values = {name: getattr(given, f"given {i}") for i, name in enumerate(modalities)}
    found = {name: value for name, value in values.items() if value is not None}
    if not found:
        raise ConfigError(
            f"predict: give one or more of: {', '.join('--' + m for m in modalities)}"
        )
    return found


def read_values(given: Mapping[str, str], workdir: Any) -> dict[str, Any]:
    """Files and texts as a run's data would give them."""
    spec, inputs = workdir.spec(), {}
    for name, value in given.items():
        read = kind_of(spec.modalities[name]).read
        if read is None:
            inputs[name] = read_one(name, value, workdir)
        else:
            inputs[name] = read(value, kept_of(name, workdir))
    return inputs
