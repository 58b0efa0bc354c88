"""The commands as a person uses them: a small run from nothing, stopped, killed, resumed, asked."""

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
from PIL import Image

from mtmm_jax.store.workdir import Workdir

DATA = Path(tempfile.gettempdir()) / "mtmm-jax-tests-data"
SMALL = (
    "--config.data.image_size=16",
    "--config.data.seconds=0.6",
    f"--config.data.data_dir={DATA}",
    "--config.model.width=8",
    "--config.model.encoders.image={'kind': 'cnn'}",
    "--config.model.encoders.text={'kind': 'text_bag'}",
    "--config.model.encoders.audio={'kind': 'audio_mlp'}",
    "--config.batch_size=8",
    "--config.evaluation.batch_size=64",
    "--config.evaluation.every=8",
    "--config.evaluation.log_every=2",
    "--config.checkpoint.every=3",
    "--config.steps=16",
)


def _environment():
    cache = Path(tempfile.gettempdir()) / "mtmm-jax-tests-commands"
    return {**os.environ, "MTMM_JAX_CACHE": str(cache), "JAX_PLATFORMS": "cpu"}


def _start(command, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-W", "error::RuntimeWarning", "-m", f"mtmm_jax.{command}", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=_environment(),
        **options,
    )


def _run(command, *arguments):
    process = _start(command, *arguments)
    out, err = process.communicate(timeout=400)
    return process.returncode, out, err


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs a command in this process, which has JAX already: its exit code and what it wrote."""
    monkeypatch.setenv("MTMM_JAX_CACHE", "")

    def run(name, *words):
        with jax.numpy_dtype_promotion("standard"):
            code = importlib.import_module(f"mtmm_jax.{name}").main(list(words))
        return code, *capsys.readouterr()

    return run


def _train(workdir, *more):
    return ("train", "--config", "emoji", "--workdir", str(workdir), *SMALL, *more)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    code, out, err = _run(*_train(workdir))
    assert code == 0, err
    return workdir, out


def _parameters(workdir):
    """The last checkpoint's parameters, as bytes."""
    from mtmm_jax.inference.finished import open_run

    run = open_run(workdir, step="last")
    leaves = jax.tree_util.tree_leaves_with_path(run.variables)
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}


def test_a_run_leaves_what_it_says(finished):
    workdir, out = finished
    for words in ("parameters", "tasks x modalities", "steps/s", "all modalities", "trivial"):
        assert words in out
    results = Workdir(workdir).read("results.json")
    splits = {"validation", "test", "baselines"}
    assert set(results) == splits | {"format", "intervals", "remarks", "skill", "training"}
    for remark in results["remarks"]:
        assert remark in out
    assert any("year: r2" in remark for remark in results["remarks"])  # of 200 rows or so
    assert set(results["intervals"]) == splits
    for split in ("validation", "test"):
        for task, known in results["intervals"][split].items():
            assert set(known) == set(results[split][task])
            assert len({entry["n"] for entry in known.values()}) == 1
    sure = results["intervals"]["test"]["category"]["accuracy"]
    assert 0 <= sure["low"] <= results["test"]["category"]["accuracy"] <= sure["high"] <= 1
    assert sure["method"] == "wilson"
    assert str(sure["n"]) in out
    assert f"{sure['low']:.3f} to {sure['high']:.3f}" in (workdir / "report.html").read_text()
    only = results["intervals"]["baselines"]["only audio"]["test"]["category"]["accuracy"]
    assert 0 < only["n"] <= sure["n"]
    assert all(-1 <= skill <= 1 for skill in results["skill"]["test"].values())
    assert results["training"]["last_step"] == results["training"]["steps"] == 16
    assert set(results["test"]) == {"category", "subcategory", "year", "retrieval"}
    assert set(results["baselines"]) == {"trivial", "only image", "only text", "only audio"}
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if r["split"] == "train"] == list(range(2, 17, 2))
    assert [r["step"] for r in records if r["split"] == "validation"] == [8, 16]
    assert list((workdir / "events").glob("events*"))
    report = (workdir / "report.html").read_text()
    for words in (
        "The model predicts category (9 classes), ",
        "without looking at anything",
        "95 % interval",
        ">Worst and best</h2>",
        ">Calibration category</h2>",
        ">Predicted and true year</h2>",
        "Finished 20",
    ):
        assert words in report, words
    drawn = len(re.findall(r"(?<!class=seen>)<img", report))
    assert drawn == 9
    assert report.count("<img") > drawn  # the pictures of the worst and best rows
    assert json.loads((workdir / "run.json").read_text())["rows"]["train"] > 1000
    assert not re.search(r"(src|href)='(?!data:|#)", report)


def test_a_finished_run_is_not_run_again(finished, command):
    workdir, _ = finished
    before = (workdir / "metrics.jsonl").read_bytes()
    code, out, err = command(*_train(workdir))
    assert code == 0, err
    assert "all modalities" in out
    assert (workdir / "metrics.jsonl").read_bytes() == before


UNCOMPARED = "--config.evaluation.baselines=False"


def _stopped_after(workdir, step, number):
    """A run that got a signal once a later checkpoint than `step` is there: its code and errors."""
    process = _start(*_train(workdir, UNCOMPARED))
    deadline = time.monotonic() + 300
    saved = workdir / "checkpoints"
    while not any(
        path.name.isdigit() and int(path.name) > step
        for path in (saved.iterdir() if saved.exists() else ())
    ):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    return process.returncode, err


