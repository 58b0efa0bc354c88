"""Words that style keeps out of names, docstrings and messages stay out."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("mtmm_jax", "tests", "configs", "colabs")
TEXTS = {
    path: path.read_text()
    for folder in FOLDERS
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".py", ".md") and path != Path(__file__)
}

GONE = {
    "told": "report, output, metrics, or the exact noun",
    "beside": "next to, baseline, auxiliary",
    "learnt": "learned",
    "begun": "started",
    "goes on (from|where|with)": "resumes",
}


@pytest.mark.parametrize("word", GONE)
def test_a_word_that_is_gone_stays_gone(word):
    pattern = re.compile(rf"(?<![A-Za-z]){word}(?![A-Za-z])", re.IGNORECASE)
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path, text in TEXTS.items()
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found, f"write {GONE[word]}: {', '.join(found)}"


def test_one_name_is_one_type():
    """Classes of one name in several files, but for those that implement one interface."""
    places: dict[str, set[str]] = {}
    for path, text in TEXTS.items():
        if "mtmm_jax" in path.parts:
            for name in re.findall(r"^class (Settings|Rule|Run|Bound|Judged|Taught)\b", text, re.M):
                places.setdefault(name, set()).add(path.relative_to(ROOT).as_posix())
    assert places == {"Rule": {"mtmm_jax/balancing/base.py"}}
