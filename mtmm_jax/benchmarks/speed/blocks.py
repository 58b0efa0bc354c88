"""Forward, backward and Adam of every encoder, next to a PyTorch twin of it.

    python -m mtmm_jax.benchmarks.speed.blocks --quick
    python -m mtmm_jax.benchmarks.speed.blocks --peers --json blocks.json
    python -m mtmm_jax.benchmarks.speed.blocks --peers --rows resnet conv1d --seconds 20

Rows: name, batch, parameters, ours_ms, peer_ms, ratio (ours_ms / peer_ms, both medians of steps
taken in turns in one process), threads (PyTorch's), flags (XLA's, in that process). `peer_ms` and
`ratio` are null where no twin is written, or without `--peers`.

A twin has the same parameters, with the same values, and its loss is compared with ours before
anything is timed. Nothing is dropped out or augmented, so that both compute the same. Each row runs
in a process of its own: compiler flags are per process, and no row inherits another's memory.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtmm_jax import registry
from mtmm_jax.batch import Modality, Spec
from mtmm_jax.benchmarks.speed.timing import interleaved, machine, write_json
from mtmm_jax.command import guarded, prepare_jax
from mtmm_jax.devices import parallel
from mtmm_jax.encoders import ENCODERS
from mtmm_jax.encoders.audio import spectrogram
from mtmm_jax.registry import ConfigError, choose

WIDTH = 256
INPUTS = {
    "image": Modality("image", (32, 32, 3), "float32"),
    "text": Modality("text", (64,), "int32", vocabulary=30_522),
    "audio": Modality("audio", (16_000,), "float32", rate=16_000.0),
    "video": Modality("video", (8, 32, 32, 3), "float32", rate=8.0),
    "table": Modality("table", (32,), "float32"),
    "series": Modality("series", (100, 6), "float32", rate=50.0),
}
# What a row asks of the compiler beyond `parallel.CPU_FLAGS`.
FLAGS: dict[str, dict[str, str]] = {
    "plain": {},
    "matmul": {
        "--xla_cpu_experimental_onednn_custom_call": "true",
        "--xla_cpu_prefer_vector_width": "512",
    },
}


class Row(NamedTuple):
    """An encoder in one size, what it reads, how many at a time, and its set of `FLAGS`."""

    preset: str | None
    modality: str
    batch: int
    flags: str = "plain"


FRONT_END = "log_mel"  # the spectrogram alone, forward: it has no parameters
ROWS = {
    "resnet": Row("18", "image", 64),
    "cnn": Row("base", "image", 64),
    "vit": Row("tiny", "image", 64),
    "image_mlp": Row("small", "image", 128),
    "text_transformer": Row("small", "text", 32, "matmul"),
    "bert": Row("tiny", "text", 32, "matmul"),
    "text_gru": Row("small", "text", 32),
    "text_bag": Row("small", "text", 32),
    FRONT_END: Row(None, "audio", 32),
    "log_mel_cnn": Row("small", "audio", 32),
    "log_mel_gru": Row("small", "audio", 16),
    "audio_transformer": Row("tiny", "audio", 32),
    "audio_mlp": Row("small", "audio", 32),
    "conv1d": Row("small", "audio", 32),
    "video_frames": Row(None, "video", 16),
    "video_tubelets": Row("tiny", "video", 16),
    "series_gru": Row("small", "series", 64),
    "series_transformer": Row("tiny", "series", 32),
    "table_mlp": Row("small", "table", 256),
    "image_gradients": Row(None, "image", 64),
    "video_gradients": Row(None, "video", 16),
    "text_ngrams": Row(None, "text", 32),
    "audio_summary": Row(None, "audio", 32),
    "series_summary": Row(None, "series", 64),
    "table_columns": Row(None, "table", 256),
    "table_transformer": Row("tiny", "table", 64),
    "perceiver": Row("tiny", "image", 32),
}
QUICK = ("resnet", "text_transformer", "series_gru", "conv1d", FRONT_END)
STILL = {"dropout": 0.0, "word_dropout": 0.0, "spec_augment": False}


def build(name: str) -> Any:
    """The encoder of a row, without noise."""
    row, modality = ROWS[name], INPUTS[ROWS[name].modality]
    takes = registry.parameters(ENCODERS[name])
    config = {"kind": name, **{key: value for key, value in STILL.items() if key in takes}}
    if row.preset is not None:
        config["preset"] = row.preset
    return registry.build(
        ENCODERS,
        config,
        where=f"--rows {name}",
        width=WIDTH,
        modality=row.modality,
        vocabulary=modality.vocabulary,
        rate=modality.rate,
        shape=modality.shape,
    )


def entry_of(name: str, batch: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A random batch of a row's modality, all of it there."""
    modality = INPUTS[ROWS[name].modality]
    entry = Spec({"x": modality}, {}).example(batch)["inputs"]["x"]
    if modality.vocabulary:
        entry["x"] = rng.integers(0, modality.vocabulary, entry["x"].shape).astype(modality.dtype)
    else:
        entry["x"] = rng.standard_normal(entry["x"].shape).astype(modality.dtype)
    return entry


