"""Recipes: every config and baseline assembles, and what they say of themselves is so."""

import dataclasses
import functools
import json
import operator
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mtmm_jax import data, training
from mtmm_jax.batch import Modality, Target
from mtmm_jax.benchmarks.recipes import recipes
from mtmm_jax.benchmarks.recipes import runs as recipe_runs
from mtmm_jax.benchmarks.recipes import texts as recipe_texts
from mtmm_jax.benchmarks.recipes.label_curve import CURVE, curve
from mtmm_jax.benchmarks.recipes.recipes import RECIPES
from mtmm_jax.benchmarks.recipes.runs import TrainingRun, config_of, zero_shot
from mtmm_jax.benchmarks.recipes.table import Recipe, better, cells, table
from mtmm_jax.benchmarks.tables.result_table import Board
from mtmm_jax.command import console
from mtmm_jax.data.sources import packed
from mtmm_jax.data.sources.scenarios import scenarios
from mtmm_jax.data.sources.scenarios.parts import _LETTERS, Lot, write_on
from mtmm_jax.data.sources.scenarios.worlds import SCENARIOS, SIGNS
from mtmm_jax.devices import parallel
from mtmm_jax.objectives import relatedness
from mtmm_jax.registry import ConfigError
from mtmm_jax.store.config import as_dict, differences, found
from mtmm_jax.store.workdir import Workdir
from mtmm_jax.tasks.multilabel import label_accuracy
from mtmm_jax.tasks.task import Labels
from mtmm_jax.tasks.traits import Space
from tests.data.conftest import CACHE

STAGES = [
    name for name in RECIPES if name.startswith(("fusion_", "decision_")) and name != "fusion_late"
]
WEIGHTS = [name for name in RECIPES if name.startswith("weights_") and name != "weights_static"]
# What the smoke test makes smaller.
ROWS = 6  # a batch; one that three sources can share
SMALL_DATA = {
    "tokenizer": None,
    "image_size": 32,
    "frames": 4,
    "seconds": 1.0,
    "options": {
        "video": {"frames": 4, "size": 16},
        "text": {"units": "words"},
        "audio": {"seconds": 1.0},
    },
}
SMALL_ENCODERS = {"bert": "tiny", "resnet": "tiny"}
# What sources are made with here, so that they are made fast: a tokenizer of all texts of the films
# takes most of their time, and thousands of rows that of the scenarios.
QUICK = {"films": {"text": ("title",)}, "scenarios": {"size": (64, 8, 8)}}


def _once(name, build, made):
    """Makes a source of the same options once, also where it is part of a mixture."""

    @functools.wraps(build)
    def source(**options):
        options |= QUICK.get(name, {})
        key = name, json.dumps(options, sort_keys=True)
        if key not in made:
            made[key] = build(**options)
        return made[key]

    return source


@pytest.fixture(scope="module", autouse=True)
def prepared():
    """Data sets in the tests' folder; read once, and gone with this file."""
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MTMM_JAX_DATA", str(CACHE))
        patch.setattr(packed, "load", functools.cache(packed.load))
        for name, build in data.SOURCES.items():
            if name not in ("mixture", "manifest", "video_folder", "tfds"):
                patch.setitem(data.SOURCES, name, _once(name, build, made))
        yield


def _runs(name):
    return [RECIPES[name].run, *RECIPES[name].baselines.values()]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_and_its_baselines_assemble(name):
    for run in _runs(name):
        assert training.assemble(config_of(run, 2)).config["steps"] == 2
        for member in run.members:
            training.assemble(training.load(member))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["image_text", "video_understanding"])
def test_the_presets_for_an_accelerator_assemble(name):
    run = TrainingRun(
        name, ("init_from=None", "data.tokenizer=None") if name == "image_text" else ()
    )
    assert training.assemble(config_of(run)).model.tasks


@pytest.mark.parametrize("name", STAGES)
def test_fusions_differ_in_one_line(name):
    found = differences(as_dict(training.load("fusion_late")), as_dict(training.load(name)))
    assert found
    assert all(line.startswith("model.fusion.") for line in found)


