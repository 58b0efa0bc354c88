"""The encoders `pretrained` in a run: what of them learns, their parameters at the start, and the
SHA-256 of the files that these came from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from mtmm_jax.assembly import Parts
from mtmm_jax.encoders import backbones
from mtmm_jax.encoders.backbones.folder import WeightsFolder
from mtmm_jax.model import flatten
from mtmm_jax.registry import ConfigError
from mtmm_jax.store import digests
from mtmm_jax.transfer.origins import Origin

FILE = "weights.json"
"""In a workdir: place in the config -> `{file: SHA-256}`."""


def extend(section: Any, parts: Parts) -> Parts:
    """The extension of `config.model`: freezes pretrained parameters or gives them a rate of their
    own, by `tune` of their encoder; the linear map behind them learns like the rest."""
    paths = flatten(parts.model.shapes["params"])
    for name, entry in backbones.sections(section["encoders"]).items():
        pattern, tune = rf"encoders/{re.escape(name)}/(?!project/).*", entry.get("tune", 0.0)
        if not any(re.fullmatch(pattern, path) for path in paths):
            continue  # no task reads it
        if tune == 0.0:
            parts = parts.replace(freeze=(*parts.freeze, pattern))
        elif tune < 1.0:
            parts = parts.replace(rates_by_path=(*parts.rates_by_path, (pattern, tune)))
    return parts


def origins(experiment: Any) -> Iterator[tuple[str, Origin]]:
    """`(path of the encoder, what its folder holds)`, of those that the model has."""
    sections = backbones.sections(experiment.config["model"]["encoders"])
    there = experiment.shapes.params.get("encoders", {})
    for name, section in sections.items():
        if name in there:
            at, where = f"encoders/{name}", f"model.encoders.{name}.weights"
            encoder = experiment.model.encoders[name]
            found = backbones.variables_of(section["weights"], encoder, where)
            placed = {
                collection: {f"{at}/{path}": leaf for path, leaf in flatten(tree).items()}
                for collection, tree in found.items()
            }
            words = backbones.tokenizers({name: section}).get(name)
            kept = None if words is None else words.encode()
            yield at, Origin(section["weights"], placed, None, lambda _, kept=kept: kept)


def keep_digests(experiment: Any, workdir: Any) -> None:
    """Keeps in the workdir which bytes a run began with; later compares them.

    A run that is resumed opens the folder again, for its tokenizer and, before the first
    checkpoint, for its parameters: other bytes would be other ids and other numbers.

    Raises:
        ConfigError: where a file has another SHA-256 than when the run began.
    """
    found = {}
    for name, section in backbones.sections(experiment.config["model"].get("encoders")).items():
        where = f"model.encoders.{name}.weights"
        folder = WeightsFolder.at(section["weights"], where)
        found[where] = {path.name: digests.of_file(path) for path in folder.read}
    if not found:
        return
    if not (workdir.path / FILE).exists():
        workdir.write(FILE, found)
        return
    before = workdir.read(FILE)
    for where, files in found.items():
        kept = before.get(where)
        for name in sorted({*files, *kept}) if isinstance(kept, dict) else ():
            if files.get(name) != kept.get(name):
                raise ConfigError(
                    f"{where}: {name} is not what this run began with (another SHA-256, see "
                    f"{FILE}); put the file back, or train in a new folder"
                )
