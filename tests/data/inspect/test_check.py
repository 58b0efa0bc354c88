"""The checker names every problem of a folder that has one of each, and nothing in a sound one."""

import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from PIL import Image

from mtmm_jax.data.inspect.check import check, main
from mtmm_jax.modalities import MODALITIES
from mtmm_jax.targets import columns

DESCRIPTION = {
    "modalities": {
        "image": {"kind": "image", "size": 8},
        "sound": {"kind": "audio", "rate": 8000, "seconds": 0.1},
        "clip": {"kind": "video", "frames": 2, "size": 8},
        "caption": {"kind": "text", "vocabulary": 100},
    },
    "targets": {"animal": {"kind": "class"}, "score": {"kind": "number"}},
}


def write(path, rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path):
    noise = np.random.default_rng(0)
    rows = []
    for i in range(10):
        Image.fromarray(noise.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / f"{i}.png")
        soundfile.write(tmp_path / f"{i}.wav", noise.standard_normal(800) * 0.1, 8000)
        (tmp_path / f"clip{i}").mkdir()
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"clip{i}" / "0.png")
        rows.append(
            {
                "id": i,
                "image": f"{i}.png",
                "sound": f"{i}.wav",
                "clip": f"clip{i}",
                "caption": f"picture {i} of {i * 7}",
                "animal": "cat" if i % 2 else "dog",
                "score": i / 3,
                "split": "train" if i < 8 else ("validation", "test")[i - 8],
            }
        )
    write(tmp_path / "m.jsonl", rows)
    return tmp_path


def rows_of(folder):
    return [json.loads(line) for line in (folder / "m.jsonl").read_text().splitlines()]


def test_a_sound_folder_has_nothing_wrong(folder, capsys):
    report = check(folder / "m.jsonl", DESCRIPTION)
    assert report.problems == []
    assert (report.rows, report.splits) == (10, {"train": 8, "validation": 1, "test": 1})
    (folder / "m.description.json").write_text(json.dumps(DESCRIPTION))
    assert main([str(folder / "m.jsonl")]) == 0
    said = capsys.readouterr().out
    assert "described by" in said
    assert "nothing wrong" in said


def spoil(folder) -> None:
    """One problem of each sort, the line of each known."""
    rows = rows_of(folder)
    rows[0]["image"] = "gone.png"
    rows[1]["sound"] = "noise.wav"
    (folder / "noise.wav").write_bytes(b"RIFFnoise")
    rows[2]["image"] = "../m.png"
    rows[3]["score"] = "high"
    rows[4]["id"] = 1
    rows[5]["animal"] = ["cat"]
    rows[6]["image"] = "large.png"
    Image.new("RGB", (60, 60)).save(folder / "large.png")
    rows[8]["animal"] = "cow"
    rows[8]["clip"], rows[8]["split"] = "clip9", "test"
    rows[9]["image"] = "copy.png"
    (folder / "copy.png").write_bytes((folder / "7.png").read_bytes())
    for row in rows:
        row["empty"] = None
    write(folder / "m.jsonl", rows)
    with (folder / "m.jsonl").open("a") as file:
        file.write('{"id": 10, "image": \n')


FOUND = {
    (None, "empty", "empty column"),
    (1, "image", "missing"),
    (2, "sound", "undecodable"),
    (3, "image", "outside"),
    (4, "score", "bad value"),
    (5, "id", "repeated id"),
    (6, "animal", "bad value"),
    (7, "image", "over a limit"),
    (10, "image", "in two splits"),
    (11, "", "broken row"),
}


