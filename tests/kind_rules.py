"""Finds where the `kind` of something is compared outside the rooms that own it.

    offences(RULE, root)  # ["data/page.py:12: modality.kind == 'image'", ...]

A test of each owner gives its rule as data.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Rule:
    """What must not be compared where.

    Attributes:
        owners: folders and files of the package that may compare.
        rooms: those that are checked; empty for all others.
        others: a regex over expressions, such as `task` in `task.kind`, that are not meant.
    """

    owners: tuple[str, ...]
    rooms: tuple[str, ...] = ()
    others: str = r"(?!)"


def offences(rule: Rule, root: Path) -> list[str]:
    """Every comparison with, membership test of, subscript by, or `choose` on a `.kind`."""
    found = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if _within(name, rule.owners) or (rule.rooms and not _within(name, rule.rooms)):
            continue
        found += [f"{name}:{line}: {text}" for line, text in compared(path.read_text(), rule)]
    return found


def compared(source: str, rule: Rule) -> list[tuple[int, str]]:
    """`(line, expression)` of each offence in a file."""
    return [
        (node.lineno, ast.unparse(node))
        for node in ast.walk(ast.parse(source))
        if any(_is_kind(value, rule) for value in _looked_up(node))
    ]


def _looked_up(node: ast.AST) -> Iterator[ast.AST]:
    """What a node compares or looks up."""
    if isinstance(node, ast.Compare):
        yield from (node.left, *node.comparators)
    elif isinstance(node, ast.Subscript):
        yield node.slice
    elif isinstance(node, ast.Match):
        yield node.subject
    elif isinstance(node, ast.Call) and node.args:
        called = node.func.attr if isinstance(node.func, ast.Attribute) else None
        if isinstance(node.func, ast.Name):
            called = node.func.id
        if called in ("choose", "get"):
            yield node.args[0]


def _is_kind(node: ast.AST, rule: Rule) -> bool:
    if isinstance(node, ast.SetComp | ast.ListComp | ast.GeneratorExp):
        node = node.elt
    if not isinstance(node, ast.Attribute) or node.attr != "kind":
        return False
    return not re.search(rule.others, ast.unparse(node.value))


def _within(name: str, places: tuple[str, ...]) -> bool:
    return any(name == place or name.startswith(f"{place}/") for place in places)
