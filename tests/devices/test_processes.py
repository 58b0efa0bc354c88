"""Several processes do what one does, stop together, end together, and resume together."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from mtmm_jax import training
from mtmm_jax.devices import processes
from mtmm_jax.inference.finished import open_run
from mtmm_jax.registry import ConfigError
from mtmm_jax.train import fit
from mtmm_jax.training.logs import read_journal
from tests.training import gradients, small_run

ROOT = Path(__file__).parents[2]
LIMIT = 150  # seconds; an answer takes a fraction of it


def _environment():
    cache = str(Path(tempfile.gettempdir()) / "mtmm-jax-tests-processes")
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "JAX_NUMPY_DTYPE_PROMOTION": "strict",
        "MTMM_JAX_CACHE": cache,
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def _port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Peers:
    """Processes of one command, killed at the end; what they said is shown when a test fails."""

    def __init__(self, count, command, folder):
        self.files = [folder / f"said {i} {time.monotonic_ns()}" for i in range(count)]
        self.all = []
        for i, path in enumerate(self.files):
            with path.open("w") as file:
                self.all.append(
                    subprocess.Popen(
                        [sys.executable, *command(i)],
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        env=_environment(),
                        cwd=ROOT,
                    )
                )

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for process in self.all:
            process.kill()
            process.wait()

    def said(self):
        return "\n".join(f"--- process {i}\n{p.read_text()}" for i, p in enumerate(self.files))

    def codes(self, limit=LIMIT):
        """Exit codes, when all have ended."""
        until = time.monotonic() + limit
        try:
            return [p.wait(max(until - time.monotonic(), 0.1)) for p in self.all]
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {limit} s\n{self.said()}") from None

    def wait_for(self, something):
        until = time.monotonic() + LIMIT
        while not something():
            assert all(p.poll() is None for p in self.all), self.said()
            assert time.monotonic() < until, self.said()
            time.sleep(0.005)  # a busy wait would take a core from them


def _train(folder, *more, count=2):
    port = _port()

    def command(i):
        return (
            *("-m", "mtmm_jax.train", "--config", str(Path(small_run.__file__))),
            *("--workdir", str(folder / "run"), *more),
            *("--coordinator", f"127.0.0.1:{port}", "--processes", str(count)),
            *("--process", str(i)),
        )

    return Peers(count, command, folder)


def _gradients(folder, count, methods, **axes):
    port, out = _port(), folder / "gradients.npz"

    def command(i):
        address = f"127.0.0.1:{port}"
        shape = (address, str(count), str(i), json.dumps(axes))
        return ("-m", "tests.training.gradients", str(out), *shape, *methods)

    with Peers(count, command, folder) as peers:
        assert peers.codes() == [0] * count, peers.said()
    found = np.load(out)
    for method in methods:
        prepared = gradients.steps(method, 1)
        for absent in gradients.ABSENT:
            key = f"{method}|{absent}|"
            mine = {k.removeprefix(key): found[k] for k in found.files if k.startswith(key)}
            gradients.assert_equal(mine, gradients.one_step(prepared, absent))


@pytest.mark.slow
def test_two_processes_compute_what_one_does(tmp_path):
    _gradients(tmp_path, 2, ("graddrop",), data=1, fsdp=2)


@pytest.mark.slow
def test_four_processes_compute_what_one_does(tmp_path):
    """`tensor` spans processes, so that pairs of them bring the same rows, whatever the method."""
    _gradients(tmp_path, 4, ("pcgrad",), data=1, fsdp=2, tensor=2)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same run on one device, and its last parameters."""
    path = tmp_path_factory.mktemp("runs") / "alone"
    results = fit(training.assemble({**small_run.get_config().to_dict(), "devices": 1}), path)
    return results, _parameters(path)


def _parameters(path):
    return training_leaves(open_run(path, step="last").variables["params"])


def training_leaves(tree):
    import jax

    return [np.asarray(x) for x in jax.tree.leaves(tree)]


