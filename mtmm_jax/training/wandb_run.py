"""A run's metrics on Weights & Biases, optional: `config.wandb = {"project": "emoji"}`.

What was asked for, and the W&B run's id, are kept in the workdir: a run that resumes continues in
the same W&B run.
"""

from __future__ import annotations

import importlib
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtmm_jax.registry import ConfigError, choose
from mtmm_jax.store.workdir import Workdir

KEYS = ("project", "entity", "name", "group", "tags", "notes", "mode")
MODES = ("online", "offline", "disabled")
_FILE = "wandb.json"


def check(settings: Any) -> dict[str, Any] | None:
    """`config.wandb` as a plain dict, None for none; an error before anything compiles.

    Args:
        settings: `project` and, if wanted, `entity`, `name`, `group`, `tags`, `notes` and `mode`
            (online; offline: kept in the workdir for `wandb sync`; disabled), as `wandb.init` has
            them.
    """
    where = "config.wandb"
    if settings is None:
        return None
    if not hasattr(settings, "items"):
        raise ConfigError(f"{where}: {settings!r}: needs None or a section, {{'project': 'emoji'}}")
    plain = {key: list(v) if isinstance(v, tuple | list) else v for key, v in settings.items()}
    for key in plain:
        choose(key, KEYS, f"{where}.{key}", "key")
    if not isinstance(plain.get("project"), str) or not plain["project"]:
        raise ConfigError(f"{where}: needs a `project`, the name of one on W&B")
    if "mode" in plain:
        choose(plain["mode"], MODES, f"{where}.mode", "mode")
    _wandb()
    return plain


def keep(folder: Path, settings: Mapping[str, Any] | None) -> None:
    """Writes down what a workdir's metrics go to from now on; the id stays once it is given."""
    known = _kept(folder)
    if settings is None and not known:
        return
    id = known.get("id") or secrets.token_hex(4)
    content = {"id": id, "settings": None if settings is None else dict(settings)}
    Workdir(folder).write(_FILE, content)


def open_wandb(folder: Path) -> WandbRun | None:
    """The W&B run of a workdir, started or resumed; None where the config has none."""
    known = _kept(folder)
    return WandbRun(folder, known["id"], known["settings"]) if known.get("settings") else None


class WandbRun:
    """Metrics to W&B, each step once."""

    def __init__(self, folder: Path, id: str, settings: Mapping[str, Any]) -> None:
        config = Workdir(folder).config() if (folder / "config.json").exists() else {}
        try:
            self._run = _wandb().init(
                id=id, resume="allow", dir=str(folder), config=config, **settings
            )
        except ConfigError:
            raise
        except Exception as error:  # no key, no network, no such project: W&B's words are plain
            reason = " ".join(str(error).split())
            raise ConfigError(
                f"config.wandb: {reason}; --config.wandb=None does without, mode 'offline' needs "
                "no account"
            ) from error

    def write(self, step: int, curves: Mapping[str, float]) -> None:
        """Values that a killed run logged of steps that are now repeated stand: they come out the
        same."""
        if step >= self._run.step:
            self._run.log(dict(curves), step=step)

    def close(self) -> None:
        self._run.finish()


def _kept(folder: Path) -> dict[str, Any]:
    return Workdir(folder).read(_FILE) if (folder / _FILE).exists() else {}


def _wandb() -> Any:
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise ConfigError(
            "config.wandb: asks for Weights & Biases, which is not installed: pip install "
            "'mtmm_jax[wandb]', or do without: --config.wandb=None"
        ) from error
