"""Compiler flags and malloc: set where they are known, left alone where the user says so."""

import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from mtmm_jax.devices import parallel


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


def test_keep_freed_memory(monkeypatch):
    calls = []
    libc = SimpleNamespace(mallopt=lambda *pair: calls.append(pair) or 1)
    monkeypatch.setattr(parallel.ctypes, "CDLL", lambda name: libc)
    monkeypatch.setattr(parallel.sys, "platform", "linux")
    monkeypatch.setenv("MTMM_JAX_CPU_FLAGS", "0")
    assert not parallel.keep_freed_memory()
    assert calls == []
    monkeypatch.delenv("MTMM_JAX_CPU_FLAGS")
    assert parallel.keep_freed_memory()
    assert calls == [(-4, 0), (-1, 2**31 - 1), (-8, 1)]
    libc.mallopt = lambda *pair: 0
    assert not parallel.keep_freed_memory()
    del libc.mallopt
    assert not parallel.keep_freed_memory()


def test_other_systems_keep_their_malloc(monkeypatch):
    monkeypatch.setattr(parallel.sys, "platform", "darwin")
    monkeypatch.setattr(parallel.ctypes, "CDLL", None)
    monkeypatch.delenv("MTMM_JAX_CPU_FLAGS", raising=False)
    assert not parallel.keep_freed_memory()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_glibc_takes_the_options():
    # In a process of its own: the options cannot be taken back.
    code = "from mtmm_jax.devices import parallel; print(parallel.keep_freed_memory())"
    env = {**os.environ, "MTMM_JAX_CPU_FLAGS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "True"


def test_what_runs_once_gives_the_same_wherever_it_is_laid():
    layout = jax.sharding.SingleDeviceSharding(jax.devices()[1])

    def draw(key):
        return jax.random.normal(key, (64,))

    once = parallel.jit_once(draw, out_shardings=layout)(jax.random.key(0))
    assert once.sharding == layout
    np.testing.assert_allclose(once, jax.jit(draw)(jax.random.key(0)), atol=1e-6)
