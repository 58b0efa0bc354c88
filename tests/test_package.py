"""The package as a whole: light to import, lazy, and in one piece when installed."""

import importlib
import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import mtmm_jax
from mtmm_jax import moved

_ROOM = Path(mtmm_jax.__file__).parent
_PROJECT = Path(__file__).parents[1] / "pyproject.toml"
COMMANDS = [
    ".".join(("mtmm_jax", *path.relative_to(_ROOM).with_suffix("").parts))
    for path in sorted(_ROOM.rglob("*.py"))
    if "\ndef main(argv" in path.read_text()
]


def _python(code):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_importing_the_package_loads_nothing_of_it():
    loaded = _python(
        "import sys, mtmm_jax; print(*[m for m in sys.modules if m.startswith(('mtmm_jax.', 'jax', "
        "'flax', 'optax', 'orbax', 'grain', 'tensorflow', 'torch', 'numpy', 'matplotlib'))])"
    )
    assert loaded == ["mtmm_jax.moved"]


def test_balancing_brings_only_its_own():
    loaded = _python(
        "import sys; from mtmm_jax import balancing; print(*sorted({m.split('.')[1] for m in "
        "sys.modules if m.startswith('mtmm_jax.')} | {m for m in sys.modules if m in ('flax', "
        "'orbax', 'grain', 'tensorflow', 'torch', 'ml_collections', 'matplotlib')}))"
    )
    assert loaded == ["balancing", "moved", "ranges", "registry"]


def test_rooms_are_found_when_asked_for():
    assert mtmm_jax.registry.ConfigError.__name__ == "ConfigError"
    assert "fusion" in dir(mtmm_jax)


@pytest.mark.parametrize(("old", "new"), moved.MOVED.items())
def test_an_old_path_says_the_new_one(old, new):
    with pytest.raises(ModuleNotFoundError, match=f"mtmm_jax.{old} is now mtmm_jax.{new}$"):
        importlib.import_module(f"mtmm_jax.{old}")
    assert importlib.util.find_spec(f"mtmm_jax.{new}") is not None


def test_an_old_command_says_the_new_one_in_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "mtmm_jax.data.check"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "mtmm_jax.data.check is now mtmm_jax.data.inspect.check" in done.stderr


def test_neither_tensorflow_nor_torch_is_needed():
    # TensorBoard's writer imports torch where it is installed; it is imported first, without.
    loaded = _python(
        "import sys; names = ('tensorflow', 'torch'); sys.modules.update(dict.fromkeys(names));"
        "import tensorboardX; [sys.modules.pop(name) for name in names];"
        "import mtmm_jax.train, mtmm_jax.training.loop, mtmm_jax.analysis.report;"
        "print(*[m for m in names if m in sys.modules])"
    )
    assert loaded == []


def test_every_folder_of_code_is_a_package():
    root = Path(mtmm_jax.__file__).parent
    for folder in {path.parent for path in root.rglob("*.py")}:
        assert (folder / "__init__.py").exists(), folder


@pytest.mark.parametrize(
    "entry", tomllib.loads(_PROJECT.read_text())["project"]["scripts"].values()
)
def test_every_script_of_the_package_is_there(entry):
    module, _, name = entry.partition(":")
    assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_tells_what_it_takes(command, capsys):
    """A stray percent sign in a help text would stop it."""
    with pytest.raises(SystemExit) as end:
        importlib.import_module(command).main(["--help"])
    assert end.value.code == 0
    assert "usage:" in capsys.readouterr().out
