"""Descriptions of a table's columns: from a config, a file next to it, options, or its content."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtmm_jax.batch import choose_all
from mtmm_jax.data.build import OPTIONS
from mtmm_jax.data.inspect.columns import ColumnLook, description_of, look_at_columns
from mtmm_jax.data.inspect.packs import PACKED, is_pack
from mtmm_jax.data.inspect.streamed import is_large, look_at_stream
from mtmm_jax.data.sources.manifest.rows import Rows, read_rows
from mtmm_jax.data.sources.sharded.plan import read_header
from mtmm_jax.data.sources.sharded.stream import open_stream
from mtmm_jax.encoders import backbones
from mtmm_jax.modalities import MODALITIES
from mtmm_jax.readers.files import Folder
from mtmm_jax.readers.limits import Limits
from mtmm_jax.registry import ConfigError, choose
from mtmm_jax.store import config as configs
from mtmm_jax.targets import columns

KEYS = ("modalities", "targets", "split", "id", "limits")
_IGNORED = ("kind", "path", "on_bad", "augment", "seed", "workers", "decoded", "in_step", *OPTIONS)


@dataclasses.dataclass(frozen=True)
class Described:
    """A table and what its columns are.

    Attributes:
        path: of the table.
        description: the arguments of `manifest` that say what the columns are.
        origin: in words, where that is known from.
        looks: at each column.
        count: of its rows, or of those that were looked at.
    """

    path: Path
    description: dict[str, Any]
    origin: str
    looks: list[ColumnLook]
    count: int = 0


def add_options(p: argparse.ArgumentParser) -> None:
    """The options of a command that describe a table and its columns."""
    p.add_argument(
        "manifest",
        nargs="?",
        metavar="TABLE",
        help="a .csv, .tsv, .jsonl or .parquet, a WebDataset .tar, a folder of such parts, of "
        "class/file, or with metadata.csv; that of --config by default",
    )
    p.add_argument("--config", help="a config of training, a .json, or a .py with `get_config()`")
    p.add_argument(
        "--label", action="append", metavar="COLUMN", help="to predict; the others are inputs"
    )
    kinds = f"kinds: {', '.join(sorted(MODALITIES))}"
    p.add_argument("--modality", action="append", metavar="NAME=KIND[:COLUMN]", help=kinds)
    kinds = f"kinds: {', '.join(sorted(columns()))}"
    p.add_argument("--target", action="append", metavar="NAME=KIND[:COLUMN]", help=kinds)
    p.add_argument("--split", help="a column, or shares such as train=0.8,test=0.2")
    p.add_argument("--id", help="the column that names an example")
    p.add_argument("--limit", action="append", metavar="NAME=VALUE", help="such as pixels=1000000")


def describe(
    arguments: argparse.Namespace, overrides: Sequence[str] = (), counted: bool = True
) -> Described:
    """The table of a command line, and what its columns are.

    Args:
        arguments: of `add_options`.
        overrides: of the config.
        counted: whether the columns are looked at where a config says what they are.
    """
    options = {
        "modalities": dict(
            _option(text, MODALITIES, "--modality") for text in arguments.modality or ()
        ),
        "targets": dict(_option(text, columns(), "--target") for text in arguments.target or ()),
    }
    given = _load(Path(arguments.config), overrides) if arguments.config else None
    if overrides and not str(arguments.config).endswith(".py"):
        raise ConfigError(f"{overrides[0]!r}: not understood; overrides need --config FILE.py")
    table = arguments.manifest or (given or {}).get("path")
    if table is None:
        raise ConfigError("check: name a table, or --config FILE.py whose data has a `path`")
    path = Path(table)
    if (given or {}).get("kind") == PACKED or is_pack(path):
        header = read_header(path)
        origin = "described by its packing"
        return Described(path, header["description"], origin, [], header["rows"])
    if given is not None and not counted:
        choose_all(given, (*KEYS, *_IGNORED), f"description of {path}", "key")
        return Described(path, given, f"described by {arguments.config}", [])
    limits, labels = Limits(**_limits(arguments, given)), arguments.label or ()
    if is_large(path):
        rows, looks = look_at_stream(open_stream(path, limits), labels)
    else:
        rows = read_rows(path, limits)
        looks = look_at_columns(rows, Folder(rows.base, Limits()), labels)
    saved = path.with_name(f"{path.stem}.description.json")
    if given is not None:
        found, origin = given, f"described by {arguments.config}"
    elif any(options.values()):
        found, origin = {}, "described by --modality and --target"
    elif saved.is_file() and not arguments.label:
        found, origin = _load(saved, ()), f"described by {saved}"
    else:
        found, origin = description_of(rows, looks), "guessed from the values"
    choose_all(found, (*KEYS, *_IGNORED), f"description of {path}", "key")
    for key, entries in options.items():
        found = {**found, key: {**found.get(key, {}), **entries}}
    if not found["modalities"]:
        likely = ", ".join(found["targets"]) or ", ".join(sorted(rows.columns))
        raise ConfigError(
            f"{path}: has no modality; name one with --modality NAME=KIND[:COLUMN], or what to "
            f"predict with --label COLUMN, so that the others are inputs: {likely}"
        )
    if arguments.split:
        found["split"] = _shares(arguments.split)
    if arguments.id:
        found["id"] = arguments.id
    if limits := _limits(arguments, found):
        found["limits"] = limits
    return Described(path, found, origin, looks, _count(rows, looks))


def tokenizers_of(config: str | None, overrides: Sequence[str]) -> dict[str, str]:
    """Modality -> `tokenizer.json`, of the texts that a config's pretrained encoders read."""
    if config is None or not config.endswith(".py"):
        return {}
    found = configs.as_dict(configs.apply_overrides(configs.load(config), overrides))
    return backbones.tokenizers((found.get("model") or {}).get("encoders"))


def _count(rows: Rows, looks: Sequence[ColumnLook]) -> int:
    """The rows of a table, which may be more than those that are at hand."""
    return max([len(rows), *(look.present + look.missing for look in looks)])


def _limits(arguments: argparse.Namespace, found: Mapping[str, Any] | None) -> dict[str, Any]:
    pairs = dict(_pair(text, "--limit") for text in arguments.limit or ())
    given = {key: _number(value, f"--limit {key}") for key, value in pairs.items()}
    limits = {**((found or {}).get("limits") or {}), **given}
    choose_all(limits, [f.name for f in dataclasses.fields(Limits)], "--limit", "limit")
    return limits


def _load(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """A description, or the `data` of a config with its overrides."""
    try:
        if path.suffix == ".py":
            found = configs.load(str(path))
            if hasattr(found, "unlocked"):
                found = configs.as_dict(configs.apply_overrides(found, overrides))
        else:
            found = json.loads(path.read_text(encoding="utf-8-sig"))
    except ConfigError:
        raise
    except Exception as error:  # a config is a program
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"cannot read the description {path}: {reason}") from error
    found = found.get("data", found) if isinstance(found, dict) else found
    if isinstance(found, str):
        found = {"kind": found}
    kind = found.get("kind", "manifest") if isinstance(found, dict) else "manifest"
    if kind == PACKED:
        return found
    if kind != "manifest":
        raise ConfigError(
            f"{path}: data.kind is {kind!r}; check reads tables, of kind 'manifest', and what was "
            f"made of them, of kind {PACKED!r}"
        )
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
    """A whole number where it is written as one."""
    return int(text) if text.isdecimal() and len(text) < 20 else _float(text, where)


def _float(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(f"{where}: {text!r} is not a number") from error
