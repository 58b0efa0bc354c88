"""Logs of a training run: metrics.jsonl, TensorBoard, W&B, a progress bar."""

from __future__ import annotations

import itertools
import json
import sys
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from tensorboardX import SummaryWriter
from tensorboardX.proto.summary_pb2 import Summary

from mtmm_jax.store.files import read_bytes, write
from mtmm_jax.training.wandb_run import open_wandb

MUCH_WAITING = 0.1  # of the time of steps
_CHECKSUM = "crc32"
PAIRS_UP_TO = 8  # tasks: 28 curves of pairs; more than that nobody reads as curves


class Journal:
    """metrics.jsonl and TensorBoard events, one record a log step or validation.

    The same metrics go to Weights & Biases if the workdir says so (`wandb_run.keep`).
    """

    def __init__(self, path: Path, events: Path, from_step: int) -> None:
        """Forgets what a killed run wrote after the step that it resumes from."""
        if path.exists():
            kept = [line for line in read_journal(path) if line["step"] <= from_step]
            write(path, "".join(map(_line, kept)).encode())
        self._wandb = open_wandb(path.parent)
        self._file = path.open("a")
        self._events = SummaryWriter(str(events), purge_step=from_step + 1)

    def write(self, step: int, split: str, metrics: Mapping[str, Any]) -> None:
        """Metrics are numbers, `{task: number}`, or `{"tasks": names, "mean": K x K rows}`.

        TensorBoard and W&B get the numbers, and of few tasks' symmetric matrix one curve a pair.
        """
        self._file.write(_line({"step": step, "split": split, **metrics}))
        self._file.flush()
        curves = {
            f"{split}/{name}/{key}".rstrip("/"): number
            for name, value in metrics.items()
            for key, number in _scalars(value).items()
            if isinstance(number, int | float) and np.isfinite(number)
        }
        values = [Summary.Value(tag=tag, simple_value=n) for tag, n in curves.items()]
        self._events.file_writer.add_summary(Summary(value=values), step)  # one record for all
        if self._wandb is not None:
            self._wandb.write(step, curves)

    def close(self) -> None:
        self._file.close()
        self._events.close()
        if self._wandb is not None:
            self._wandb.close()


def _scalars(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        return {"": value}
    rows = value.get("mean")
    if not isinstance(rows, list):
        return value
    names = value["tasks"]
    if len(names) > PAIRS_UP_TO:
        return {}
    pairs = itertools.combinations(range(len(names)), 2)
    return {f"{names[i]}/{names[j]}": rows[i][j] for i, j in pairs}


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a journal, each against its checksum; none where there is no journal.

    A line cut short by a kill is left out, and so are damaged ones, with a line on stderr.
    """
    if not path.exists():
        print(f"{path}: is missing; nothing is known of the course of training", file=sys.stderr)
        return []
    lines = [line for line in read_bytes(path).split(b"\n") if line]
    records = [_record(line) for line in lines]
    damaged = [i + 1 for i, record in enumerate(records[:-1]) if record is None]
    if damaged:
        some = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
        print(f"{path}: left out {len(damaged)} damaged lines: {some}", file=sys.stderr)
    return [record for record in records if record is not None]


def _line(record: Mapping[str, Any]) -> str:
    """A record as a line of the journal, with the CRC-32 of the rest."""
    text = json.dumps(record)
    return f'{text[:-1]}, "{_CHECKSUM}": {zlib.crc32(text.encode())}}}\n'


def _record(line: bytes) -> dict[str, Any] | None:
    """The record of a line of `_line`; None for anything else."""
    text, found, checksum = line.rpartition(f', "{_CHECKSUM}": '.encode())
    if not found or checksum != f"{zlib.crc32(text + b'}')}}}".encode():
        return None
    record = json.loads(text + b"}")
    return record if {"step", "split"} <= record.keys() else None


class Watch:
    """A progress bar on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console, steps: int, start: int, tasks: tuple[str, ...]) -> None:
        self._console, self._steps, self._names = console, steps, tasks
        self._first: int | None = None
        self._began = self._spoke = time.monotonic()
        self._advised = False
        self._bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}", markup=False),
            console=console,
            disable=not console.is_terminal,
            refresh_per_second=4,  # drawing it takes milliseconds from a core
        )
        self._id = self._bar.add_task(
            "", total=steps, completed=start, speed="compiling", metrics=""
        )

    def __enter__(self) -> Watch:
        self._bar.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._bar.stop()

    def say(self, line: str) -> None:
        """A line above the bar."""
        self._bar.console.print(line, highlight=False)

    def update(
        self, step: int, losses: Any, weights: Any, waited: float = 0.0, advice: str = ""
    ) -> None:
        """Each task's loss and, after an x, its weight.

        Args:
            step, losses, weights: as they stand.
            waited: the share of time in which steps waited for batches.
            advice: what to do where that is much; printed once.
        """
        now = time.monotonic()
        if self._first is None:  # the steps before it waited for the compiler
            self._first, self._began = step, now
        speed = (step - self._first) / max(now - self._began, 1e-9)
        metrics = "  ".join(
            f"{name} {loss:.3f} x{weight:.2f}"
            for name, loss, weight in zip(self._names, losses, weights, strict=True)
        )
        shown = f"{speed:.1f} steps/s" if speed else "compiled"
        if waited > MUCH_WAITING:
            shown += f"  waiting for data {waited:.0%}"
            if not self._advised:
                self._advised = True
                self.say(f"steps spend {waited:.0%} of their time waiting for data: {advice}")
        self._bar.update(self._id, completed=step, speed=shown, metrics=metrics)
        if self._bar.disable and (now - self._spoke > 10 or step == self._steps):
            self._spoke = now
            left = f"{(self._steps - step) / speed:.0f} s left  " if speed else ""
            self._console.print(
                f"step {step}/{self._steps}  {shown}  {left}{metrics}",
                highlight=False,
            )


def results_table(
    title: str,
    columns: Mapping[str, Mapping[str, Mapping[str, float]]],
    certainty: Mapping[str, Any] | None = None,
) -> Table:
    """Task and metric down, one column for each of several results.

    Args:
        title: over the table.
        columns: `{name: {task: {metric: value}}}`.
        certainty: of the first column, how many examples each value is of and its interval
            (`evaluation.intervals`).
    """
    table = Table(title=title)
    table.add_column("task")
    table.add_column("metric")
    for i, name in enumerate(columns):
        table.add_column(name, justify="right")
        if i == 0 and certainty:
            table.add_column("95 %", justify="right")
            table.add_column("n", justify="right")
    first = next(iter(columns.values()))
    for task, metrics in first.items():
        for i, metric in enumerate(metrics):
            cells = [_shown(result.get(task, {}).get(metric)) for result in columns.values()]
            if certainty:
                cells[1:1] = certainty_cells(certainty.get(task, {}).get(metric))
            table.add_row(task if i == 0 else "", metric, *cells)
        table.add_section()
    return table


def certainty_cells(entry: Mapping[str, Any] | None) -> list[str]:
    """The interval and the number of examples of one metric, as tables show them."""
    if entry is None:
        return ["-", "-"]
    ends = [entry["low"], entry["high"]]
    interval = "-" if None in ends else " to ".join(f"{end:.3f}" for end in ends)
    return [interval, f"{entry['n']:,}"]


def _shown(value: float | None) -> str:
    return "-" if value is None or not np.isfinite(value) else f"{value:.3f}"
