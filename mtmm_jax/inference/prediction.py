"""What a finished run says of samples: batches through its model, told as a person reads it."""

from __future__ import annotations

import contextlib
import functools
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mtmm_jax.evaluation import gallery as galleries
from mtmm_jax.heads.bound import row_of
from mtmm_jax.inference.exported import Exported, load
from mtmm_jax.inference.finished import Finished
from mtmm_jax.inference.manifest_batches import Requests
from mtmm_jax.registry import ConfigError
from mtmm_jax.store.files import file_name, reason, write
from mtmm_jax.store.workdir import Workdir
from mtmm_jax.tasks.synthesis import write_wave
from mtmm_jax.tasks.task import modalities_of
from mtmm_jax.text import piece_of, read_tokenizer


def ask(run: Finished, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """`{task: what a person reads}`; a task that cannot be done says what it needs."""
    told = jax.device_get(_predictor(run)(run.variables, {**absent(run, 1), **inputs}))
    one = row_of(told, 0)
    # Waves go to the run's folder, not beside the user's own recordings.
    heard = lambda task: run.workdir.file(f"{file_name(task)}.wav")  # noqa: E731
    return _answers(run, one, set(inputs), _gallery(run), _tokenizers(run), heard)


def ask_rows(
    run: Finished, asked: Requests, size: int, out: Path
) -> Iterator[tuple[int, dict[str, Any]]]:
    """`(row, answers)` of the rows that can be used, in order; one compile.

    Args:
        run: the run.
        asked: of it.
        size: rows at a time.
        out: the file that the answers are for; waves go beside it, as `<out>_<line>_<task>.wav`.
    """
    predict, gallery, tokenizers = _predictor(run), _gallery(run), _tokenizers(run)
    for rows, inputs in asked.batches(size):
        told = jax.device_get(predict(run.variables, {**absent(run, size), **inputs}))
        for i, row in enumerate(rows.tolist()):
            if row in asked.bad:
                continue
            present = {name for name, entry in inputs.items() if entry["present"][i]}
            line = asked.rows.lines[row]
            one = row_of(told, i)
            heard = functools.partial(_heard, out.with_name(f"{out.stem}_{line}"))
            yield row, _answers(run, one, present, gallery, tokenizers, heard)


def ask_file_rows(
    model: Exported, asked: Requests, size: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """`ask_rows` of an exported file: numbers and classes as the file has them."""
    for rows, inputs in asked.batches(model.rows or size):
        told = model.predict(inputs)
        for i, row in enumerate(rows.tolist()):
            if row not in asked.bad:
                yield (
                    row,
                    {
                        name: _plain(model.tasks[name], {k: x[i] for k, x in found.items()})
                        for name, found in told.items()
                    },
                )


@contextlib.contextmanager
def opened(path: str | Path) -> Iterator[tuple[Exported, Workdir]]:
    """An exported file, and as a workdir what reading a manifest for it needs."""
    if not Path(path).is_file():
        raise ConfigError(f"--exported: no file {str(path)!r}")
    with tempfile.TemporaryDirectory() as folder:
        workdir = Workdir(Path(folder))
        try:
            model = load(path)
            (workdir.path / "assets").mkdir()
            with zipfile.ZipFile(path) as file:
                for name in ("spec.json", "config.json", *(f"assets/{a}" for a in model.assets)):
                    write(workdir.file(name), file.read(name))
            workdir.spec()
        except ConfigError as error:
            raise ConfigError(f"--exported: {path} is no exported run: {error}") from error
        except Exception as error:  # JAX and its reader of programs raise many classes
            raise ConfigError(f"--exported: {path} cannot be used: {reason(error)}") from error
        yield model, workdir


def _plain(task: Mapping[str, Any], told: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """One sample's outputs as JSON; of classes, those that are likeliest by name."""
    classes, p = task["classes"], told.get("probability")
    if not told["present"] and not set(task["reads"]) <= set(told):  # no read has its own output
        return {"needs": task["reads"]}
    values = {name: x.tolist() for name, x in told.items() if name != "present"}
    if p is None or p.shape != (len(classes),):
        return values
    best = np.argsort(-p, kind="stable")[:5]
    return {**values, "best": {classes[i]: float(p[i]) for i in best}}


def _predictor(run: Finished) -> Any:
    """`(variables, inputs) -> {task: prediction}`, compiled."""
    model = run.experiment.model
    return jax.jit(lambda variables, inputs: model(variables, inputs)[0])


def absent(run: Finished, size: int) -> dict[str, Any]:
    """The inputs of rows of which nothing is known."""
    model = run.experiment.model
    batch = model.spec.example(size)
    nobody = np.zeros(size, bool)
    return {name: {**batch["inputs"][name], "present": nobody} for name in model.encoders}


def _gallery(run: Finished) -> dict[str, Any]:
    finds = any(task.space is not None for task in run.experiment.model.tasks.values())
    if finds and run.workdir.results.exists() and not run.workdir.gallery.exists():
        print(f"{run.workdir.gallery}: is missing; nothing nearest is found", file=sys.stderr)
    return run.workdir.arrays(run.workdir.gallery)


def kept_tokenizer(workdir: Workdir, modality: str) -> Any:
    """The tokenizer of a run's text; None where the run keeps none."""
    try:
        return read_tokenizer(workdir.tokenizer(modality))
    except ConfigError:
        return None


def _tokenizers(run: Finished) -> dict[str, Any]:
    """Task whose decoded keys are ids of tokens -> their tokenizer."""
    tasks = run.experiment.model.tasks.items()
    return {
        name: kept_tokenizer(run.workdir, task.traits.vocabulary_of)
        for name, task in tasks
        if task.traits.vocabulary_of is not None
    }


def _heard(stem: Path, task: str) -> Path:
    return stem.with_name(f"{stem.name}_{file_name(task)}.wav")


def _answers(
    run: Finished,
    told: Mapping[str, Any],
    present: set[str],
    gallery: Mapping[str, Any],
    tokenizers: Mapping[str, Any],
    heard: Callable[[str], Path],
) -> dict[str, Any]:
    """What a person reads of one sample's predictions.

    Args:
        run: the run.
        told: its predictions, without the batch.
        present: the modalities that the sample has.
        gallery: embeddings to find the nearest of.
        tokenizers: task -> what writes its words.
        heard: task -> the file for its wave.
    """
    model = run.experiment.model
    answers: dict[str, Any] = {}
    for name, task in model.tasks.items():
        one = told[name]
        here = [r for r in task.reads if set(modalities_of(r, model.encoders)) & present]
        answers[name] = task.decode(one) if len(here) == len(task.reads) else {}
        if name in tokenizers and answers[name]:
            answers[name]["best"] = named(tokenizers[name], answers[name]["best"])
        if "wave" in answers[name]:
            file = heard(name)
            write_wave(file, answers[name].pop("wave"), answers[name].pop("rate"))
            answers[name]["file"] = str(file)
        if task.space is not None and gallery:
            vectors = task.space.vectors(one)
            answers[name]["nearest"] = {
                f"{read} -> {other}": galleries.nearest(vectors[read], gallery, name, other)
                for read in here
                for other in task.reads
                if other != read and f"{name}/{other}" in gallery
            }
        if len(here) < len(task.reads) and not answers[name].get("nearest"):
            answers[name] = {"needs": [r for r in task.reads if r not in here]}
    return answers


def named(tokenizer: Any, best: Mapping[str, float]) -> dict[str, float]:
    """Pieces of words for their ids, without the marks of where a word begins or goes on."""

    found: dict[str, float] = {}
    for i, p in best.items():
        piece = piece_of(tokenizer, int(i)).removeprefix("##").replace("\u2581", "")
        found[piece] = found.get(piece, 0.0) + p
    return found
