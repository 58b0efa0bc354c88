"""Pruned weights are exactly zero, as many as the schedule says, and stay so."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mtmm_jax import training
from mtmm_jax.model import flatten
from mtmm_jax.optim import optimizers, pruning
from mtmm_jax.optim.averages import evaluation_params
from mtmm_jax.registry import ConfigError
from mtmm_jax.training import loop
from tests.training import gradients, small_run

PRUNE = {"share": 0.7, "begin": 1, "end": 6, "every": 2}
STEPS = 9


def params():
    rng = np.random.default_rng(0)

    def draw(*shape, size=1.0):
        return jnp.asarray(size * rng.standard_normal(shape), jnp.float32)

    return {
        "encoders": {"conv": {"kernel": draw(3, 2, 5), "bias": draw(5)}},
        "fusion": {"out": {"kernel": draw(6, 8, size=0.1), "bias": draw(8)}},
        "heads": {"kind": {"kernel": draw(8, 3), "bias": draw(3)}},
    }


def course(steps=STEPS, prune=None, grads=None, **config):
    """After each update: parameters and state."""
    section = {**PRUNE, **(prune or {})}
    section = {"kind": "sgd", "learning_rate": 0.05, **config, "prune": section}
    optimizer, _ = optimizers.build(section, steps)
    values, found = params(), []
    state = optimizer.init(values)

    @jax.jit
    def step(values, state, number):
        pull = jax.tree.map(lambda x: jnp.cos((number + 1) * x) + 0.1, values)
        updates, state = optimizer.update(pull, state, values)
        return optax.apply_updates(values, updates), state

    for number in range(steps):
        values, state = step(values, state, np.float32(number))
        found.append((jax.device_get(values), state))
    return found


def zeros(tree, *paths):
    flat = flatten(tree)
    return sum(int((flat[path] == 0).sum()) for path in paths)


KERNELS = tuple(path for path in flatten(params()) if path.endswith("/kernel"))
SIZES = {path: flatten(params())[path].size for path in KERNELS}


def wanted(step, share=0.7, begin=1, end=6, every=2):
    """The share after so many updates, by NumPy: that of the last growth."""
    due = [t for t in range(begin, end + 1) if (t - begin) % every == 0 or t == end]
    grown = [t for t in due if t <= step]
    if not grown:
        return 0.0
    return share + (0 - share) * (1 - (grown[-1] - begin) / (end - begin)) ** 3


def test_the_share_grows_by_the_cubic_schedule():
    settings = pruning.read(PRUNE, STEPS)
    steps = np.arange(STEPS + 1)
    expected = 0.7 * (1 - (1 - np.clip((steps - 1) / 5, 0, 1)) ** 3)
    np.testing.assert_allclose(pruning.share_at(settings, steps), expected, atol=1e-6)
    assert expected[0] == expected[1] == 0
    np.testing.assert_allclose(expected[-1], 0.7)


def test_all_kernels_together_are_pruned_to_the_number():
    total, before = sum(SIZES.values()), None
    for number, (values, _) in enumerate(course(), start=1):
        assert zeros(values, *KERNELS) == int(wanted(number) * total + 1e-4), number
        flat = flatten(values)
        assert all(np.all(flat[path] != 0) for path in flat if path not in KERNELS)
        gone = {path: flat[path] == 0 for path in KERNELS}
        assert before is None or all(np.all(gone[p] | ~before[p]) for p in KERNELS)  # none returns
        before = gone
    assert zeros(values, "fusion/out/kernel") > 0.8 * SIZES["fusion/out/kernel"]  # the smallest


def test_the_smallest_go_first():
    """The update in which all of the share comes at once is NumPy's."""
    moved = moved_once()
    whole = np.sort(np.concatenate([np.abs(moved[path]).ravel() for path in KERNELS]))
    limit = whole[int(0.7 * whole.size)]
    ((values, _),) = course(1, {"begin": 0, "end": 1})
    for path in KERNELS:
        expected = np.where(np.abs(moved[path]) >= limit, moved[path], 0)
        np.testing.assert_allclose(flatten(values)[path], expected, atol=1e-6)


def test_each_layer_alone_is_pruned_to_its_share():
    values, _ = course(prune={"scope": "layer", "on": ["(encoders|fusion)/.*"]})[-1]
    for path in KERNELS:
        count = 0 if path.startswith("heads") else int(0.7 * SIZES[path] + 1e-4)
        assert zeros(values, path) == count


def moved_once():
    """The parameters after one update without pruning."""
    plain, _ = optimizers.build({"kind": "sgd", "learning_rate": 0.05}, STEPS)
    start = params()
    pull = jax.tree.map(lambda x: jnp.cos(x) + 0.1, start)
    updates, _ = plain.update(pull, plain.init(start), start)
    return flatten(jax.device_get(optax.apply_updates(start, updates)))


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_the_weakest_channels_go_whole_with_their_biases(scope):
    ((values, _),) = course(1, {"kind": "structured", "scope": scope, "begin": 0, "end": 1})
    flat, moved, weak = flatten(values), moved_once(), {}
    for path in KERNELS:
        matrix, before = (x[path].reshape(-1, x[path].shape[-1]) for x in (flat, moved))
        gone = (matrix == 0).all(0)
        np.testing.assert_allclose(matrix, np.where(gone, 0, before), atol=1e-6)
        np.testing.assert_array_equal(flat[path.replace("kernel", "bias")] == 0, gone)
        norms = np.linalg.norm(before, axis=0)
        assert norms[gone].max() < norms[~gone].min()
        weak[path] = gone.sum(), gone.size
    if scope == "layer":
        assert all(gone == int(0.7 * size + 1e-4) for gone, size in weak.values())
    else:  # 11 of 16, and of the small kernel one stays
        assert [gone for gone, _ in weak.values()] == [2, 7, 1]


