"""Compiler flags: set where they are known, left alone where the user says so."""

import os

import pytest

from mtmm_jax import parallel


@pytest.mark.parametrize(
    ("switch", "release", "given", "expected"),
    [
        ("1", "0.10.2", "", "--xla_cpu_experimental_ynn_fusion_type="),
        ("1", "0.12.0.1", "--a=1", "--a=1 --xla_cpu_experimental_ynn_fusion_type="),
        ("1", "0.99.0", "--a=1", "--a=1"),
        ("0", "0.10.2", "--a=1", "--a=1"),
        (
            "1",
            "0.10.2",
            "--xla_cpu_experimental_ynn_fusion_type=X",
            "--xla_cpu_experimental_ynn_fusion_type=X",
        ),
    ],
)
def test_cpu_flags(monkeypatch, switch, release, given, expected):
    monkeypatch.setenv("MTMM_JAX_CPU_FLAGS", switch)
    monkeypatch.setenv("XLA_FLAGS", given)
    monkeypatch.setattr(parallel.metadata, "version", lambda name: release)
    parallel.set_cpu_flags()
    assert os.environ["XLA_FLAGS"] == expected
