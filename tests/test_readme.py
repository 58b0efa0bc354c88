"""What the README says: its Python runs, its commands are CI's, its tables are the tables."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mtmm_jax import balancing
from mtmm_jax.benchmarks.tables import entries

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


@pytest.mark.parametrize("name", entries.tables())
def test_the_entries_it_lists_exist(name):
    named = entries.listed(README, name)
    assert len(named) > 5
    assert set(named) <= set(entries.tables()[name])


def test_its_table_of_rooms_is_generated():
    again = entries.rewritten(README)
    lines, others = README.split("\n"), again.split("\n")
    rows = [line for line, other in zip(lines, others, strict=True) if line != other]
    assert all(line.startswith("|") for line in rows)
    for name, table in entries.tables().items():
        assert entries.listed(again, name) == list(table)


def test_the_methods_it_names_exist():
    table = README.partition("| what a step costs | methods |\n|---|---|\n")[2].partition("\n\n")[0]
    named = [name for row in table.splitlines() for name in row.split("|")[2].strip().split(", ")]
    assert len(named) > 10
    assert set(named) <= set(balancing.METHODS)


def test_pictures_are_there():
    for path in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (ROOT / path).stat().st_size > 10_000
