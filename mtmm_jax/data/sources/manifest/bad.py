"""Rows that cannot be used: counted, reported once each, or the end of it."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtmm_jax.registry import ConfigError, choose

ON_BAD = ("skip", "stop")
_COLLECT = "collect"
_log = logging.getLogger("mtmm_jax.data.sources.manifest")


@dataclasses.dataclass(frozen=True)
class Problem:
    """A defect and its place.

    Attributes:
        path: of the manifest.
        line: of the manifest; None for the whole of it.
        column: empty where the whole row is meant.
        value: of the cell, such as the name of a file.
        reason: in words.
        about: the sort of the reason, in two or three words.
    """

    path: str
    line: int | None
    column: str
    value: str
    reason: str
    about: str

    def __str__(self) -> str:
        at = self.path if self.line is None else f"{self.path} line {self.line}"
        if self.column:
            at += f", column {self.column!r}"
        return f"{at}: {self.value} {self.reason}".replace(":  ", ": ")


class BadRows:
    """The defects of a manifest, by row.

    With `on_bad="skip"` a bad row is logged once and weighs nothing; with "stop" it is an error.
    Batches are made by several threads, which all report here; what they return does not depend on
    what was reported before.
    """

    def __init__(self, path: Path, lines: Sequence[int], on_bad: str) -> None:
        if on_bad != _COLLECT:
            choose(on_bad, ON_BAD, "data.manifest.on_bad")
        self.path, self.on_bad = str(path), on_bad
        self._lines = lines
        self._lock = threading.Lock()
        self._rows: dict[int | tuple[int, str], Problem] = {}
        self._all: list[Problem] = []
        self._doubts: list[Problem] = []

    @classmethod
    def collecting(cls, path: Path, lines: Sequence[int]) -> BadRows:
        """One that raises and logs nothing, and keeps every problem: for checking a manifest."""
        return cls(path, lines, _COLLECT)

    def row(self, row: int, column: str, value: Any, reason: object) -> None:
        """Row `row` cannot be used."""
        about = getattr(reason, "about", "bad value")
        line, shown = self._lines[row], _short(value)
        self._add(row, Problem(self.path, line, column, shown, str(reason), about))

    def line(self, line: int, reason: str) -> None:
        """A line of the manifest is no row."""
        self._add((line, ""), Problem(self.path, line, "", "", reason, "broken row"))

    def structure(
        self, row: int | None, column: str, value: Any, reason: object, about: str
    ) -> None:
        """A defect of the table, an error under every `on_bad`."""
        line = None if row is None else self._lines[row]
        problem = Problem(self.path, line, column, _short(value), str(reason), about)
        if self.on_bad != _COLLECT:
            raise ConfigError(str(problem))
        with self._lock:
            self._all.append(problem)
            if row is not None:
                self._rows.setdefault(row, problem)

    def note(
        self,
        row: int | None,
        column: str,
        value: Any,
        reason: object,
        about: str,
        doubt: bool = True,
    ) -> None:
        """Something worth knowing that makes no row unusable: logged, or kept where collected."""
        line = None if row is None else self._lines[row]
        problem = Problem(self.path, line, column, _short(value), str(reason), about)
        if self.on_bad != _COLLECT:
            _log.warning("%s", problem)
            return
        with self._lock:
            (self._doubts if doubt else self._all).append(problem)

    def _add(self, key: int | tuple[int, str], problem: Problem) -> None:
        if self.on_bad == "stop":
            raise ConfigError(str(problem))
        with self._lock:
            if self.on_bad == _COLLECT:
                self._all.append(problem)
            known = key in self._rows
            self._rows.setdefault(key, problem)
        if not known and self.on_bad == "skip":
            _log.warning("left out: %s", problem)

    def __contains__(self, row: int) -> bool:
        return row in self._rows

    def __len__(self) -> int:
        """Rows known to be bad so far."""
        return len(self._rows)

    @property
    def problems(self) -> list[Problem]:
        """The first one of each bad row, or all of them where they are collected; by line."""
        with self._lock:
            found = self._all if self.on_bad == _COLLECT else list(self._rows.values())
            return sorted(set(found), key=lambda p: (p.line or 0, p.column, p.reason))

    @property
    def doubts(self) -> list[Problem]:
        """Remarks on the table, where it is collected."""
        return list(dict.fromkeys(self._doubts))


def _short(value: Any) -> str:
    if value is None:
        return ""
    try:
        text = repr(value)
    except RecursionError:
        text = "a deeply nested value"
    return text if len(text) <= 120 else f"{text[:117]}..."
