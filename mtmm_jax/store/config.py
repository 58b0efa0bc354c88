"""Configs: found by name or path, overridden on the command line, checked before anything runs."""

from __future__ import annotations

import ast
import re
import runpy
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from ml_collections import ConfigDict

import mtmm_jax
from mtmm_jax.ranges import Count, Entry, Natural, Size, mismatch
from mtmm_jax.registry import ConfigError, choose, short
from mtmm_jax.registry import check as check_value

KEYS: dict[str, Any] = {
    "seed": Natural,
    "steps": Count,
    "batch_size": Size,
    "data": Entry,
    "model": Mapping[str, Any],
    "tasks": Mapping[str, Entry | None],
    "balancing": Entry,
    "optimizer": Entry,
    "devices": Count | Literal["all"] | Mapping[str, Any],
    "checkpoint": Mapping[str, Any],
    "evaluation": Mapping[str, Any],
}
SECTIONS: dict[str, dict[str, Any]] = {
    "checkpoint": {"every": Count, "keep": Count, "best": str},
    "evaluation": {"every": Count, "batch_size": Size, "log_every": Count, "baselines": bool},
}
"""What every config has, and the types and ranges of its values."""

OPTIONAL: dict[str, Any] = {"abort_after": 25, "dumps": 3}
"""Keys that a config may leave out, and what holds then: after how many steps in a row that learned
nothing a run ends (None: never), and how many diverged batches are kept (`training.faults`)."""
OPTIONAL_HINTS: dict[str, Any] = {"abort_after": Count | None, "dumps": Natural}
STOPPING: dict[str, Any] = {"stopping": Count | Mapping[str, Any] | None}
"""Of `training.stopping`; a config may leave it out, and then training ends at its last step."""

# Values of several forms, which are checked where they are read.
FORMS: dict[str, tuple[type, ...]] = {
    "devices": (int, Mapping),
    "stopping": (int, Mapping),
    "model.modality_dropout": (int, float, Mapping),
}


def found() -> dict[str, Path]:
    """`{name: file}` of the configs of the installed package, or of the checkout's `configs/`."""
    package = Path(mtmm_jax.__file__).parent
    folder = next(p for p in (package / "configs", package.parent / "configs") if p.is_dir())
    return {file.stem: file for file in sorted(folder.rglob("*.py")) if file.stem != "__init__"}


def load(name_or_path: str, sections: Iterable[str] = ()) -> ConfigDict:
    """The config of a file, or of a name such as `emoji` that ships with the package, whatever
    folder it lies in.

    Args:
        name_or_path: as after `--config`.
        sections: those that a config may leave out, and are None then.
    """
    path, named = Path(name_or_path), found()
    if path.suffix != ".py":
        path = named[choose(name_or_path, sorted(named), "--config", "config")]
    elif not path.exists():
        there = f"{path.stem} is in {named[path.stem]}" if path.stem in named else ""
        raise ConfigError(
            f"--config: no file {str(path)!r}; "
            f"{there or 'by name there are: ' + ', '.join(sorted(named))}"
        )
    config = _run(path)
    with config.unlocked():
        for key, value in {**OPTIONAL, **dict.fromkeys((*STOPPING, *sections))}.items():
            if key not in config:
                config[key] = value
    return config


def mutable(plain: Mapping[str, Any]) -> ConfigDict:
    """Plain dicts, such as a workdir's config, as what `apply_overrides` takes."""
    try:
        return ConfigDict(plain, type_safe=False)
    except (ValueError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"config: is no config: {reason}") from error


def _run(path: Path) -> ConfigDict:
    """The result of a config file; an error in it as one line that names the place.

    A section may be set to anything afterwards, such as a name (`c.model.fusion = "concat"`): types
    are checked with the whole config (`check`).
    """
    try:
        module = runpy.run_path(str(path))
        if "get_config" not in module:
            raise ConfigError(f"--config: {path} has no function get_config()")
        config = module["get_config"]()
        plain = config.to_dict() if isinstance(config, ConfigDict) else dict(config)
        return mutable(plain)
    except ConfigError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if frame.filename == str(path)]
        line = f", line {own[-1].lineno}" if own else ""
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"--config: {path}{line}: {type(error).__name__}: {reason}") from error