@pytest.mark.parametrize("name", WEIGHTS)
def test_task_weights_differ_in_one_line(name):
    found = differences(as_dict(training.load("weights_static")), as_dict(training.load(name)))
    assert found
    assert all(line.startswith("balancing.") for line in found)


def _clips(folder):
    labels = ["id,class"]
    for i in range(12):
        for part in (f"video_frames/{i}", "text_data", "audio_data"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / f"video_frames/{i}/1.jpg")
        (folder / f"text_data/{i}.txt").write_text("a clip")
        labels.append(f"{i},{'ab'[i % 2]}")
    (folder / "labels.csv").write_text("\n".join(labels))


def test_folders_of_clips_assemble(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _clips(tmp_path / "clips")
    experiment = training.assemble(training.load("video_folders"))
    assert set(experiment.model.encoders) == {"video", "text", "audio"}
    assert experiment.source.spec.targets["label"].classes == ("a", "b")


def _tiny(name):
    """A config of two steps on few small rows, without what another run or a download gives."""
    config = training.load(name)
    config.steps, config.batch_size = 2, ROWS
    with config.unlocked(), config.ignore_type():
        config.init_from = None
        config.teachers = None
        if config.relatedness:
            config.relatedness.steps = 1
        if prune := config.optimizer.get("prune"):
            prune.begin, prune.end, prune.every = 0, 2, 1
        if later := config.optimizer.get("unfreeze"):
            config.optimizer.unfreeze = [[rule, 1] for rule, _ in later]
        for key, value in SMALL_DATA.items():
            if key in config.data:
                config.data[key] = value
        if config.data.kind == "scenarios":
            config.data.size = (64, 8, 8)
        for kind, preset in SMALL_ENCODERS.items():
            for encoder in config.model.encoders.values():
                if encoder and encoder.kind == kind:
                    encoder.preset = preset
        for task in config.tasks.values():
            if task and task.get("head") and "locked" in task.head:
                task.head.size = 128  # of bert's tiny preset
    return config


# Sections that suites of their own take through an assembled step; `_tiny` has no `init_from`.
TRAINED = {"init_from", "lora", "quantise", "relatedness", "semi", "teachers"}
# Configs whose data other tests train: `test_a_recipe_runs`, test_leaderboard, test_report.
SEEN = ("scenario_medical", "digits", "generator")


def _features(name):
    """What a config uses that no other suite trains: its data, its sections, how it prunes.

    Fusions, sharings, methods, encoders, heads and tasks have suites over their tables, all with
    gradients; the options of a source and the rules of an optimizer have suites of their own.
    """
    config = training.load(name)
    features = {(name, "on") for name, section in config.items() if section}
    features |= {("prune", "on")} if config.optimizer.get("prune") else set()
    features -= {(name, "on") for name in TRAINED}
    return features | {("source", config.data.kind, config.data.get("scenario"))}


def _cover(names):
    """Few configs, the richest first, that use together every feature that one of them uses."""
    features = {name: _features(name) for name in names}
    left, chosen = set().union(*features.values()), []
    left -= set().union(*map(_features, SEEN))
    while left:
        chosen.append(max(sorted(names), key=lambda name: len(features[name] & left)))
        left -= features[chosen[-1]]
    return sorted(chosen)


@pytest.mark.slow
@pytest.mark.parametrize("name", _cover(found()))
def test_configs_that_cover_every_feature_train_two_steps(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name == "video_folders":
        _clips(tmp_path / "clips")
    experiment = training.assemble(_tiny(name))
    experiment = relatedness.begin(experiment, Workdir(tmp_path / "run"), console())
    step = parallel.wrap(experiment.step(), experiment.devices)
    state = experiment.init()
    before = jax.device_get(state.params)
    batches = iter(experiment.source.train(ROWS, seed=0))
    for _ in range(2):
        state, _ = step(state, next(batches))
    after = jax.device_get(state.params)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(after))
    moved = jax.tree.map(lambda x, y: (x != y).any(), before, after)
    assert any(jax.tree.leaves(moved))


@pytest.mark.slow
def test_a_recipe_runs(tmp_path):
    (row,) = recipe_runs.rows_of(RECIPES["scenario_medical"].run, [0], 2, tmp_path)
    assert all(np.isfinite(value) for value in row["test"].values())
    assert set(row["without"]) == {"image", "record", "genes"}


# What the scenarios are.


def _arrays(name, rows=64, split="train", **options):
    source = scenarios(scenario=name, size=(rows, 8, 8), **options)
    return source, source.compose(source.rows[split], None)


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenarios_keep_their_spec_and_depend_on_the_row_alone(name):
    source, batch = _arrays(name, 16)
    source.spec.check(batch)
    for target, entry in batch["targets"].items():
        kind = source.spec.targets[target]
        blank = jax.tree.map(lambda leaf: leaf.dtype, kind.blank(1))
        assert jax.tree.map(lambda leaf: leaf.dtype, entry["y"]) == blank
        assert len(kind.frequencies) in (0, len(kind.classes))
    again = _arrays(name, 8)[1]
    for one, other in zip(jax.tree.leaves(batch), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(one[:8], other)
        assert np.isfinite(one).all()
    held_out = _arrays(name, 8, "test")[1]
    differs = [
        not np.array_equal(again["inputs"][m]["x"], held_out["inputs"][m]["x"])
        for m in source.spec.modalities
    ]
    assert all(differs)


def _word(band):
    """The word whose dots a noiseless band shows."""
    dots = (band[2:12:2, 1:-1:2, 0] > 0).astype(int)
    for word in SIGNS:
        lines = ["0".join(f"{_LETTERS[c][i]:03b}" for c in word) for i in range(5)]
        if lines == ["".join(map(str, row)) for row in dots]:
            return word
    return None


def test_the_written_word_is_the_label_and_the_transcript():
    picture = write_on(np.zeros((len(SIGNS), 32, 32, 3)), SIGNS, np.arange(len(SIGNS)), 18)
    assert [_word(one[18:32]) for one in picture] == list(SIGNS)
    _, batch = _arrays("sign", noise=0.0)
    words = [_word(one[18:32]) for one in batch["inputs"]["image"]["x"]]
    assert words == [SIGNS[i] for i in batch["targets"]["word"]["y"]]
    ids = batch["inputs"]["text"]["x"]
    spelt = ["".join(list(_LETTERS)[i - 1] for i in row) for row in ids]
    assert spelt == words


def test_an_accident_takes_vehicles_and_a_sudden_stop():
    _, batch = _arrays("traffic", 512, noise=0.0)
    radar = batch["inputs"]["radar"]["x"][..., 0]
    stopped = radar[:, -1] < 0.5 * radar[:, 0]
    vehicles = batch["targets"]["vehicles"]["y"]["valid"].sum(1)
    accident = batch["targets"]["accident"]["y"] == 1
    np.testing.assert_array_equal(accident, stopped & (vehicles >= 2))
    assert 0 < accident[stopped].mean() < 1
    assert 0 < accident[vehicles >= 2].mean() < 1


def test_the_speech_spells_the_reply():
    source, batch = _arrays("service")
    spec = source.spec.targets
    said, reply = (batch["targets"][name]["y"] for name in ("transcript", "reply"))
    named = [spec["transcript"].classes[i] for i in said[:, 0]]
    assert named == [spec["reply"].classes[i] for i in reply[:, 2]]
    intents = [spec["intent"].classes[i] for i in batch["targets"]["intent"]["y"]]
    assert [text.split()[0] for text in intents] == [name[1:] for name in named]


def test_noise_has_the_deviation_that_is_asked_for():
    drawn = Lot(0, np.arange(4000), 0.5).noisy(np.zeros((4000, 1)))
    assert drawn.std() == pytest.approx(0.5, rel=0.03)
    assert drawn.mean() == pytest.approx(0.0, abs=0.03)


def test_bad_scenarios_are_named():
    with pytest.raises(ConfigError, match="unknown scenario 'drivin'.*driving"):
        scenarios(scenario="drivin")
    with pytest.raises(ConfigError, match=r"data.scenarios.noise: -1"):
        scenarios(scenario="home", noise=-1)


# How they are run and reported.


SMALLER = {"smaller": ["b"]}


def _row(value, seed=0, **more):
    return {"test": {"a": value}, "metric": {"a": "accuracy"}, "seed": seed, **more}


def _toy(monkeypatch):
    run, baselines = (
        TrainingRun("generator", without=("m1",)),
        TrainingRun("generator", ("balancing=pcgrad",)),
    )
    monkeypatch.setitem(RECIPES, "generator", Recipe("toys", run, {"other": baselines}))
    return run, baselines


def test_the_table_has_means_spreads_and_baselines(monkeypatch):
    run, baselines = _toy(monkeypatch)
    board = Board(None)
    for seed, value in enumerate((10.5, 10.7)):
        more = {
            "without": {"m1": {"a": 0.25}},
            "trivial": {"a": 0.125},
            "members": {"b": {"a": 1.0}},
        }
        board.add(recipe_runs.key_of(run) | _row(value, seed, **more))
    board.add(recipe_runs.key_of(baselines) | _row(-0.25))
    line = table(board, [RECIPES["generator"]]).splitlines()[-1]
    assert line == (
        "| toys | `generator` | a accuracy | 10.600 ± .100 | .125 | "
        "other -.250; without m1 .250 ± .000; b 1.000 ± .000 |"
    )


def test_each_metric_has_a_line_and_what_is_better_is_marked(monkeypatch):
    run, baselines = _toy(monkeypatch)
    board = Board(None)
    for key, a, b in ((run, 0.5, 0.2), (baselines, 0.6, 0.3)):
        values = {"test": {"a": a, "b": b}, "metric": {"a": "accuracy", "b": "cer"}, **SMALLER}
        board.add(recipe_runs.key_of(key) | values)
    assert table(board, [RECIPES["generator"]]).splitlines()[2:] == [
        "| toys | `generator` | a accuracy | .500 | - | other .600† |",
        "|  |  | b cer | .200 | - | other .300 |",
    ]
    rows = board.find(**recipe_runs.key_of(run))
    assert better([{**rows[0], "test": {"b": 0.1}}], rows, "b")
    assert not better([{**rows[0], "test": {"b": None}}], rows, "b")
    assert cells(rows) == "a accuracy .500, b cer .200"
    assert cells(rows, 1) == "a accuracy .500"


def test_a_baseline_of_other_tasks_has_lines_of_its_own(monkeypatch):
    run, baselines = _toy(monkeypatch)
    board = Board(None)
    board.add(recipe_runs.key_of(run) | _row(0.5))
    board.add(recipe_runs.key_of(baselines) | {"test": {"c_d": 0.2}, "metric": {"c_d": "r2"}})
    lines = table(board, [RECIPES["generator"]]).splitlines()[2:]
    assert lines[1] == "|  |  | c d r2 | - | - | other .200 |"


def test_rows_of_before_have_a_dash_where_they_lack_a_value(monkeypatch):
    run, _ = _toy(monkeypatch)
    board = Board(None)
    board.add(recipe_runs.key_of(run) | _row(0.5))
    board.add(recipe_runs.key_of(run) | _row(0.7, 1, members={"b": {"a": 0.25}}))
    line = table(board, [RECIPES["generator"]]).splitlines()[-1]
    assert line == "| toys | `generator` | a accuracy | .600 ± .100 | - | b .250 |"


def test_few_labels_are_drawn_over_their_share(tmp_path):
    board = Board(None)
    for share in (2, 10):  # the others were not run
        for run, value in zip(CURVE[share], (0.5, 0.4), strict=True):
            for seed in (0, 1):
                row = {**_row(0.0, seed), "test": {"category": value + seed / 100}}
                board.add(recipe_runs.key_of(run) | row)
    for rows, name in ((board, "two.png"), (Board(None), "none.png")):
        curve(rows, str(tmp_path / name))
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 300


def test_labels_are_right_one_by_one_and_row_by_row():
    logits = jnp.array([[1.0, -1.0], [1.0, 1.0], [-1.0, -1.0], [jnp.nan, 1.0]])
    y = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, jnp.nan]])
    metric = label_accuracy(np.array([0.5, 0.5]))
    values = metric.compute(metric.update(logits, Labels(y, jnp.array([1.0, 2.0, 1.0, 0.0]))))
    assert values == {"exact_match": 0.25, "label_accuracy": 0.625}
    nothing = metric.compute(metric.update(logits, Labels(y, jnp.zeros(4))))
    assert all(np.isnan(value) for value in nothing.values())


