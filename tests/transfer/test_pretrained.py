"""Pretrained weights land where they belong, and compute what they computed in PyTorch."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from mtmm_jax import transfer
from mtmm_jax.encoders import Bert, ResNet
from mtmm_jax.model import flatten
from mtmm_jax.registry import ConfigError
from tests import toy
from tests.transfer import formula

HERE = jnp.ones(2, bool)


@pytest.mark.parametrize("preset", ["18", pytest.param("50", marks=pytest.mark.slow)])
def test_a_resnet_computes_what_torchvision_does(preset):
    golden = formula.outputs()[f"resnet{preset}"]
    variables = transfer.import_resnet(formula.state_dict(f"resnet{preset}"), preset)
    module = ResNet(
        golden.shape[-1], preset=preset, stem_kind="large", pixels="imagenet", projected=False
    )
    tokens = jax.jit(module.apply)(variables, {"x": formula.pixels(), "present": HERE})
    np.testing.assert_allclose(tokens.grid(), golden, atol=1e-4)
    assert np.abs(golden[0] - golden[1]).max() > 0.1
    np.testing.assert_allclose(tokens.positions[0, 1], [16.0, 48.0])


@pytest.mark.parametrize("preset", ["18", "34", "50"])
def test_every_tensor_of_a_resnet_has_its_place(preset):
    shapes = {n: np.broadcast_to(0.0, s) for n, s in formula.shapes(f"resnet{preset}").items()}
    variables = transfer.import_resnet(shapes, preset)
    assert len(flatten(variables)) == len(shapes) - 2  # the classifier's


def test_a_bert_computes_what_hugging_face_does():
    golden = formula.outputs()
    variables = transfer.import_bert(formula.state_dict("bert"), "tiny")
    module = Bert(128, preset="tiny", vocabulary=30, length=16, separator=3, projected=False)
    mask = golden["bert_mask"]
    entry = {"x": golden["bert_ids"].astype(np.int32), "mask": mask, "present": HERE}
    tokens = jax.jit(module.apply)(variables, entry)
    np.testing.assert_allclose(tokens.values[mask], golden["bert"][mask], atol=1e-4)
    one_type = Bert(128, preset="tiny", vocabulary=30, length=16, projected=False)
    other = jax.jit(one_type.apply)(variables, entry)
    assert np.abs(other.values - tokens.values)[0].max() > 1e-2


def test_old_and_prefixed_names_of_a_bert_are_known():
    state = formula.state_dict("bert")
    renamed = {
        f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): value
        for name, value in state.items()
    }
    renamed["cls.predictions.bias"] = np.zeros(30, np.float32)
    renamed["bert.embeddings.position_ids"] = np.arange(16)[None]
    there, back = (flatten(transfer.import_bert(s, "tiny")) for s in (state, renamed))
    assert there.keys() == back.keys()
    for path, value in there.items():
        np.testing.assert_array_equal(value, back[path], path)


def test_tensors_that_do_not_fit_are_named_all_at_once():
    state = formula.state_dict("bert")
    del state["encoder.layer.1.output.dense.bias"]
    state["encoder.layer.0.intermediate.dense.weight"] = np.zeros((512, 64), np.float32)
    state["encoder.layer.2.output.dense.bias"] = np.zeros(128, np.float32)
    state["lm_head.weight"] = np.zeros(3, np.float32)
    with pytest.raises(ConfigError) as error:
        transfer.import_bert(state, "tiny")
    for said in (
        "missing: params/block2/feed_forward/down/bias",
        "left over: encoder.layer.2.output.dense.bias, lm_head.weight",
        "of another shape: encoder.layer.0.intermediate.dense.weight [512, 64] for "
        "params/block1/feed_forward/up/kernel [128, 512]",
    ):
        assert said in str(error.value)
    with pytest.raises(ConfigError, match="missing: .*params/embedding/embedding"):
        transfer.import_bert({"encoder.layer.0.output.dense.bias": np.zeros(128)}, "tiny")
    with pytest.raises(ConfigError, match="import_resnet.preset: unknown preset '101'"):
        transfer.import_resnet({}, "101")


TEXT = {
    "width": 16,
    "encoders": {"text": {"kind": "bert", "preset": "tiny"}, "image": "cnn"},
    "fusion": "concat",
}


def _model():
    built = toy.build({"kind": "classification"}, **TEXT)
    shapes = jax.eval_shape(built.init, jax.random.key(0), toy.SPEC.example(2))
    return built, jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), shapes)


def _imported(vocabulary=20):
    shapes = dict(formula.shapes("bert"))
    shapes["embeddings.word_embeddings.weight"] = (vocabulary, 128)
    shapes["embeddings.position_embeddings.weight"] = (512, 128)
    state = {name: formula.tensor(k, name, s) for k, (name, s) in enumerate(shapes.items())}
    return transfer.import_bert(state, "tiny")


def test_imported_weights_are_put_into_a_whole_model():
    _, variables = _model()
    imported = _imported()
    loaded = transfer.load_pretrained(variables, imported, at="encoders/text")
    assert jax.tree.structure(loaded) == jax.tree.structure(variables)
    assert (flatten(variables["params"])["encoders/text/positions"] == 1).all()  # not in place
    flat = flatten(imported["params"])
    for path, value in flatten(loaded["params"]).items():
        own = path.removeprefix("encoders/text/")
        np.testing.assert_array_equal(value, flat[own] if own in flat and own != path else 1.0)
    zeros = jax.tree.map(np.zeros_like, imported)
    jax.tree.map(np.testing.assert_array_equal, transfer.load_pretrained(zeros, imported), imported)


def test_what_has_no_place_in_the_model_is_refused():
    _, variables = _model()
    with pytest.raises(ConfigError, match="there is no 'encoders/txt'; choices: .*encoders/text"):
        transfer.load_pretrained(variables, _imported(), at="encoders/txt")
    with pytest.raises(ConfigError, match=r"embedding \[25, 128\], not \[20, 128\]"):
        transfer.load_pretrained(variables, _imported(25), at="encoders/text")
    fewer = _imported()
    del fewer["params"]["block2"]
    with pytest.raises(ConfigError, match="not imported: params/encoders/text/block2/"):
        transfer.load_pretrained(variables, fewer, at="encoders/text")
    with pytest.raises(
        ConfigError, match="no place for: .*image/block1.*not imported: .*image/conv1"
    ):
        transfer.load_pretrained(variables, _imported(), at="encoders/image")


def _write(path, tensors, **changes):
    names = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64"}
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, value in tensors.items():
        start, data = len(data), data + value.tobytes()
        entry = {"dtype": names[value.dtype.name], "shape": value.shape}
        header[name] = {**entry, "data_offsets": [start, len(data)], **changes}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_safetensors_are_read_as_they_were_written(tmp_path):
    tensors = {
        "odd": np.arange(3, dtype=np.float16),  # the next ones lie on no boundary
        "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
        "brain": np.arange(4, dtype=ml_dtypes.bfloat16),
        "scalar": np.array(7),
        "none": np.zeros((0, 5), np.float32),
    }
    read = transfer.read_safetensors(_write(tmp_path / "a.safetensors", tensors))
    assert read.keys() == tensors.keys()
    for name, value in tensors.items():
        assert read[name].dtype == value.dtype
        np.testing.assert_array_equal(read[name], value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data_offsets": [0, 99]}, "0 to 99 of 24"),
        ({"shape": [7]}, "28 bytes lies at 0 to 24"),
        ({"dtype": "F8"}, "dtype 'F8' is not among"),
    ],
)
def test_files_that_contradict_themselves_are_refused(tmp_path, change, message):
    path = _write(tmp_path / "a.safetensors", {"x": np.zeros(6, np.float32)}, **change)
    with pytest.raises(ConfigError, match=message):
        transfer.read_safetensors(path)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        transfer.read_safetensors(tmp_path / "b")
    for content in (b"PK", b"PK\x03\x04" * 8, (4).to_bytes(8, "little") + b"null", bytes(8)):
        path = tmp_path / "a.safetensors"
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="a.safetensors"):
            transfer.read_safetensors(path)