def apply_overrides(config: ConfigDict, overrides: Iterable[str]) -> ConfigDict:
    """Applies `--config.a.b=value`; values are Python literals, anything else is a string.

    `None` removes a task or an encoder. A key that does not exist is an error, except in a section
    with a `kind`, where it is a hyper-parameter of that entry and is checked by its table.
    """
    for override in overrides:
        match = re.fullmatch(r"--config\.([\w.+-]+)=(.*)", override, re.DOTALL)
        if not match:
            raise ConfigError(
                f"{override!r}: not understood; overrides look like "
                "--config.optimizer.learning_rate=3e-4"
            )
        path, text = match.groups()
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        _set(config, path, value)
    return config


def _set(config: ConfigDict, path: str, value: Any) -> None:
    *parents, last = path.split(".")
    node = config
    for depth, key in enumerate(parents):
        choose(key, node.keys(), f"--config.{'.'.join(parents[: depth + 1])}", "config key")
        if not isinstance(node[key], ConfigDict):
            raise ConfigError(f"--config.{path}: {'.'.join(parents[: depth + 1])} is not a section")
        node = node[key]
    if last in node:
        value = _converted(node[last], value, path)
    elif "kind" not in node:
        choose(last, node.keys(), f"--config.{path}", "config key")
    with node.unlocked(), node.ignore_type():
        node[last] = _section(value)


def _section(value: Any) -> Any:
    return ConfigDict(value) if isinstance(value, Mapping) else value


def _converted(old: Any, value: Any, path: str) -> Any:
    """The value in the old one's type: 1 for a float is fine, a word for a number is not."""
    if old is None or value is None or isinstance(value, type(old)):
        return value
    if isinstance(old, float) and type(value) is int and mismatch(value, float) is None:
        return float(value)
    if isinstance(old, list | tuple) and isinstance(value, list | tuple):
        return type(old)(value)
    # A table entry is a name or a section with its `kind`; what is read is a name or a list.
    if isinstance(old, str | list | tuple | ConfigDict) and isinstance(
        value, str | list | tuple | dict
    ):
        return value
    if isinstance(value, FORMS.get(path, ())) or (path == "devices" and value == "all"):
        return value
    section = isinstance(old, ConfigDict)
    wanted = (
        f"a section of {', '.join(old)}" if section else f"{type(old).__name__}, such as {old!r}"
    )
    raise ConfigError(f"--config.{path}: {short(value)} is {type(value).__name__}; needs {wanted}")


def check(config: Mapping[str, Any] | ConfigDict, sections: Iterable[str] = ()) -> None:
    """Raises a `ConfigError` for unknown, missing or impossible top-level values.

    Args:
        config: as `load` gives it, or plain dicts.
        sections: those that a config may have besides `KEYS` and `OPTIONAL`.
    """
    config = as_dict(config)
    for key in config:
        choose(key, (*KEYS, *OPTIONAL, *STOPPING, *sections), f"config.{key}", "key")
    if missing := [key for key in KEYS if key not in config]:
        raise ConfigError(f"config: misses {', '.join(missing)}; it has {', '.join(config)}")
    hints = {**KEYS, **OPTIONAL_HINTS, **STOPPING}
    for key, value in config.items():
        check_value(value, hints.get(key, Any), f"config.{key}")
    for section, known in SECTIONS.items():
        for key, value in config[section].items():
            choose(key, known, f"config.{section}.{key}", "key")
            check_value(value, known[key], f"config.{section}.{key}")
        for key in known:
            if key not in config[section]:
                raise ConfigError(f"config.{section}: misses {key!r}")


def as_dict(config: ConfigDict) -> dict[str, Any]:
    """Plain dicts and lists, as JSON has them."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping | ConfigDict):
            return {key: plain(entry) for key, entry in value.items()}
        return [plain(v) for v in value] if isinstance(value, list | tuple) else value

    return plain(config)


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """`key: old -> new` for each place where two plain configs differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found = []
        for key in sorted({*old, *new}):
            below = f"{path}.{key}" if path else key
            found += differences(old.get(key), new.get(key), below)
        return found
    return [] if old == new else [f"{path}: {old!r} -> {new!r}"]
