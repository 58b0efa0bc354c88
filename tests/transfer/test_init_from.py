"""A run begins with what another run, or a file, knows: what fits, what does not, and where."""

import dataclasses
import io
import json

import jax
import numpy as np
import pytest
from rich.console import Console

from mtmm_jax import training, transfer
from mtmm_jax.benchmarks.reliability.small_weights import safetensors
from mtmm_jax.data.sources.emoji import emoji
from mtmm_jax.model import flatten
from mtmm_jax.optim.averages import AverageState
from mtmm_jax.registry import ConfigError
from mtmm_jax.store.checkpoints import Checkpoints
from mtmm_jax.store.workdir import Workdir
from mtmm_jax.text import read_tokenizer, train_tokenizer
from mtmm_jax.training.loop import train
from mtmm_jax.transfer import init_from
from tests.data.conftest import CACHE
from tests.training import small_run
from tests.transfer import formula

TOKENIZERS = [train_tokenizer([text], 30) for text in ("red apple red apple", "a blue car a blue")]
AUDIO = {"text": "text_bag", "audio": "audio_mlp"}
NORMED = {"text": "text_bag", "audio": {"kind": "log_mel_cnn", "preset": "tiny", "mels": 8}}


def config(devices=1, encoders=None, **sections):
    plain = {**small_run.get_config().to_dict(), "devices": devices, "balancing": "equal"}
    if encoders:
        plain["model"] = {**plain["model"], "encoders": encoders}
    return {**plain, **sections}


SHAPES = {}  # of a config, but for what it begins with: tracing a model is what costs here


def experiment(tokenizer=None, **changes):
    made = training.assemble(config(**changes))
    if tokenizer is not None:
        assets = {"tokenizer.json": tokenizer.encode()}
        made = dataclasses.replace(made, source=dataclasses.replace(made.source, assets=assets))
    return _with_known_shapes(made)


def _with_known_shapes(made):
    section = made.config.get("init_from") or {}
    own = {**made.config, "init_from": section.get("freeze")}
    key = json.dumps(own, sort_keys=True)
    vars(made)["shapes"] = SHAPES[key] = SHAPES.get(key) or made.shapes
    return made


