"""Ships configs/ and its folders in the installed package, as mtmm_jax/configs; all else:
pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

_FOLDERS = ["configs", *sorted(str(p) for p in Path("configs").iterdir() if p.is_dir())]
_CONFIGS = {f"mtmm_jax.{folder.replace('/', '.')}": folder for folder in _FOLDERS}

setup(
    packages=[*find_packages(include=["mtmm_jax*"]), *_CONFIGS],
    package_dir=_CONFIGS,
)