def test_what_stands_in_the_file_is_not_run_again(monkeypatch, tmp_path, capsys):
    _toy(monkeypatch)
    ran = []

    def rows_of(run, seeds, steps, folder):
        for seed in seeds:
            ran.append((run.changes, seed, steps))
            yield _row(0.5, seed)

    monkeypatch.setattr(recipes, "rows_of", rows_of)
    monkeypatch.setattr(recipes, "prepare_jax", lambda: None)
    path = str(tmp_path / "rows.json")
    for seeds in ("0", "0,1", "0,1"):
        assert recipes.main(["--json", path, "--only", "generator", "--seeds", seeds]) == 0
    changes = ((), ("balancing=pcgrad",))
    assert ran == [(change, seed, None) for seed in (0, 1) for change in changes]
    assert "| toys |" in capsys.readouterr().out
    assert recipes.main(["--only", "generatr"]) == 2
    assert "did you mean 'generator'" in capsys.readouterr().err


def _half(model):
    return {name: {task.headline: 0.5} for name, task in model.tasks.items()}


def test_members_are_trained_alone_and_then_fused(monkeypatch, tmp_path):
    trained, asked = [], []

    def fit(experiment, path):
        trained.append((path, experiment.config["seed"], *experiment.model.encoders))
        return {"test": _half(experiment.model)}

    def fuse(paths, rule, folder):
        asked.append((list(paths), rule, folder))

        def results(value):
            return {"category": {"accuracy": value}, "subcategory": {"accuracy": value - 0.1}}

        values = {"fused": 0.9, "a": 0.5, "b": 0.6, "c": 0.7}
        return {"results": {"test": {name: results(value) for name, value in values.items()}}}

    monkeypatch.setattr("mtmm_jax.train.fit", fit)
    monkeypatch.setattr("mtmm_jax.runs.fused.fuse_runs", fuse)
    (row,) = recipe_runs.rows_of(RECIPES["independent_learned"].run, [3], 2, tmp_path)
    paths = [tmp_path / f"independent_{m}_2" / "3" for m in ("image", "text", "audio")]
    assert trained == [(p, 3, m) for p, m in zip(paths, ("image", "text", "audio"), strict=True)]
    assert asked == [(paths, "learned", tmp_path / "independent_learned_2" / "3")]
    assert row["test"] == {"category": 0.9, "subcategory": 0.8}
    assert row["members"]["independent_text"] == {"category": 0.6, "subcategory": 0.5}
    assert 0 < row["trivial"]["subcategory"] < row["trivial"]["category"] < 0.5
    assert row["seed"] == 3


