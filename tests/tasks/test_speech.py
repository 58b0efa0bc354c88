"""Speech written down and texts said: properties of the tasks and heads that do it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtmm_jax import model, training
from mtmm_jax.batch import Modality, Spec, Target
from mtmm_jax.evaluation import speech
from mtmm_jax.heads.bound_module import BoundModule
from mtmm_jax.registry import ConfigError
from tests import toy
from tests.data.conftest import CACHE

ALPHABET = ("[PAD]", "[UNK]", " ", "a", "b")
SPEC = Spec(
    modalities={
        "image": Modality("image", (8, 8, 3), "float32"),
        "text": Modality("text", (6,), "int32", vocabulary=9),
        "audio": Modality("audio", (1600,), "float32", rate=4000.0),
    },
    targets={
        "written": Target("tokens", classes=ALPHABET, length=6, made_from=("text",)),
        "spoken": Target("wave", length=1600, rate=4000.0, made_from=("audio",)),
        "voice": Target("class", classes=("low", "high")),
    },
)
CONFIG = {
    "width": 16,
    "encoders": {
        "text": {"kind": "text_gru", "preset": "tiny"},
        "audio": {"kind": "log_mel_gru", "preset": "tiny", "mels": 12},
    },
    "fusion": "concat",
}
TASKS = {
    "ctc": {"kind": "recognition", "target": "written", "reads": "audio"},
    "decoder": {
        "kind": "captioning",
        "target": "written",
        "reads": "audio",
        "head": {"kind": "decoder", "width": 16, "heads": 2},
    },
    "mel": {
        "kind": "synthesis",
        "target": "spoken",
        "reads": "text",
        "speaker": "voice",
        "mels": 16,
        "head": {"kind": "mel", "width": 16, "layers": 1},
    },
}


def _batch(size=8, seed=0):
    """Rows with holes: what is absent is NaN, or a number that no table has."""
    rng = np.random.default_rng(seed)
    here = {name: rng.random(size) < 0.7 for name in ("text", "audio", "written", "spoken")}
    for rows in here.values():
        rows[:2] = True
    here["voice"] = np.arange(size) != 1
    said = rng.integers(900, 1600, size)
    wave = rng.standard_normal((size, 1600)).astype(np.float32)
    ids = np.where(
        np.arange(6) < rng.integers(1, 7, size)[:, None], rng.integers(2, 5, (size, 6)), 0
    )
    batch = {
        "inputs": {
            "text": {
                "x": rng.integers(1, 9, (size, 6)).astype(np.int32),
                "mask": np.arange(6) < rng.integers(1, 7, size)[:, None],
            },
            "audio": {"x": rng.standard_normal((size, 1600)).astype(np.float32)},
        },
        "targets": {
            "written": {"y": ids.astype(np.int32)},
            "spoken": {"y": np.where(np.arange(1600) < said[:, None], wave, 0.0)},
            "voice": {"y": rng.integers(0, 2, size).astype(np.int32)},
        },
        "weight": np.ones(size, np.float32),
        "id": np.arange(size, dtype=np.int32),
    }
    for name, entry in {**batch["inputs"], **batch["targets"]}.items():
        entry["present"] = here[name]
        values = entry.get("x", entry.get("y"))
        values[~here[name]] = np.nan if values.dtype.kind == "f" else 99
    batch["targets"]["spoken"]["y"] = batch["targets"]["spoken"]["y"].astype(np.float32)
    return batch


@functools.cache
def _ready():
    built = model.build(CONFIG, TASKS, SPEC)
    variables = toy.variables(built, SPEC.example(2))

    @jax.jit
    def run(params, batch):
        predictions, _ = built({**variables, "params": params}, batch["inputs"])
        present = built.present(batch)
        states = {
            name: {
                key: metric.update(predictions[name], task.labels(batch, present))
                for key, metric in task.metrics.items()
            }
            for name, task in built.tasks.items()
        }
        return built.losses(predictions, batch), states, predictions

    return built, variables, run


def _figures(built, states):
    return {
        name: {
            metric: value
            for key, metric in task.metrics.items()
            for metric, value in metric.compute(jax.device_get(states[name][key])).items()
        }
        for name, task in built.tasks.items()
    }


def _rows(batch, rows):
    return jax.tree.map(lambda x: x[rows], batch)


def test_losses_and_figures_are_those_of_the_rows_that_count():
    built, variables, run = _ready()
    batch = _batch()
    (sums, counts), states, _ = run(variables["params"], batch)
    at = list(built.tasks)
    for name, needs in (
        ("ctc", ("audio", "written")),
        ("decoder", ("audio", "written")),
        ("mel", ("text", "spoken", "voice")),
    ):
        entries = {**batch["inputs"], **batch["targets"]}
        keep = np.stack([entries[key]["present"] for key in needs]).all(0)
        assert 1 < keep.sum() < 8
        # The same number of rows, those that do not count replaced by one that does, of weight 0.
        filled = _rows(batch, np.where(keep, np.arange(8), np.flatnonzero(keep)[0]))
        filled["weight"] = keep.astype(np.float32)
        (expected, expected_counts), expected_states, _ = run(variables["params"], filled)
        i = at.index(name)
        assert float(counts[i]) == float(expected_counts[i]) == keep.sum()
        np.testing.assert_allclose(sums[i], expected[i], rtol=1e-5)
        got, want = (_figures(built, s)[name] for s in (states, expected_states))
        assert got == pytest.approx(want, rel=1e-5)
        assert np.isfinite(list(got.values())).all()


def test_gradients_are_finite_and_those_of_clean_filler():
    built, variables, _ = _ready()

    @jax.jit
    @jax.grad
    def gradient(params, batch):
        mode = {"train": True, "key": jax.random.key(1)}
        predictions, _ = built({**variables, "params": params}, batch["inputs"], **mode)
        return built.losses(predictions, batch)[0].sum()

    batch = _batch()
    quiet = jax.tree.map(lambda x: np.nan_to_num(x) if x.dtype.kind == "f" else x, batch)
    got, want = (gradient(variables["params"], b) for b in (batch, quiet))
    for path, leaf in model.flatten(got).items():
        assert np.isfinite(leaf).all(), path
        assert np.asarray(leaf).any(), f"{path} learns nothing"
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_states_of_parts_merge_into_the_whole():
    built, variables, run = _ready()
    batch = _batch()
    first = np.arange(8) < 4
    parts = [{**batch, "weight": half.astype(np.float32)} for half in (first, ~first)]
    (whole_sums, _), whole, _ = run(variables["params"], batch)
    (sums, states), (more, others) = (
        (sums, states) for (sums, _), states, _ in (run(variables["params"], p) for p in parts)
    )
    np.testing.assert_allclose(sums + more, whole_sums, rtol=1e-5)
    merged = {
        name: {
            key: metric.merge(*jax.device_get((states[name][key], others[name][key])))
            for key, metric in task.metrics.items()
        }
        for name, task in built.tasks.items()
    }
    got, want = _figures(built, merged), _figures(built, whole)
    for name in built.tasks:
        assert got[name] == pytest.approx(want[name], rel=1e-5)


def test_without_labels_nothing_counts():
    built, variables, run = _ready()
    predictions = run(variables["params"], _batch())[2]
    batch = {**_batch(), "targets": {}}

    @jax.jit
    def score(predictions, batch):
        found = {}
        for name, task in built.tasks.items():
            labels = task.labels(batch, built.present(batch))
            states = {k: m.update(predictions[name], labels) for k, m in task.metrics.items()}
            found[name] = task.loss(predictions[name], labels, None), states
        return found

    found = jax.device_get(score(predictions, batch))
    states = {name: states for name, (_, states) in found.items()}
    for name, metrics in _figures(built, states).items():
        assert found[name][0] == (0, 0)
        assert np.isnan(list(metrics.values())).all()


@pytest.mark.parametrize("name", ["mel", "decoder"])
def test_more_padding_changes_nothing(name):
    built, variables, run = _ready()
    batch, task = _batch(), built.tasks[name]
    short = run(variables["params"], batch)[2][name]
    memory, mask = np.asarray(short["memory"]), np.asarray(short["mask"])
    mask = np.pad(mask, ((0, 0), (0, 3)))
    memory = np.pad(memory, ((0, 0), (0, 3), (0, 0)), constant_values=7.0)
    long = {**short, "memory": np.where(mask[..., None], memory, np.float32(7.0)), "mask": mask}

    @jax.jit
    def score(prediction):
        loss = task.loss(prediction, task.labels(batch, built.present(batch)), None)
        said = task.speech.say(prediction, jnp.zeros(8, jnp.int32)) if name == "mel" else ()
        return loss, said

    (loss, said), (expected, wanted) = score(long), score(short)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for a, b in zip(said, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_answers_for_a_person_and_trivial_predictions():
    built, variables, run = _ready()
    batch = _batch()
    predictions = jax.device_get(run(variables["params"], batch)[2])

    @jax.jit
    def trivial_states(batch):
        found = {}
        for name, task in built.tasks.items():
            rows = jax.tree.map(lambda x: jnp.broadcast_to(x, (8, *np.shape(x))), task.trivial)
            labels = task.labels(batch, built.present(batch))
            found[name] = {k: m.update(rows, labels) for k, m in task.metrics.items()}
        return found

    for metrics in _figures(built, jax.device_get(trivial_states(batch))).values():
        assert np.isfinite(list(metrics.values())).all()
        assert metrics.get("cer", 1.0) == 1.0
    for name, task in built.tasks.items():
        one = jax.tree.map(lambda x: x[0] if np.ndim(x) else x, predictions[name])
        answer = task.decode(one)
        if name == "mel":
            assert answer["wave"].ndim == 1
            assert answer["seconds"] == len(answer["wave"]) / 4000
        else:
            assert answer["prediction"] == next(iter(answer["best"]))
            assert all(0 <= p <= 1 for p in answer["best"].values())


def test_whose_voice_it_is_changes_the_loss():
    _, variables, run = _ready()
    batch = _batch()
    other = _batch()
    other["targets"]["voice"]["y"] = 1 - other["targets"]["voice"]["y"].clip(0, 1)
    (one, _), (two, _) = (run(variables["params"], b)[0] for b in (batch, other))
    np.testing.assert_array_equal(one[:2], two[:2])
    assert abs(one[2] - two[2]) > 1e-4


@jax.jit
def _teach(prediction, ids):
    return prediction["method"]("teach", prediction["memory"], prediction["mask"], ids)


def test_kept_keys_write_what_teaching_finds_likeliest():
    _, variables, run = _ready()
    # Sharper logits, so that the untrained decoder says something, and not all the same.
    params = jax.tree.map(np.copy, variables["params"])
    params["heads"]["decoder"]["out"]["kernel"] *= 20.0
    params["heads"]["decoder"]["read"]["kernel"] *= 20.0
    params["heads"]["decoder"]["out"]["bias"][0] = -10.0  # the end comes late
    prediction = run(params, _batch())[2]["decoder"]
    ids = prediction["ids"]
    assert isinstance(prediction["method"], BoundModule)
    assert len(np.unique(ids, axis=0)) > 1
    logits = np.asarray(_teach(prediction, ids))
    log_p = logits - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
    ended = np.cumsum(np.asarray(ids) == 0, axis=1) > 0
    best = np.where(ended, 0, log_p.argmax(-1)[:, :-1])
    np.testing.assert_array_equal(ids[:, 0], log_p[:, 0].argmax(-1))
    np.testing.assert_array_equal(np.asarray(ids), best)
    wanted = np.pad(np.asarray(ids), ((0, 0), (0, 1)))
    own = np.take_along_axis(np.asarray(log_p), wanted[..., None], -1)[..., 0]
    counted = np.pad(~ended, ((0, 0), (1, 0)), constant_values=True)
    np.testing.assert_allclose(prediction["score"], (own * counted).sum(1), rtol=1e-4, atol=1e-5)


def test_a_token_does_not_see_what_comes_after_it():
    _, variables, run = _ready()
    prediction = run(variables["params"], _batch())[2]["decoder"]
    ids = np.full((8, 6), 3, np.int32)
    changed = ids.copy()
    changed[:, 3:] = 4
    one, two = (np.asarray(_teach(prediction, x)) for x in (ids, changed))
    np.testing.assert_allclose(one[:, :4], two[:, :4], atol=1e-6)
    assert np.abs(one[:, 4:] - two[:, 4:]).max() > 1e-3


def test_what_is_spoken_is_written_down_again():
    built, variables, run = _ready()
    batch = _batch()
    metrics, waves = speech.round_trip(built, variables, [batch])
    entries = {**batch["inputs"], **batch["targets"]}
    names = ("text", "audio", "written", "spoken", "voice")
    both = np.stack([entries[name]["present"] for name in names]).all(0)
    assert [id for id, _ in waves] == np.flatnonzero(both).tolist()
    assert all(np.isfinite(wave).all() and wave.any() for _, wave in waves)
    # The recordings are heard as they are, where all that is needed is there.
    alone = {**batch, "weight": both.astype(np.float32)}
    state = jax.device_get(run(variables["params"], alone)[1]["ctc"]["errors"])
    expected = built.tasks["ctc"].metrics["errors"].compute(state)
    assert metrics["recorded"] == pytest.approx(expected)
    assert set(metrics) == {"recorded", "resynthesised", "synthesised"}


def test_the_config_hears_and_reads_into_one_space():
    config = training.load("emoji_speech")
    config.data.data_dir = str(CACHE)
    built = training.assemble(config).model
    assert {name: task.reads for name, task in built.tasks.items()} == {
        "transcript": ("audio",),
        "speech": ("text",),
    }
    assert built.auxiliaries == ("regularisers/0_agreement",)
    # What one modality says moves the other's encoder, and no head.
    terms = config.model.regularisers
    built = model.build({**CONFIG, "regularisers": terms}, TASKS, SPEC)
    variables = toy.variables(built, SPEC.example(2))
    batch, batch_stats = _batch(), variables.get("batch_stats", {})

    @jax.jit
    @jax.grad
    def pulled(params):
        sums, _, _ = built.split()(params, batch_stats, batch, jax.random.key(1))
        return sums[len(built.tasks) :].sum()

    for path, leaf in model.flatten(pulled(variables["params"])).items():
        assert np.asarray(leaf).any() == path.startswith("encoders/"), path
        assert np.isfinite(leaf).all(), path


def test_a_round_trip_needs_a_listener():
    built = model.build(CONFIG, {"mel": TASKS["mel"]}, SPEC)
    with pytest.raises(ConfigError, match="none writes down .* such as a 'recognition'"):
        speech.find_tasks(built)


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ({"kind": "recognition", "target": "voice"}, {}, "'voice' is a 'class' label"),
        ({"kind": "recognition", "target": "written", "beam": 0}, {}, "t.beam: 0"),
        (
            {"kind": "recognition", "target": "written", "reads": "audio"},
            {"audio": {"kind": "log_mel_gru", "stride": 8}},
            r"t.head: audio gives 5 tokens, one every 0.08, .* up to 6: .* too large by .* 1.2",
        ),
        (
            {"kind": "recognition", "target": "written", "reads": "image"},
            {"image": {"kind": "resnet", "preset": "tiny", "stem_kind": "half"}},
            r"image's tokens lie on a grid of \(1, 1\)|image gives",
        ),
        (
            {"kind": "recognition", "target": "written", "reads": ["audio", "image"]},
            {"image": {"kind": "resnet", "preset": "tiny", "stem_kind": "half"}},
            "reads audio, image; this head reads one thing",
        ),
        (
            {"kind": "recognition", "target": "written", "reads": "audio+image"},
            {"image": {"kind": "resnet", "preset": "tiny", "stem_kind": "half"}},
            "the fusion pooled its tokens",
        ),
        ({"kind": "recognition", "target": "written", "reads": "text"}, {}, "made from text"),
        ({"kind": "synthesis", "target": "spoken", "reads": "audio"}, {}, "made from audio"),
        (
            {"kind": "synthesis", "target": "spoken", "reads": "text", "voice": "low"},
            {},
            "t.voice: 'low': without `speaker`",
        ),
        (
            {**TASKS["mel"], "voice": "lowest"},
            {},
            "t.voice: unknown voice 'lowest' .*'low'",
        ),
        ({**TASKS["mel"], "hop": 0.1}, {}, "text has 6 tokens and the sound 4 frames"),
        ({**TASKS["mel"], "window": 1.0}, {}, "t.window: 1600 samples are shorter"),
        ({**TASKS["decoder"], "label_smoothing": 1.0}, {}, "t.label_smoothing: 1.0"),
        (
            {**TASKS["decoder"], "head": {"kind": "decoder", "width": 10}},
            {},
            "t.head.width: 10 does not divide over 4",
        ),
    ],
)
def test_impossible_tasks_are_refused_before_anything_compiles(task, changes, message):
    config = {**CONFIG, "encoders": {**CONFIG["encoders"], **changes}}
    with pytest.raises(ConfigError, match=message):
        built = model.build(config, {"t": {"reads": "audio", **task}}, SPEC)
        jax.eval_shape(built.init, jax.random.key(0), SPEC.example(2))
