"""The convolution of the encoders: JAX's own, and its gradients to the bit."""

import jax
import numpy as np
import pytest

from mtmm_jax.layers import convolve

DIMENSIONS = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    shapes = ((2, 6, 6, 3), (3, 3, 3, 4), (2, 2, 3, 3, 4))
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def gradients(convolution, x, kernel, slopes):
    y, pull = jax.vjp(
        lambda *of: convolution(*of, (2, 2), ((1, 1), (1, 1)), **DIMENSIONS), x, kernel
    )
    return y, pull(slopes[0]), jax.vmap(pull)(slopes)


@pytest.fixture(scope="module")
def ours():
    return jax.jit(lambda *of: gradients(convolve, *of))


def test_outputs_and_gradients_are_those_of_jax(arrays, ours):
    """Alone, and with several slopes at once, as the balancing engines ask for them."""
    plain = jax.jit(lambda *of: gradients(jax.lax.conv_general_dilated, *of))(*arrays)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), ours(*arrays), plain
    )


def test_a_kernel_that_is_not_a_number_has_such_gradients(arrays, ours):
    x, kernel, slopes = arrays
    _, (of_x, of_kernel), _ = ours(x, np.full_like(kernel, np.nan), slopes)
    assert np.isnan(of_x).all()
    assert np.isnan(of_kernel).all()


def test_the_compiler_cannot_move_work_into_the_gradient(arrays, monkeypatch):
    """What the speed comes from: on a CPU the program chooses while it runs, elsewhere it does
    not."""
    x, kernel, _ = arrays
    loss = jax.jit(jax.grad(lambda kernel: convolve(x, kernel, (1, 1), "SAME", **DIMENSIONS).sum()))
    assert "stablehlo.case" in loss.lower(kernel).as_text()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    jax.clear_caches()
    assert "stablehlo.case" not in loss.lower(kernel).as_text()