def drawn(made, seed):
    """A state of the experiment's shapes, so that nothing compiles."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        if leaf.dtype != np.float32:
            return np.zeros(leaf.shape, leaf.dtype)
        return rng.normal(0, 0.3, leaf.shape).astype(np.float32)

    return jax.tree.map(draw, made.shapes)


def kept(path, tokenizer=None, **changes):
    """The workdir of a run whose state was drawn, not learned, and that state."""
    made = experiment(tokenizer, **changes)
    workdir = Workdir(path)
    workdir.claim(made.config, made.source.spec, made.source.assets)
    state = drawn(made, 0)
    checkpoints = Checkpoints(workdir.checkpoints)
    checkpoints.save(state, 0.5, {"step": 0})
    checkpoints.close()
    return str(path), state


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """Text and audio, a head for `kind`; with an average of its parameters."""
    optimizer = {"kind": "sgd", "learning_rate": 0.1, "ema": 0.9}
    return kept(
        tmp_path_factory.mktemp("runs") / "origin",
        TOKENIZERS[0],
        encoders=AUDIO,
        tasks={"kind": {"kind": "classification"}},
        optimizer=optimizer,
    )


def load(made):
    """What `begin` does with the state that is drawn."""
    state = jax.device_put(drawn(made, 1))
    if not isinstance(made.devices, int):
        state = made.devices.put(state)
    assemble = lambda *args: _with_known_shapes(training.assemble(*args))  # noqa: E731
    return init_from.load(made, state, assemble)


def begin(section, **changes):
    return load(experiment(init_from=section, **changes))


def average(state):
    is_average = lambda node: isinstance(node, AverageState)  # noqa: E731
    nodes = jax.tree.leaves(state.optimizer, is_leaf=is_average)
    return flatten(next(filter(is_average, nodes)).average)


def test_the_averages_of_a_run_go_where_their_paths_are(origin):
    path, theirs = origin
    state, report = begin({"workdir": path}, tokenizer=TOKENIZERS[0], encoders=AUDIO)
    params, wanted = flatten(state.params), average(theirs)
    for name, leaf in params.items():
        if name.startswith("heads/size/"):
            assert report.skipped[name] == "no counterpart in the origin"
        else:
            np.testing.assert_array_equal(leaf, wanted[name], name)
            assert report.loaded[name] == {"shape": list(leaf.shape), "from": name}
    loaded = sum(leaf.size for name, leaf in params.items() if name in report.loaded)
    assert report.numbers == (loaded, sum(leaf.size for leaf in params.values()))


def test_statistics_go_with_their_parameters(tmp_path):
    path, theirs = kept(tmp_path / "normed", encoders=NORMED)
    state, report = begin({"workdir": path, "strict": True}, encoders=NORMED)
    stats = flatten(state.batch_stats)
    assert "encoders/audio/norm1/mean" in stats
    jax.tree.map(np.testing.assert_array_equal, stats, flatten(theirs.batch_stats))
    assert "encoders/audio/norm1/mean" in report.loaded


def test_parts_are_mapped_and_averages_begin_with_them(origin):
    path, theirs = origin
    section = {
        "workdir": path,
        "map": [["encoders/audio/(.*)/kernel", r"encoders/audio/\1/kernel"]],
        "freeze": ["encoders/audio/.*"],
    }
    optimizer = {"kind": "adam", "learning_rate": 0.1, "ema": 0.5}
    made = experiment(init_from=section, encoders=AUDIO, optimizer=optimizer)
    state, report = load(made)
    plain = flatten(drawn(made, 1).params)
    params = flatten(state.params)
    assert report.skipped["origin: encoders/text/embedding/embedding"] == "not matched by map"
    for name, leaf in params.items():
        mine = name.startswith("encoders/audio/") and name.endswith("/kernel")
        np.testing.assert_array_equal(leaf, average(theirs)[name] if mine else plain[name], name)
        assert (name in report.loaded) == mine
    jax.tree.map(np.testing.assert_array_equal, average(state), params)
    zeros = jax.tree.map(np.zeros_like, state.params)
    grads = jax.tree.map(np.ones_like, state.params)
    updates = jax.jit(made.optimizer.update)(grads, state.optimizer, state.params)[0]
    updates = flatten(updates)
    still = {n for n, u in updates.items() if not np.any(u)}
    assert still == {n for n in flatten(zeros) if n.startswith("encoders/audio/")}


def test_a_run_that_goes_on_loads_nothing_and_keeps_the_table(origin, tmp_path):
    path, _ = origin
    made = experiment(TOKENIZERS[0], init_from={"workdir": path}, steps=1)
    workdir, out = Workdir(tmp_path / "new"), io.StringIO()
    workdir.claim(made.config, made.source.spec, made.source.assets)
    checkpoints = Checkpoints(workdir.checkpoints)
    try:
        train(made, workdir, checkpoints, Console(file=out, width=160))
        said = out.getvalue()
        for words in ("init_from", "encoders/text/embedding", "[20, 128]", "[16, 8] there"):
            assert words in said
        report = json.loads((workdir.path / init_from.FILE).read_text())
        assert report["paths"]["heads/kind/out/bias"]["from"] == "heads/kind/out/bias"
        assert report["loaded"] < report["parameters"]
        missing = {"workdir": str(tmp_path / "gone")}
        gone = dataclasses.replace(made, config={**made.config, "init_from": missing, "steps": 2})
        train(gone, workdir, checkpoints, Console(file=out))  # nothing is asked of the origin
    finally:
        checkpoints.close()


@pytest.mark.usefixtures("uncached")
def test_a_mesh_takes_from_one_device_and_one_device_from_a_mesh(origin, tmp_path):
    path, theirs = origin
    mesh = {"kind": "mesh", "data": 2, "fsdp": 2}
    state, report = begin({"workdir": path}, tokenizer=TOKENIZERS[0], devices=mesh, encoders=AUDIO)
    alone, same = begin({"workdir": path}, tokenizer=TOKENIZERS[0], encoders=AUDIO)
    assert report == same
    jax.tree.map(np.testing.assert_array_equal, state.params, alone.params)
    parts = {
        n: x.addressable_shards[0].data.size / x.size for n, x in flatten(state.params).items()
    }
    assert parts["encoders/text/hidden/kernel"] == 0.5
    assert jax.tree.all(
        jax.tree.map(
            lambda x, s: x.sharding == s,
            state,
            experiment(devices=mesh, encoders=AUDIO).devices.of(state),
        )
    )
    again, theirs = kept(tmp_path / "mesh", devices=mesh, encoders=AUDIO)
    state, _ = begin({"workdir": again}, encoders=AUDIO)
    jax.tree.map(np.testing.assert_array_equal, state.params, theirs.params)


def test_strict_names_what_is_missing_and_both_shapes(origin):
    path, _ = origin
    strict = {"workdir": path, "strict": True}
    state, _ = begin(strict, tokenizer=TOKENIZERS[0], encoders=AUDIO)  # lacks a head only
    assert "size" in state.params["heads"]
    with pytest.raises(ConfigError, match="strict: .*has nothing for: fusion/fused/") as error:
        begin({**strict, "map": [["(encoders|heads)/.*", r"\g<0>"]]}, encoders=AUDIO,
              tokenizer=TOKENIZERS[0])  # fmt: skip
    assert "heads/size" not in str(error.value).partition("; it has")[0]
    with pytest.raises(ConfigError) as error:
        begin(strict, tokenizer=TOKENIZERS[0])  # of one modality: another fusion
    assert "strict: shapes differ: fusion/fused/out/kernel is [16, 8] there, " in str(error.value)
    assert "fusion/fused/out/kernel is [8, 8]" in str(error.value)
    _, report = begin({"workdir": path}, tokenizer=TOKENIZERS[0])
    why = report.skipped["fusion/fused/out/kernel"]
    assert why == "other shape: [16, 8] there, [8, 8] here, from fusion/fused/out/kernel"
    assert any(line.startswith("origin: encoders/audio/") for line in report.skipped)


def test_other_words_and_other_classes_are_refused(origin, monkeypatch):
    path, _ = origin
    with pytest.raises(ConfigError, match="embedding: the tokenizer of 'text' is not that of"):
        begin({"workdir": path}, tokenizer=TOKENIZERS[1], encoders=AUDIO)
    rest = {"workdir": path, "map": [["encoders/(?!text/embedding).*", r"\g<0>"]]}
    begin(rest, tokenizer=TOKENIZERS[1], encoders=AUDIO)
    _, report = begin({"workdir": path}, encoders=AUDIO)
    assert any("no tokenizer to compare" in line for line in report.skipped)
    made = experiment(TOKENIZERS[0], init_from={"workdir": path}, encoders=AUDIO)
    target = dataclasses.replace(made.model.spec.targets["kind"], classes=("x", "y", "z"))
    monkeypatch.setitem(made.model.spec.targets, "kind", target)
    with pytest.raises(
        ConfigError, match="heads/kind/.*classes are a, b, c there and x, y, z here"
    ):
        load(made)


def test_a_map_is_pairs_or_a_mapping():
    pairs = (("a/(.*)", r"b/\1"), ("c", "d"))
    for given in ([list(pair) for pair in pairs], dict(pairs)):
        settings = init_from.read({"workdir": "runs/a", "map": given})
        assert settings.map == pairs
        assert [init_from.mapped(path, settings.map) for path in ("a/x", "c", "e")] == [
            "b/x", "d", None]  # fmt: skip


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("runs/a", "init_from: 'runs/a' is not a section"),
        ({"workdr": "a"}, "did you mean 'workdir'"),
        ({}, "needs one of workdir, weights"),
        ({"workdir": "a", "at": "encoders/text"}, "init_from.at: belongs to weights"),
        ({"weights": "a", "at": "encoders/text", "step": 3}, "init_from.step: belongs to workdir"),
        ({"weights": "a"}, "init_from.at: is missing"),
        ({"weights": "a", "at": "encoders/text", "map": ["x"]}, r"init_from.map\[0\]: 'x' is not"),
        ({"workdir": "a", "step": "first"}, "init_from.step: 'first'"),
        ({"workdir": "a", "map": [["(", "x"]]}, r"init_from.map\[0\]\[0\]: '\(' is not a regular"),
        ({"workdir": "a", "map": [["x", r"\2"]]}, r"init_from.map\[0\]: '\\\\2' is not a path"),
        ({"workdir": "a", "map": ["x"]}, r"init_from.map\[0\]: 'x' is not a list of 2"),
        ({"workdir": "a", "freeze": ["nothing/.*"]}, "optimizer.freeze: 'nothing/.*' matches none"),
    ],
)
def test_sections_are_checked_without_a_look_at_any_folder(section, message):
    with pytest.raises(ConfigError, match=message):
        experiment(init_from=section)


def test_origins_that_are_not_there_are_named(origin, tmp_path):
    path, _ = origin
    for section, message in [
        ({"workdir": str(tmp_path / "no")}, "init_from.workdir: no folder"),
        ({"workdir": path, "step": 7}, "init_from.workdir: step 7 is not kept; there are: 0"),
        ({"workdir": path, "map": [["head/.*", "x"]]}, "'head/.*' matches nothing of"),
        (
            {"workdir": path, "map": [["(heads/kind/norm)/.*", r"\1/bias"]]},
            "both go to heads/kind/norm/bias",
        ),
        (
            {"workdir": path, "map": [["encoders/audio/(.*)", r"encoders/image/\1"]]},
            "nothing of .* goes here",
        ),
        ({"weights": "no", "at": "encoders/txt"}, "init_from.at: unknown encoder 'encoders/txt'"),
        ({"weights": "no", "at": "encoders/text"}, "init_from.weights: no file or folder 'no'"),
        ({"weights": str(tmp_path), "at": "encoders/text"}, "has 0 .safetensors, not one"),
    ]:
        with pytest.raises(ConfigError, match=message):
            begin(section)


BERT = {"kind": "bert", "preset": "tiny", "length": 16}


@pytest.fixture
def weights(tmp_path):
    """A file of Hugging Face's names, for 20 words and 16 places."""
    shapes = dict(formula.shapes("bert"))
    shapes["embeddings.word_embeddings.weight"] = (20, 128)
    shapes["embeddings.position_embeddings.weight"] = (16, 128)
    tensors = {name: formula.tensor(k, name, s) for k, (name, s) in enumerate(shapes.items())}
    single = {name: np.asarray(value, np.float32) for name, value in tensors.items()}
    (tmp_path / "w").mkdir()
    (tmp_path / "w/model.safetensors").write_bytes(safetensors(single))
    return tmp_path / "w", transfer.import_bert(tensors, "tiny")


