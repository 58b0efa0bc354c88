"""The report of a run: which figures it draws, and what it says about them."""

import base64
import io
import json
import re
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
from matplotlib import pyplot as plt

from mtmm_jax import analyze, report, train, training
from mtmm_jax.analysis import plots, samples
from mtmm_jax.store.checkpoints import Checkpoints
from mtmm_jax.store.workdir import Workdir

DATA = Path(tempfile.gettempdir()) / "mtmm-jax-tests-data"
# One small encoder, two tasks: little to compile.
SMALL = (
    "--config.data.image_size=16",
    "--config.data.seconds=0.6",
    f"--config.data.data_dir={DATA}",
    "--config.model.width=8",
    "--config.model.encoders.image=None",
    "--config.model.encoders.audio=None",
    "--config.tasks.year=None",
    "--config.tasks.retrieval=None",
    "--config.batch_size=8",
    "--config.evaluation.batch_size=64",
    "--config.evaluation.baselines=False",
    "--config.evaluation.log_every=2",
    "--config.steps=4",
)
# Two tasks on made-up numbers: next to nothing to compile.
GENERATOR = (
    "--config.data.size=(64,16,16)",
    "--config.model.width=8",
    "--config.model.fusion=concat",
    "--config.tasks={'synergy': {'kind': 'classification'}, 'task_1': {'kind': 'regression'}}",
    "--config.optimizer.kind=sgd",
    *(word for word in SMALL if re.search("batch_size|baselines|log_every|steps", word)),
)


def _record(step, tasks, value=0.0):
    """A train record with a mean cosine of `value` between all tasks."""
    rows = np.where(np.eye(len(tasks), dtype=bool), 1.0, value)
    return {
        "step": step,
        "conflict_rate": 0.5,
        "condition_number": 3.0,
        "magnitude_similarity": 0.8,
        "gradient_norm": dict.fromkeys(tasks, 1.0),
        "cosines": {"tasks": list(tasks), "mean": rows.tolist()},
    }


@pytest.mark.parametrize(
    ("method", "there"), [("pcgrad", True), pytest.param("equal", False, marks=pytest.mark.slow)]
)
def test_gradient_conflicts_are_drawn_for_methods_that_know_them(
    tmp_path, method, there, capsys, monkeypatch
):
    monkeypatch.setenv("MTMM_JAX_CACHE", "")
    workdir, folder = tmp_path / "run", tmp_path / "figures"
    arguments = ["--config", "generator", "--workdir", str(workdir), *GENERATOR]
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam needs it
        code = train.main([*arguments, f"--config.balancing={method}"])
    assert code == 0, capsys.readouterr().err
    page = (workdir / "report.html").read_text()
    assert (">Gradient conflicts</h2>" in page) == there
    assert ("each task pulls the shared part" in page) == there
    code = report.main(["--workdir", str(workdir), "--figures", str(folder)])
    assert code == 0, capsys.readouterr().err
    assert (folder / "gradient_conflicts.png").exists() == there
    # Equal weights are no picture.
    assert (folder / "task_weights.png").exists() == (method != "equal")


@pytest.mark.parametrize("tasks", [2, 12, 13, 40])
def test_few_tasks_have_their_cosines_as_numbers(tasks):
    names = [f"t{i}" for i in range(tasks)]
    figure = plots.gradient_conflicts([_record(s, names, v) for s, v in ((5, -0.5), (9, 0.1))])
    figure.draw_without_rendering()
    heat_map = figure.subfigs[0].axes[0]
    assert heat_map.images[0].get_clim() == (-1, 1)
    texts = [text.get_text() for text in heat_map.texts]
    assert texts == (["−0.20"] * tasks * (tasks - 1) if tasks <= 12 else [])
    plt.close(figure)


def test_tasks_that_never_met_leave_holes():
    records = [_record(s, ("a", "b"), np.nan) for s in (5, 9)]
    for record in records:
        record["gradient_norm"]["b"] = np.nan
        record["condition_number"] = record["conflict_rate"] = np.nan
    figure = plots.gradient_conflicts(records)
    figure.draw_without_rendering()
    assert not figure.subfigs[0].axes[0].texts
    plt.close(figure)


# Two small encoders that meet in a fusion with attention over the picture's patches.
TWO = (
    *(word for word in SMALL if not word.startswith("--config.model.encoders.image")),
    "--config.model.encoders.image={'kind': 'cnn'}",
    "--config.model.encoders.text={'kind': 'text_bag'}",
    "--config.model.fusion={'kind': 'bottleneck', 'layers': 1}",
    "--config.tasks.subcategory=None",
)


