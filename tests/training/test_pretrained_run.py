"""A run with a pretrained encoder: its parameters, what learns, and what it needs afterwards."""

import json
import shutil

import jax
import numpy as np
import pytest

from mtmm_jax import training
from mtmm_jax.data import pack
from mtmm_jax.encoders import backbones
from mtmm_jax.inference.finished import open_run
from mtmm_jax.model import flatten
from mtmm_jax.registry import ConfigError
from mtmm_jax.store.checkpoints import Checkpoints
from mtmm_jax.store.workdir import Workdir
from mtmm_jax.training.experiment import build_source
from mtmm_jax.transfer import pretrained
from tests.toy import GOLDEN
from tests.training import small_run

AT = "encoders/text/"


def _config(folder, length=8, **options):
    rows = "id,text,kind\n" + "".join(f"{i},the cat sat {i},{'ab'[i % 2]}\n" for i in range(20))
    (folder / "t.csv").write_text(rows)
    config = small_run.get_config().to_dict()
    encoder = {"kind": "pretrained", "weights": str(folder / "w"), **options}
    config["model"] = {**config["model"], "encoders": {"text": encoder}, "modality_dropout": 0.0}
    config["data"] = {
        "kind": "manifest",
        "path": str(folder / "t.csv"),
        "modalities": {"text": {"kind": "text", "length": length}},
        "targets": {"kind": "class"},
        "split": {"train": 0.6, "validation": 0.2, "test": 0.2},
    }
    config["tasks"] = {"kind": {"kind": "classification"}}
    config["checkpoint"]["best"] = "kind"
    return {**config, "devices": 1}


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(GOLDEN / "bert", tmp_path / "w")
    return tmp_path


def _frozen(experiment):
    zeros = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), experiment.shapes.params)
    state = experiment.optimizer.init(zeros)
    change, _ = jax.jit(experiment.optimizer.update)(zeros, state, zeros)
    return {path: float(np.abs(leaf).max()) for path, leaf in flatten(change).items()}


def test_a_run_begins_with_the_weights_and_needs_them_no_more(folder):
    experiment = training.assemble(_config(folder))
    state, _, report = experiment.start()
    wanted = flatten(backbones.load(str(folder / "w"))[1]["params"])
    found = flatten(state.params)
    for path, leaf in wanted.items():
        np.testing.assert_array_equal(found[AT + path], leaf, path)
    assert set(report.loaded) == {AT + path for path in wanted}
    workdir = Workdir(folder / "run")
    workdir.claim(experiment.config, experiment.source.spec, experiment.source.assets)
    checkpoints = Checkpoints(workdir.checkpoints)
    checkpoints.save(jax.device_get(state), 0.5, {"step": 0})
    checkpoints.close()
    batch = next(experiment.source.batches("test", 4))

    (folder / "w").rename(folder / "elsewhere")
    for config in (None, workdir.config()):
        run = open_run(folder / "run", config)
        kept = flatten(run.variables["params"])
        np.testing.assert_array_equal(kept[f"{AT}positions"], wanted["positions"])
    again = next(run.experiment.source.batches("test", 4))
    np.testing.assert_array_equal(again["inputs"]["text"]["x"], batch["inputs"]["text"]["x"])
    assert run.experiment.drawn().step == 0  # as `analyze` measures a step
    stranger = workdir.config()
    del stranger["model"]["encoders"]["text"]["sizes"]  # for which the folder would be opened
    with pytest.raises(ConfigError, match="text: has no sizes, .* is not opened for a finished"):
        training.assemble(stranger, workdir.spec())
    with pytest.raises(ConfigError, match=r"encoders.text.weights: no folder '.*w'; needs one"):
        training.assemble(_config(folder))
    with pytest.raises(ConfigError, match=r"encoders.text.weights: no folder"):
        build_source(workdir.config())


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors", "config.json"])
def test_a_run_is_not_resumed_with_other_weights(folder, name):
    experiment = training.assemble(_config(folder))
    workdir = Workdir(folder / "run")
    workdir.path.mkdir()
    for _ in range(2):  # started, and resumed with the same bytes
        pretrained.keep_digests(experiment, workdir)
    kept = workdir.read("weights.json")["model.encoders.text.weights"]
    assert kept.keys() == {"tokenizer.json", "model.safetensors", "config.json"}
    data = (folder / "w" / name).read_bytes()
    (folder / "w" / name).write_bytes(data.replace(b"b", b"c") + b" ")
    with pytest.raises(ConfigError, match=f"text.weights: {name} is not what this run began with"):
        pretrained.keep_digests(experiment, workdir)


