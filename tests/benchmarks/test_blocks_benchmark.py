"""The encoders' benchmark, and that each fast form gives what its plain form gives."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtmm_jax import layers
from mtmm_jax.benchmarks.speed import blocks
from mtmm_jax.encoders import ENCODERS
from mtmm_jax.layers import gru, positionwise, spectrogram, taps
from mtmm_jax.registry import ConfigError
from tests import toy
from tests.made_up import packaged


def test_every_encoder_has_a_row_that_it_can_read():
    kinds = set(packaged(ENCODERS)) - {"pretrained"}  # it is a bert
    assert set(blocks.ROWS) == {*kinds, blocks.FRONT_END}
    for name in kinds:
        row = blocks.ROWS[name]
        module = blocks.build(name)
        assert module.accepts(blocks.INPUTS[row.modality])
        assert getattr(module, "dropout", 0.0) == 0.0
    assert set(blocks.QUICK) <= set(blocks.ROWS)


def test_a_row_is_measured_and_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(blocks, "prepare_jax", lambda: None)
    assert blocks.main(["--here", "--rows", "table_mlp", "--share", "64", "--seconds", "1e-3"]) == 0
    row = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert row["ours_ms"] > 0
    assert (row["peer_ms"], row["ratio"], row["threads"]) == (None, None, None)
    assert (row["batch"], row["parameters"]) == (4, 64 * 512 + 512 + 512 * 513 + 512 * 256 + 256)

    monkeypatch.setattr(blocks, "_apart", lambda name, options: {**row, "name": name})
    path = tmp_path / "rows.json"
    assert blocks.main(["--quick", "--json", str(path)]) == 0
    document = json.loads(path.read_text())
    assert [row["name"] for row in document["rows"]] == list(blocks.QUICK)
    assert document["settings"] == {"seconds": 0.3, "share": 8}
    assert document["machine"]["jax"] == jax.__version__


def test_a_step_learns():
    rng = np.random.default_rng(0)
    module, entry = blocks.build("table_mlp"), blocks.entry_of("table_mlp", 2, rng)
    variables = blocks.variables_of(module, entry, rng)
    step = blocks.Step(module, entry, np.ones((2, blocks.WIDTH), np.float32), variables)
    first, *_, last = [step() for _ in range(10)]
    assert 0 < last < first


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--rows", "resnte"], "--rows: unknown row 'resnte' .*'resnet'"),
        (["--share", "-1"], "--share: -1 is not above 0"),
        (["--peers"], "--peers: needs PyTorch"),
    ],
)
def test_what_cannot_be_measured_is_refused(argv, message, monkeypatch, capsys):
    monkeypatch.setattr(blocks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=message):
        blocks._options(argv)
    assert blocks.main(argv) == 2
    assert capsys.readouterr().err.startswith("error: --")


def test_flags_of_the_user_are_kept(monkeypatch):
    monkeypatch.setattr(blocks.parallel, "CPU_FLAGS_KNOWN", [blocks._release()])
    monkeypatch.setitem(blocks.FLAGS, "plain", {"--a": "1", "--b": "2"})
    monkeypatch.setenv("XLA_FLAGS", "--b=3")
    assert blocks.flags_of("resnet") == "--b=3 --a=1"
    monkeypatch.setenv("MTMM_JAX_CPU_FLAGS", "0")
    assert blocks.flags_of("resnet") == "--b=3"
    monkeypatch.delenv("MTMM_JAX_CPU_FLAGS")
    monkeypatch.setattr(blocks.parallel, "CPU_FLAGS_KNOWN", [])
    assert blocks.flags_of("resnet") == "--b=3"


def _agree(fast, plain, *args, atol=1e-5):
    """Values and gradients, of a wave in every direction."""

    def wavy(function):
        def loss(*args):
            out = function(*args)
            return jnp.sin(out + jnp.arange(out.size, dtype=out.dtype).reshape(out.shape)).sum()

        return jax.jit(lambda *args: (function(*args), jax.grad(loss, range(len(args)))(*args)))

    there, back = wavy(plain)(*args), wavy(fast)(*args)
    for a, b in zip(jax.tree.leaves(there), jax.tree.leaves(back), strict=True):
        assert np.abs(a).max() > 0
        np.testing.assert_allclose(b, a, atol=atol, rtol=1e-5)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_gru_and_its_gradients_are_those_of_its_formula(reverse):
    rng = np.random.default_rng(0)
    module = layers.GRU(5, reverse=reverse)
    x = rng.standard_normal((3, 7, 4)).astype(np.float32)
    mask = rng.random((3, 7)) < 0.7
    params = toy.variables(module, x, mask)["params"]

    def plain(x, params):
        h, states = jnp.zeros((3, 5)), [None] * 7
        for t in reversed(range(7)) if reverse else range(7):
            wide = x[:, t] @ params["input"]["kernel"] + params["input"]["bias"]
            own = h @ params["recurrent"] + params["recurrent_bias"]
            r, z = (jax.nn.sigmoid(wide[:, i : i + 5] + own[:, i : i + 5]) for i in (0, 5))
            n = jnp.tanh(wide[:, 10:] + r * own[:, 10:])
            h = jnp.where(mask[:, t, None], (1 - z) * n + z * h, h)
            states[t] = h
        return jnp.stack(states, axis=1)

    _agree(lambda x, params: module.apply({"params": params}, x, mask), plain, x, params)


def test_a_gru_adds_up_its_weights_gradient_once():
    args = (jnp.zeros((7, 3, 15)), jnp.ones((7, 3, 1), bool), jnp.zeros((5, 15)), jnp.zeros(15))
    text = str(jax.make_jaxpr(jax.grad(lambda *a: gru.recur(*a, False).sum(), (0, 2, 3)))(*args))
    # U h in one scan, d U^T in the other, and the weights' own product.
    assert text.count("dot_general") == 3


@pytest.mark.parametrize(
    ("shape", "holes"),
    [((6, 5), True), ((4, 3, 5), True), ((3, 4, 2, 5), False), ((2, 3, 2, 2, 5), False)],
)
def test_batch_norm_and_its_gradients_are_those_of_its_formula(shape, holes):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape).astype(np.float32) + 0.5
    # A mask over the rows, or over the steps too.
    there = rng.random(shape[: 1 if holes else 2]) < 0.7
    module = layers.BatchNorm()
    variables = toy.variables(module, x, there)
    old, params = variables["batch_stats"], variables["params"]

    def fast(x, params):
        out, moved = module.apply(
            {"params": params, "batch_stats": old}, x, there, train=True, mutable=["batch_stats"]
        )
        stats = moved["batch_stats"]
        return jnp.concatenate([out.reshape(-1, 5), stats["mean"][None], stats["var"][None]])

    def plain(x, params):
        keep = np.broadcast_to(there.reshape(there.shape + (1,) * (x.ndim - there.ndim)), x.shape)
        axes = tuple(range(x.ndim - 1))
        mean, var = jnp.mean(x, axes, where=keep), jnp.var(x, axes, where=keep)
        out = (x - mean) / jnp.sqrt(var + 1e-5) * params["scale"] + params["bias"]
        moved = [0.9 * old["mean"] + 0.1 * mean, 0.9 * old["var"] + 0.1 * var]
        return jnp.concatenate([out.reshape(-1, 5), *(part[None] for part in moved)])

    _agree(fast, plain, x, params)


def test_column_sums_are_sums_on_every_platform():
    column_sums = positionwise.column_sums
    rng = np.random.default_rng(0)
    for shape in ((7, 5), (4, 3, 5), (2, 3, 4, 5)):
        x = rng.standard_normal(shape).astype(np.float32)
        keep = rng.random(shape[:-1]) < 0.5
        axes = tuple(range(x.ndim - 1))
        sums = jax.jit(lambda *of: (column_sums(of[0]), column_sums(*of)))(x, keep)
        np.testing.assert_allclose(sums[0], x.sum(axes), atol=1e-5)
        expected = (x * keep[..., None]).sum(axes)
        np.testing.assert_allclose(sums[1], expected, atol=1e-5)
        exported = jax.export.export(jax.jit(column_sums), platforms=["cuda"])(x, keep)
        assert "dot_general" not in exported.mlir_module()


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_dense_layer_is_the_one_of_linen(use_bias, dtype):
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    mine, linen = (
        kind(5, use_bias=use_bias, dtype=jnp.dtype(dtype))
        for kind in (positionwise.Dense, nn.Dense)
    )
    params = toy.variables(linen, x)["params"]
    shapes = jax.eval_shape(mine.init, jax.random.key(0), x)["params"]
    assert jax.tree.map(np.shape, shapes) == jax.tree.map(np.shape, params)

    def forms(module):
        return lambda x, params: module.apply({"params": params}, x).astype(jnp.float32)

    _agree(forms(mine), forms(linen), x, params, atol=1e-5 if dtype == "float32" else 0.1)


def test_dense_layers_of_attention_can_be_tapped():
    x, mask = np.ones((2, 3, 4), np.float32), np.ones((2, 3), bool)
    module = layers.Attention(2)
    params = toy.variables(module, x, x, mask)["params"]
    _, find = taps.tap(lambda params, x: (module.apply({"params": params}, x, x, mask), None))
    assert set(find(params, x)) == {"query", "key", "value", "out"}


@pytest.mark.parametrize(("size", "step"), [(512, 256), (400, 160), (6, 9), (441, 160)])
def test_frames_are_windows_of_the_wave(size, step):
    wave = np.random.default_rng(0).standard_normal((2, 3 * step + size + 5)).astype(np.float32)
    index = np.arange(4)[:, None] * step + np.arange(size)
    np.testing.assert_array_equal(spectrogram.frames(wave, 4, size, step), wave[:, index])
