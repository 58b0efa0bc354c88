"""Eight bits a weight: within half a scale, a quarter of the file, and learned with if asked."""

import dataclasses
import functools
import json
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtmm_jax import export as command
from mtmm_jax import training
from mtmm_jax.inference import export, exported
from mtmm_jax.inference.finished import Finished
from mtmm_jax.model import flatten
from mtmm_jax.registry import ConfigError
from mtmm_jax.store.workdir import Workdir
from mtmm_jax.transfer import quantising
from mtmm_jax.transfer.quantising import Quantised
from tests import toy
from tests.training import small_run


def params():
    """Channels of very different sizes; one is all zeros."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return (rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 3, shape[-1])).astype("f4")

    kernel = draw(5, 7)
    kernel[:, 3] = 0
    return {
        "encoders": {
            "text": {"embedding": {"embedding": draw(9, 4)}, "dense": {"kernel": kernel}},
            "image": {"conv": {"kernel": draw(3, 3, 2, 5), "bias": draw(5)}},
        },
        "heads": {"kind": {"kernel": draw(4, 3), "scale": draw(3)}},
    }


def quantise(tree, on=None, bits=8):
    """`quantising.quantise` as one program, on the host."""
    return jax.device_get(jax.jit(lambda tree: quantising.quantise(tree, on, bits))(tree))


def dequantise(tree):
    return jax.device_get(jax.jit(quantising.dequantise)(tree))


def pairs(bits=8, on=None):
    small = flatten(quantise(params(), on, bits))
    return {path: (small[path], w) for path, w in flatten(params()).items()}


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_every_weight_is_within_half_a_scale(bits):
    for path, (small, weights) in pairs(bits).items():
        if weights.ndim < 2:
            assert not isinstance(small, Quantised), path
            continue
        assert small.values.dtype == np.int8
        assert small.values.shape == weights.shape
        most = 2 ** (bits - 1) - 1
        assert np.abs(small.values).max() <= most
        error = np.abs(weights - small.values.astype(np.float32) * small.scale)
        assert (error <= small.scale / 2 * (1 + 1e-6)).all(), path
        axis = 0 if path.endswith("embedding") else weights.ndim - 1
        others = tuple(i for i in range(weights.ndim) if i != axis)
        largest = np.abs(weights).max(others)
        np.testing.assert_allclose(
            np.squeeze(small.scale, others), np.where(largest > 0, largest / most, 1), rtol=1e-6
        )


def test_zeros_stay_and_a_second_time_changes_nothing():
    once = dequantise(quantise(params()))
    assert jax.tree.map(np.shape, once) == jax.tree.map(np.shape, params())
    assert not np.any(once["encoders"]["text"]["dense"]["kernel"][:, 3])
    twice = dequantise(quantise(once))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), twice, once)
    only = pairs(on=["heads/.*"])
    assert [path for path, (x, _) in only.items() if isinstance(x, Quantised)] == [
        "heads/kind/kernel"
    ]
    with pytest.raises(ConfigError, match="quantise.on: 'haeds/.*' matches no parameter of two"):
        pairs(on=["haeds/.*"])


def test_the_gradient_passes_the_rounding():
    weights = params()["heads"]["kind"]["kernel"]
    target = np.cos(weights)

    def loss(w):
        return jnp.sum(target * quantising.straight_through("kernel", w, 4))

    value, grad = jax.jit(jax.value_and_grad(loss))(weights)
    np.testing.assert_array_equal(grad, target)
    rounded = dequantise(quantise({"kernel": weights}, ["kernel"], 4))["kernel"]
    np.testing.assert_allclose(value, np.sum(target * rounded), rtol=1e-5)
    through = functools.partial(quantising.straight_through, "kernel")
    half = jax.eval_shape(through, weights.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16


def config(**sections):
    return {**small_run.get_config().to_dict(), "devices": 1, "balancing": "equal", **sections}


def test_a_model_trained_so_reads_rounded_weights_and_learns_others():
    made = training.assemble(config(quantise={"bits": 3, "on": ["encoders/.*/kernel"]}))
    plain = training.assemble(config())
    assert made.shapes.params.keys() == plain.shapes.params.keys()  # nothing of its own
    state, batch = made.init(), next(iter(made.source.train(8, seed=0)))
    after, _ = jax.jit(lambda s, b: made.step()(s, b, axis_name=None))(state, batch)
    path = "encoders/text/hidden/kernel"
    reads = jax.device_get(jax.jit(made.model.read)(after.variables))
    learned, read = (np.asarray(flatten(p)[path]) for p in (after.params, reads["params"]))
    assert np.any(learned != flatten(state.params)[path])
    assert (
        max(len(np.unique(column)) for column in np.round(read.T, 6)) <= 7 < len(np.unique(learned))
    )
    model, variables = export.plain(made.model, after.variables)
    outputs = [jax.jit(m)(v, batch["inputs"])[0] for m, v in (
        (made.model, after.variables), (model, variables))]  # fmt: skip
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *outputs)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"bits": 9}, "quantise.bits: 9 is not a whole number from 2 to 8"),
        ({"bit": 8}, "did you mean 'bits'"),
        ({"on": []}, "quantise.on: is empty"),
        ({"on": ["encoders/.*/bias"]}, "quantise.on: .* matches no parameter of two"),
        (8, "quantise: 8 is not a section"),
    ],
)
def test_bad_sections_are_refused_before_anything_compiles(section, message):
    with pytest.raises(ConfigError, match=message):
        training.assemble(config(quantise=section))


def finished(path, **sections):
    made = training.assemble(config(**sections))
    variables = toy.variables(made.model, made.model.spec.example(2))
    return Finished(Workdir(path), made, 1, variables)


def test_the_command_writes_eight_bits_and_its_reader_reads_them(tmp_path, monkeypatch):
    run, file, out = finished(tmp_path), tmp_path / "kept.zip", tmp_path / "int8.zip"
    monkeypatch.setattr("mtmm_jax.inference.finished.open_run", lambda path: run)
    export.export_run(run, file, rows=2, tasks=["kind"])
    small = ["--workdir", str(run.workdir.path), "--out", str(out), "--int8"]
    assert command.main([*small, "--batch", "2", "--tasks", "kind"]) == 0
    with zipfile.ZipFile(out) as zipped, zipped.open("parameters.npz") as stored:
        arrays = dict(np.load(stored))
        assert json.loads(zipped.read("program.json"))["format"] == 2
    wanted = flatten(run.variables["params"])
    for path, weights in wanted.items():
        kept = arrays[f"params/{path}"]
        matrix = weights.ndim > 1 and path.split("/")[-1] in ("kernel", "embedding", "recurrent")
        assert kept.dtype == (np.int8 if matrix else np.float32), path
        assert (f"params/{path}:scale" in arrays) == matrix
    inputs = {"text": {"x": np.array([[2, 3, 4, 0, 0, 0]] * 2, np.int32)}}
    outputs, expected = (exported.load(f).predict(inputs)["kind"] for f in (out, file))
    np.testing.assert_allclose(outputs["probability"], expected["probability"], atol=0.02)
    assert np.any(outputs["probability"] != expected["probability"])
    rounded = dequantise(quantise(run.variables["params"]))
    own = dataclasses.replace(run, variables={**run.variables, "params": rounded})
    export.export_run(own, file, rows=2, tasks=["kind"])
    exact = exported.load(file).predict(inputs)["kind"]["probability"]
    np.testing.assert_allclose(outputs["probability"], exact, atol=1e-6)


def test_parameters_are_kept_in_the_order_of_the_program(tmp_path):
    """Whatever the order of the dicts that they come in."""
    run = finished(tmp_path)

    def turned(tree):
        if not isinstance(tree, dict):
            return tree
        return {key: turned(tree[key]) for key in sorted(tree, reverse=True)}

    files = [tmp_path / name for name in ("a.zip", "b.zip")]
    export.export_run(run, files[0], rows=2, tasks=["kind"])
    other = dataclasses.replace(run, variables=turned(run.variables))
    export.export_run(other, files[1], rows=2, tasks=["kind"])
    inputs = {"text": {"x": np.array([[2, 3, 4, 0, 0, 0]] * 2, np.int32)}}
    jax.tree.map(np.testing.assert_array_equal, *(exported.load(f).predict(inputs) for f in files))


def test_a_file_of_many_weights_is_a_quarter(tmp_path):
    """At most 0.3 of the float32 file, with program, reader and assets in it."""
    encoders = {"text": {"kind": "text_transformer", "preset": "tiny"}}
    run = finished(tmp_path, model={"width": 8, "encoders": encoders, "fusion": "concat"})
    sizes = [
        export.export_run(run, tmp_path / f"{k}.zip", rows=1, tasks=["kind"], int8=k).stat().st_size
        for k in (False, True)
    ]
    assert sizes[1] < 0.3 * sizes[0]