def variables_of(module: Any, entry: Mapping[str, Any], rng: np.random.Generator) -> Any:
    """Random variables of the module's shapes; its own `init` would have to be compiled."""

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        noise = rng.standard_normal(leaf.shape).astype(np.float32)
        if path[-1].key in ("scale", "var"):
            return 1 + 0.1 * np.abs(noise)
        fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 and "emb" not in path[-1].key else 100
        return noise / np.sqrt(fan_in).astype(np.float32)

    shapes = jax.eval_shape(module.init, jax.random.key(0), entry)
    return jax.tree_util.tree_map_with_path(draw, shapes)


class Step:
    """One compiled training step with Adam; the state is donated from call to call."""

    def __init__(self, module: Any, entry: Any, target: np.ndarray, variables: Any) -> None:
        optimizer = optax.adam(1e-3)

        def loss_of(params: Any, rest: Any, entry: Any, target: jax.Array) -> Any:
            tokens, moved = module.apply(
                {"params": params, **rest}, entry, train=True, mutable=["batch_stats"]
            )
            return jnp.square(tokens.mean() - target).mean(), moved

        def step(params: Any, rest: Any, state: Any, entry: Any, target: jax.Array) -> Any:
            (loss, rest), grads = jax.value_and_grad(loss_of, has_aux=True)(
                params, rest, entry, target
            )
            with jax.numpy_dtype_promotion("standard"):  # optax.adam: a float to an integer power
                updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), rest, state, loss

        rest = jax.tree.map(jnp.array, dict(variables))
        params = rest.pop("params")
        self.state = (params, rest, optimizer.init(params))
        self.data = jax.tree.map(jnp.asarray, (entry, target))
        jitted = jax.jit(step, donate_argnums=(0, 1, 2))
        self.compiled = jitted.lower(*self.state, *self.data).compile()

    def __call__(self) -> float:
        *self.state, loss = self.compiled(*self.state, *self.data)
        return float(jax.block_until_ready(loss))


def front_end(entry: Mapping[str, np.ndarray]) -> Callable[[], jax.Array]:
    """The log-mel spectrogram alone."""
    modality = INPUTS["audio"]
    compiled = jax.jit(lambda entry: spectrogram(entry, modality.rate, 40)[0])
    entry = jax.tree.map(jnp.asarray, entry)
    return lambda: jax.block_until_ready(compiled(entry))


def measure(name: str, batch: int, seconds: float, peers: bool) -> dict[str, Any]:
    """One row, in this process; with `peers`, next to its twin if it has one."""
    rng = np.random.default_rng(0)
    entry = entry_of(name, batch, rng)
    target = rng.standard_normal((batch, WIDTH)).astype(np.float32)
    module = variables = None
    if name == FRONT_END:
        calls: dict[str, Callable[[], Any]] = {"ours": front_end(entry)}
    else:
        module = build(name)
        variables = variables_of(module, entry, rng)
        calls = {"ours": Step(module, entry, target, variables)}
    size = 0 if module is None else sum(x.size for x in jax.tree.leaves(variables["params"]))
    row = {"name": name, "batch": batch, "parameters": size, "threads": None}
    if peers:
        from mtmm_jax.benchmarks.speed import blocks_peers as others
        from mtmm_jax.benchmarks.speed.torch_threads import choose_threads

        if name in others.TWINS:
            calls["peer"] = others.step(name, module, variables, entry["x"], target)
            _same(name, calls)
            row["threads"] = choose_threads(calls["peer"], rounds=5)
    times = interleaved(calls, seconds, warm=True)
    ours, peer = times["ours"], times.get("peer")
    measured = {"ours_ms": round(ours, 3), "peer_ms": peer and round(peer, 3)}
    flags = {"ratio": peer and round(ours / peer, 3), "flags": os.environ.get("XLA_FLAGS", "")}
    return row | measured | flags


