"""Ships configs/ in the installed package, as mtmm_jax.configs; all else: pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["mtmm_jax*"]), "mtmm_jax.configs"],
    package_dir={"mtmm_jax.configs": "configs"},
)
