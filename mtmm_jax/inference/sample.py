"""One sample on the command line: files and texts as the inputs of a batch of one."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from mtmm_jax.data.readers import READERS
from mtmm_jax.inference.manifest_batches import read_one
from mtmm_jax.registry import ConfigError, choose


def read_inputs(rest: Sequence[str], workdir: Any) -> dict[str, Any]:
    """The files and texts on the command line as the inputs of a batch of one."""
    return read_values(given_inputs(rest, modalities_read(workdir)), workdir)


def modalities_read(workdir: Any) -> list[str]:
    """Those that a run reads."""
    encoders = workdir.config()["model"]["encoders"]
    return [name for name in workdir.spec().modalities if encoders.get(name) is not None]


def given_inputs(rest: Sequence[str], modalities: Sequence[str]) -> dict[str, str]:
    """Modality -> what the command line gives of it: one or more."""
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in modalities:
        options.add_argument(f"--{name}")
    try:
        given, unknown = options.parse_known_args(rest)
    except argparse.ArgumentError as error:
        raise ConfigError(str(error)) from error
    for word in unknown:
        choose(word.split("=")[0].lstrip("-"), modalities, "predict", "modality")
    found = {name: value for name, value in vars(given).items() if value is not None}
    if not found:
        raise ConfigError(
            f"predict: give one or more of: {', '.join('--' + m for m in modalities)}"
        )
    return found


def read_values(given: Mapping[str, str], workdir: Any) -> dict[str, Any]:
    """Files and texts as a run's data would give them."""
    spec, inputs = workdir.spec(), {}
    for name, value in given.items():
        modality = spec.modalities[name]
        if modality.kind not in READERS:
            inputs[name] = read_one(name, value, workdir)
            continue
        extra = (workdir.tokenizer(name),) if modality.kind == "text" else ()
        inputs[name] = READERS[modality.kind](value, modality, *extra)
    return inputs
