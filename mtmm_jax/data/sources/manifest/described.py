"""What the columns of a manifest are: from a config, a file beside it, options, or guessed."""

from __future__ import annotations

import argparse
import json
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtmm_jax.batch import choose_all
from mtmm_jax.data.sources.manifest.guess import guess
from mtmm_jax.data.sources.manifest.rows import read_rows
from mtmm_jax.modalities import MODALITIES
from mtmm_jax.readers.files import Folder
from mtmm_jax.readers.limits import Limits
from mtmm_jax.registry import ConfigError, choose
from mtmm_jax.targets import columns

KEYS = ("modalities", "targets", "split", "id", "limits")
_IGNORED = (
    "kind",
    "path",
    "on_bad",
    "augment",
    "seed",
    "workers",
    "decoded",
)  # of a config's `data`


def describe(path: Path, arguments: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """What the columns are, and in words where that is known from."""
    beside = path.with_name(f"{path.stem}.description.json")
    options = {
        "modalities": dict(
            _option(text, MODALITIES, "--modality") for text in arguments.modality or ()
        ),
        "targets": dict(_option(text, columns(), "--target") for text in arguments.target or ()),
    }
    if arguments.config:
        found, said = _load(Path(arguments.config)), [f"described by {arguments.config}"]
    elif any(options.values()):
        found, said = {}, []
    elif beside.is_file():
        found, said = _load(beside), [f"described by {beside}"]
    else:
        limits = Limits()
        found, said = guess(read_rows(path, limits), Folder(path.parent, limits))
        said = ["guessed from the values:", *(f"  {line}" for line in said)]
    choose_all(found, (*KEYS, *_IGNORED), f"description of {path}", "key")
    for key, given in options.items():
        found = {**found, key: {**found.get(key, {}), **given}}
    if not found["modalities"]:
        raise ConfigError(f"{path}: has no modality; name one with --modality NAME=KIND[:COLUMN]")
    if arguments.split:
        found["split"] = _shares(arguments.split)
    if arguments.id:
        found["id"] = arguments.id
    if arguments.limit:
        pairs = dict(_pair(text, "--limit") for text in arguments.limit)
        found["limits"] = {
            **found.get("limits", {}),
            **{key: _number(value, f"--limit {key}") for key, value in pairs.items()},
        }
    return found, said


def _load(path: Path) -> dict[str, Any]:
    """A description, or the `data` of a config."""
    try:
        if path.suffix == ".py":
            found = runpy.run_path(str(path))["get_config"]()
            found = found.to_dict() if hasattr(found, "to_dict") else dict(found)
        else:
            found = json.loads(path.read_text(encoding="utf-8-sig"))
    except Exception as error:  # a config is a program
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"cannot read the description {path}: {reason}") from error
    found = found.get("data", found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not isinstance(found.get("modalities"), dict):
        raise ConfigError(f"{path}: is no description: it has no object `modalities`")
    return found


def _option(text: str, table: Mapping[str, Any], option: str) -> tuple[str, dict[str, str]]:
    name, value = _pair(text, option)
    kind, _, column = value.partition(":")
    choose(kind, table, f"{option} {name}", "kind")
    return name, {"kind": kind, **({"column": column} if column else {})}


def _pair(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals or not value:
        raise ConfigError(f"{option}: {text!r} is not NAME=VALUE")
    return name, value


def _shares(text: str) -> str | dict[str, float]:
    if "=" not in text:
        return text
    pairs = dict(_pair(part, "--split") for part in text.split(","))
    return {name: _float(value, f"--split {name}") for name, value in pairs.items()}


def _number(text: str, where: str) -> float:
    return int(text) if text.isdecimal() and len(text) < 20 else _float(text, where)


def _float(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(f"{where}: {text!r} is not a number") from error
