"""Utilisation of the device by a step: operations a second, share of the peak."""

from __future__ import annotations

import dataclasses
import re
import time
from typing import Any

import jax
import jax.numpy as jnp

from mtmm_jax.ranges import Positive
from mtmm_jax.registry import check

# Part of the device's kind -> 1e12 dense operations a second in bfloat16 (float16 where there is no
# bfloat16), by its maker's sheet, of what JAX calls a device. The first that fits.
PEAKS = {
    "h100 pcie": 756.0,
    "h100": 989.4,
    "h200": 989.4,
    "gh200": 989.4,
    "b200": 2250.0,
    "a100": 312.0,
    "a10g": 70.0,
    "l40s": 362.0,
    "l4": 121.0,
    "v100": 125.0,
    "t4": 65.0,
    "tpu v2": 22.5,
    "tpu v3": 61.5,
    "tpu v4": 275.0,
    "tpu v5 lite": 197.0,
    "tpu v5e": 197.0,
    "tpu v5p": 459.0,
    "tpu v5": 459.0,
    "tpu v6": 918.0,
}


@dataclasses.dataclass(frozen=True)
class Peak:
    """The most operations a second of one device, and where that is known from."""

    flops: float
    source: str


def peak(device: Any = None, given: float | None = None) -> Peak | None:
    """Of a device, this process's first by default; None where it is not known.

    Args:
        device: of `jax.devices()`.
        given: by the user, in operations a second.
    """
    if given is not None:
        check(given, Positive, "--peak")
        return Peak(given, "given")
    device = device or jax.local_devices()[0]
    if device.platform == "cpu":
        return Peak(_matmul_speed(device), "measured on a float32 matrix product")
    kind = re.sub(r"[-_]", " ", device.device_kind.lower())
    for name, value in PEAKS.items():
        if re.search(rf"\b{name}\b", kind):
            return Peak(value * 1e12, f"{device.device_kind}, dense 16-bit, by its maker")
    return None


def _matmul_speed(device: Any, size: int = 1024, calls: int = 5) -> float:
    """Operations a second of the fastest of a few products of two square matrices."""
    with jax.default_device(device):
        x = jnp.ones((size, size), jnp.float32)
        product = jax.jit(lambda a: a @ a)
        jax.block_until_ready(product(x))
        best = float("inf")
        for _ in range(calls):
            started = time.perf_counter()
            jax.block_until_ready(product(x))
            best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def against_peak(
    flops: float | None, seconds: float | None, most: Peak | None
) -> dict[str, float | str]:
    """Operations a second and their share of the peak, as far as both are known.

    The count is the compiler's own and the peak is of 16-bit arithmetic on a GPU or TPU: float32
    models stay below half of it.
    """
    if not flops or not seconds:
        return {}
    rates: dict[str, float | str] = {"flops_per_second": flops / seconds}
    if most is None:
        return rates
    return {
        **rates,
        "peak_flops": most.flops,
        "peak_source": most.source,
        "peak_fraction": flops / seconds / most.flops,
    }


def speed(flops: float | None, seconds: float | None, most: Peak | None) -> str:
    """`against_peak` in words."""
    if not flops:
        return "operations a step: not reported by this compiler"
    line = f"{flops / 1e9:.3g} GFLOP a step and device"
    rates = against_peak(flops, seconds, most)
    if rates:
        line += f", {rates['flops_per_second'] / 1e9:.3g} GFLOP/s"
    if most is None:
        return f"{line}; the peak of this device is not known (--peak FLOPS sets it)"
    line += f"; peak {most.flops / 1e9:.4g} GFLOP/s ({most.source})"
    return line + (f": {rates['peak_fraction']:.1%} of it" if rates else "")