def test_weights_by_cross_validation_are_those_of_the_winner(monkeypatch, tmp_path):
    def cross_validate(config, source, folder, k, found, seed, out):
        del source, out
        assert (config["balancing"]["kind"], folder.name, k, seed) == ("static", "1", 2, 1)
        assert [len(weights) for weights in found.values()] == [5, 5, 5]
        return {"found": found}

    def retrain(record, name, by, folder, fit):
        del by, folder, fit
        model = training.assemble(training.load("weights_static")).model
        assert name == list(record["found"])[1]
        return {"test": _half(model)}

    folds = "mtmm_jax.runs.folds"
    monkeypatch.setattr(f"{folds}.cross_validate", cross_validate)
    monkeypatch.setattr(f"{folds}.winner", lambda record: list(record["found"])[1])
    monkeypatch.setattr(f"{folds}.retrain", retrain)
    (row,) = recipe_runs.rows_of(RECIPES["weights_cross_validated"].run, [1], 2, tmp_path)
    assert row["weights"] == "0.3571-3.571-0.3571-0.3571-0.3571"
    assert set(row["test"].values()) == {0.5}


@dataclasses.dataclass
class _Nearest:
    """A model whose picture says its class, and whose text is what its first word is."""

    wrong: bool = False
    tasks: dict = dataclasses.field(
        default_factory=lambda: {
            "pairs": types.SimpleNamespace(
                reads=("image", "text"), space=Space(operator.itemgetter("vectors"), None)
            )
        }
    )
    spec = types.SimpleNamespace(
        modalities={kind: Modality(kind, (4,), "int32") for kind in ("image", "text")}
    )

    def __call__(self, variables, inputs):
        del variables
        seen = jnp.where(inputs["image"]["present"], inputs["image"]["x"][:, 0], 0)
        image = jax.nn.one_hot((seen + int(self.wrong)) % 3, 3)
        first = jnp.where(inputs["text"]["present"], inputs["text"]["x"][:, 0], 0)
        text = jax.nn.one_hot(first, 8)[:, jnp.array(_FIRST)]
        return {"pairs": {"vectors": {"image": image, "text": text}}}, {}