def test_imported_weights_go_to_their_encoder(weights):
    path, imported = weights
    section = {"weights": str(path), "at": "encoders/text", "freeze": ["encoders/text/block.*"]}
    state, report = begin(section, encoders={"text": BERT})
    wanted = flatten(imported["params"])
    for name, leaf in flatten(state.params["encoders"]["text"]).items():
        if name in wanted:
            np.testing.assert_array_equal(leaf, wanted[name], name)
    assert len(report.loaded) == len(wanted)
    assert set(report.skipped) >= {"encoders/text/project/kernel", "fusion/fused/out/kernel"}
    assert any("no tokenizer" in line for line in report.skipped)
    (path / "tokenizer.json").write_text(TOKENIZERS[0])
    begin(section, encoders={"text": BERT}, tokenizer=TOKENIZERS[0])
    with pytest.raises(ConfigError, match="its ids mean other words"):
        begin(section, encoders={"text": BERT}, tokenizer=TOKENIZERS[1])
    with pytest.raises(ConfigError, match=r"positions \[16, 128\], not \[12, 128\]"):
        begin(section, encoders={"text": {**BERT, "length": 12}})
    with pytest.raises(ConfigError, match="GRUText; imports are known of: bert, resnet"):
        begin({**section, "freeze": []}, encoders={"text": "text_gru"})


