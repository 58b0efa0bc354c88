"""Domain adaptation: losses are their formulas, turned gradients are turned, no others count."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.spatial.distance import pdist, squareform

from mtmm_jax import balancing, data
from mtmm_jax.benchmarks.studies import domains
from mtmm_jax.benchmarks.tables.result_table import Board
from mtmm_jax.data.pipeline.mixing import mixing
from mtmm_jax.data.sources.mixture import mix, rename
from mtmm_jax.devices import parallel
from mtmm_jax.layers.reversal import Reversal, grown, reverse
from mtmm_jax.model import flatten
from mtmm_jax.registry import ConfigError
from mtmm_jax.tasks.terms.domains import WIDTHS, coral_loss, mmd_loss
from mtmm_jax.training.step import init_state, make_step
from tests import toy
from tests.data.small import source
from tests.tasks.measured import labels_of, state

FEW = {"image": "image_mlp", "text": "text_bag"}
TERMS = [
    {"kind": "coral", "between": ["a", "b"], "on": "image", "target": "kind"},
    {"kind": "mmd", "between": ["b", "a"], "on": "fused", "target": "kind", "alpha": 2.0},
]
TASKS = {
    "kind": {"kind": "classification", "reverse": {"scale": 0.5, "ramp": 3}},
    "size": {"kind": "regression"},
    "drawn": {
        "kind": "reconstruction",
        "modality": "image",
        "reads": "text",
        "size": 4,
        "adversarial": {"weight": 0.3, "hidden": 8, "scale": 2.0},
    },
}


# The label


def _pair(**options):
    both = {"left": source("left"), "right": source("right", 10)}
    return mix(both, mixing(options.pop("mixing", "proportional")), origin=True, **options)


@pytest.mark.parametrize("how", ["proportional", "round_robin"])
def test_the_origin_is_the_source_of_the_row(how):
    whole = _pair(mixing=how)
    target = whole.spec.targets["origin"]
    assert target.classes == ("left", "right")
    np.testing.assert_allclose(target.frequencies, (2 / 3, 1 / 3))
    assert all("origin" in spec.targets for spec in whole.carries)
    for batch in (next(iter(whole.train(6))), next(whole.batches("test", 8))):
        whole.spec.check(batch)
        entry = batch["targets"]["origin"]
        np.testing.assert_array_equal(entry["y"], batch["id"] % 2)
        assert entry["present"].all()
    plain = mix({"left": source("left")}, mixing("proportional"))
    assert "origin" not in plain.spec.targets


def test_some_sources_train_and_others_are_held():
    whole = _pair(trained=["left"], held="right")
    assert (next(iter(whole.train(12)))["targets"]["origin"]["y"] == 0).all()
    for split in ("validation", "test"):
        for batch in whole.batches(split, 4):
            assert (batch["targets"]["origin"]["y"] == 1).all()
        assert whole.split_size(split) == source("right", 10).split_size(split)
    assert len(whole.parts) == len(whole.carries) == 1


def test_impossible_mixtures_are_named():
    with pytest.raises(ConfigError, match="data.held: unknown source 'lef'.*left, right"):
        _pair(held=["lef"])
    with pytest.raises(ConfigError, match="data.trained: is empty; choices: left, right"):
        _pair(trained=[])
    taken = rename(source("left"), {"kind": "origin"})
    with pytest.raises(ConfigError, match="sources.left: has a target 'origin' of its own"):
        mix({"left": taken}, mixing("proportional"), origin=True)
    with pytest.raises(ConfigError, match="data.origin: 'yes' is not True or False"):
        data.build({"kind": "mixture", "sources": {"a": "generator"}, "origin": "yes"})


# The losses


def _sets(seed=0, rows=24, width=5):
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((rows, width)) * np.arange(1, width + 1) + 3).astype(np.float32)
    label = rng.integers(0, 3, rows)
    x[label == 1] += 1.0
    return x, label == 0, label == 1


def _mmd(x, one, other, widths):
    """By its definition, pair by pair."""
    kept = x[one | other]
    middle = np.sort(pdist(kept, "sqeuclidean"))[(len(kept) * (len(kept) - 1) // 2 - 1) // 2]
    k = np.mean([np.exp(-squareform(pdist(x, "sqeuclidean")) / (w * middle)) for w in widths], 0)
    means = [k[np.ix_(a, b)].mean() for a, b in ((one, one), (other, other), (one, other))]
    return means[0] + means[1] - 2 * means[2]


def test_losses_are_their_formulas():
    x, one, other = _sets()
    s, t = x[one].astype(np.float64), x[other].astype(np.float64)
    apart = np.square(np.cov(s.T) - np.cov(t.T)).sum() / (4 * x.shape[1] ** 2)
    means = np.square(s.mean(0) - t.mean(0)).sum() / x.shape[1]
    weights, choices = (0.0, 0.5), (WIDTHS, (0.7,))

    @jax.jit
    def found(x):
        coral = [coral_loss(x, one, other, means=weight) for weight in weights]
        return coral, [mmd_loss(x, one, other, widths=widths)[0] for widths in choices]

    corals, mmds = found(x)
    for weight, (value, enough) in zip(weights, corals, strict=True):
        assert enough
        np.testing.assert_allclose(value, apart + weight * means, rtol=1e-5)
    for widths, value in zip(choices, mmds, strict=True):
        np.testing.assert_allclose(value, _mmd(x, one, other, widths), rtol=1e-4)


@pytest.mark.parametrize("loss", [coral_loss, mmd_loss])
def test_losses_vanish_for_equal_sets_and_ignore_everyone_else(loss):
    x, one, other = _sets()
    measure = jax.jit(jax.value_and_grad(loss, has_aux=True))
    twice, halves = np.concatenate([x, x]), np.arange(2 * len(x)) < len(x)
    np.testing.assert_allclose(measure(twice, halves, ~halves)[0][0], 0.0, atol=1e-5)
    (before, _), slope = measure(x, one, other)
    assert before > 0.01
    nobody = ~(one | other)
    loud = np.where(nobody[:, None], np.float32(np.nan), x)
    (after, _), changed = measure(loud, one, other)
    np.testing.assert_allclose(after, before, rtol=1e-6)
    np.testing.assert_allclose(changed, slope, atol=1e-6)
    assert not np.asarray(slope)[nobody].any()
    (alone, enough), _ = measure(x, one, np.arange(len(x)) == 0)
    assert (float(alone), bool(enough)) == (0.0, False)
    assert np.isfinite(measure(x, nobody & False, nobody & False)[1]).all()


# The turned gradient


def test_reversed_gradients_are_minus_scale_times_plain_ones():
    x = np.linspace(-1.0, 2.0, 6).astype(jnp.bfloat16)

    def wave(x, turn):
        return jnp.sin(turn(x).astype(jnp.float32)).sum()

    @jax.jit
    def slopes(x):
        turned = jax.grad(lambda x: wave(x, lambda x: reverse(x, 0.25)))(x)
        return jax.grad(wave)(x, lambda x: x), turned, reverse(x, 0.25)

    plain, turned, same = map(np.asarray, slopes(x))
    np.testing.assert_array_equal(turned, np.asarray(-0.25, plain.dtype) * plain)
    np.testing.assert_array_equal(same, x)


def test_the_ramp_counts_training_steps():
    module, x = Reversal(2.0, 4), {"image": np.ones((2, 3), np.float32)}
    state = jax.jit(lambda x: module.init(jax.random.key(0), x, train=True))(x)
    assert float(state["batch_stats"]["steps"]) == 0

    @jax.jit
    def step(state, x):
        slope = jax.grad(lambda x: module.apply(state, x)["image"].sum())(x)["image"]
        _, new = module.apply(state, x, train=True, mutable=["batch_stats"])
        _, same = module.apply(state, x, mutable=["batch_stats"])
        return slope, new, same

    for number in range(6):
        slope, state, same = step(state, x)
        share = min(number / 4, 1)
        np.testing.assert_allclose(slope, -2 * (2 / (1 + np.exp(-10 * share)) - 1), rtol=1e-6)
        assert float(same["batch_stats"]["steps"]) == number
    assert "batch_stats" not in jax.eval_shape(Reversal(2.0).init, jax.random.key(0), x)


def _gradient(built, batch, names):
    """Of the mean losses of some tasks, by path."""

    def total(params):
        sums, counts = built.losses(built({"params": params}, batch["inputs"])[0], batch)
        wanted = jnp.array([name in names for name in built.tasks])
        return jnp.where(wanted, sums / jnp.maximum(counts, 1), 0.0).sum()

    params = toy.variables(built, toy.SPEC.example(2))["params"]
    return flatten(jax.jit(jax.grad(total))(params))


def test_a_reversed_task_teaches_its_head_and_unteaches_the_rest():
    batch, tasks = toy.batch(), {"kind": {"kind": "classification"}}
    turned = {"kind": {**tasks["kind"], "reverse": {"scale": 3.0}}}
    plain, other = (_gradient(toy.build(t, encoders=FEW), batch, "kind") for t in (tasks, turned))
    plain = {path: x for path, x in plain.items() if np.any(x)}
    assert {path.split("/")[0] for path in plain} == {"encoders", "fusion", "heads"}
    for path, slope in plain.items():
        factor = 1.0 if path.startswith("heads") else -3.0
        np.testing.assert_allclose(other[path], factor * slope, rtol=1e-4, atol=1e-7, err_msg=path)


def test_the_critic_learns_to_tell_what_the_rest_learns_to_hide():
    tasks, batch = {"drawn": TASKS["drawn"]}, toy.batch()
    plain = {"drawn": {k: v for k, v in TASKS["drawn"].items() if k != "adversarial"}}
    built = toy.build(tasks, encoders=FEW)
    params = toy.variables(built, toy.SPEC.example(2))["params"]
    labels = labels_of(built, batch)["drawn"]
    known = labels.y["known"]
    real = np.where(known, labels.y["values"], np.float32(0))
    rows = labels.weight

    def critic(params):
        """What it is asked, without any turning."""
        said = built({"params": params}, batch["inputs"])[0]["drawn"]
        drawn = jnp.where(known, said["values"], 0.0)
        logits = [said["method"]("critic_logit", x) for x in (drawn, real)]
        each = -jax.nn.log_sigmoid(-logits[0]) - jax.nn.log_sigmoid(logits[1])
        return (jnp.where(rows > 0, each, 0.0)).sum() / rows.sum()

    squares = flatten(toy.variables(toy.build(plain, encoders=FEW), toy.SPEC.example(2))["params"])
    # The names below the wrapper differ, so the squares' part is asked of the model itself.
    asked = flatten(jax.jit(jax.grad(critic))(params))
    both = _gradient(built, batch, "drawn")
    assert set(squares) < {path.replace("drawn/head/", "drawn/") for path in both}
    weight, scale = 0.3, 2.0
    free = toy.build({"drawn": {**tasks["drawn"], "adversarial": {"hidden": 8, "weight": 1e-9}}},
                     encoders=FEW)  # fmt: skip
    alone = _gradient(free, batch, "drawn")
    for path, slope in both.items():
        if "critic" in path:
            np.testing.assert_allclose(slope, weight * asked[path], rtol=1e-4, atol=1e-6)
        elif path.startswith(("encoders/text", "heads")):
            wanted = alone[path] - weight * scale * asked[path]
            np.testing.assert_allclose(slope, wanted, rtol=1e-4, atol=1e-5, err_msg=path)
    assert any(np.any(slope) for path, slope in both.items() if "critic" in path)


def test_the_critic_is_scored():
    built = toy.build({"drawn": TASKS["drawn"]}, encoders=FEW)
    task, batch = built.tasks["drawn"], toy.batch(holes=False)
    labels = labels_of(built, batch)["drawn"]
    metric = task.metrics["critic"]

    @jax.jit
    def update(bias):
        said = {"values": jnp.zeros((8, 48)), "method": lambda method, x: bias + x.sum(-1)}
        return metric.update(said, labels)

    def score(bias):
        return metric.compute(jax.device_get(update(np.float32(bias))))

    assert score(1e6) == {"critic": 0.5}  # all is real to it
    real = np.asarray(labels.y["values"].sum(-1))
    assert score(-1e-6)["critic"] == pytest.approx(0.5 + 0.5 * np.mean(real > 0), abs=1e-6)
    trivial = {key: np.broadcast_to(x, (8, 48)) for key, x in task.trivial.items()}
    assert np.isnan(metric.compute(state(metric, trivial, labels))["critic"])


# All of it in a step


@functools.cache
def _step(devices):
    built = toy.build(TASKS, encoders=FEW, regularisers=TERMS)
    balancer = balancing.with_auxiliary_losses(balancing.build("equal", 3), 2)
    state = init_state(built, balancer, optax.sgd(1.0), seed=0)
    step = make_step(built, balancer, optax.sgd(1.0), seed=0)
    return built, state, parallel.wrap(step, devices, donate=False)


def _after(devices, batch, state=None):
    built, start, step = _step(devices)
    state = start if state is None else state
    new, metrics = step(parallel.replicate(state, devices), batch)
    metrics = jax.tree.map(lambda x: x if devices == 1 else x[0], jax.device_get(metrics))
    return built, jax.device_get(parallel.first(new, devices)), metrics


@pytest.mark.usefixtures("uncached")
def test_two_devices_do_what_one_does():
    batch = toy.batch(12, seed=3)
    _, one, metrics = _after(1, batch)
    _, two, same = _after(2, batch)
    assert (metrics["losses"] > 0).all()
    np.testing.assert_allclose(same["losses"], metrics["losses"], rtol=1e-5)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(one.params), jax.tree.leaves(two.params), strict=True
    ):
        np.testing.assert_allclose(b, a, atol=2e-5, err_msg=jax.tree_util.keystr(path))
    assert float(one.batch_stats["heads"]["kind"]["reversal"]["steps"]) == 1
    assert float(two.batch_stats["heads"]["kind"]["reversal"]["steps"]) == 1


def test_the_step_moves_the_ramp_and_only_two_origins_count():
    batch = toy.batch(12, seed=3)
    kind = batch["targets"]["kind"]
    built, once, metrics = _after(1, batch)
    _, twice, _ = _after(1, batch, once)
    assert float(twice.batch_stats["heads"]["kind"]["reversal"]["steps"]) == 2
    shares = jax.jit(lambda steps: grown(steps, 3))(np.float32([2, 1]))
    assert float(shares[0]) > float(shares[1]) > 0
    third = (kind["y"] == 2) | ~kind["present"]
    assert third.any()
    noisy = dict(batch["inputs"]["image"])
    seen = noisy["present"][:, None, None, None] & third[:, None, None, None]
    noisy["x"] = np.where(seen, 7.0, noisy["x"]).astype(np.float32)
    changed = {**batch, "inputs": {**batch["inputs"], "image": noisy}}
    _, _, other = _after(1, changed)
    places = [built.loss_names.index(n) for n in ("regularisers/0_coral", "regularisers/1_mmd")]
    assert (metrics["losses"][places] > 1e-4).all()
    np.testing.assert_allclose(other["losses"][places], metrics["losses"][places], rtol=1e-5)
    assert not np.allclose(other["losses"][:3], metrics["losses"][:3])
    absent = {**kind, "present": np.zeros(12, bool)}
    _, _, none = _after(1, {**batch, "targets": {**batch["targets"], "kind": absent}})
    assert not none["present"][[0, *places]].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"between": ["a", "d"]}, "between: unknown class of kind 'd'; choices: a, b, c"),
        ({"between": ["a", "a"]}, "two different names"),
        ({"target": "size"}, "'size' is a 'number' label"),
        ({"target": "origin"}, "no label 'origin'.*kind, spelling"),
        ({"on": "smell"}, "unknown modality 'smell'"),
        ({"means": -1}, "means: -1 is not a number from 0 upwards"),
        ({"kind": "mmd", "widths": [1, 0]}, r"widths\[1\]: 0 is not a number above 0"),
    ],
)
def test_impossible_terms_are_refused(changes, message):
    term = {"kind": "coral", "between": ["a", "b"], "target": "kind", "on": "image", **changes}
    with pytest.raises(ConfigError, match=message):
        toy.build(TASKS, encoders=FEW, regularisers=[term])


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"reverse": {"scal": 1}}, "tasks.kind.reverse.scal: unknown .* 'scal'.*ramp, scale"),
        ({"reverse": {"scale": 0}}, "reverse.scale: 0 is not a number above 0"),
        ({"reverse": {"ramp": 0.5}}, "reverse.ramp: 0.5 is not a whole number"),
        ({"reverse": 1.0}, "reverse: 1.0 is not True or False, or a section"),
        ({"adversarial": {"weigth": 1}}, "adversarial.weigth: unknown key 'weigth'"),
        ({"adversarial": {"weight": -1}}, "adversarial.weight: -1 is not a number above 0"),
        ({"adversarial": {"hidden": 0}}, "adversarial.hidden: 0 is not a whole number from 1"),
    ],
)
def test_impossible_turns_are_refused(task, message):
    drawn = {"kind": "reconstruction", "modality": "image"}
    with pytest.raises(ConfigError, match=message):
        toy.build({"kind": {**(drawn if "adversarial" in task else {"kind": "classification"}),
                            **task}}, encoders=FEW)  # fmt: skip


# Its metrics


def _board():
    board = Board(None)
    for name, values in {
        "source_only": (0.4, 0.5),
        "mmd": (0.5, 0.7),
        "joint": (0.8, 0.8),
        "target_only": (0.6, 0.7),
    }.items():
        for seed, value in enumerate(values):
            row = {"seed": seed, "test": value, "validation": None if name == "mmd" else 0.5}
            board.add(domains.key_of(name, None) | row)
    return board


def test_the_share_of_the_gap_is_reported():
    board = _board()
    assert domains.recovered(board, "mmd", "test", None) == pytest.approx(0.15 / 0.2)
    assert domains.recovered(board, "source_only", "test", None) == pytest.approx(0)
    assert domains.recovered(board, "target_only", "test", None) == pytest.approx(1)
    assert domains.recovered(board, "mmd", "validation", None) is None  # not measured
    assert domains.recovered(board, "joint", "validation", None) is None  # there is no gap
    assert domains.recovered(board, "coral", "test", None) is None
    name, share = domains.best(board)
    assert (name, share) == ("mmd", pytest.approx(0.75))  # joint has labels of the target
    line = next(x for x in domains.table(board, domains.WAYS).splitlines() if "MMD" in x)
    assert line == "| MMD | `domain_mmd` | no | - | 0.600 ± 0.100 | -, 75% |"


class _Means:
    """A model whose statistics are a running mean of its input's square."""

    def trunk(self, variables, inputs, *, train, key):
        assert train
        assert key is not None
        mean = jnp.square(inputs["m1"]["x"]).mean()
        old = variables["batch_stats"]["a"]["mean"]
        return None, {"batch_stats": {"a": {"mean": 0.5 * old + 0.5 * mean}}}


def test_batch_statistics_become_those_of_the_target():
    knobs = {"one": 0.1, "other": 3.0}
    sections = {
        name: {"kind": "generator", "size": (64, 8, 8), "noise": noise}
        for name, noise in knobs.items()
    }
    config = {"data": {"kind": "mixture", "sources": sections}, "batch_size": 16, "seed": 0}
    experiment = SimpleNamespace(config=config, model=_Means())
    before = {"params": {"w": 1.0}, "batch_stats": {"a": {"mean": jnp.float32(1e3)}, "b": {"x": 7}}}
    after = domains.adapted(experiment, before, "other", passes=3)
    assert after["params"] == before["params"]
    assert after["batch_stats"]["b"] == {"x": 7}
    alone = data.build(sections["other"])
    x = alone.compose(alone.rows["train"], None)["inputs"]["m1"]["x"]
    # Twelve batches: what was there before has all but gone, and only the target's rows came in.
    assert float(after["batch_stats"]["a"]["mean"]) == pytest.approx(np.square(x).mean(), rel=0.3)