def _same(name: str, calls: Mapping[str, Callable[[], Any]]) -> None:
    """Raises where the first losses of both, or the spectrograms, disagree: no twin then."""
    for step in range(3):
        ours, peer = (np.asarray(calls[who](), np.float32) for who in ("ours", "peer"))
        if not np.allclose(ours, peer, rtol=1e-2 if step else 1e-4, atol=1e-3):
            raise RuntimeError(f"{name}, step {step}: {ours} here and {peer} in the twin")


def flags_of(name: str) -> str:
    """`XLA_FLAGS` of a row's process: the user's own are kept."""
    given = os.environ.get("XLA_FLAGS", "")
    off = os.environ.get("MTMM_JAX_CPU_FLAGS", "1") == "0"
    if off or _release() not in parallel.CPU_FLAGS_KNOWN:
        return given
    wanted = [f"{k}={v}" for k, v in FLAGS[ROWS[name].flags].items() if k not in given]
    return " ".join([given, *wanted]).strip()


def _release() -> tuple[int, ...]:
    return tuple(int(part) for part in metadata.version("jaxlib").split(".")[:2])


def _apart(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """`measure` in a process of its own."""
    command = [sys.executable, "-m", "mtmm_jax.benchmarks.speed.blocks", "--here", "--rows", name]
    command += ["--seconds", str(options.seconds), "--share", str(options.share)]
    command += ["--peers"] if options.peers else []
    done = subprocess.run(
        command,
        env={**os.environ, "XLA_FLAGS": flags_of(name)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def _line(row: Mapping[str, Any]) -> str:
    peer = "" if row["peer_ms"] is None else f"{row['peer_ms']:>10.2f}{row['ratio']:>8.3f}"
    return f"{row['name']:18}{row['batch']:>6}{row['parameters']:>12,}{row['ours_ms']:>10.2f}{peer}"


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--rows", nargs="+", help=f"default: all; --quick: {' '.join(QUICK)}")
    add("--peers", action="store_true", help="next to PyTorch, which must be installed")
    add("--quick", action="store_true", help="a few rows, batches of an eighth, shorter timing")
    add("--seconds", type=float, help="timing of each, at least 5 steps; default 6; --quick: 0.3")
    add("--share", type=int, help="divides every batch; default 1; --quick: 8")
    add("--json", help="write the rows and the machine here")
    add("--here", action="store_true", help="measure in this process, and print JSON alone")
    options = parser.parse_args(argv)
    options.rows = options.rows or (QUICK if options.quick else tuple(ROWS))
    options.seconds = options.seconds or (0.3 if options.quick else 6.0)
    options.share = options.share or (8 if options.quick else 1)
    for name in options.rows:
        choose(name, ROWS, "--rows", "row")
    for key in ("seconds", "share"):
        if getattr(options, key) <= 0:
            raise ConfigError(f"--{key}: {getattr(options, key)} is not above 0")
    if options.peers and importlib.util.find_spec("torch") is None:
        raise ConfigError("--peers: needs PyTorch, and `torch` is not installed")
    return options


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints, and writes the chosen rows."""
    options = _options(argv)
    prepare_jax()
    if options.here:
        for name in options.rows:
            batch = max(ROWS[name].batch // options.share, 1)
            print(json.dumps(measure(name, batch, options.seconds, options.peers)))
        return 0
    about = machine() | ({"torch": metadata.version("torch")} if options.peers else {})
    settings = {"seconds": options.seconds, "share": options.share}
    columns = f"{'':18}{'batch':>6}{'parameters':>12}{'ours ms':>10}"
    print(columns + (f"{'torch ms':>10}{'ratio':>8}" if options.peers else ""), flush=True)
    rows = []
    for name in options.rows:
        rows.append(_apart(name, options))
        print(_line(rows[-1]), flush=True)
        if options.json:
            write_json(options.json, rows, about, settings)
    return 0


if __name__ == "__main__":
    sys.exit(main())