@pytest.mark.slow
def test_an_analysed_run_tells_it_in_its_report(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MTMM_JAX_CACHE", "")
    workdir, folder = tmp_path / "run", tmp_path / "figures"
    with jax.numpy_dtype_promotion("standard"):
        code = train.main(["--config", "emoji", "--workdir", str(workdir), *TWO])
        assert code == 0, capsys.readouterr().err
        before = (workdir / "report.html").read_text()
        code = analyze.main(["--workdir", str(workdir), "--examples", "70"])
    output = capsys.readouterr()
    assert code == 0, output.err
    for words in ("Shapley", "image + text", "a fusion to try first", "training step", "relative"):
        assert words in output.out, words
    numbers = json.loads((workdir / "analysis.json").read_text())
    assert numbers["examples"] == 70
    assert [row["modalities"] for row in numbers["subsets"]["subsets"]] == [
        [], ["image"], ["text"], ["image", "text"],
    ]  # fmt: skip
    rows = [row["metric"]["category"] for row in numbers["subsets"]["subsets"]]
    shares = numbers["contribution"]["category"]["metric"].values()
    assert sum(shares) == pytest.approx(rows[-1] - rows[0], abs=1e-6)
    kinds = numbers["robustness"]["category"]["modalities"]
    assert set(kinds["text"]) == {"missing words", "other words", "absent"}
    assert kinds["image"]["blur"]["metrics"][0] == pytest.approx(rows[-1], abs=1e-6)
    assert kinds["image"]["absent"]["metrics"][5] == pytest.approx(rows[2], abs=1e-6)
    assert numbers["cost"]["total_parameters"] > 1000
    assert numbers["cost"]["step_flops"] > numbers["cost"]["forward_flops"] > 0
    paths = {shown["path"] for shown in numbers["intermediates"]["patches"]}
    assert "fusion/fused/layer1_image/attention/weights" in paths
    page = (workdir / "report.html").read_text()
    sections = ("Modality contribution", "Missing modalities", "Modality affinity", "Robustness",
                "Gates and weights", "Attention over patches", "Cost")  # fmt: skip
    for section in sections:
        assert f">{section}</h2>" not in before
        assert f">{section}</h2>" in page, section
    assert f"A fusion to try first: {numbers['affinity']['suggestion']['fusion']}" in page
    code = report.main(["--workdir", str(workdir), "--figures", str(folder)])
    assert code == 0, capsys.readouterr().err
    assert (workdir / "report.html").read_text() == page
    assert (folder / "attention_over_patches.png").exists()
    for words, said in (
        (["--split", "tset"], "did you mean 'test'?"),
        (["--examples", "0"], "--examples: 0 is not a whole number from 1 upwards"),
    ):
        assert analyze.main(["--workdir", str(workdir), *words]) == 2
        assert said in capsys.readouterr().err


def _sounds(page):
    found = re.findall(r"<audio controls preload='none' src='data:audio/wav;base64,(.*?)'>", page)
    return [soundfile.read(io.BytesIO(base64.b64decode(data))) for data in found]


@pytest.fixture(scope="module")
def speaking(tmp_path_factory):
    """The workdir of a run of emoji_speech that seems finished; its parameters are drawn."""
    config = training.load("emoji_speech")
    config.data.data_dir = str(DATA)
    config.model.width = 8
    config.model.encoders.audio.preset = config.model.encoders.text.preset = "tiny"
    config.tasks.speech.head = {"kind": "mel", "width": 8, "layers": 1}
    experiment = training.assemble(config)
    workdir = Workdir(tmp_path_factory.mktemp("speech") / "run")
    source = experiment.source
    workdir.claim(experiment.config, source.spec, source.assets)
    rng = np.random.default_rng(0)

    def draw(leaf):
        if leaf.dtype != np.float32:
            return np.zeros(leaf.shape, leaf.dtype)
        return np.abs(rng.normal(0, 0.1, leaf.shape)).astype(np.float32)

    checkpoints = Checkpoints(workdir.checkpoints)
    checkpoints.save(jax.tree.map(draw, experiment.shapes), 0.5, {"step": 0})
    checkpoints.close()
    metrics = {"transcript": {"cer": 0.5}, "speech": {"warped_distortion": 3.0}}
    workdir.write("results.json", {"validation": metrics, "test": metrics})
    numbers = dict.fromkeys(metrics, 1.0)
    record = {"step": 1, "split": "train", "loss": numbers, "weight": numbers}
    workdir.metrics.write_text(json.dumps(record))
    return workdir, source


def test_speech_can_be_listened_to_in_the_report(speaking):
    workdir, source = speaking
    assert report.main(["--workdir", str(workdir.path)]) == 0
    page = workdir.report.read_text()
    assert ">Speech</h2>" in page
    sounds = _sounds(page)
    assert len(sounds) == 2 * samples.SAMPLES
    assert {rate for _, rate in sounds} == {16_000}
    assert all(0 < len(wave) <= samples.LONGEST * rate for wave, rate in sounds)
    assert all(np.abs(wave).max() > 0.01 for wave, _ in sounds)
    assert len(page) < 2**21
    # The recordings are those of the test split, as they are.
    batch = next(source.batches("test", 16))
    for at, (wave, _) in zip((0, 5, 10, 15), sounds[::2], strict=True):
        said = batch["targets"]["speech"]["y"][at]
        np.testing.assert_allclose(wave, said[: len(wave)], atol=1e-3)
        assert not said[len(wave) :].any()
        assert f"<td>{source.describe(int(batch['id'][at]))}</td>" in page
    # Made once: a report that is written again needs neither data nor parameters.
    (workdir.path / "checkpoints").rename(workdir.path / "gone")
    assert report.main(["--workdir", str(workdir.path)]) == 0
    assert workdir.report.read_text() == page


def test_what_is_said_is_escaped_cut_and_not_too_loud():
    loud = np.concatenate([np.full(60, 4.0), np.zeros(40)])
    kept = {
        "rate": np.float64(10.0),
        "texts": np.array(["<b>&'"]),
        "written": np.array(["<i>"]),
        "recorded/0": loud,
        "said/0": np.zeros(0),
    }
    page = samples._page(kept)
    assert "<td>&lt;b&gt;&amp;&#x27;</td>" in page
    assert "<td>&lt;i&gt;</td>" in page
    (wave, rate), (silence, _) = _sounds(page)
    assert (rate, len(wave), len(silence)) == (10, 50, 0)
    assert wave.max() == pytest.approx(1.0, abs=1e-3)


def test_only_a_finished_run_is_analysed(tmp_path, capsys):
    assert analyze.main(["--workdir", str(tmp_path)]) == 2
    assert "holds no finished run: no results.json" in capsys.readouterr().err
