"""Sources are prepared once a machine, in a folder of temporary files, and loaded once a worker."""

import atexit
import functools
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtmm_jax import data
from mtmm_jax.data.sources.emoji import prepared
from mtmm_jax.data.sources.emoji.asset import STYLES
from mtmm_jax.registry import parameters
from tests.data import packs

CACHE = Path(tempfile.gettempdir()) / "mtmm-jax-tests-data"


# What the entries of the table cannot do without.
def _mixture() -> dict[str, Any]:
    return {
        "sources": {
            style: {
                "kind": "emoji",
                "styles": style,
                "data_dir": str(CACHE),
                "rename": {"style": f"is_{style}"},
            }
            for style in STYLES
        }
    }


def _packed() -> dict[str, Any]:
    root = Path(tempfile.mkdtemp(prefix="mtmm-jax-packed-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return {"path": packs.pack(root)}


NEEDED = {"mixture": _mixture, "packed": _packed}


@functools.cache
def _source(name: str) -> data.Source:
    build = data.SOURCES[name]
    options = {"data_dir": str(CACHE)} if "data_dir" in parameters(build) else {}
    return build(**options, **NEEDED.get(name, dict)())


@functools.cache
def _table() -> prepared.Emoji:
    return prepared.load(CACHE)


@pytest.fixture(scope="session")
def cache() -> Path:
    return CACHE


@pytest.fixture(scope="session")
def build_source() -> Callable[[str], data.Source]:
    """A source with its defaults, by name."""
    return _source


@pytest.fixture(scope="session")
def source() -> data.Source:
    return _source("emoji")


@pytest.fixture(scope="session")
def table() -> prepared.Emoji:
    """What the emoji source is made from."""
    return _table()