def _assert_as_alone(run, alone):
    results, parameters = alone
    found = json.loads((run / "results.json").read_text())
    assert found["test"].keys() == results["test"].keys()
    for task, metrics in results["test"].items():
        for name, value in metrics.items():
            assert found["test"][task][name] == pytest.approx(value, rel=1e-4), (task, name)
    for a, b in zip(_parameters(run), parameters, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def _saved(folder):
    steps = folder / "run" / "checkpoints"
    return [p.name for p in steps.iterdir() if p.name.isdigit()] if steps.exists() else []


@pytest.mark.slow
def test_two_processes_train_to_what_one_does(tmp_path, alone):
    with _train(tmp_path) as peers:
        assert peers.codes() == [0, 0], peers.said()
        # Only the first one speaks; the library's connections are not our words.
        words = peers.files[1].read_text().splitlines()
        assert [line for line in words if "[Gloo]" not in line] == []
    _assert_as_alone(tmp_path / "run", alone)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    train = [json.loads(line)["step"] for line in lines if json.loads(line)["split"] == "train"]
    assert train == list(range(1, 7))


def test_processes_stop_together_when_one_is_asked(tmp_path):
    with _train(tmp_path, "--config.steps=100000") as peers:
        peers.wait_for(lambda: _saved(tmp_path))
        peers.all[1].send_signal(signal.SIGTERM)
        assert peers.codes() == [128 + signal.SIGTERM] * 2, peers.said()
        assert peers.said().count("the same command resumes from there") == 2


def _losses(folder):
    path = folder / "run" / "metrics.jsonl"
    lines = read_journal(path) if path.exists() else []
    return {r["step"]: r["loss"] for r in lines if r["split"] == "train"}


def _went_on(folder):
    """Whether there is a checkpoint, and steps after it."""
    saved = _saved(folder)
    return bool(saved) and max(_losses(folder), default=0) > max(map(int, saved)) + 1


def test_a_stopped_and_a_killed_process_are_named_and_the_run_goes_on_bit_for_bit(tmp_path):
    """The first ends in the stated time; what it repeats after a restart are the same numbers."""
    words = ("--config.steps=100000", "--config.devices={'kind': 'mesh', 'timeout': 30}")
    words += ("--config.evaluation.every=50000", "--config.checkpoint.every=40")
    seen = {}
    for number, name in ((signal.SIGSTOP, "stopped"), (signal.SIGKILL, "killed")):
        with _train(tmp_path, *words) as peers:
            before = max(seen, default=0)
            peers.wait_for(lambda b=before: _went_on(tmp_path) and max(_losses(tmp_path)) > b)
            peers.all[1].send_signal(number)
            began = time.monotonic()
            code = peers.all[0].wait(LIMIT)
            took = time.monotonic() - began
        said = peers.files[0].read_text()
        assert code not in (0, None), said
        assert "process 1 is stopped or gone" in said, said
        assert "The same command resumes from the last checkpoint" in said
        if name == "stopped":
            assert code == processes.HUNG, said
            assert took < 30 + 15, took
        now = _losses(tmp_path)
        again = sorted(seen.keys() & now.keys())
        assert all(seen[step] == now[step] for step in again)
        assert name == "stopped" or "resuming from step" in said
        assert name == "stopped" or len(again) > 40
        seen |= now


@pytest.mark.parametrize(
    ("process", "there", "silent", "named"),
    [
        (1, False, "", "process 0, which coordinates the others, is gone"),
        (1, True, "", ""),
        (0, False, "", ""),
        (0, True, "process 1 is stopped or gone", "process 1 is stopped or gone"),
        (2, False, "process 1 is stopped or gone", "process 1 is stopped or gone"),
    ],
)
def test_an_abort_names_who_is_gone(process, there, silent, named):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        if there:
            server.listen()
        code = (
            "import os\nfrom mtmm_jax.devices import heartbeats\n"
            f"joined, heartbeats.HEARTBEATS.last = heartbeats._joined(), {silent!r}\n"
            f"joined.coordinator_address, joined.process_id = '127.0.0.1:{port}', {process}\n"
            "heartbeats.name_the_lost()\nos.abort()"
        )
        found = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
        )
    if not named:
        assert (found.returncode, found.stderr) == (-signal.SIGABRT, "")
    else:
        assert found.returncode == 1
        assert found.stderr.startswith(f"error: process {process}: {named}. The same command")
        assert found.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_killed_process_is_named_outside_of_steps(tmp_path):
    """The others wait for nothing that would fail: JAX ends them when heartbeats are missed."""
    port, path = _port(), tmp_path / "peer.py"
    path.write_text(
        "import os, signal, sys, time\nfrom mtmm_jax.devices import processes\n"
        f"me = int(sys.argv[1])\nprocesses.initialize('127.0.0.1:{port}', 3, me, heartbeat=10)\n"
        "time.sleep(8)\nif me == 1:\n    os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(90)\n"
    )
    with Peers(3, lambda i: (str(path), str(i)), tmp_path) as peers:
        assert peers.codes() == [1, -signal.SIGKILL, 1], peers.said()
    for i in (0, 2):
        assert f"error: process {i}: process 1 is stopped or gone" in peers.files[i].read_text()