def test_a_map_takes_a_part_of_weights(weights):
    """Shorter texts and other words than the file's, once the map leaves these tables out."""
    path, imported = weights
    (path / "tokenizer.json").write_text(TOKENIZERS[0])
    short, wanted = {"text": {**BERT, "length": 12}}, flatten(imported["params"])
    blocks = [["encoders/text/(block.*)", r"encoders/text/\1"]]
    section = {"weights": str(path), "at": "encoders/text", "map": blocks}
    state, report = begin(section, encoders=short, tokenizer=TOKENIZERS[1])
    params = flatten(state.params)
    taken = {f"encoders/text/{name}" for name in wanted if name.startswith("block")}
    assert set(report.loaded) == taken
    for name in taken:
        ours = name.removeprefix("encoders/text/")
        np.testing.assert_array_equal(params[name], wanted[ours], name)
    assert report.skipped["origin: encoders/text/positions"] == "not matched by map"
    assert report.skipped["encoders/text/positions"] == "no counterpart in the origin"
    assert report.numbers[0] == sum(params[name].size for name in taken)
    whole = {**section, "map": [["encoders/text/(?!embedding/).*", r"\g<0>"]]}
    _, report = begin(whole, encoders=short, tokenizer=TOKENIZERS[1])
    why = report.skipped["encoders/text/positions"]
    assert why == "other shape: [16, 128] there, [12, 128] here, from encoders/text/positions"
    for change, message in [
        ({"strict": True}, r"shapes differ: encoders/text/positions is \[16, 128\] there"),
        ({"map": blocks, "strict": True}, "has nothing for: encoders/text/embedding/embedding"),
        ({"map": [["block.*", r"\g<0>"]]}, "'block.*' matches nothing of .*encoders/text/block1"),
        ({"map": [["encoders/text/(types)", r"heads/\1"]]}, "nothing of .* goes here"),
        ({"map": [["encoders/text/.*", r"\g<0>"]]}, "leave the embedding out by `map`"),
    ]:
        with pytest.raises(ConfigError, match=message):
            begin({**whole, **change}, encoders=short, tokenizer=TOKENIZERS[1])
    _, report = begin(
        {**section, "map": [["encoders/text/(.*)", r"encoders/text/\1"]], "strict": True},
        encoders={"text": BERT},
        tokenizer=TOKENIZERS[0],
    )  # all of it, as without a map: strict misses only what the file never had
    assert "encoders/text/project/kernel" in report.skipped
    assert len(report.loaded) == len(wanted)


