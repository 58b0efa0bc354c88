"""The two trunks that the balancing benchmark runs, as plain functions of a dict of parameters."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax import balancing

WIDTHS = (512, 1024, 1024, 512)
STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))
OUTPUTS = 8
PyTree = Any


def _normal(rng: np.random.Generator, *shape: int) -> jax.Array:
    scale = np.sqrt(2 / np.prod(shape[:-1]))
    return jnp.asarray(rng.normal(size=shape) * scale, jnp.float32)


def data(trunk: str, num_tasks: int, batch: int) -> dict[str, np.ndarray]:
    """Random inputs and regression targets of every task."""
    rng = np.random.default_rng(1)
    shape = (batch, WIDTHS[0]) if trunk == "mlp" else (batch, 32, 32, 3)
    return {
        "x": rng.normal(size=shape).astype(np.float32),
        "y": rng.normal(size=(num_tasks, batch, OUTPUTS)).astype(np.float32),
    }


def init(trunk: str, num_tasks: int) -> PyTree:
    """Parameters: the trunk under `trunk`, one linear head per task under `heads`."""
    rng = np.random.default_rng(0)
    heads = [
        {"kernel": _normal(rng, WIDTHS[-1], OUTPUTS), "bias": jnp.zeros(OUTPUTS)}
        for _ in range(num_tasks)
    ]
    body = _init_mlp(rng) if trunk == "mlp" else _init_resnet(rng)
    return {"trunk": body, "heads": heads}


def _init_mlp(rng: np.random.Generator) -> PyTree:
    return [
        {"kernel": _normal(rng, a, b), "bias": jnp.zeros(b)} for a, b in itertools.pairwise(WIDTHS)
    ]


def _mlp(layers: PyTree, taps: dict[str, jax.Array], x: jax.Array) -> tuple[jax.Array, dict]:
    inputs = {}
    for i, layer in enumerate(layers):
        inputs[str(i)] = x
        x = x @ layer["kernel"] + layer["bias"]
        x = jax.nn.relu(x + taps[str(i)] if taps else x)
    return x, inputs


def _init_resnet(rng: np.random.Generator) -> PyTree:
    def unit(size: int, a: int, b: int) -> PyTree:
        return {
            "kernel": _normal(rng, size, size, a, b),
            "scale": jnp.ones(b),
            "bias": jnp.zeros(b),
        }

    blocks, width = [], 64
    for features, stride in STAGES:
        for step in (stride, 1):
            block = {"a": unit(3, width, features), "b": unit(3, features, features)}
            if step != 1 or width != features:
                block["skip"] = unit(1, width, features)
            blocks.append(block)
            width = features
    return {"stem": unit(3, 3, 64), "blocks": blocks}


def _conv_norm(unit: PyTree, x: jax.Array, stride: int = 1) -> jax.Array:
    """Convolution and batch normalisation by this batch's statistics."""
    size = unit["kernel"].shape[0]
    x = jax.lax.conv_general_dilated(
        x,
        unit["kernel"],
        (stride, stride),
        [(size // 2, size // 2)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    mean = x.mean((0, 1, 2))
    variance = jnp.maximum((x * x).mean((0, 1, 2)) - mean**2, 0)
    scale = unit["scale"] * jax.lax.rsqrt(variance + 1e-5)
    return x * scale + (unit["bias"] - mean * scale)


def _resnet(body: PyTree, x: jax.Array) -> jax.Array:
    x = jax.nn.relu(_conv_norm(body["stem"], x))
    strides = [step for _, stride in STAGES for step in (stride, 1)]
    for block, stride in zip(body["blocks"], strides, strict=True):
        y = jax.nn.relu(_conv_norm(block["a"], x, stride))
        y = _conv_norm(block["b"], y)
        x = jax.nn.relu(y + (_conv_norm(block["skip"], x, stride) if "skip" in block else x))
    return x.mean((1, 2))


def _readout(params: PyTree, copies: Any, batch: PyTree) -> tuple[jax.Array, jax.Array, None]:
    sums = []
    for head, copy, y in zip(params["heads"], copies, batch["y"], strict=False):
        sums.append(jnp.sum((copy @ head["kernel"] + head["bias"] - y) ** 2) / OUTPUTS)
    counts = jnp.full((len(sums),), batch["x"].shape[0], jnp.float32)
    return jnp.stack(sums), counts, None


def split(trunk: str) -> balancing.Split:
    """The model cut between trunk and heads."""

    def body(params: PyTree, batch: PyTree) -> tuple[jax.Array, None]:
        if trunk == "mlp":
            return _mlp(params["trunk"], {}, batch["x"])[0], None
        return _resnet(params["trunk"], batch["x"]), None

    return balancing.Split(body, lambda params, copies, aux, batch: _readout(params, copies, batch))


def tapped_mlp() -> balancing.Tapped:
    """The MLP with a tap at every layer's pre-activations."""

    def trunk(params: PyTree, taps: Any, batch: PyTree) -> tuple[Any, ...]:
        shared, inputs = _mlp(params["trunk"], taps, batch["x"])
        return shared, None, inputs

    def readout(params: PyTree, copies: Any, aux: None, batch: PyTree) -> tuple[Any, ...]:
        del aux
        return _readout(params, copies, batch)

    def layers(params: PyTree, batch: PyTree) -> dict[str, balancing.Layer]:
        rows = batch["x"].shape[0]
        return {
            str(i): balancing.Layer(
                jax.ShapeDtypeStruct((rows, layer["bias"].size), jnp.float32),
                f"trunk/{i}/kernel",
                f"trunk/{i}/bias",
            )
            for i, layer in enumerate(params["trunk"])
        }

    return balancing.Tapped(trunk, readout, layers)


def shared_labels(params: PyTree) -> PyTree:
    """True for the trunk, False for the heads."""
    return {
        "trunk": jax.tree.map(lambda _: True, params["trunk"]),
        "heads": jax.tree.map(lambda _: False, params["heads"]),
    }