@pytest.mark.slow
def test_stopped_killed_and_resumed_equals_never_stopped(finished, tmp_path):
    workdir = tmp_path / "stopped"
    code, err = _stopped_after(workdir, 0, signal.SIGINT)
    assert code == 130, err
    assert "the same command resumes from there" in err
    kept = max(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    _stopped_after(workdir, kept, signal.SIGKILL)
    code, out, err = _run(*_train(workdir, UNCOMPARED))
    assert code == 0, err
    assert "resuming from step" in out
    assert _parameters(workdir) == _parameters(finished[0])
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == sorted(steps)


def test_evaluate_repeats_the_results(finished, command):
    workdir, _ = finished
    results = json.loads((workdir / "results.json").read_text())
    code, out, err = _run("evaluate", "--workdir", str(workdir), "--json")
    assert code == 0, err
    assert json.loads(out) == {
        "format": results["format"],
        "split": "test",
        "step": results["training"]["best_step"],
        "only": None,
        "results": results["test"],
        "intervals": results["intervals"]["test"],
    }
    code, out, err = command(
        "evaluate", "--workdir", str(workdir), "--json", "--only", "text", "--split", "validation"
    )
    assert code == 0, err
    for task, metrics in results["baselines"]["only text"]["validation"].items():
        assert json.loads(out)["results"][task] == pytest.approx(metrics, abs=1e-5)


def test_predict_takes_any_subset_of_the_modalities(finished, tmp_path, command):
    workdir, _ = finished
    Image.new("RGB", (40, 60), "red").save(tmp_path / "a.png")
    soundfile.write(tmp_path / "a.wav", np.sin(np.arange(8000) / 5), 8000)
    image, audio = ("--image", str(tmp_path / "a.png")), ("--audio", str(tmp_path / "a.wav"))
    code, out, err = command(
        "predict", "--workdir", str(workdir), "--json", *image, *audio, "--text", "red apple"
    )
    assert code == 0, err
    answers = json.loads(out)["answers"]
    assert 0 < answers["category"]["probability"] <= 1
    assert 2000 < answers["year"]["prediction"] < 2030
    assert set(answers["retrieval"]["nearest"]) == {"image -> text", "text -> image"}
    assert "image-text" in answers["retrieval"]["similarity"]
    code, out, err = command("predict", "--workdir", str(workdir), *audio)
    assert code == 0, err
    assert "not without image, text" in out


BAD = {
    "key": (_train("{new}", "--config.optimizr.kind=sgd"), "unknown config key 'optimizr'"),
    "block": (
        _train("{new}", "--config.model.fusion.kind=concatt"),
        "choices: block, bottleneck, concat",
    ),
    "modality": (
        _train("{new}", "--config.model.encoders={'imagee': 'resnet'}"),
        "model.encoders.imagee: unknown modality 'imagee'",
    ),
    "encoder": (_train("{new}", "--config.model.encoders.image=None"), "'image' has no encoder"),
    "task": (_train("{new}", "--config.tasks.year.kind=regresion"), "unknown kind 'regresion'"),
    "label": (_train("{new}", "--config.tasks.year.target=yeer"), "the data has no label 'yeer'"),
    "batch": (
        _train("{new}", "--config.devices=9", "--config.batch_size=9"),
        "devices: 9: needs 'all' or a number from 1 to",
    ),
    "config": (("train", "--config", "emojy", "--workdir", "{new}"), "did you mean 'emoji'?"),
    "workdir": (
        _train("{run}", "--config.seed=5"),
        "holds the run of another config: seed: 0 -> 5",
    ),
    "foreign": (_train("{tmp}"), "is not empty and holds no run"),
    "image": (("predict", "--workdir", "{run}", "--image", "{tmp}/bad.png"), "cannot read"),
    "audio": (("predict", "--workdir", "{run}", "--audio", "{tmp}/bad.wav"), "cannot read"),
    "option": (("predict", "--workdir", "{run}", "--imag", "x"), "unknown modality 'imag'"),
    "nothing": (("predict", "--workdir", "{run}"), "give one or more of: --image, --text, --audio"),
    "nowhere": (("predict", "--workdir", "{tmp}/no", "--text", "x"), "no folder"),
}


@pytest.mark.parametrize("case", BAD)
def test_mistakes_are_one_line_and_exit_code_2(finished, tmp_path, case, command):
    arguments, message = BAD[case]
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (tmp_path / "bad.wav").write_bytes(b"RIFFnothing")
    workdir = finished[0]
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}
    places = {"new": tmp_path / "new", "run": workdir, "tmp": tmp_path}
    words = [re.sub(r"{(new|run|tmp)}", lambda m: str(places[m[1]]), w) for w in arguments]
    code, _, err = command(*words)
    assert code == 2, err
    assert message in err
    assert len(err.strip().splitlines()) == 1, err
    assert not (tmp_path / "new").exists()
    assert before == {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}


def test_dry_run_prints_and_stops(tmp_path, command):
    code, out, err = command(*_train(tmp_path / "new"), "--dry_run")
    assert code == 0, err
    for words in ("parameters", "tasks x modalities", "memory a device", "activations"):
        assert words in out
    assert not (tmp_path / "new").exists()