_NAMES = ("cat-like", "dog", "bird")
_FIRST = (2, 3, 4)


def test_zero_shot_asks_for_the_nearest_name(monkeypatch):
    class Source:
        spec = types.SimpleNamespace(targets={"kind": Target("class", classes=tuple(_NAMES))})
        assets = types.MappingProxyType({"tokenizer.json": b"{}"})

        def batches(self, split, size):
            y = np.arange(size, dtype=np.int32) % 3
            here = np.ones(size, bool)
            words = {"x": np.zeros((size, 4), np.int32), "mask": here[:, None] & here[:4]}
            weight = (np.arange(size) < size - 1).astype(np.float32)
            yield {
                "inputs": {
                    "image": {"x": y[:, None], "present": here},
                    "text": {**words, "present": here},
                },
                "targets": {"kind": {"y": y, "present": here}},
                "weight": weight,
            }

    def encode(tokenizer, texts, length):
        assert (list(texts), length) == (["cat like", "dog", "bird"], 4)
        ids = np.array([[i, 0, 0, 0] for i in _FIRST])
        return ids, ids > 0

    monkeypatch.setattr("mtmm_jax.evaluation.spaces.encode_with_mask", encode)
    monkeypatch.setattr("mtmm_jax.evaluation.spaces.read_tokenizer", lambda text: text)
    config = {"evaluation": {"batch_size": 6}}
    for wrong, right in ((False, 1.0), (True, 0.0)):
        experiment = types.SimpleNamespace(model=_Nearest(wrong), source=Source(), config=config)
        assert zero_shot(experiment, {}, "kind") == right


