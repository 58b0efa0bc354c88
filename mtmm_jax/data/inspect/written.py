"""A config file for a table, as short as a person would write it."""

from __future__ import annotations

import json
import os
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtmm_jax.encoders.backbones import check_weights
from mtmm_jax.modalities import MODALITIES, ModalityKind
from mtmm_jax.registry import ConfigError, entry_of
from mtmm_jax.targets import TARGETS

_WIDTH = 100
BASE = "own_data"  # its optimiser, schedule, fusion and linear models
FEW = 5000  # rows below which fixed features do better than encoders learned from them
_EPOCHS, _BATCH, _STEPS = 30, 64, (200, 5000)


class Code(str):
    """Python that stands in the file as it is."""


def config_text(
    table: Path,
    out: Path,
    description: Mapping[str, Any],
    rows: int,
    weights: str | None = None,
    kind: str = "manifest",
) -> str:
    """The text of a config of every command.

    Args:
        table: the path of the table.
        out: of the file that will hold the text; the table is named from its folder.
        description: the arguments of `manifest` that say what the columns are.
        rows: of the table; they decide on encoders and on the number of steps.
        weights: a folder of a pretrained encoder for the texts.
        kind: of `data`; a pack knows its columns itself.
    """
    if weights is not None:
        check_weights(weights, "--weights")
    modalities = {name: entry_of(spec) for name, spec in description["modalities"].items()}
    targets = {name: entry_of(spec) for name, spec in description["targets"].items()}
    encoders = {
        name: encoder
        for name, spec in modalities.items()
        if (encoder := _encoder(MODALITIES[spec["kind"]], rows))
    }
    if weights is not None:
        texts = [n for n, spec in modalities.items() if MODALITIES[spec["kind"]].tokenized]
        if not texts:
            raise ConfigError(f"--weights: {table} has no text for {weights!r} to read")
        encoders |= {name: {"kind": "pretrained", "weights": Code("weights")} for name in texts}
    tasks = {
        name: TARGETS[spec["kind"]].task
        for name, spec in targets.items()
        if TARGETS[spec["kind"]].task
    }
    if not encoders or not tasks:
        what = "input that an encoder reads" if not encoders else "column to predict"
        raise ConfigError(
            f"--write: {table} has no {what}; name columns with --label, --modality or --target"
        )
    data = {"modalities": _short(modalities), "targets": _short(targets)}
    data |= {key: description[key] for key in ("id", "limits", "split") if key in description}
    if kind != "manifest":
        data = {}
    lines = [
        f'"""{_plain(table.name)}: written by `python -m mtmm_jax.data.inspect.check`; '
        'change what it took wrongly."""',
        "",
        "from pathlib import Path",
        "",
        "from mtmm_jax import training",
        "",
        "",
        "def get_config():",
        f'    config = training.load("{BASE}")',
        *([f"    weights = {_path(Path(weights), out)}"] if weights else []),
        "    config.data = {",
        f'        "kind": "{kind}",',
        f'        "path": {_path(table, out)},',
        *(line for key, value in data.items() for line in _option(key, value)),
        "    }",
        *_statement("config.model.encoders", encoders),
        *_statement("config.tasks", tasks),
        *(["    config.model.modality_dropout = 0.0"] if len(encoders) == 1 else []),
        f"    config.steps = {_steps(rows)}",
        "    return config",
    ]
    return "\n".join(lines) + "\n"


def _encoder(kind: ModalityKind, rows: int) -> str:
    return (kind.fixed if rows < FEW else "") or kind.encoder


def _steps(rows: int) -> int:
    """Of about 30 epochs, a multiple of 50."""
    least, most = _STEPS
    return min(max(-(-_EPOCHS * rows // (50 * _BATCH)) * 50, least), most)


def _path(path: Path, out: Path) -> str:
    """Python for a path, as it lies from the folder of the config."""
    there = path.expanduser().resolve()
    place = os.path.relpath(there, out.resolve().parent).replace(os.sep, "/")
    return f"str(Path(__file__).parent / {_literal(place)})"


def _short(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {name: spec["kind"] if len(spec) == 1 else spec for name, spec in entries.items()}


def _option(key: str, value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return _section(key, value)
    return [f"        {_literal(key)}: {_literal(value)},"]


def _section(key: str, entries: Mapping[str, Any]) -> list[str]:
    return _wrapped(f"{_literal(key)}: {_literal(entries)},", 8)


def _statement(place: str, entries: Mapping[str, Any]) -> list[str]:
    return _wrapped(f"{place} = {_literal(entries)}", 4)


def _wrapped(text: str, indent: int) -> list[str]:
    """Lines broken behind commas and colons, never within a name."""
    whole = re.sub(r'"(?:[^"\\]|\\.)*"', lambda m: m[0].replace(" ", "\0"), text)
    lines = textwrap.wrap(
        whole.replace(": ", ":\0").replace(" = ", "\0=\0"),
        _WIDTH,
        initial_indent=" " * indent,
        subsequent_indent=" " * (indent + 4),
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace("\0", " ") for line in lines]


def _literal(value: Any) -> str:
    """Python, with double quotes."""
    if isinstance(value, Code):
        return value
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(k)}: {_literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _plain(text: str) -> str:
    return text.replace("\\", "/").replace('"', "'")
