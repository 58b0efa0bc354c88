"""No room but `modalities` compares the kind of a modality."""

from pathlib import Path

import pytest

import mtmm_jax
from tests.kind_rules import Rule, compared, offences

RULE = Rule(
    owners=("modalities",),
    rooms=(
        "analysis",
        "batch.py",
        "benchmarks",
        "data",
        "encoders",
        "evaluation",
        "fusion",
        "inference",
        "model",
        "readers",
        "runs",
        "sharing",
        "tasks",
        "training",
        "transfer",
    ),
    # Tasks, targets, settings and dtypes have kinds of their own.
    others=r"task|target|label|^value$|dtype|feature|\bt\b|^found$|^self$|^[xy]$",
)


def test_no_other_room_compares_the_kind_of_a_modality():
    assert not offences(RULE, Path(mtmm_jax.__file__).parent)


@pytest.mark.parametrize(
    "source",
    [
        "modality.kind == 'image'",
        "'image' != m.kind",
        "spec.modalities[name].kind in ('image', 'video')",
        "TABLE[modality.kind](x)",
        "TABLE.get(modality.kind, 1)",
        "registry.choose(modality.kind, KINDS, where, 'kind')",
        "{'video'} & KINDS if {m.kind for m in all} <= KINDS else 0",
    ],
)
def test_the_walker_finds(source):
    assert len(compared(source, RULE)) == 1


def test_the_walker_leaves_others_alone():
    for source in ("task.kind == 'regression'", "spec.targets[name].kind in KINDS", "m.kind"):
        assert not compared(source, RULE)
