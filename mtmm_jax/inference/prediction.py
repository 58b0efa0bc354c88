"""Batched prediction with a finished run or an exported file, as `inference.answers` has it."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mtmm_jax.evaluation import gallery as galleries
from mtmm_jax.heads.bound_module import row_of
from mtmm_jax.inference.answers import answers
from mtmm_jax.inference.exported import Exported, load
from mtmm_jax.inference.finished import Finished
from mtmm_jax.inference.manifest_batches import ManifestBatches
from mtmm_jax.model.build_tasks import build_tasks
from mtmm_jax.registry import ConfigError
from mtmm_jax.store.files import file_name, reason, write
from mtmm_jax.store.workdir import Workdir
from mtmm_jax.tasks.task import Task
from mtmm_jax.text import read_tokenizer


def ask(run: Finished, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """`{task: answer}` of one sample (`inference.answers`)."""
    outputs = jax.device_get(_predictor(run)(run.variables, {**absent(run, 1), **inputs}))
    # Waves go to the run's folder, not next to the user's own recordings.
    heard = lambda task: run.workdir.file(f"{file_name(task)}.wav")  # noqa: E731
    return _answers(run, row_of(outputs, 0), set(inputs), _gallery(run), _tokenizers(run), heard)


def ask_rows(
    run: Finished, manifest: ManifestBatches, size: int, out: Path
) -> Iterator[tuple[int, dict[str, Any]]]:
    """`(row, answers)` of the rows that can be used, in order; one compile.

    Args:
        run: the run.
        manifest: the rows, as inputs of the run.
        size: rows at a time.
        out: the file that the answers are for; waves go next to it, as `<out>_<line>_<task>.wav`.
    """
    predict, gallery, tokenizers = _predictor(run), _gallery(run), _tokenizers(run)
    for rows, inputs in manifest.batches(size):
        outputs = jax.device_get(predict(run.variables, {**absent(run, size), **inputs}))
        for i, row in usable(manifest, rows):
            heard = waves(out, manifest.rows.lines[row])
            one = row_of(outputs, i)
            yield row, _answers(run, one, present(inputs, i), gallery, tokenizers, heard)


def ask_file_rows(
    model: Exported, workdir: Workdir, manifest: ManifestBatches, size: int, out: Path
) -> Iterator[tuple[int, dict[str, Any]]]:
    """`ask_rows` of an exported file, as `opened` gives it: the same answers."""
    config, spec = workdir.config(), workdir.spec()
    encoders = [name for name, one in config["model"]["encoders"].items() if one is not None]
    built, _ = build_tasks(config["tasks"], encoders, spec)
    tasks = {name: built[name] for name in model.tasks}
    tokenizers = _tokenizers_of(tasks, workdir)
    for rows, inputs in manifest.batches(model.rows or size):
        predicted = model.predict(inputs)
        for i, row in usable(manifest, rows):
            heard = waves(out, manifest.rows.lines[row])

            def decode(
                name: str, i: int = i, predicted: Mapping[str, Any] = predicted
            ) -> dict[str, Any]:
                outputs = {key: x[i] for key, x in predicted[name].items() if key != "present"}
                one = tasks[name].answer(outputs)
                return {"outputs": _plain(outputs)} if one is None else one

            more = {"heard": heard, "tokenizers": tokenizers}
            yield row, answers(tasks, encoders, present(inputs, i), decode, **more)


def usable(manifest: ManifestBatches, rows: np.ndarray) -> Iterator[tuple[int, int]]:
    """`(place in the batch, row)` of the rows that could be read."""
    return ((i, row) for i, row in enumerate(rows.tolist()) if row not in manifest.bad)


def present(inputs: Mapping[str, Any], i: int) -> set[str]:
    """The modalities that a row of a batch has."""
    return {name for name, entry in inputs.items() if entry["present"][i]}


def waves(out: Path, line: int) -> Callable[[str], Path]:
    """Task -> the file of the wave that it predicts for a line."""
    return lambda task: out.with_name(f"{out.stem}_{line}_{file_name(task)}.wav")


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
            tasks = "tasks" in workdir.config()
        except ConfigError as error:
            raise ConfigError(f"--exported: {path} is no exported run: {error}") from error
        except Exception as error:  # JAX and its reader of programs raise many classes
            raise ConfigError(f"--exported: {path} cannot be used: {reason(error)}") from error
        if not tasks:
            raise ConfigError(
                f"--exported: {path} does not say what its tasks are: an earlier version wrote it; "
                "export the run again"
            )
        yield model, workdir


def _plain(outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return {name: np.asarray(x).tolist() for name, x in outputs.items()}


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
    return _tokenizers_of(run.experiment.model.tasks, run.workdir)


def _tokenizers_of(tasks: Mapping[str, Task], workdir: Workdir) -> dict[str, Any]:
    """Task whose decoded keys are ids of tokens -> their tokenizer."""
    return {
        name: kept_tokenizer(workdir, task.traits.vocabulary_of)
        for name, task in tasks.items()
        if task.traits.vocabulary_of is not None
    }


def _heard(stem: Path, task: str) -> Path:
    return stem.with_name(f"{stem.name}_{file_name(task)}.wav")


def _answers(
    run: Finished,
    outputs: Mapping[str, Any],
    here: set[str],
    gallery: Mapping[str, Any],
    tokenizers: Mapping[str, Any],
    heard: Callable[[str], Path],
) -> dict[str, Any]:
    """`{task: answer}` of one sample's predictions.

    Args:
        run: the run.
        outputs: its predictions, without the batch.
        here: the modalities that the sample has.
        gallery: embeddings to find the nearest of.
        tokenizers: task -> what writes its words.
        heard: task -> the file for its wave.
    """
    model = run.experiment.model

    def decode(name: str) -> dict[str, Any]:
        return model.tasks[name].decode(outputs[name])

    def nearest(name: str, reads: list[str]) -> dict[str, Any]:
        task = model.tasks[name]
        if task.space is None or not gallery:
            return {}
        vectors = task.space.vectors(outputs[name])
        return {
            f"{read} -> {other}": galleries.nearest(vectors[read], gallery, name, other)
            for read in reads
            for other in task.reads
            if other != read and f"{name}/{other}" in gallery
        }

    more = {"heard": heard, "tokenizers": tokenizers, "nearest": nearest}
    return answers(model.tasks, model.encoders, here, decode, **more)
