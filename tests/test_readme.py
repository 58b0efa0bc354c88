"""What the READMEs say: their Python runs, their commands are CI's, their tables are the tables."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mtmm_jax import balancing
from mtmm_jax.benchmarks.tables import entries, pages
from tests.made_up import packaged

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
MAP = (ROOT / "mtmm_jax" / "README.md").read_text()
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (
        ROOT / "README.md",
        ROOT / "tests" / "README.md",
        ROOT / "configs" / "README.md",
        *(ROOT / "mtmm_jax").rglob("README.md"),
    )
)


def test_it_is_read_in_five_minutes():
    lines = README.splitlines()
    assert len(lines) <= 200
    assert max(len(line) for line in lines if not line.startswith("|")) <= 110


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


def test_the_numbers_of_emoji_are_those_of_its_runs():
    runs = json.loads((pages.ROOT / "benchmarks/results/emoji_seeds.json").read_text()).values()
    for label, task, metric in (
        ("category accuracy", "category", "accuracy"),
        ("subcategory (98) accuracy", "subcategory", "accuracy"),
        ("year R2", "year", "r2"),
    ):
        row = README.partition(f"| emoji, {label} |")[2].partition("\n")[0]
        values = [run["test"][task][metric] for run in runs]
        alone = [run["baselines"]["only text"]["test"][task][metric] for run in runs]
        for found in (values, alone):
            mean, spread = (f"{x:.3f}".lstrip("0") for x in (np.mean(found), np.std(found)))
            assert f"{mean} ± {spread}" in row


@pytest.mark.parametrize("name", entries.tables())
def test_the_entries_of_the_map_exist(name):
    named = entries.listed(MAP, name)
    assert len(named) > 5
    assert set(named) <= set(entries.tables()[name])


def test_the_map_is_generated():
    again = entries.rewritten(MAP)
    lines, others = MAP.split("\n"), again.split("\n")
    rows = [line for line, other in zip(lines, others, strict=True) if line != other]
    assert all(line.startswith("|") for line in rows)
    for name, table in entries.tables().items():
        assert entries.listed(again, name) == list(table)


@pytest.mark.parametrize("room", pages.rooms())
def test_the_rooms_tables_are_generated(room):
    text = (pages.ROOT / room / "README.md").read_text()
    table = packaged(pages.rooms()[room])
    assert text == pages.rewritten(text, table), "python -m mtmm_jax.benchmarks.tables.pages"
    assert text.count("\n| `") >= len(table)


@pytest.mark.parametrize("room", pages.rooms())
def test_every_entry_says_its_cost_and_when_to_use_it(room):
    for name, entry in packaged(pages.rooms()[room]).items():
        about = pages.last(entry)
        assert about["cost"], name
        assert about["use"], name
        for number in re.findall(r"arXiv:?\s*([^\s;]*)", about["paper"]):
            assert re.fullmatch(r"\d{4}\.\d{4,5}", number.rstrip(".")), name
            assert 1 <= int(number[2:4]) <= 12, name


def test_every_room_has_a_page():
    rooms = [path.parent for path in (ROOT / "mtmm_jax").glob("*/__init__.py")]
    missing = [room.name for room in rooms if not (room / "README.md").exists()]
    assert missing == ["readers"]  # of `data` and `modalities`, which say what they read


def test_the_methods_by_cost_exist():
    page = (ROOT / "mtmm_jax" / "balancing" / "README.md").read_text()
    table = page.partition("| what a step costs | methods |\n|---|---|\n")[2].partition("\n\n")[0]
    named = [name for row in table.splitlines() for name in row.split("|")[2].strip().split(", ")]
    assert len(named) > 10
    assert set(named) <= set(balancing.METHODS)


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_lead_somewhere(page):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", (ROOT / page).read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not target.startswith("https://"):
            assert ((ROOT / page).parent / target).exists(), target
    for target in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert ((ROOT / page).parent / target).stat().st_size > 10_000
