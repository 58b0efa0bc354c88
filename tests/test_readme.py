"""What the README says: its Python runs, its commands are CI's, its tables are the tables."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mtmm_jax import balancing, data, encoders, fusion, heads, modalities, sharing, tasks

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_python_blocks_run(block):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", block], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_ci_runs_the_commands_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text()
    for command in (
        "pip install -q -e '.[test]'",
        "python -m mtmm_jax.train --config configs/emoji.py --workdir",
        "pytest",
    ):
        assert command in script
        assert command.replace(" -q", "") in README


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("MODALITIES", modalities.MODALITIES),
        ("SOURCES", data.SOURCES),
        ("ENCODERS", encoders.ENCODERS),
        ("FUSIONS", fusion.FUSIONS),
        ("SHARINGS", sharing.SHARINGS),
        ("HEADS", heads.HEADS),
        ("TASKS", tasks.TASKS),
    ],
)
def test_tables_are_told_whole(name, table):
    row = next(line for line in README.splitlines() if f"`{name}`" in line)
    ours = [
        n for n, make in table.items() if not getattr(make, "__module__", "").startswith("tests")
    ]
    assert [entry.strip() for entry in row.split("|")[4].split(",")] == ours


def test_the_methods_it_names_exist():
    table = README.partition("| what a step costs | methods |\n|---|---|\n")[2].partition("\n\n")[0]
    named = [name for row in table.splitlines() for name in row.split("|")[2].strip().split(", ")]
    assert len(named) > 10
    assert set(named) <= set(balancing.METHODS)


def test_pictures_are_there():
    for path in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (ROOT / path).stat().st_size > 10_000
