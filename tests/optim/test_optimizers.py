"""Optimisers from a config against Optax's own; rules by path; averages; schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct

from mtmm_jax import training
from mtmm_jax.model import flatten
from mtmm_jax.optim import optimizers, per_path, schedules
from mtmm_jax.optim.averages import AverageState
from mtmm_jax.registry import ConfigError
from mtmm_jax.store.checkpoints import Checkpoints
from tests import toy
from tests.made_up import packaged
from tests.training import small_run

RATE, STEPS = 0.1, 10


def params():
    """Few shapes: what is not jitted is compiled once for each."""
    rng = np.random.default_rng(0)

    def dense(*names):
        shapes = {"kernel": (3, 3), "bias": (3,), "scale": (3,)}
        return {name: jnp.asarray(rng.normal(size=shapes[name]), jnp.float32) for name in names}

    return {
        "encoders": {
            "image": {
                "patches": dense("kernel"),
                "block1": dense("kernel", "bias"),
                "block2": dense("kernel", "bias"),
                "norm": dense("scale"),
                "project": dense("kernel"),
            },
            "table": {"dense": dense("kernel")},
        },
        "heads": {"kind": dense("kernel", "bias")},
    }


PARAMS = params()
GRADS = [jax.tree.map(lambda x, k=k: jnp.cos((k + 1) * x), PARAMS) for k in range(3)]


def matrices(tree):
    return jax.tree.map(lambda x: x.ndim > 1, tree)


def course(optimizer, start=PARAMS, **extra):
    """The parameters after three steps, and the state."""
    values = start
    with jax.numpy_dtype_promotion("standard"):  # Optax's own needs it
        state = optimizer.init(values)
        for grads in GRADS:
            updates, state = optimizer.update(grads, state, values, **extra)
            values = optax.apply_updates(values, updates)
    return values, state


def same(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def built(steps=STEPS, **config):
    return optimizers.build({"learning_rate": RATE, **config}, steps)[0]


def sam(rule, rho):
    climb = optax.chain(optax.contrib.normalize(), optax.sgd(rho))
    return optax.contrib.sam(rule, climb, opaque_mode=True)


def second(at, i):
    del i
    return jax.tree.map(jnp.sin, at)


EXPECTED = {
    "adamw": ({"weight_decay": 0.3}, optax.adamw(RATE, weight_decay=0.3, mask=matrices)),
    "adam": ({"b2": 0.9}, optax.adam(RATE, b2=0.9)),
    "sgd": (
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.3},
        optax.chain(
            optax.add_decayed_weights(0.3, matrices), optax.sgd(RATE, momentum=0.9, nesterov=True)
        ),
    ),
    "lion": ({"weight_decay": 0.3}, optax.lion(RATE, weight_decay=0.3, mask=matrices)),
    "lamb": ({"weight_decay": 0.3}, optax.lamb(RATE, weight_decay=0.3, mask=matrices)),
    "lars": (
        {"weight_decay": 0.3},
        optax.lars(RATE, 0.3, weight_decay_mask=matrices, trust_ratio_mask=matrices),
    ),
    "adafactor": (
        {"weight_decay": 0.3, "min_dim_size_to_factor": 2},
        optax.adafactor(
            RATE, min_dim_size_to_factor=2, weight_decay_rate=0.3, weight_decay_mask=matrices
        ),
    ),
    "rmsprop": (
        {"smoothing": 0.8, "momentum": 0.5},
        optax.rmsprop(RATE, decay=0.8, momentum=0.5),
    ),
    "adagrad": ({}, optax.adagrad(RATE)),
    "muon": (
        {"weight_decay": 0.3, "beta": 0.8},
        optax.contrib.muon(RATE, weight_decay=0.3, beta=0.8, weight_decay_mask=matrices),
    ),
    "schedule_free": (
        {"b1": 0.8, "eps": 1e-6},
        optax.contrib.schedule_free_adamw(RATE, b1=0.8, eps=1e-6),
    ),
    "sam": ({"inner": "sgd", "rho": 0.2}, sam(optax.sgd(RATE), 0.2)),
}


def test_every_optimiser_is_compared():
    assert set(EXPECTED) == set(packaged(optimizers.OPTIMIZERS))


@pytest.mark.parametrize("kind", EXPECTED)
def test_equals_optax_on_the_same_config(kind):
    hyper, expected = EXPECTED[kind]
    extra = {"grad_fn": second} if kind == "sam" else {}
    (found, state), (wanted, _) = (
        course(o, **extra) for o in (built(kind=kind, **hyper), expected)
    )
    same(found, wanted, rtol=1e-5, atol=1e-6)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), found, PARAMS)
    assert min(jax.tree.leaves(moved)) > 0
    # Traced, under strict promotion: a step gives back the state's structure, shapes and dtypes.
    optimizer = built(kind=kind, **hyper)
    traced = jax.eval_shape(lambda s: optimizer.update(GRADS[0], s, PARAMS, **extra), state)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), traced) == jax.tree.map(
        lambda x: (x.shape, x.dtype), (PARAMS, state)
    )


@pytest.mark.parametrize("kind", EXPECTED)
def test_what_is_frozen_stays_to_the_last_bit_and_factors_are_rates(kind):
    """Under clipping and an average, too; other parameters do as with another learning rate."""
    hyper = {**EXPECTED[kind][0], "weight_decay": 0.0}
    if kind in ("adam", "rmsprop", "adagrad", "sam"):
        del hyper["weight_decay"]
    if kind == "sam":
        hyper["inner"] = {"kind": "sgd", "momentum": 0.5}
    extra = {"grad_fn": second} if kind == "sam" else {}
    rules = {"freeze": ["encoders/.*"], "rates": [["heads/.*/bias", 0.5]]}
    ema = {} if kind == "schedule_free" else {"ema": 0.9}
    optimizer = built(kind=kind, **hyper, **rules, **ema)
    found, state = course(optimizer, **extra)
    same(found["encoders"], PARAMS["encoders"], rtol=0, atol=0)
    averages = optimizers.evaluation_params(state, found)
    same(averages["encoders"], PARAMS["encoders"], rtol=0, atol=0)
    moving = {"heads": PARAMS["heads"]}
    if kind == "sam":
        return  # the way up depends on what may move
    half = optimizers.build({"learning_rate": RATE / 2, "kind": kind, **hyper}, STEPS)[0]
    with jax.numpy_dtype_promotion("standard"):
        for rate, leaf in ((built(kind=kind, **hyper), "kernel"), (half, "bias")):
            inner = rate.init(moving)
            values = moving
            if kind in ("schedule_free",):
                break  # the averaging's weights are by the rate, a factor is none
            for grads in GRADS:
                step, inner = rate.update({"heads": grads["heads"]}, inner, values)
                values = optax.apply_updates(values, step)
            same(
                found["heads"]["kind"][leaf],
                values["heads"]["kind"][leaf],
                rtol=1e-5,
                atol=1e-6,
            )


def test_factors_are_exact_and_the_first_rule_wins():
    rates = {"heads/.*/bias": 0.25, "heads/.*": 0.5, "encoders/table/.*": 3.0}
    found, _ = course(built(kind="sgd", rates=rates))
    pairs = [list(pair) for pair in rates.items()]
    same(found, course(built(kind="sgd", rates=pairs))[0], rtol=0, atol=0)
    factors = {"heads/kind/bias": 0.25, "heads/kind/kernel": 0.5, "encoders/table/dense/kernel": 3}

    def one(path, value):
        for grads in GRADS:
            value = value - RATE * factors.get(path, 1) * by_name(grads)[path]
        return value

    same(found, per_path.by_path(one, PARAMS), rtol=1e-6, atol=1e-6)


def by_name(tree):
    named = {}
    per_path.by_path(lambda path, leaf: named.update({path: leaf}), tree)
    return named


def test_weight_decay_acts_on_what_the_masks_say():
    zero = jax.tree.map(jnp.zeros_like, PARAMS)

    def touched(**rules):
        optimizer = built(kind="adamw", weight_decay=0.5, **rules)
        updates, _ = optimizer.update(zero, optimizer.init(PARAMS), PARAMS)
        found = by_name(updates)
        for path, value in by_name(PARAMS).items():
            expected = -RATE * 0.5 * value if np.any(found[path]) else jnp.zeros_like(value)
            np.testing.assert_allclose(found[path], expected, rtol=1e-6)
        return {path for path, value in found.items() if np.any(value)}

    kernels = {path for path in by_name(PARAMS) if path.endswith("kernel")}
    assert touched() == kernels
    heads = {path for path in kernels if path.startswith("heads")}
    assert touched(no_decay=["heads/.*"]) == kernels - heads
    assert touched(decay="heads/.*") == {"heads/kind/kernel", "heads/kind/bias"}
    assert touched(decay=["heads/.*"], no_decay=["heads/.*/bias"]) == {"heads/kind/kernel"}
    assert touched(decay=["heads/.*"], freeze=[".*/kernel"]) == {"heads/kind/bias"}


def test_rates_by_depth():
    found = per_path.depth_factors(by_name(PARAMS), 0.5)
    named = {path.removeprefix("encoders/image/"): value for path, value in found.items()}
    assert named["patches/kernel"] == 0.5**3
    assert named["block1/kernel"] == named["block1/bias"] == 0.5**2
    assert named["block2/kernel"] == 0.5
    ones = {"norm/scale", "project/kernel", "heads/kind/bias", "encoders/table/dense/kernel"}
    assert all(named[path] == 1 for path in ones)
    stages = [
        "conv1/kernel",
        "norm1/scale",
        "stage1_block1/a",
        "stage2_block1/a",
        "stage1_block2/a",
    ]
    levels = per_path.depth_factors([f"encoders/image/{path}" for path in stages], 0.1)
    assert [round(-np.log10(f)) for f in levels.values()] == [4, 4, 3, 1, 2]

    updates, _ = course(built(kind="sgd", depth_decay=0.5, rates={".*/block1/.*": 3.0}))
    plain, _ = course(built(kind="sgd"))
    moved, expected = (jax.tree.map(jnp.subtract, x, PARAMS) for x in (updates, plain))
    block = lambda x, n: x["encoders"]["image"][n]["kernel"]  # noqa: E731
    np.testing.assert_allclose(block(moved, "block1"), 0.75 * block(expected, "block1"), rtol=1e-4)
    np.testing.assert_allclose(block(moved, "block2"), 0.5 * block(expected, "block2"), rtol=1e-4)


def test_depths_of_real_encoders():
    """Every encoder that numbers its parts ends at factor 1 and falls towards its inputs."""
    encoders = {
        "image": {"kind": "resnet", "preset": "tiny"},
        "text": {"kind": "text_transformer", "preset": "tiny"},
    }
    model = toy.build({"kind": {"kind": "classification"}}, encoders=encoders)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), model.spec.example(2)))
    named = per_path.depth_factors(by_name(shapes["params"]), 0.5)
    text = {path.split("/")[2]: f for path, f in named.items() if path.startswith("encoders/text")}
    assert text["project"] == text["norm"] == 1
    assert text["block2"] > text["block1"] > text["embedding"] > 0
    image = {p.split("/")[2]: f for p, f in named.items() if p.startswith("encoders/image")}
    assert image["project"] == 1
    assert image["stage2_block1"] > image["stage1_block1"] > image["conv1"] == image["norm1"]
    assert all(factor == 1 for path, factor in named.items() if not path.startswith("encoders"))


def test_clipping_leaves_out_what_is_frozen():
    optimizer = built(kind="sgd", clip=1.0, freeze=["encoders/.*"])
    updates, _ = optimizer.update(GRADS[0], optimizer.init(PARAMS), PARAMS)
    np.testing.assert_allclose(optax.tree.norm(updates), RATE, rtol=1e-5)


def test_average_of_the_parameters_against_a_loop():
    optimizer = built(kind="sgd", momentum=0.9, ema=0.7)
    plain = built(kind="sgd", momentum=0.9)
    state, inner, values, seen = optimizer.init(PARAMS), plain.init(PARAMS), PARAMS, []
    same(optimizers.evaluation_params(state, values), PARAMS, rtol=0)
    assert optimizers.evaluation_params(inner, values) is values
    for grads in GRADS:
        updates, inner = plain.update(grads, inner, values)
        again, state = optimizer.update(grads, state, values)
        same(again, updates, rtol=0, atol=0)
        values = optax.apply_updates(values, updates)
        seen.append(values)
        weights = 0.7 ** np.arange(len(seen))[::-1]
        expected = jax.tree.map(
            lambda *x, w=weights: np.tensordot(w / w.sum(), np.stack(x), 1), *seen
        )
        same(optimizers.evaluation_params(state, values), expected, rtol=1e-5, atol=1e-6)


def test_averages_of_schedule_free_also_replicated():
    values, state = course(built(kind="schedule_free", b1=0.8))
    expected = optax.contrib.schedule_free_eval_params(state, values)
    found = optimizers.evaluation_params(state, values)
    same(found, expected, rtol=1e-5, atol=1e-6)
    assert (
        float(jnp.abs(found["heads"]["kind"]["bias"] - values["heads"]["kind"]["bias"]).max()) > 0
    )
    twice = jax.tree.map(lambda x: jnp.stack([x, x]), (state, values))
    again = optimizers.evaluation_params(*twice)
    same(jax.tree.map(lambda x: x[1], again), found, rtol=1e-5, atol=1e-6)


def test_sam_climbs_by_rho_and_only_where_it_may():
    """Two gradients by hand; adaptive: scaled by the parameters; no NaN at a flat point."""
    for adaptive in (False, True):
        optimizer = built(
            kind="sam", inner="sgd", rho=0.3, adaptive=adaptive, freeze=["encoders/.*"]
        )
        seen = []

        def again(at, i, seen=seen):
            seen.append(at)
            return second(at, i)

        updates, _ = optimizer.update(GRADS[0], optimizer.init(PARAMS), PARAMS, grad_fn=again)
        g, p = GRADS[0]["heads"]["kind"], PARAMS["heads"]["kind"]
        size = {name: np.abs(p[name]) if adaptive else np.ones_like(p[name]) for name in p}
        norm = np.sqrt(sum(np.square(size[name] * g[name]).sum() for name in p))
        for name in p:
            at = p[name] + 0.3 * size[name] ** 2 * g[name] / norm
            np.testing.assert_allclose(seen[0]["heads"]["kind"][name], at, rtol=1e-5)
            expected = -RATE * np.sin(at)
            np.testing.assert_allclose(updates["heads"]["kind"][name], expected, rtol=1e-4)
        same(seen[0]["encoders"], PARAMS["encoders"], rtol=0)
    flat = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = optimizer.update(flat, optimizer.init(PARAMS), PARAMS, grad_fn=second)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(updates))


@struct.dataclass
class Kept:
    step: jax.Array
    sam: object
    schedule_free: object


def test_states_survive_a_checkpoint(tmp_path):
    """Frozen parts, averages and the two-step optimisers, saved and read by Orbax."""
    state = {"step": jnp.int32(3)}
    for name, config in {
        "sam": {"kind": "sam", "inner": "adamw", "ema": 0.9, "freeze": ["encoders/.*"]},
        "schedule_free": {"kind": "schedule_free", "freeze": ["heads/.*"]},
    }.items():
        extra = {"grad_fn": second} if name == "sam" else {}
        state[name] = course(built(**config), **extra)[1]

    checkpoints = Checkpoints(tmp_path)
    kept = Kept(**state)
    checkpoints.save(kept, None, {})
    checkpoints.wait()
    found, _ = checkpoints.restore(3, jax.eval_shape(lambda: kept))
    checkpoints.close()
    assert jax.tree.structure(found) == jax.tree.structure(kept)
    same(found, kept, rtol=0, atol=0)


SPANS = {
    # spec: learning rates at the first step after the warm-up, the middle of the rest and the end
    "constant": ("constant", 1.0, 1.0, 1.0),
    "cosine": ("cosine", 1.0, 0.5, 0.0),
    "cosine final": ({"kind": "cosine", "final": 0.2}, 1.0, 0.6, 0.2),
    "linear final": ({"kind": "linear", "final": 0.5}, 1.0, 0.75, 0.5),
    "rsqrt": ({"kind": "rsqrt", "timescale": 0.2}, 1.0, (20 / 60) ** 0.5, (20 / 100) ** 0.5),
    "rsqrt cooled": (
        {"kind": "rsqrt", "timescale": 0.2, "cooldown": 0.2, "final": 0.01},
        1.0,
        (20 / 60) ** 0.5,
        0.01,
    ),
    "step": ({"kind": "step", "boundaries": [0.4, 0.9], "factor": 0.1}, 1.0, 0.1, 0.01),
    "warm_restarts": (
        {"kind": "warm_restarts", "cycles": 2, "growth": 1.0, "final": 0.1},
        1.0,
        1.0,
        0.1,
    ),
}


@pytest.mark.parametrize("name", SPANS)
def test_schedules_with_warm_up(name):
    spec, *expected = SPANS[name]
    rate = schedules.standalone(schedules.build(spec, 2.0, 0.2, 100))
    np.testing.assert_allclose([rate(0), rate(10)], [0.0, 1.0], atol=1e-6)
    found = np.array([float(rate(step)) for step in (20, 60, 100)])
    np.testing.assert_allclose(found, 2 * np.array(expected), rtol=1e-5, atol=1e-6)
    assert float(rate(1000)) == float(rate(100)) or name == "rsqrt"
    jitted = jax.jit(jax.vmap(rate))
    many = jitted(jnp.asarray([20, 60, 100]))
    np.testing.assert_allclose(many, found, rtol=1e-5, atol=1e-6)


def test_one_cycle_and_restarts_in_between():
    assert {"one_cycle"} | {s if isinstance(s, str) else s["kind"] for s, *_ in SPANS.values()} == {
        *schedules.SCHEDULES
    }
    spec = {"kind": "one_cycle", "rise": 0.25, "first": 0.1, "final": 0.01}
    rate = schedules.standalone(schedules.build(spec, 2.0, 0.0, 100))
    found = [float(rate(step)) for step in (0, 25, 100)]
    np.testing.assert_allclose(found, [0.2, 2.0, 0.02], rtol=1e-5)
    restarts = schedules.build({"kind": "warm_restarts", "cycles": 3}, 1.0, 0.0, 70)
    rate = schedules.standalone(restarts)
    found = [float(rate(step)) for step in (0, 5, 10, 20, 30, 50, 70)]
    np.testing.assert_allclose(found, [1, 0.5, 1, 0.5, 1, 0.5, 0], atol=1e-6)


WRONG = {
    "kind": ({"kind": "adamm"}, "optimizer.kind: unknown optimiser 'adamm' .*'adam.*choices: ada"),
    "hyper": ({"kind": "sgd", "b1": 0.9}, "optimizer.b1: .*sgd 'b1'.* momentum, nesterov"),
    "rate": ({"learning_rate": -1}, "optimizer.learning_rate: -1"),
    "clip": ({"clip": 0}, "optimizer.clip: 0"),
    "clip word": ({"clip": "yes"}, "optimizer.clip: 'yes'"),
    "ema": ({"ema": 1.5}, "optimizer.ema: 1.5"),
    "warmup": ({"warmup": 1.0}, "optimizer.warmup: 1.0"),
    "schedule": ({"schedule": "cosin"}, "optimizer.schedule.kind: .*'cosin' .*'cosine'"),
    "final": ({"schedule": {"kind": "cosine", "final": 2}}, "optimizer.schedule.final: 2"),
    "boundaries": (
        {"warmup": 0.5, "schedule": {"kind": "step", "boundaries": [0.4]}},
        "boundaries: \\[0.4\\] .*warm-up's end \\(0.5\\)",
    ),
    "one_cycle": ({"warmup": 0.1, "schedule": "one_cycle"}, "optimizer.warmup: one_cycle rises"),
    "cycles": ({"schedule": {"kind": "warm_restarts", "cycles": 20}}, "20 do not fit into 10"),
    "factor": (
        {"rates": {"heads/.*": 0}},
        "optimizer.rates\\[0\\]: 0 is not a number above 0.* freeze",
    ),
    "pair": ({"rates": ["heads/.*"]}, "optimizer.rates\\[0\\]: 'heads/.\\*' is not a pair"),
    "regex": ({"freeze": ["heads/("]}, "optimizer.freeze: 'heads/\\(' is not a regex"),
    "no decay": (
        {"kind": "adam", "decay": ["a"]},
        "optimizer.decay: adam has no weight decay; .*sgd",
    ),
    "depth": ({"depth_decay": 1.0}, "optimizer.depth_decay: 1.0"),
    "free": ({"kind": "schedule_free", "schedule": "cosine"}, "schedule_free takes 'constant'"),
    "both": ({"kind": "schedule_free", "ema": 0.9}, "optimizer.ema: schedule_free averages"),
    "rho": ({"kind": "sam", "rho": 0}, "optimizer.rho: 0"),
    "inner": ({"kind": "sam", "inner": "sam"}, "optimizer.inner.kind: unknown kind 'sam'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_values_are_refused(name):
    config, message = WRONG[name]
    with pytest.raises(ConfigError, match=message):
        optimizers.build({"kind": "adamw", **config}, STEPS)


UNFIT = {
    "nothing": ({"freeze": ["encoders/audio/.*"]}, "freeze: .* matches none of: encoders/image/bl"),
    "rates": ({"rates": {"head/.*": 2.0}}, "rates: 'head/.*' matches none of: .* and 2 more"),
    "decay": ({"decay": ["kernel"]}, "decay: 'kernel' matches none"),
    "no_decay": ({"no_decay": ["bias"]}, "no_decay: 'bias' matches none"),
    "hidden": (
        {"rates": {"heads/.*": 2.0, "heads/.*s": 1.0}},
        "rates: 'heads/.*s' comes after",
    ),
    "all": ({"freeze": [".*"]}, "freeze: .* leaves nothing to train"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_rules_that_do_nothing_are_refused_before_anything_compiles(name):
    config, message = UNFIT[name]
    with pytest.raises(ConfigError, match=f"optimizer.{message}"):
        jax.eval_shape(built(kind="adamw", **config).init, PARAMS)


def test_depth_wants_numbered_parts():
    shallow = {"encoders": {"table": PARAMS["encoders"]["table"]}, "heads": PARAMS["heads"]}
    with pytest.raises(ConfigError, match="optimizer.depth_decay: no encoder here has numbered"):
        built(kind="adamw", depth_decay=0.5).init(shallow)


def test_states_without_options_are_those_of_optax():
    found = built(kind="adamw").init(PARAMS)
    assert jax.tree.structure(found) == jax.tree.structure(
        optax.adamw(lambda count: RATE, mask=matrices).init(PARAMS)
    )
    assert isinstance(built(kind="adamw", ema=0.9).init(PARAMS)[-1], AverageState)


def test_a_run_builds_it_from_the_config():
    config = training.load("digits")
    with config.unlocked(), config.ignore_type():
        config.optimizer.rates = [["encoders/.*", 0.5]]
        config.optimizer.schedule = {"kind": "cosine", "final": 0.1}
    experiment = training.assemble(config)
    rate = config.optimizer.learning_rate
    np.testing.assert_allclose(experiment.rates(config.steps), 0.1 * rate, rtol=1e-5)
    experiment.optimizer.init(jax.tree.map(lambda x: jnp.zeros((), x.dtype), PARAMS))


def test_no_gradient_is_computed_for_what_is_frozen():
    def made(freeze):
        config = small_run.get_config()
        with config.ignore_type():
            config.devices, config.optimizer.freeze = 1, freeze
        return training.assemble(config)

    plain, still = made([]), made(["encoders/text/.*"])
    variables = plain.model.init(jax.random.key(0), plain.source.spec.example(2))
    batch = next(iter(plain.source.train(8, seed=0)))

    def gradients(model):
        def loss(params):
            predictions, _ = model({**variables, "params": params}, batch["inputs"])
            return model.losses(predictions, batch, None)[0].sum()

        return flatten(jax.jit(jax.grad(loss))(variables["params"]))

    free, held = gradients(plain.model), gradients(still.model)
    for path, gradient in held.items():
        expected = 0 * free[path] if path.startswith("encoders/text/") else free[path]
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5, err_msg=path)
    assert any(free[path].any() for path in free if path.startswith("encoders/text/"))
