"""Only `tasks/` knows which kinds of tasks there are: everything else reads what a Task gives.

The walker takes a rule as data, so that other rooms can own other kinds.
"""

import ast
import dataclasses
import re
from pathlib import Path

import pytest

import mtmm_jax

ROOT = Path(mtmm_jax.__file__).parent


@dataclasses.dataclass(frozen=True)
class Owner:
    """Who may compare the kinds of something.

    Attributes:
        room: the folder, below the package, that may.
        noun: what an expression is called that is such a thing, as a regex.
        module: whose classes must not be an argument of `isinstance` elsewhere.
        lookups: functions that look a value up in a table.
    """

    room: str
    noun: str
    module: str
    lookups: tuple[str, ...] = ("choose", "get", "choose_all")


TASK = Owner("tasks", r"(^|_)tasks?($|_)", "mtmm_jax.tasks")


def breaches(source, owner):
    """`(line, what)` of everything that a rule forbids in a module's source."""
    tree = ast.parse(source)
    classes = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(owner.module)
        for alias in node.names
    }
    scopes = [tree, *(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.Lambda))]
    found = set()
    for scope in scopes:
        things = _names_of_things(scope, owner)
        kinds = _names_of_kinds(scope, owner, things)
        for node in ast.walk(scope):
            for part, what in _compared(node, owner):
                if _is_kind(part, owner, things) or (
                    isinstance(part, ast.Name) and part.id in kinds
                ):
                    found.add((node.lineno, what))
            if isinstance(node, ast.Call) and _called(node) == "isinstance":
                for name in ast.walk(node.args[1]):
                    if isinstance(name, ast.Name) and name.id in classes:
                        found.add((node.lineno, f"isinstance of {name.id}"))
    return sorted(found)


def _compared(node, owner):
    """The expressions that a node compares, or looks up in a table."""
    if isinstance(node, ast.Compare):
        for part in (node.left, *node.comparators):
            for one in part.elts if isinstance(part, ast.Tuple) else (part,):
                yield one, "compared"
    elif isinstance(node, ast.Subscript):
        yield node.slice, "looked up"
    elif isinstance(node, ast.Call) and _called(node) in owner.lookups and node.args:
        yield node.args[0], "looked up"
    elif isinstance(node, ast.Match):
        yield node.subject, "matched"


def _called(node):
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _is_kind(node, owner, things):
    return (
        isinstance(node, ast.Attribute)
        and node.attr == "kind"
        and _is_thing(node.value, owner, things)
    )


def _is_thing(node, owner, things=frozenset()):
    """Whether an expression's own name is the noun: `task`, `model.tasks[name]`, `one.task`."""
    if isinstance(node, ast.Name):
        return node.id in things or bool(re.search(owner.noun, node.id))
    if isinstance(node, ast.Attribute):
        return bool(re.search(owner.noun, node.attr))
    if isinstance(node, ast.Subscript):
        return _is_thing(node.value, owner, things)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return node.func.attr in ("get", "values", "items") and _is_thing(
            node.func.value, owner, things
        )
    return False


def _bindings(scope):
    """`(names, value)` of assignments and loops."""
    for node in ast.walk(scope):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                yield target, node.value
        elif isinstance(node, ast.For | ast.comprehension):
            yield node.target, node.iter


def _names_of_things(scope, owner):
    """Local names for a thing, such as t of `for n, t in model.tasks.items()`."""
    found = set()
    for target, value in _bindings(scope):
        if not _is_thing(value, owner, found):
            continue
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Call):
            found.update(n.id for n in target.elts[-1:] if isinstance(n, ast.Name))
        elif isinstance(target, ast.Name):
            found.add(target.id)
    return found


def _names_of_kinds(scope, owner, things):
    return {
        target.id
        for target, value in _bindings(scope)
        if isinstance(target, ast.Name) and _is_kind(value, owner, things)
    }


def outside(owner):
    return [p for p in sorted(ROOT.rglob("*.py")) if ROOT / owner.room not in p.parents]


@pytest.mark.parametrize("owner", [TASK], ids=lambda owner: owner.room)
def test_nobody_else_compares_a_kind(owner):
    paths = outside(owner)
    assert len(paths) > 100
    found = [
        f"{path.relative_to(ROOT)}:{line}: {what}"
        for path in paths
        for line, what in breaches(path.read_text(), owner)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "if task.kind == 'regression': pass",
        "if 'regression' != run.model.tasks[name].kind: pass",
        "if asked.task.kind in KINDS: pass",
        "x = TABLE[one.task.kind]",
        "x = TABLE.get(task.kind)",
        "x = registry.choose(task.kind, TABLE, 'where')",
        "x = [n for n, t in model.tasks.items() if t.kind == 'recognition']",
        "x = [t for t in model.tasks.values() if t.kind == 'recognition']",
        "def f(m):\n    kind = m.tasks[n].kind\n    return kind in KINDS",
        "if (rule, task.kind) != ('learned', 'ordinal'): pass",
        "from mtmm_jax.tasks.synthesis import Synthesis\nx = isinstance(t, Synthesis)",
        "match task.kind:\n    case 'a': pass",
    ],
)
def test_each_way_to_compare_is_found(source):
    assert breaches(source, TASK)


@pytest.mark.parametrize(
    "source",
    [
        "raise ConfigError(f'{name} is a {task.kind}')",
        "if target.kind == 'class': pass",
        "x = READERS[modality.kind]",
        "x = {'kind': task.kind}",
        "if isinstance(task, str): pass",
        "x = [n for n, t in spec.targets.items() if t.kind == 'class']",
    ],
)
def test_what_is_no_comparison_is_left_alone(source):
    assert not breaches(source, TASK)
