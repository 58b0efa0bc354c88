"""Sources are prepared once a machine, in a folder of temporary files, and loaded once a worker."""

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from mtmm_jax import data
from mtmm_jax.data.emoji import prepared

CACHE = Path(tempfile.gettempdir()) / "mtmm-jax-tests-data"


@functools.cache
def _source(name: str) -> data.Source:
    return data.SOURCES[name](data_dir=str(CACHE))


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
