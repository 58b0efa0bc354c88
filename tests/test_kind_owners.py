"""Only the room that owns a kind asks for it: tasks, targets and modalities each have one."""

from pathlib import Path

import pytest

import mtmm_jax
from tests.kind_owners import Rule, asked, questions

RULES = {
    "target": Rule(
        names=r"(target|label|label_of|find_target)s?",
        holders=("targets",),
        types=("Target",),
        owners=("targets",),
    ),
    "modality": Rule(
        names=r"modality|modalities",
        holders=("modalities",),
        types=("Modality",),
        owners=("modalities",),
    ),
    "task": Rule(
        names=r"(\w+_)?tasks?",
        holders=("tasks",),
        types=("Task",),
        owners=("tasks",),
        module="mtmm_jax.tasks",
    ),
}


@pytest.mark.parametrize("thing", RULES)
def test_only_its_own_room_asks_for_a_kind(thing):
    assert questions(Path(mtmm_jax.__file__).parent, RULES[thing]) == []


QUESTIONS = [
    "def f(THING): return THING.kind == 'class'",
    "def f(THING): return 'class' != THING.kind",
    "def f(spec): return spec.HOLDER['y'].kind != 'class'",
    "def f(spec): return [n for n, t in spec.HOLDER.items() if t.kind in ('class', 'number')]",
    "def f(spec):\n    for one in spec.HOLDER.values():\n        print(TABLE[one.kind])",
    "def f(one: TYPE): choose(one.kind, TABLE, 'where')",
    "def f(THING):\n    kind = THING.kind\n    return kind == 'class'",
    "def f(spec):\n    y = spec.HOLDER.get('y')\n    return TABLE.get(y.kind)",
    "def f(model):\n    match model.spec.HOLDER['y'].kind:\n        case 'class': pass",
    "def f(a, b: TYPE | None): return (a, b.kind) == (1, 'class')",
    "x = [t for t in SPEC.HOLDER.values() if t.kind == 'class']",
]
OTHERS = [
    "def f(THING): return f'{THING.kind} of it'",
    "def f(THING): return THING.is_a('class') and THING.traits.discrete",
    "def f(spec): return {n: t.kind for n, t in spec.HOLDER.items()}",
    "def f(head): return head.kind == 'vector'",
    "def f(feature): return np.dtype(feature.np_dtype).kind == 'b'",
]


def _of(code, thing):
    holder = RULES[thing].holders[0]
    code = code.replace("THING", thing).replace("HOLDER", holder)
    return code.replace("TYPE", RULES[thing].types[0])


@pytest.mark.parametrize("thing", RULES)
@pytest.mark.parametrize("code", QUESTIONS)
def test_a_question_is_found(code, thing):
    assert len(list(asked(_of(code, thing), RULES[thing]))) == 1


@pytest.mark.parametrize("thing", RULES)
@pytest.mark.parametrize("code", OTHERS)
def test_what_is_no_question_is_left_alone(code, thing):
    assert not list(asked(_of(code, thing), RULES[thing]))


def test_what_is_asked_of_another_thing_is_left_alone():
    for thing in RULES:
        others = [other for other in RULES if other != thing]
        assert not [o for o in others if list(asked(_of(QUESTIONS[0], o), RULES[thing]))]


def test_an_instance_check_of_a_task_is_found():
    code = "from mtmm_jax.tasks.task import Task\ndef f(x): return isinstance(x, (int, Task))"
    assert len(list(asked(code, RULES["task"]))) == 1
