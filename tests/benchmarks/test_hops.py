"""One traced step of the toy passes few files and few frames."""

import pytest

from mtmm_jax.benchmarks.speed import hops

FILES, FRAMES = 20, 14


@pytest.fixture(scope="module")
def counter():
    return hops.count(hops.toy())


def test_a_step_passes_few_files_and_few_frames(counter):
    assert len(counter.files) <= FILES, counter.files
    assert len(counter.deepest) <= FRAMES, counter.deepest


def test_the_count_begins_at_the_step(counter):
    assert counter.deepest[0] == ("training/step.py", "make_step.<locals>.step")
    assert counter.deepest[-1][0] == "layers/positionwise.py"
    assert {"model/model.py", "heads/vector.py", "fusion/pooled.py"} <= set(counter.files)
    assert not [file for file in counter.files if file.startswith("benchmarks")]
