"""Packing, on a small set of drawings made here in the shape of the npm packages."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from mtmm_jax.data.sources.emoji import asset, names, ogg, pack, splits
from mtmm_jax.registry import ConfigError

LABELS = ("grinning face", "flag: Åland Islands", "twelve o’clock", "ON! arrow", "keycap: #")


@pytest.fixture
def npm(tmp_path: Path) -> Path:
    """Three packages with five emoji; one drawing is not square, the last two are alike."""
    modules = tmp_path / "npm" / "node_modules"
    rows, labels = [], []
    for i, label in enumerate(LABELS):
        code = f"1F60{i}"
        row = {"unified": code, "non_qualified": None, "image": f"{code.lower()}.png"}
        rows.append(
            {
                **row,
                "name": label.upper(),
                "category": "Component" if i == 0 else "Symbols",
                "subcategory": "sign",
                "sort_order": -i,
                "added_in": "15.1",
            }
        )
        labels.append({"hexcode": code, "label": label, "tags": ["Sign", "–"]})
        for folder in pack.FOLDERS.values():
            path = modules / folder / row["image"]
            path.parent.mkdir(parents=True, exist_ok=True)
            seed = np.random.default_rng(min(i, 3))
            shape = (60, 64, 4) if i == 1 else (64, 64, 4)
            Image.fromarray(seed.integers(0, 255, shape, np.uint8)).save(path)
    for package, version in names.PACKAGES.items():
        (modules / package / "en").mkdir(parents=True, exist_ok=True)
        (modules / package / "package.json").write_text(json.dumps({"version": version}))
        (modules / package / "emoji.json").write_text(json.dumps(rows))
        (modules / package / "en" / "data.json").write_text(json.dumps(labels))
    return tmp_path / "npm"


def run(npm: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "mtmm_jax.data.sources.emoji.pack"]
    command += ["--npm", str(npm), "--out", str(out)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_two_runs_give_the_same_bytes(npm, tmp_path):
    pytest.importorskip("espeakng_loader", reason="needs the `voices` extra")
    for name in ("a", "b"):
        done = run(npm, tmp_path / name / "assets")
        assert done.returncode == 0, done.stderr
    first, second = (
        {path.name: path.read_bytes() for path in asset.files(tmp_path / name / "assets")}
        for name in ("a", "b")
    )
    assert first == second
    assert {"concepts.json", "noto.webp", "twemoji.webp", "us_man.ogg"} <= set(first)
    table = asset.read_table(tmp_path / "a" / "assets")
    assert [c.name for c in table.concepts] == [
        "keycap hash",
        "on arrow",
        "twelve o'clock",
        "flag of åland islands",
    ]
    assert {c.keywords for c in table.concepts} == {("sign",)}
    assert {c.year for c in table.concepts} == {2023}
    alike = [c.split for c in table.concepts if c.name in ("keycap hash", "on arrow")]
    assert len(set(alike)) == 1


@pytest.mark.parametrize("what", ["missing", "version"])
def test_wrong_packages_are_refused_in_one_line(npm, tmp_path, what):
    if what == "missing":
        (npm / "node_modules" / "emojibase-data" / "package.json").unlink()
    else:
        path = npm / "node_modules" / "emojibase-data" / "package.json"
        path.write_text('{"version": "1.0.0"}')
    with pytest.raises(ConfigError, match="emojibase-data"):
        pack.pack(npm, tmp_path / "out", quiet=True)


def test_ogg_bytes_do_not_depend_on_the_moment():
    wave = (8000 * np.sin(np.arange(16000) / 20)).astype(np.int16)
    first, second = ogg.encode(wave, 16000, 0.9), ogg.encode(wave, 16000, 0.9)
    assert first == second
    back, rate = soundfile.read(io.BytesIO(first), dtype="int16")
    assert (rate, len(back)) == (16000, len(wave))
    assert np.corrcoef(back, wave)[0, 1] > 0.95


def test_groups_join_equal_names_and_equal_drawings():
    tiles = np.random.default_rng(0).integers(0, 255, (5, 64, 64, 4), np.uint8)
    tiles[3] = tiles[0]
    assert splits.group(["a", "b", "b", "c", "d"], [tiles]) == [0, 1, 1, 0, 4]


def test_colour_under_full_transparency_is_no_difference():
    tiles = np.zeros((2, 64, 64, 4), np.uint8)
    tiles[0, ..., :3] = 255
    assert splits.pairwise(tiles).max() == 0


def test_assignment_ignores_order_and_keeps_groups_together():
    codes = [f"{i:04x}" for i in range(400)]
    strata = [("a", "x") if i % 2 else ("b", "y") for i in range(400)]
    groups = list(range(400))
    groups[8] = groups[6] = groups[4]
    parts = splits.assign(codes, strata, groups)
    assert parts[4] == parts[6] == parts[8]
    assert parts.count("test") == pytest.approx(44, abs=3)
    assert parts.count("validation") == pytest.approx(44, abs=3)
    back = splits.assign(codes[::-1], strata[::-1], list(range(400)))
    plain = splits.assign(codes, strata, list(range(400)))
    assert back[::-1] == plain