def test_figures_are_written_where_people_read_them(monkeypatch, tmp_path):
    run, baselines = _toy(monkeypatch)
    fused = TrainingRun("generator", how="mean", members=("generator",))
    monkeypatch.setitem(RECIPES, "independent_mean", Recipe("fused", fused, {}))
    for name in RECIPES.keys() - {"generator", "independent_mean", "emoji"}:  # one was not run
        monkeypatch.delitem(RECIPES, name)
    path = tmp_path / "rows.json"
    board = Board(str(path))
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "README.md").write_text(
        f"Table:\n\n{recipe_texts.BEGIN}\nold\n{recipe_texts.END}\n."
    )
    config = tmp_path / "configs" / "generator.py"
    config.write_text('r"""A toy.\n\nIts command.\n"""\n\nx = """y"""\n')
    for value in (0.25, 0.75):  # the second time in place of the first
        board.add(recipe_runs.key_of(run) | _row(value, seconds=200.0, trivial={"a": 0.5}))
        board.add(recipe_runs.key_of(baselines) | _row(value / 2, seconds=1.0))
        board.add(recipe_runs.key_of(fused) | _row(value, seconds=50.0))
        options = ["--json", str(path), "--root", str(tmp_path)]
        assert recipe_texts.main(options) == 0
        board.rows = []
        path.unlink()
    readme = (tmp_path / "configs" / "README.md").read_text()
    assert "old" not in readme
    assert "| toys | `generator` | a accuracy | .750 | .500 | other .375 |" in readme
    assert "| fused | `generator` | a accuracy | .750 | - |  |" in readme
    assert readme.endswith(f"{recipe_texts.END}\n.")
    assert config.read_text() == (
        'r"""A toy.\n\nIts command.\n\nMeasured (test, one seed, 2 minutes each with one of two '
        "cores): fused: a accuracy .750. toys: a\naccuracy .750. Trivial predictions and "
        "baselines: configs/README.md.\n"
        '"""\n\nx = """y"""\n'
    )
