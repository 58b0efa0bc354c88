"""What a run tells of its time: traces of the steps asked for, retraces, parts, share of a peak."""

import types

import jax
import jax.numpy as jnp
import pytest

from mtmm_jax import training
from mtmm_jax.analysis.cost import operations
from mtmm_jax.registry import ConfigError
from mtmm_jax.training import peaks, profiling, tables
from mtmm_jax.training.profiling import Compiles, Meter, Window
from tests import kept_run
from tests.training import small_run


@pytest.mark.parametrize("text", ["10:20", "steps=0:3", "steps=4:3", "steps=5:11", "steps=a:b", ""])
def test_windows_that_are_none(text):
    with pytest.raises(ConfigError, match=f"--profile: '{text}'"):
        Window.of(text, steps=10)


def test_a_window_has_both_its_ends():
    assert Window.of("steps=3:10", steps=10) == Window(3, 10)


class Trace:
    """In the profiler's place: when it was on."""

    def __init__(self, monkeypatch):
        self.at, self.steps, self.folder = 0, [], None
        self.on = False
        monkeypatch.setattr(jax.profiler, "start_trace", self.start)
        monkeypatch.setattr(jax.profiler, "stop_trace", self.stop)

    def start(self, folder):
        self.on, self.folder = True, folder

    def stop(self):
        self.on = False

    def step(self, state, batch):
        self.at += 1
        if self.on:
            self.steps.append(self.at)
        return state + batch, {}


@pytest.mark.parametrize(
    ("start", "stop", "traced", "words"),
    [
        (0, 9, [4, 5, 6], "the profile of steps 4 to 6"),
        (4, 9, [5, 6], "the profile of steps 5 to 6"),  # resumes from within
        (0, 5, [4, 5], "a profile that stops early, from step 4"),
        (6, 9, [], "nothing profiled: steps 4 to 6 were done before"),
    ],
)
def test_the_steps_asked_for_are_traced(start, stop, traced, words, tmp_path, monkeypatch):
    trace, said, state = Trace(monkeypatch), [], jnp.zeros(())
    trace.at = start
    with Compiles() as compiles:
        meter = Meter(compiles, Window(4, 6), tmp_path, said.append)
        step = meter.around(trace.step, start)
        for _ in range(start, stop):
            state, _ = step(state, 1.0)
        meter.close()
    assert trace.steps == traced
    assert not trace.on
    (line,) = said
    assert words in line
    assert trace.folder == (str(tmp_path) if traced else None)
    assert (meter.step_seconds is None) == (stop == 5 or start == 6)
    assert float(state) == stop - start


def test_a_real_trace_is_where_it_is_said_to_be(tmp_path):
    said = []
    with Compiles() as compiles:
        meter = Meter(compiles, Window(2, 2), tmp_path / "profile", said.append)
        step = meter.around(jax.jit(lambda state, batch: (state + batch, {})), 0)
        state = jnp.zeros(())
        for _ in range(3):
            state, _ = step(state, 1.0)
    assert f"--logdir {tmp_path / 'profile'}" in said[0]
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_what_is_traced_again_after_the_first_steps_is_named():
    said = []

    def twice(state, batch):
        return state + 2 * batch.sum(), {}

    with Compiles() as compiles:
        meter = Meter(compiles, say=said.append)
        step = meter.around(jax.jit(twice), 10)
        state = jnp.zeros(())
        for size in (3, 4, 3, 4, 5, 5):
            state, _ = step(state, jnp.ones(size))
    (line,) = said
    assert line.startswith("step 15: traced again: ")
    assert "twice (3 times so far)" in line
    assert compiles.traced.count("twice") == 3
    assert compiles.programs >= 3
    assert "twice" in compiles.report(shown=10)
    before = len(compiles.traced)
    jax.jit(lambda x: x * 3.0)(jnp.ones(7))
    assert len(compiles.traced) == before  # it no longer listens


def test_a_steps_time_is_its_parts(monkeypatch):
    clock = iter([0.0, 0.25, 1.0, 1.5])  # two steps, 0.75 s to hand them over
    monkeypatch.setattr(profiling.time, "perf_counter", lambda: next(clock))
    meter = Meter(Compiles())
    step = meter.around(lambda state, batch: (state, batch), 0)
    step(0, 0)
    step(0, 0)
    metrics = meter.metrics(seconds=4.0, steps=2, waited=1.0)
    assert metrics["step_seconds"] == {"data": 0.5, "host": 0.375, "device": 1.125}
    assert metrics["memory_mb"]["host_peak"] > 1
    assert meter.metrics(2.0, 1, 1.0)["step_seconds"] == {"data": 1.0, "host": 0.0, "device": 1.0}


def test_a_devices_memory_is_reported_where_it_is_known(monkeypatch):
    assert set(profiling.memory()) == {"host_peak"}
    devices = [types.SimpleNamespace(memory_stats=lambda: {"peak_bytes_in_use": 5e6})] * 2
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert profiling.memory()["device_peak"] == 5.0


@pytest.mark.parametrize(
    ("kind", "flops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("Tesla T4", 65e12),
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("NVIDIA L40", None),  # no L4
        ("NVIDIA T400", None),
    ],
)
def test_peaks_by_the_kind_of_device(kind, flops):
    device = types.SimpleNamespace(platform="gpu", device_kind=kind)
    found = peaks.peak(device)
    assert (found.flops if found else None) == flops
    assert peaks.peak(device, given=5e12) == peaks.Peak(5e12, "given")


def test_speed_in_words_and_only_what_is_known():
    most = peaks.Peak(4e12, "by its maker")
    assert peaks.against_peak(1e12, 0.5, most)["peak_fraction"] == 0.5
    assert peaks.against_peak(None, 0.5, most) == peaks.against_peak(1e12, None, most) == {}
    assert peaks.against_peak(1e12, 0.5, None) == {"flops_per_second": 2e12}
    assert peaks.speed(1e12, 0.5, most).endswith("peak 4000 GFLOP/s (by its maker): 50.0% of it")
    assert "is not known" in peaks.speed(1e12, 0.5, None)
    assert "not reported by this compiler" in peaks.speed(None, 0.5, most)


def test_a_cpus_peak_is_measured():
    found = peaks.peak()
    assert found.flops > 1e7
    assert "measured" in found.source


def test_the_steps_operations_and_memory_are_of_one_lowering():
    config = {**small_run.get_config().to_dict(), "devices": 1, "balancing": "static"}
    experiment = training.assemble(
        {**config, "tasks": {"kind": {"kind": "classification"}}}, kept_run.SPEC
    )
    lowered = tables.lowered_step(experiment)
    assert operations(lowered) > 1000
    sizes = types.SimpleNamespace(temp_size_in_bytes=5e6, argument_size_in_bytes=9e6)
    compiled = types.SimpleNamespace(memory_analysis=lambda: sizes)
    table = tables.memory_table(experiment, compiled)
    assert list(table.columns[1].cells)[1] == "5.0"
