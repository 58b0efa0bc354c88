"""Commands called in a process that is watched from outside, and what is wrong with what they do.

A fault is a traceback, another exit code than 0 and 2, an error of several lines, or a hang.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mtmm_jax.benchmarks.reliability.bad_values import Watched

SERVE = (sys.executable, "-m", "mtmm_jax.benchmarks.reliability.calls")
SECONDS, BYTES = 120.0, 8 * 10**9


def call(command: str, arguments: Sequence[str], environment: Mapping[str, str]) -> dict[str, Any]:
    """One command: exit code, output and errors.

    Args:
        command: a module of the package, such as "evaluate".
        arguments: of the command line.
        environment: variables of the call.
    """
    before = dict(os.environ)
    os.environ.update(environment)
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            code = importlib.import_module(f"mtmm_jax.{command}").main(list(arguments))
        except SystemExit as error:  # of argparse
            code = error.code
        except BaseException:
            traceback.print_exc(limit=-4)
            code = 1
    os.environ.clear()
    os.environ.update(before)
    return {"code": code, "out": out.getvalue(), "error": errors.getvalue()}


def serve() -> None:
    """Answers one call a line, until the input ends; its own output is kept for the answers."""

    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps(call(**json.loads(line))), file=out, flush=True)


class Caller:
    """A process that answers calls, and another one where it ends."""

    def __init__(self) -> None:
        self._watched = Watched(SERVE, BYTES)

    def __call__(
        self, command: str, *arguments: str, seconds: float = SECONDS, **environment: str
    ) -> dict[str, Any]:
        found = self._watched.ask(
            seconds, command=command, arguments=list(arguments), environment=environment
        )
        if found["code"] is None:
            self._watched.close()
            self._watched = Watched(SERVE, BYTES)
        return found

    def close(self) -> None:
        self._watched.close()


@contextlib.contextmanager
def caller() -> Iterator[Caller]:
    """A `Caller` that is ended."""
    one = Caller()
    try:
        yield one
    finally:
        one.close()


def finish(rows: Sequence[Mapping[str, Any]], path: str | None, **settings: Any) -> int:
    """The exit code: 1 where a row has a fault. Writes all rows to `path`, if there is one."""
    faults = sum(row["fault"] is not None for row in rows)
    if path:
        from mtmm_jax.benchmarks.speed.timing import write_json

        write_json(path, rows, settings={**settings, "faults": faults})
    return 1 if faults else 0


def shown(text: str, most: int = 300) -> str:
    """The end of what a command printed, without the paths of this machine."""
    text = text.replace(tempfile.gettempdir(), "TMP").strip()
    return re.sub(r'File "[^"]*/((?:lib/python|mtmm_jax)[^"]*)"', r'File "\1"', text)[-most:]


def fault(found: Mapping[str, Any]) -> str | None:
    """The fault of a call by itself; None if there is none."""
    lines = [line for line in found["error"].splitlines() if line.strip()]
    if found["code"] is None:
        return f"no answer after {found['seconds']} s and {found['bytes'] / 1e9:.1f} GB"
    if "Traceback (most recent call last)" in found["error"]:
        return f"traceback: {lines[-1] if lines else ''}"
    if found["code"] not in (0, 2):
        return f"exit code {found['code']}: {lines[-1] if lines else ''}"
    errors = [line for line in lines if line.startswith("error: ")]
    if found["code"] == 2 and (len(errors) != 1 or lines[-1] != errors[0]):
        return f"exit code 2 with {len(errors)} lines of error: {lines[-2:]}"
    return None


if __name__ == "__main__":
    serve()
