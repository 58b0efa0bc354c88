"""A model of a table, in three lines: `mtmm_jax.fit`, the commands of a table as one function.

    run = mtmm_jax.fit("things.csv", label=["kind", "price"])
    run.predict({"photo": ["new.png"], "caption": ["a red apple"]})
    run.report()

It is `check --write`, `train` and `predict`: the config that it writes next to the workdir is one
of every command.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtmm_jax.ranges import Size
from mtmm_jax.registry import ConfigError, check

Table = str | os.PathLike[str] | Mapping[str, Sequence[Any]] | Any


class Page:
    """An HTML file: its path as text, and the page itself in a notebook."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"Page({str(self.path)!r})"

    def __fspath__(self) -> str:
        return str(self.path)

    def _repr_html_(self) -> str:
        from mtmm_jax.markup import escape

        page = escape(self.path.read_text(encoding="utf-8"))
        return f'<iframe srcdoc="{page}" width="100%" height="800"></iframe>'


@dataclasses.dataclass(frozen=True)
class FittedRun:
    """A finished run.

    Attributes:
        workdir: its folder.
        config: the file of its config.
    """

    workdir: Path
    config: Path

    @property
    def results(self) -> dict[str, Any]:
        """The content of `results.json`."""
        from mtmm_jax.store.workdir import Workdir

        return Workdir.at(self.workdir).read("results.json")

    def report(self) -> Page:
        """The report."""
        return Page(self.workdir / "report.html")

    def predict(self, rows: Table, *, folder: str = ".", batch_size: int = 64) -> list[Any]:
        """A document for each row, as `predict --manifest` writes them (`inference.answers`).

        Args:
            rows: the path of a table; or columns in memory, a dict of lists or a data frame.
            folder: in which the files lie that columns in memory name.
            batch_size: rows at a time.
        """
        from mtmm_jax.command import console
        from mtmm_jax.inference.finished import open_run
        from mtmm_jax.inference.manifest_batches import open_manifest
        from mtmm_jax.inference.predict_rows import write_predictions
        from mtmm_jax.inference.prediction import ask_rows

        size = check(batch_size, Size, "predict.batch_size")
        run = open_run(self.workdir)
        with tempfile.TemporaryDirectory() as scratch, _on_disk(rows, Path(folder)) as path:
            manifest = open_manifest(path, run.workdir)
            out, screen = Path(scratch) / "answers.jsonl", console()
            screen.quiet = True
            write_predictions([manifest], ask_rows(run, manifest, size, out), out, screen)
            return [json.loads(line) for line in out.read_text().splitlines()]


def fit(
    table: Table,
    label: str | Sequence[str],
    *,
    workdir: str | os.PathLike[str] | None = None,
    folder: str = ".",
    weights: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> FittedRun:
    """Trains a model that predicts some columns of a table from all others.

    What columns are is guessed and printed; a run that stopped is resumed, one that is finished is
    opened.

    Args:
        table: the path of a CSV, TSV, JSONL, Parquet file or folder; or columns in memory, a dict
            of lists or a data frame, which are kept as `NAME.jsonl` in `folder`.
        label: the columns to predict.
        workdir: the run's folder; `runs/NAME` by default, of the table's name.
        folder: in which the files lie that columns in memory name.
        weights: a folder of a pretrained encoder for the texts.
        config: values to set, such as `{"steps": 500, "data.modalities.photo.size": 32}`.
    """
    from mtmm_jax import train, training
    from mtmm_jax.data.inspect import check as checking

    labels = [label] if isinstance(label, str) else list(label)
    if not labels:
        raise ConfigError("fit.label: names no column to predict")
    on_disk = isinstance(table, str | os.PathLike)
    place = Path(workdir or Path("runs") / (Path(table).stem if on_disk else "table"))
    place.parent.mkdir(parents=True, exist_ok=True)
    path = Path(table) if on_disk else _kept(table, Path(folder) / f"{place.name}.jsonl")
    own = place.parent / f"{place.name}.py"
    words = [str(path), "--write", str(own), *(w for one in labels for w in ("--label", one))]
    words += ["--weights", weights] if weights else []
    checking.run(words)  # prints problems; rows with some are left out, as in training
    settings = [f"--config.{key}={value!r}" for key, value in (config or {}).items()]
    experiment = training.assemble(training.apply_overrides(training.load(str(own)), settings))
    experiment.check_memory()
    train.fit(experiment, place)
    return FittedRun(place, own)


def _kept(table: Any, path: Path) -> Path:
    """Columns in memory as a file of rows."""
    from mtmm_jax.data.sources.manifest.formats import rows_of_columns

    rows = rows_of_columns(table)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@contextlib.contextmanager
def _on_disk(table: Any, folder: Path) -> Iterator[Path]:
    """The path of a table; of one in memory, a file that is there for as long as it is read."""
    if isinstance(table, str | os.PathLike):
        yield Path(table)
        return
    handle, name = tempfile.mkstemp(".jsonl", "rows-", folder)
    os.close(handle)
    try:
        yield _kept(table, Path(name))
    finally:
        Path(name).unlink(missing_ok=True)