def test_emoji_take_the_tokenizer_of_weights(tmp_path):
    """Another id pads than ours, and another stands for what is unknown."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"[UNK]": 0, "red": 1, "heart": 2, "[PAD]": 3, "face": 4}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    (tmp_path / "model").mkdir()
    tokenizer.save(str(tmp_path / "model/tokenizer.json"))
    made = emoji(tokenizer=str(tmp_path), data_dir=str(CACHE))
    assert made.spec.modalities["text"].vocabulary == 5
    vocabulary = read_tokenizer(made.assets["tokenizer.json"]).get_vocab()
    assert vocabulary == words
    rows = made.rows["train"][:200]
    text = made.compose(rows, None)["inputs"]["text"]
    np.testing.assert_array_equal(text["mask"], text["x"] != 3)
    assert (text["x"] == 4).any()
    augmented = made.compose(rows, np.zeros((200, made.draws)))["inputs"]["text"]["x"]
    np.testing.assert_array_equal(np.unique(augmented), [0, 3])  # all that is no padding is unknown
    with pytest.raises(ConfigError, match="data.emoji.tokenizer: .* is no tokenizer.json.*pip in"):
        emoji(tokenizer=str(tmp_path / "no"), data_dir=str(CACHE))
    with pytest.raises(ConfigError, match="data.emoji.units: 'characters' has a tokenizer of its"):
        emoji(tokenizer=str(tmp_path), units="characters", data_dir=str(CACHE))


def test_the_table_has_a_line_for_each_module_that_was_skipped():
    why = "no counterpart in the origin"
    skipped = {f"encoders/image/conv{i}/kernel": why for i in range(3)}
    skipped["encoders/image/project/kernel"] = "other shape: [2] there, [3] here"
    report = init_from.Report("a run", {}, skipped, (0, 10))
    console = Console(width=150)
    with console.capture() as captured:
        console.print(report.table())
    lines = captured.get().splitlines()
    assert sum("skipped" in line for line in lines) == 2
    assert any("encoders/image/... (3)" in line and why in line for line in lines)
    assert any("encoders/image/project/kernel" in line for line in lines)