def test_every_problem_is_named_with_its_line(folder, capsys):
    spoil(folder)
    description = {**DESCRIPTION, "limits": {"pixels": 3000}}
    report = check(folder / "m.jsonl", description)
    assert {(p.line, p.column, p.about) for p in report.problems} == FOUND
    assert report.rows == 11
    assert [(p.column, p.about) for p in report.doubts][:1] == [("animal", "rare class")]
    (folder / "d.json").write_text(json.dumps({"data": {"kind": "manifest", **description}}))
    arguments = [str(folder / "m.jsonl"), "--config", str(folder / "d.json")]
    assert main([*arguments, "--json", str(folder / "out.json")]) == 1
    kept = json.loads((folder / "out.json").read_text())
    assert kept["summary"]["bad value"] == 2
    assert {(p["line"], p["column"], p["about"]) for p in kept["problems"]} == FOUND
    said = capsys.readouterr().out
    for line in ("line 1, column 'image': 'gone.png' does not exist", "id of line 2", "over the"):
        assert line in said
    assert main([*arguments, "--show", "2"]) == 1
    assert "and 11 more" in capsys.readouterr().out


def test_what_columns_are_is_guessed_and_said(folder, capsys):
    rows = rows_of(folder)
    for i, row in enumerate(rows):
        row["boxes"] = [{"box": [0, 0.5, 0.5, 1], "class": "ear"}]
        row["tags"] = "a|b"
        (folder / f"{i}.txt").write_text("words")
        row["note"] = f"{i}.txt"
    write(folder / "m.jsonl", rows)
    assert main([str(folder / "m.jsonl"), "--json", str(folder / "out.json")]) == 0
    kinds = json.loads((folder / "out.json").read_text())["kinds"]
    assert kinds == {
        "image": "modality, image",
        "sound": "modality, audio",
        "clip": "modality, video",
        "caption": "modality, text",
        "note": "modality, text",
        "animal": "target, class",
        "score": "target, number",
        "boxes": "target, boxes",
        "tags": "target, labels",
    }
    said = capsys.readouterr().out
    assert "guessed" in said
    assert "modality video" in said
    assert "target class" in said
    assert "target boxes" in said


def test_options_describe_a_manifest(folder, capsys):
    manifest = str(folder / "m.jsonl")
    given = ["--modality", "photo=image:image", "--target", "animal=class", "--id", "caption"]
    assert main([manifest, *given, "--split", "train=0.7,test=0.3"]) == 0
    assert main([manifest, *given, "--limit", "pixels=10"]) == 1
    assert "64 pixels" in capsys.readouterr().out


def test_a_config_in_python_is_run_where_it_is_named(folder):
    (folder / "c.py").write_text(f"def get_config():\n    return {{'data': {DESCRIPTION!r}}}\n")
    assert main([str(folder / "m.jsonl"), "--config", str(folder / "c.py")]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.jsonl"], "none.jsonl does not exist"),
        (["0.png"], "unknown kind of manifest '.png'"),
        (["m.jsonl", "--modality", "image"], "--modality: 'image' is not NAME=VALUE"),
        (["m.jsonl", "--modality", "image=picture"], "unknown kind 'picture'"),
        (["m.jsonl", "--target", "animal=class"], "has no modality"),
        (["m.jsonl", "--config", "none.json"], "cannot read the description"),
        (["m.jsonl", "--limit", "pixel=3"], "unknown limit 'pixel'"),
        (["m.jsonl", "--limit", "pixels=x"], "'x' is not a number"),
        (["m.jsonl", "--split", "train=0.5"], "do not add up"),
        (["m.jsonl", "--json", "none/out.json"], "cannot write"),
    ],
)
def test_what_cannot_be_checked_is_exit_code_two(folder, arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_a_missing_column_is_a_problem_among_others(folder):
    description = {**DESCRIPTION, "targets": {"breed": "class", "animal": "class"}}
    found = {(p.column, p.about) for p in check(folder / "m.jsonl", description).problems}
    assert ("breed", "no such column") in found


@pytest.mark.parametrize("table", [MODALITIES, columns()])
def test_help_lists_the_kinds(table, capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert all(kind in said for kind in table)


def test_the_command_runs_as_a_module(folder):
    command = [sys.executable, "-m", "mtmm_jax.data.inspect.check"]
    done = subprocess.run([*command, str(folder / "m.jsonl")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usable in train" in done.stdout
