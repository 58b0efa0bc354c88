"""Finds code that asks for the kind of a thing outside the rooms that own that thing's kinds.

A kind is asked for where `x.kind` (or a name that was assigned `x.kind`) is compared, is looked for
in a collection, picks an entry of a table, is matched, or is given to `registry.choose`. Showing a
kind in a message, or handing it on, is no question.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Rule:
    """Whose kinds are meant, and who may ask.

    Attributes:
        names: a regex that the whole name of a variable, attribute or function matches whose
            `.kind` is meant.
        holders: attributes of collections of such things: what is taken from one of them, or loops
            over it, is meant under any name.
        types: annotations of such things.
        owners: files and folders, below the package, that may ask.
        module: of the classes of such things, which nobody else gives to `isinstance`.
    """

    names: str
    holders: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    owners: tuple[str, ...] = ()
    module: str | None = None


def questions(package: Path, rule: Rule) -> list[str]:
    """`file:line: code` of each question outside the owners."""
    found = []
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).as_posix()
        if not any(name == owner or name.startswith(f"{owner}/") for owner in rule.owners):
            text = path.read_text(encoding="utf-8")
            found += [f"{name}:{one.lineno}: {ast.unparse(one)}" for one in asked(text, rule)]
    return found


def asked(text: str, rule: Rule) -> Iterator[ast.AST]:
    """The places of a file where a kind is asked for, in order."""
    seen = {}
    tree = ast.parse(text)
    for node in _instance_checks(tree, rule):
        seen[node.lineno, node.col_offset, type(node)] = node
    for scope in ast.walk(tree):
        if isinstance(scope, ast.Module | ast.FunctionDef | ast.Lambda):
            for node in _Scope(scope, rule).asked():
                seen[node.lineno, node.col_offset, type(node)] = node
    yield from (seen[key] for key in sorted(seen, key=lambda key: key[:2]))


def _instance_checks(tree: ast.AST, rule: Rule) -> Iterator[ast.AST]:
    """Calls of `isinstance` with a class that was imported from the owners' module."""
    if rule.module is None:
        return
    classes = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(rule.module)
        for alias in node.names
    }
    for node in ast.walk(tree):
        called = isinstance(node, ast.Call) and _name(node.func) == "isinstance"
        names = ast.walk(node.args[1]) if called else ()
        if any(isinstance(name, ast.Name) and name.id in classes for name in names):
            yield node


class _Scope:
    """A function, with those that stand in it: names mean the same throughout."""

    def __init__(self, scope: ast.AST, rule: Rule) -> None:
        self.rule = rule
        # A module's own names only: those of its functions are looked at one by one.
        self.nodes = _shallow(scope) if isinstance(scope, ast.Module) else list(ast.walk(scope))
        self.things: set[str] = set()
        self.kinds: set[str] = set()
        for _ in range(3):  # names that are made of names
            for node in self.nodes:
                self._learn(node)

    def asked(self) -> Iterator[ast.AST]:
        for node in self.nodes:
            if isinstance(node, ast.Compare):
                parts = [node.left, *node.comparators]
            elif isinstance(node, ast.Subscript):
                parts = [node.slice]
            elif isinstance(node, ast.Match):
                parts = [node.subject]
            elif isinstance(node, ast.Call) and _name(node.func) in ("choose", "get"):
                parts = node.args[:1]
            else:
                continue
            if any(self._is_kind(part) for part in parts):
                yield node

    def _learn(self, node: ast.AST) -> None:
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr) and node.value:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                values = [(target, node.value)]
                if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    values = list(zip(target.elts, node.value.elts, strict=False))
                for to, value in values:
                    if isinstance(to, ast.Name) and self._is_thing(value):
                        self.things.add(to.id)
                    if isinstance(to, ast.Name) and self._is_kind(value):
                        self.kinds.add(to.id)
        if isinstance(node, ast.For | ast.comprehension) and self._holds(node.iter):
            last = node.target.elts[-1] if isinstance(node.target, ast.Tuple) else node.target
            if isinstance(last, ast.Name):
                self.things.add(last.id)
        if isinstance(node, ast.arg) and node.annotation is not None:
            words = re.findall(r"\w+", ast.unparse(node.annotation))
            if words and words[0] in self.rule.types:
                self.things.add(node.arg)

    def _holds(self, node: ast.AST) -> bool:
        """Whether it loops over a collection of such things: `.targets.items()`, `.values()`."""
        while isinstance(node, ast.Call):
            node = node.func.value if isinstance(node.func, ast.Attribute) else ast.Constant(None)
        return isinstance(node, ast.Attribute) and node.attr in self.rule.holders

    def _is_thing(self, node: ast.AST) -> bool:
        if isinstance(node, ast.Subscript):
            return self._holds(node.value) or self._is_thing(node.value)
        if isinstance(node, ast.Call):
            taken = isinstance(node.func, ast.Attribute) and node.func.attr in ("get", "pop")
            return self._holds(node.func.value) if taken else self._is_thing(node.func)
        name = _name(node)
        if name is None:
            return False
        known = isinstance(node, ast.Name) and name in self.things
        return known or re.fullmatch(self.rule.names, name) is not None

    def _is_kind(self, node: ast.AST) -> bool:
        if isinstance(node, ast.Attribute):
            return node.attr == "kind" and self._is_thing(node.value)
        if isinstance(node, ast.Tuple | ast.List | ast.Set):
            return any(self._is_kind(part) for part in node.elts)
        return isinstance(node, ast.Name) and node.id in self.kinds


def _name(node: ast.AST) -> str | None:
    """The last name of a dotted one."""
    return getattr(node, "attr", None) or getattr(node, "id", None)


def _shallow(module: ast.AST) -> list[ast.AST]:
    """Nodes of a module that stand in no function."""
    found, left = [], [module]
    while left:
        node = left.pop()
        found.append(node)
        if not isinstance(node, ast.FunctionDef):
            left += ast.iter_child_nodes(node)
    return found