@pytest.mark.parametrize(
    ("tune", "moves"),
    [(0.0, 0.0), (0.25, 0.25), (1.0, 1.0)],
)
def test_tune_is_the_rate_of_what_the_folder_gives(folder, tune, moves):
    found = _frozen(training.assemble(_config(folder, tune=tune)))
    inner, outer = found[f"{AT}embedding_norm/bias"], found[f"{AT}project/bias"]
    assert outer > 0
    np.testing.assert_allclose(inner / outer, moves, rtol=1e-4)


def test_lora_learns_next_to_frozen_weights(folder):
    config = _config(folder)
    on = ["encoders/text/.*/(query|value)/kernel"]
    experiment = training.assemble({**config, "lora": {"on": on, "freeze": False}})
    found = _frozen(experiment)
    thin = [path for path in found if path.startswith("lora/")]
    assert len(thin) == 2 * 2 * 2  # a and b, of query and value, in two blocks
    assert all(found[path] > 0 for path in thin)
    assert found[f"{AT}block1/attention/query/kernel"] == 0.0


def test_texts_longer_than_the_positions_are_refused_before_anything_compiles(folder):
    with pytest.raises(ConfigError, match="21 tokens are more than the 20 .* length of 'text'"):
        training.assemble(_config(folder, length=21)).shapes  # noqa: B018


def test_a_folder_and_another_tokenizer_in_the_data_is_refused(folder):
    """A source with tokens of its own has no texts for a pretrained encoder."""
    config = _config(folder)
    config["data"] = {"kind": "scenarios", "scenario": "sign"}
    source = build_source({**config, "model": {"encoders": {}}})
    name = next(name for name, m in source.spec.modalities.items() if m.is_a("text"))
    config["model"]["encoders"] = {name: config["model"]["encoders"]["text"]}
    with pytest.raises(ConfigError, match="in its own tokens, which no other tokenizer makes"):
        training.assemble(config)


def test_a_pack_keeps_the_tokenizer_of_its_config(folder, capsys):
    config = _config(folder)
    own = folder / "own.py"
    own.write_text(
        "from ml_collections import ConfigDict\n\n\ndef get_config():\n"
        f"    return ConfigDict({config!r})\n"
    )
    table, out = str(folder / "t.csv"), str(folder / "shards")
    words = [table, "--config", str(own), "--out", out, "--workers", "1"]
    assert pack.main(words) == 0, capsys.readouterr().err
    packed = {**config, "data": {"kind": "packed", "path": out}}
    plain, source = build_source(config), build_source(packed)
    rows = plain.rows["test"]
    for key in ("x", "mask"):
        np.testing.assert_array_equal(
            source.compose(rows, None)["inputs"]["text"][key],
            plain.compose(rows, None)["inputs"]["text"][key],
        )
    assert training.assemble(packed).shapes
    description = folder / "d.json"
    description.write_text(json.dumps(config["data"]))
    assert pack.main([table, "--config", str(description), "--out", out, "--workers", "1"]) == 2
    assert "another table, or of other options" in capsys.readouterr().err
    bare = str(folder / "bare")
    assert pack.main([table, "--config", str(description), "--out", bare, "--workers", "1"]) == 0
    with pytest.raises(ConfigError, match="pack again with --config of this config"):
        training.assemble({**config, "data": {"kind": "packed", "path": bare}})