def test_a_process_without_heartbeats_is_named_at_once(monkeypatch, capfd):
    """Not after the seconds in which the others would be asked: JAX aborts before."""
    monkeypatch.setattr(processes.jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes.HEARTBEATS, "silent_soon", lambda: pytest.fail("waited"))
    monkeypatch.setattr(processes.os, "_exit", lambda code: (_ for _ in ()).throw(SystemExit(code)))
    with pytest.raises(SystemExit), processes.together():
        raise RuntimeError("Barrier failed because: UNAVAILABLE: Task 1 heartbeat timeout. This")
    said = capfd.readouterr().err
    assert said.startswith("error: process 0: process 1 is stopped or gone: it sent no heartbeats")
    assert said.count("\n") == 1


@pytest.mark.slow
def test_a_process_that_hangs_is_not_waited_for(tmp_path):
    mesh = "--config.devices={'kind': 'mesh', 'timeout': 8}"
    with _train(tmp_path, mesh, "--config.data.hanging=1") as peers:
        codes = peers.codes(limit=90)
        # Who hangs ends itself, unless the other, who waits for it, was first.
        assert processes.HUNG in codes, peers.said()
        assert 0 not in codes, peers.said()
        assert "no step in 8 s (devices.timeout)" in peers.said()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((None, 0, None), "--processes: 0 is not a whole number from 1 upwards"),
        (("a:1", 2, 2), "--process: 2 is not a number from 0 to 1"),
        (("host", 2, 0), "--coordinator: 'host' is not HOST:PORT, nor 'auto'"),
        ((None, 2, 0), "Give all three, or start by: SLURM, Open MPI, Cloud TPU"),
    ],
)
def test_processes_that_cannot_be_are_refused(given, message, monkeypatch):
    def initialize(address, *args, **kwargs):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(processes.jax.distributed, "initialize", initialize)
    with pytest.raises(ConfigError, match=message):
        processes.initialize(*given)


@pytest.mark.parametrize(
    ("marks", "given", "joins"),
    [
        ({}, (None, None, None), False),
        ({"SLURM_STEP_NUM_TASKS": "1"}, (None, None, None), False),
        ({"SLURM_STEP_NUM_TASKS": "4"}, (None, None, None), True),
        ({"SLURM_STEP_NUM_TASKS": "4"}, (None, 1, None), False),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, (None, None, None), True),
        ({"TPU_WORKER_HOSTNAMES": "a"}, (None, None, None), False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, (None, None, None), True),
        ({}, ("auto", None, None), True),
        ({}, ("a:1", 2, 0), True),
    ],
)
def test_launchers_are_found_by_their_marks(marks, given, joins, monkeypatch):
    calls = []
    monkeypatch.setattr(processes.os, "environ", marks)
    monkeypatch.setattr(
        processes.jax.distributed, "initialize", lambda *a, **k: calls.append((a, k))
    )
    processes.initialize(*given)
    assert len(calls) == joins
    if joins:
        assert calls[0][0] == (None if given[0] == "auto" else given[0], *given[1:])
