"""Progress of a long job: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS = 10.0
"""Between two lines."""


@contextlib.contextmanager
def progress(
    what: str, done: str, things: str, total: int | None, every: float = SECONDS
) -> Iterator[Callable[[int], None]]:
    """Gives a function to be called with the number of things that are done.

    Args:
        what: is being done: "packing".
        done: the same, done: "packed".
        things: "rows".
        total: of them; None where that is not known.
        every: seconds between two lines.
    """
    console, start = Console(stderr=True), time.monotonic()
    bar = Progress(
        TextColumn(what),
        MofNCompleteColumn(),
        BarColumn(bar_width=20),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
        refresh_per_second=4,
    )
    task, spoke = bar.add_task("", total=total), start

    def advance(count: int) -> None:
        nonlocal spoke
        now = time.monotonic()
        bar.update(task, completed=count)
        if bar.disable and now - spoke > every:
            spoke = now
            of, left = "" if total is None else f" of {total:,}", ""
            if of and count:
                left = f", {(now - start) * (total - count) / count:.0f} s left"
            say(f"{done} {count:,}{of} {things}{left}")

    with bar:
        yield advance


def say(line: str) -> None:
    Console(stderr=True, soft_wrap=True).print(line, highlight=False, markup=False)
