"""Speech samples of the report: recordings of the test split and the model's synthesis."""

from __future__ import annotations

import base64
import io
from typing import Any

import jax
import numpy as np
import soundfile

from mtmm_jax.encoders import backbones
from mtmm_jax.inference.finished import open_run
from mtmm_jax.markup import escape, row
from mtmm_jax.model import Model, build
from mtmm_jax.store.files import write_npz
from mtmm_jax.store.workdir import Workdir

FILE = "speech.npz"
SAMPLES, OUT_OF, LONGEST = 4, 16, 5.0  # rows, of the first so many of the split; seconds of each

CAPTION = (
    "Texts of the test split, which the model never heard in training: a recording, and what the "
    "model says in the voice of the recording when it only reads the text. Frames become sound by "
    "Griffin-Lim, which alone costs some quality."
)


def model_of(workdir: Workdir) -> Model:
    """The model that a run's folder describes. No folder of pretrained weights is opened."""
    config = workdir.config()
    backbones.check_kept(workdir.section("model").get("encoders"))
    return build(config["model"], config["tasks"], workdir.spec())


def speech(workdir: Workdir, trust_paths: bool = False) -> str:
    """The section about speech as HTML, its sounds within; empty where no task speaks.

    The sounds are made once, with the best checkpoint, and kept in the workdir.
    """
    model = model_of(workdir)
    if all(task.speech is None for task in model.tasks.values()):
        return ""
    path = workdir.path / FILE
    if not path.exists():
        if jax.process_count() > 1:  # one of several cannot read their checkpoint alone
            return "<p>python -m mtmm_jax.report adds speech to listen to.</p>"
        write_npz(path, _samples(workdir, workdir.config(), trust_paths))
    return _page(workdir.arrays(path))


def _samples(workdir: Workdir, config: dict[str, Any], trust_paths: bool) -> dict[str, np.ndarray]:
    """Texts, rate, recorded and synthesised waves, and the recogniser's text, if there is one."""
    run = open_run(workdir.path, {**config, "devices": 1}, trust_paths=trust_paths)
    model, source = run.experiment.model, run.experiment.source
    name, task = next((n, t) for n, t in model.tasks.items() if t.speech is not None)
    writers = [n for n, t in model.tasks.items() if t.traits.transcribes]
    batch = next(source.batches("test", OUT_OF))
    batch = jax.tree.map(lambda x: x[np.linspace(0, OUT_OF - 1, SAMPLES).astype(int)], batch)

    @jax.jit
    def say(variables: Any, batch: Any) -> Any:
        predictions, _ = model(variables, batch["inputs"])
        labels = task.labels(batch, model.present(batch))
        synthesised = task.speech.say(predictions[name], labels.y["speaker"])
        return *synthesised, labels.weight, [predictions[writer] for writer in writers]

    mel, count, weight, written = jax.device_get(say(run.variables, batch))
    waves = batch["targets"][task.target]["y"]
    kept: dict[str, Any] = {"rate": run.experiment.source.spec.targets[task.target].rate}
    rows = np.flatnonzero(weight > 0)
    kept["texts"] = np.array([source.describe(int(batch["id"][i])) for i in rows], str)
    for i, number in enumerate(rows):
        kept[f"recorded/{i}"] = np.trim_zeros(np.asarray(waves[number]), "b")
        kept[f"said/{i}"] = task.speech.listen(mel[number], count[number])
    for writer, prediction in zip(writers[:1], written, strict=False):
        decode = model.tasks[writer].decode
        answers = [decode(jax.tree.map(lambda x, r=row: x[r], prediction)) for row in rows]
        kept["written"] = np.array([answer["prediction"] for answer in answers], str)
    return kept


def _page(kept: dict[str, np.ndarray]) -> str:
    rate = float(kept["rate"])
    heard = {"written down from the recording": kept["written"]} if "written" in kept else {}
    head = row(["text", "recording", "synthesised", *heard], "th")
    rows = []
    for i, text in enumerate(kept["texts"]):
        sounds = [player(kept[f"{which}/{i}"], rate) for which in ("recorded", "said")]
        cells = [escape(text), *sounds, *(escape(texts[i]) for texts in heard.values())]
        rows.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return f"<p>{CAPTION}</p><table>{head}{''.join(rows)}</table>"


def player(wave: np.ndarray, rate: float) -> str:
    """An `<audio>` that holds its sound: a WAV file of 16 bits, of a few seconds at most."""
    wave = np.asarray(wave, np.float32)[: round(LONGEST * rate)]
    wave = wave / max(np.abs(wave).max(initial=0.0), 1.0)
    out = io.BytesIO()
    soundfile.write(out, wave, round(rate), format="WAV", subtype="PCM_16")
    data = base64.b64encode(out.getvalue()).decode()
    return f"<audio controls preload='none' src='data:audio/wav;base64,{data}'></audio>"