def test_channels_never_come_back():
    before = np.zeros(8, bool)
    for values, _ in course(prune={"kind": "structured", "scope": "layer"}):
        gone = (flatten(values)["fusion/out/kernel"] == 0).all(0)
        assert (gone | ~before).all()
        before = gone
    assert before.sum() == 5


@pytest.mark.parametrize(
    "rule", [{"kind": "adamw", "ema": 0.9, "clip": 1.0}, {"kind": "schedule_free"}]
)
def test_averages_are_zero_where_parameters_are(rule):
    values, state = course(**rule)[-1]
    shown = evaluation_params(state, values)
    assert zeros(values, *KERNELS) == int(0.7 * sum(SIZES.values()))
    for path in KERNELS:
        np.testing.assert_array_equal(flatten(shown)[path] == 0, flatten(values)[path] == 0)
    apart = np.abs(flatten(shown)["heads/kind/bias"] - flatten(values)["heads/kind/bias"])
    assert apart.max() > 1e-4


def test_what_is_frozen_is_not_pruned():
    values, _ = course(freeze=["encoders/.*"])[-1]
    path = "encoders/conv/kernel"
    np.testing.assert_array_equal(flatten(values)[path], flatten(params())[path])
    rest = [p for p in KERNELS if p != path]
    assert zeros(values, *rest) == int(0.7 * sum(SIZES[p] for p in rest))
    with pytest.raises(ConfigError, match="matches frozen leaves only"):
        course(prune={"on": ["encoders/.*"]}, freeze=["encoders/.*"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"share": 1.0}, "prune.share: 1.0 is not a number above 0, below 1"),
        ({"end": 99}, "begin 1, end 99: needs begin < end <= steps, 9"),
        ({"begin": 6}, "begin 6, end 6: needs"),
        ({"every": 0}, "prune.every: 0 is not a whole number from 1"),
        ({"kind": "magnitud"}, "did you mean 'magnitude'"),
        ({"scope": "model"}, "prune.scope: 'model' is not one of 'global'"),
        ({"on": ["heads/.*/bias"]}, "prune.on: .* matches no parameter of two"),
        ({"until": 3}, "prune.until: unknown key 'until'"),
    ],
)
def test_bad_sections_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        course(prune=change)
    with pytest.raises(ConfigError, match="optimizer.prune: needs share, begin, end"):
        pruning.read({}, 3)


def test_zeros_are_counted_by_room():
    values, _ = course(prune={"scope": "layer"})[-1]
    counted = pruning.zeros(values)
    assert counted["encoders"] == (21, 30)
    assert pruning.sparsity_line(values, pruning.read(PRUNE, STEPS)).startswith(
        "zeros  encoders 70.0%  "
    )


@pytest.mark.usefixtures("uncached")
def test_a_mesh_prunes_alike_and_masks_lie_with_their_kernels():
    layout = gradients.layout(jax.devices()[:2], data=1, fsdp=2).resolve(params())
    section = {"kind": "sgd", "learning_rate": 0.05, "prune": {**PRUNE, "begin": 0, "every": 1}}
    optimizer, _ = optimizers.build(section, STEPS)

    def step(state, pull):
        values, own = state
        updates, own = optimizer.update(pull, own, values)
        return optax.apply_updates(values, updates), own

    found = []
    for placed in (jax.device_put, layout.put):
        state = placed((params(), optimizer.init(params())))
        for _ in range(2):
            state = jax.jit(step)(state, placed(jax.tree.map(jnp.cos, params())))
        found.append(jax.device_get(state[0]))
    assert zeros(found[0], *KERNELS) == int(sum(SIZES.values()) * 0.7 * (1 - (4 / 6) ** 3))
    jax.tree.map(np.testing.assert_array_equal, *found)
    kernel, masks = "fusion/out/kernel", layout.of(state)[1][1].masks
    assert masks[kernel] == layout.of(params())["fusion"]["out"]["kernel"]
    assert not masks[kernel].is_fully_replicated


def test_no_model_is_the_best_before_pruning_is_through():
    plain = {**small_run.get_config().to_dict(), "devices": 1, "balancing": "equal"}
    prune = {"share": 0.5, "begin": 1, "end": 5}
    made = training.assemble({**plain, "optimizer": {**plain["optimizer"], "prune": prune}})
    results = {name: {task.headline: 0.5} for name, task in made.model.tasks.items()}
    assert [loop.score(made, results, step) for step in (1, 4, 5, 6)] == [-np.inf] * 2 + [0.5] * 2
    assert loop.score(training.assemble(plain), results, 1) == 0.5
