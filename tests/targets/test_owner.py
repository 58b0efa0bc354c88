"""No room but `targets` asks for the kind of a label."""

from pathlib import Path

import pytest

import mtmm_jax
from tests.kind_owners import Rule, asked, questions

LABELS = Rule(
    names=r"(target|label|label_of|find_target)s?",
    holders=("targets",),
    types=("Target",),
    owners=("targets",),
)


def test_only_targets_asks_for_the_kind_of_a_label():
    assert questions(Path(mtmm_jax.__file__).parent, LABELS) == []


@pytest.mark.parametrize(
    "code",
    [
        "def f(target): return target.kind == 'class'",
        "def f(spec): return spec.targets['y'].kind != 'class'",
        "def f(spec): return [n for n, t in spec.targets.items() if t.kind in ('class', 'number')]",
        "def f(spec):\n    for one in spec.targets.values():\n        print(TABLE[one.kind])",
        "def f(one: Target): choose(one.kind, TABLE, 'where')",
        "def f(label):\n    kind = label.kind\n    return kind == 'class'",
        "def f(spec):\n    y = spec.targets.get('y')\n    return TABLE.get(y.kind)",
        "def f(model):\n    match model.spec.targets['y'].kind:\n        case 'class': pass",
        "def f(task, spec): return label_of(spec, task).kind == 'class'",
        "def f(a, b: Target | None): return (a, b.kind) == (1, 'class')",
        "x = [t for t in SPEC.targets.values() if t.kind == 'class']",
    ],
)
def test_a_question_is_found(code):
    assert len(list(asked(code, LABELS))) == 1


@pytest.mark.parametrize(
    "code",
    [
        "def f(task): return task.kind == 'classification'",
        "def f(modality): return modality.kind == 'image'",
        "def f(target): return f'{target.kind} label'",
        "def f(target): return target.is_a('class') and target.traits.discrete",
        "def f(spec): return {n: t.kind for n, t in spec.targets.items()}",
        "def f(spec):\n    for m in spec.modalities.values():\n        print(TABLE[m.kind])",
        "def f(feature): return np.dtype(feature.np_dtype).kind == 'b'",
    ],
)
def test_what_is_no_question_is_left_alone(code):
    assert not list(asked(code, LABELS))
