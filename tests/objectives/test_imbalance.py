"""Modality imbalance: each rule is its formula, over steps, holes and devices alike."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

from mtmm_jax import balancing, model, training
from mtmm_jax.balancing.base import Evidence
from mtmm_jax.balancing.losses_adaptive import blending
from mtmm_jax.devices import mesh, parallel, processes
from mtmm_jax.objectives.imbalance import IMBALANCE, prepare
from mtmm_jax.objectives.imbalance_rules import Scene, Setting, Verdict, agm, modulated, ogm_ge
from mtmm_jax.objectives.prototypes import pmr
from mtmm_jax.optim import optimizers
from mtmm_jax.registry import ConfigError
from mtmm_jax.store.checkpoints import Checkpoints
from mtmm_jax.store.workdir import Workdir
from mtmm_jax.training import loop
from mtmm_jax.training.logs import read_journal
from mtmm_jax.training.step import ExtendedState, TrainState, make_step
from tests import toy
from tests.training import small_run

NAMES = ("image", "text", "table")
M, B, C, D, STEPS = 3, 7, 4, 5, 10
ON = Setting(M, C, D, STEPS)
SGD = optax.sgd(1.0)
WHERE = {"where": "here"}


def _scenes():
    """Six steps with holes: in the third the last modality is in no row, in the fourth all lack
    a label but one modality's rows; labels are sometimes soft."""
    rng = np.random.default_rng(0)
    for number in range(6):
        weight = (rng.random((M, B)) < 0.7) * np.where(rng.random(B) < 0.5, 1.0, 0.5)
        if number == 2:
            weight[-1] = 0
        if number == 3:
            weight[1:] = 0
        label = np.eye(C)[rng.integers(0, C, B)]
        if number == 4:
            label = rng.dirichlet(np.ones(C), B)
        strength = np.array([9.0, 1.0, -3.0])[:, None, None] * (1 if number < 5 else -1)
        logits = rng.standard_normal((M, B, C)) + strength * label
        features = rng.standard_normal((M, B, D)) + strength * (label @ np.ones((C, D)).cumsum(1))
        yield Scene(*(np.asarray(x, np.float32) for x in (logits, weight, label, features)))


def _softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _score(values, weight):
    return [
        float((v * w).sum() / w.sum()) if w.sum() else None
        for v, w in zip(values, weight, strict=True)
    ]


def _others(scores, m):
    found = [s for n, s in enumerate(scores) if n != m and s is not None]
    return np.mean(found) if found and scores[m] is not None else None


def _run(rule):
    """The rule's verdicts and terms over all scenes."""

    @jax.jit
    def one(memory, scene, step):
        sums, term = rule.measure(memory, scene, step, None)
        verdict = rule.react(memory, sums, step)
        return verdict.memory, verdict.metrics, term

    memory, steps = rule.init(), []
    for step, scene in enumerate(_scenes()):
        memory, metrics, term = one(memory, scene, np.int32(step))
        steps.append(jax.device_get((metrics, term, memory)))
    return steps


def test_ogm_slows_whoever_leads():
    steps = _run(ogm_ge(ON, alpha=0.5, begin=0.1, end=0.5, **WHERE))
    slowed = 0
    for step, (scene, (metrics, _, _)) in enumerate(zip(_scenes(), steps, strict=True)):
        scores = _score((_softmax(scene.logits) * scene.label).sum(-1), scene.weight)
        for m in range(M):
            other, expected = _others(scores, m), 1.0
            if other is None:
                assert np.isnan(metrics["ratio"][m])
            else:
                rho = scores[m] / other
                np.testing.assert_allclose(metrics["ratio"][m], rho, rtol=1e-4)
                if rho > 1 and 1 <= step < 5:
                    expected = 1 - np.tanh(0.5 * rho)
                    slowed += 1
            np.testing.assert_allclose(metrics["coefficient"][m], expected, rtol=1e-4)
    assert slowed >= 2
    assert (steps[0][0]["ratio"] > 1).any()  # before it begins
    assert (steps[5][0]["ratio"] > 1).any()  # after its end


def test_agm_holds_each_lead_to_what_it_was():
    steps = _run(agm(ON, alpha=0.7))
    history, capped = [[] for _ in range(M)], 0
    for scene, (metrics, _, memory) in zip(_scenes(), steps, strict=True):
        log_p = np.log(np.maximum(_softmax(scene.logits.astype(np.float64)), 1e-8))
        scores = _score((log_p * scene.label).sum(-1), scene.weight)
        known = [s if h else None for s, h in zip(scores, history, strict=True)]
        means = [
            np.mean(h) if h and s is not None else None
            for s, h in zip(scores, history, strict=True)
        ]
        for m in range(M):
            expected = 1.0
            if _others(known, m) is not None:
                ratio = np.exp(scores[m] - _others(known, m))
                usual = np.exp(means[m] - _others(means, m))
                capped += usual - ratio > 7
                expected = np.exp(0.7 * min(usual - ratio, 7))
            np.testing.assert_allclose(metrics["coefficient"][m], expected, rtol=1e-3, atol=1e-6)
        for s, h in zip(scores, history, strict=True):
            h += [] if s is None else [s]
        np.testing.assert_allclose(memory.mean, [np.mean(h) if h else 0 for h in history], 1e-4)
        assert memory.count.tolist() == [len(h) for h in history]
    assert capped


def _pmr_step(scene, prototypes, early, mu):
    """`(term, coefficients)` by loops; `prototypes` are dicts from class to vector."""
    scores, losses, spreads = [], [], []
    for m in range(M):
        rows = []
        for i in range(B):
            if scene.weight[m, i] == 0 or any(
                scene.label[i, k] > 0 and k not in prototypes[m] for k in range(C)
            ):
                continue
            seen = sorted(prototypes[m])
            z = scene.features[m, i].astype(np.float64)
            p = _softmax(np.array([-np.linalg.norm(z - prototypes[m][k]) for k in seen]))
            y = scene.label[i, seen]
            rows.append((scene.weight[m, i], p @ y, -y @ np.log(p), -p @ np.log(p)))
        if not rows:
            scores.append(None)
            losses.append(0.0)
            spreads.append(0.0)
            continue
        w, own, loss, spread = map(np.array, zip(*rows, strict=True))
        for into, values in ((scores, own), (losses, loss), (spreads, spread)):
            into.append((w * values).sum() / w.sum())
    term, coefficients = 0.0, []
    for m in range(M):
        other = _others(scores, m)
        rho = None if other is None else scores[m] / other
        slow = 0.0 if rho is None else np.clip(1 / rho - 1, 0, 1)
        leading = 0.0 if rho is None or not early else np.clip(rho - 1, 0, 1)
        term += mu * (slow * losses[m] - leading * spreads[m])
        coefficients.append(mu * (slow - leading))
    return term, coefficients, any(s is not None for s in scores)


def _move(prototypes, scene, momentum):
    for m in range(M):
        for k in range(C):
            w = scene.weight[m] * scene.label[:, k]
            if w.sum():
                mean = (w[:, None] * scene.features[m]).sum(0) / w.sum()
                old = prototypes[m].get(k, mean)
                prototypes[m][k] = momentum * old + (1 - momentum) * mean


def test_pmr_draws_the_slow_to_their_prototypes():
    steps = _run(pmr(ON, mu=0.6, momentum=0.8, entropy=0.3))
    prototypes, signs = [{} for _ in range(M)], set()
    for step, (scene, (metrics, term, memory)) in enumerate(zip(_scenes(), steps, strict=True)):
        expected, coefficients, any_row = _pmr_step(scene, prototypes, step < 3, 0.6)
        np.testing.assert_allclose(term[0], expected, rtol=2e-3, atol=1e-4)
        assert bool(term[1]) == any_row == (step > 0)
        np.testing.assert_allclose(metrics["coefficient"], coefficients, rtol=2e-3, atol=1e-4)
        signs |= {(step < 3, np.sign(c)) for c in coefficients}
        _move(prototypes, scene, 0.8)
        for m in range(M):
            assert memory.seen[m].nonzero()[0].tolist() == sorted(prototypes[m])
            for k, vector in prototypes[m].items():
                np.testing.assert_allclose(memory.means[m, k], vector, rtol=1e-3, atol=1e-4)
    assert {(True, 1.0), (True, -1.0), (False, 1.0)} <= signs
    assert (False, -1.0) not in signs


def test_pmr_moves_features_only_through_the_probabilities():
    """The gradient is that of the loops' term with its coefficients held."""
    rule = pmr(ON, mu=1.0, entropy=1.0)
    first, second, *_ = _scenes()

    @jax.jit
    def remembered():
        start = rule.init()
        return rule.react(start, rule.measure(start, first, 0, None)[0], 0).memory

    memory = remembered()
    prototypes = [{} for _ in range(M)]
    _move(prototypes, first, 0.9)
    coefficients = _pmr_step(second, prototypes, True, 1.0)[1]
    found = jax.jit(
        jax.grad(lambda z: rule.measure(memory, second._replace(features=z), 1, None)[1][0])
    )(second.features)
    found = np.asarray(found)

    def term(features):
        """-c mean log p[y] where c > 0, c mean H(p) where c < 0."""
        total = 0.0
        for m, c in enumerate(coefficients):
            if c == 0:
                continue
            seen = sorted(prototypes[m])
            y, w = second.label[:, seen], second.weight[m] * second.label[:, seen].sum(-1)
            means = np.stack([prototypes[m][k] for k in seen])
            gap = np.linalg.norm(features[m][:, None] - means, axis=-1)
            p = _softmax(-gap)
            values = -(y * np.log(p)).sum(-1) if c > 0 else -(p * np.log(p)).sum(-1)
            total += c * (w * values).sum() / w.sum()
        return total

    z = second.features.astype(np.float64)
    rng = np.random.default_rng(1)
    for _ in range(3):
        way = rng.standard_normal(z.shape)
        slope = (term(z + 1e-5 * way) - term(z - 1e-5 * way)) / 2e-5
        np.testing.assert_allclose((found * way).sum(), slope, rtol=1e-3)
        assert abs(slope) > 1e-3


def test_noise_is_of_each_gradients_own_size_and_of_the_steps_own_key():
    grads = {
        "encoders": {
            "image": {"a": np.linspace(-3, 3, 4000), "b": np.full(9, 2.0)},
            "text": {"a": np.linspace(-1, 1, 4000)},
        },
        "heads": {"kind": np.ones(3)},
    }
    grads = jax.tree.map(np.float32, grads)

    @jax.jit
    def run(number, noisy=None):
        verdict = Verdict((), {}, jnp.array([0.5, 1.0]), noisy)
        return modulated(grads, ("image", "text"), verdict, jax.random.key(number))

    one, again, other, never = jax.device_get(
        [*(run(number, np.True_) for number in (0, 0, 1)), run(0)]
    )
    noise = {}
    for name, factor in (("image", 0.5), ("text", 1.0)):
        old, new = grads["encoders"][name]["a"], one["encoders"][name]["a"]
        noise[name] = (new - factor * old) / old.std()
        assert abs(noise[name].std() - 1) < 0.05
        np.testing.assert_array_equal(new, again["encoders"][name]["a"])
        assert np.abs(new - other["encoders"][name]["a"]).max() > 0.1
        np.testing.assert_array_equal(never["encoders"][name]["a"], factor * old)
    assert np.corrcoef(noise["image"], noise["text"])[0, 1] < 0.1
    np.testing.assert_array_equal(one["encoders"]["image"]["b"], np.ones(9))
    np.testing.assert_array_equal(one["heads"]["kind"], 1)


def test_blending_follows_generalisation():
    rng = np.random.default_rng(2)
    balancer = blending(4, members=[0, 2, 3], least=0.1)
    state = jax.jit(balancer.init)({"w": np.zeros(2, np.float32)})
    weigh, observe = jax.jit(balancer.rule.weigh), jax.jit(balancer.observe)
    weights, last = np.array([1 / 3, 1, 1 / 3, 1 / 3]), {}
    changed = 0
    train = [[] for _ in range(4)]
    for round_ in range(5):
        for _ in range(3):
            losses, present = rng.random(4), rng.random(4) < 0.8
            present[0] = True
            used, rule = weigh(state.rule, Evidence(np.float32(losses), present))
            state = state._replace(rule=rule)
            np.testing.assert_allclose(used, weights, rtol=1e-4)
            for k in np.flatnonzero(present):
                train[k].append(losses[k])
        values = rng.random(4) + (2 - round_ if round_ < 3 else 5 * round_)
        values[rng.integers(1, 4)] = np.nan
        raw = {}
        for k in (0, 2, 3):
            if not train[k] or np.isnan(values[k]):
                continue
            point = (values[k], values[k] - np.mean(train[k]))
            if k in last:
                fall, growth = last[k][0] - point[0], point[1] - last[k][1]
                raw[k] = max(fall, 0) / growth**2
            last[k], train[k] = point, []
        if sum(raw.values()) > 0:
            share = sum(weights[k] for k in raw)
            floor = min(0.1, share / len(raw))
            for k, value in raw.items():
                spare = share - floor * len(raw)
                weights[k] = floor + spare * value / sum(raw.values())
            changed += 1
        state = observe(state, np.float32(values))
        np.testing.assert_allclose(weights[[0, 2, 3]].sum(), 1)
    assert changed >= 2


# The assembled model. Encoders that compile fast; heads that score only.
TASKS = {"kind": {"kind": "classification", "unimodal": "probe"}}
PARTS = {
    "encoders": {
        "image": {"kind": "image_mlp", "dropout": 0.0},
        "text": {"kind": "text_bag", "dropout": 0.0},
        "table": {"kind": "table_mlp", "dropout": 0.0},
    },
    "width": 8,
}
KINDS = {
    "ogm_ge": {"alpha": 0.5},
    "agm": {},
    "pmr": {"entropy": 1.0},
}


def hooks_of(against):
    return () if against is None else (against.hook,)


@functools.cache
def _ready(kind):
    """`(model, rule, balancer, state)` of a config, its parameters drawn without compiling."""
    built = toy.build(TASKS, **PARTS)
    config = None if kind is None else {"kind": kind, "task": "kind", **KINDS[kind]}
    built, against, make = prepare(config, built, STEPS)
    balancer = balancing.with_auxiliary_losses(
        make("equal", len(built.tasks)), len(built.auxiliaries)
    )
    params = toy.variables(built, toy.SPEC.example(2))["params"]
    parts = {
        "step": np.zeros((), np.int32),
        "params": params,
        "batch_stats": {},
        "optimizer": jax.device_get(SGD.init(params)),
        "balancing": jax.device_get(
            jax.jit(lambda: balancer.init(params, model.shared_parameters))()
        ),
    }
    if against is None:
        return built, None, balancer, TrainState(**parts)
    memory = {"imbalance": jax.device_get(jax.jit(against.rule.init)())}
    return built, against, balancer, ExtendedState(**parts, memory=memory)


@functools.cache
def _step(kind, *, devices, accumulate):
    """The step for some devices, and these."""
    built, against, balancer, state = _ready(kind)
    step = make_step(built, balancer, SGD, seed=1, accumulate=accumulate, hooks=hooks_of(against))
    if devices == "mesh":
        devices = mesh.mesh(data=2, fsdp=2, devices=jax.devices()).resolve(state.params)
        batch = devices.take(toy.batch(8))
        lowered = parallel.program(step, devices, donate=False).lower(devices.put(state), batch)
        program = lowered.compile()
        return (lambda state, batch: program(state, devices.take(batch))), devices
    if devices > 1:
        return parallel.wrap(step, devices, donate=False), devices
    return jax.jit(functools.partial(step, axis_name=None)), devices


@functools.cache
def _two_steps(kind, devices=1, accumulate=1):
    """After each of two steps: the state; and the metrics."""
    step, devices = _step(kind, devices=devices, accumulate=accumulate)
    state, out = parallel.replicate(_ready(kind)[-1], devices), []
    for seed in (5, 6):
        state, metrics = step(state, toy.batch(8, seed=seed))
        first = jax.device_get(parallel.first(state, devices))
        out.append((first, parallel.fetch(metrics, devices)))
    return out


def test_every_rule_is_tested():
    assert set(IMBALANCE) == {*KINDS, "blending"}


def test_the_step_multiplies_the_encoders_gradients_and_nothing_else():
    """AGM compares from its second step on, so that the first one is as without it."""
    (one, metrics), (two, later) = _two_steps("agm")
    (first, _), (second, _) = _two_steps(None)
    assert metrics["imbalance/coefficient"].tolist() == [1, 1, 1]
    assert later["imbalance/coefficient"].std() > 0.01
    assert one.memory["imbalance"].count.tolist() == [1, 1, 1]
    assert two.memory["imbalance"].count.tolist() == [2, 2, 2]
    expected = jax.tree.map(np.subtract, second.params, first.params)
    for name, factor in zip(NAMES, later["imbalance/coefficient"], strict=True):
        expected["encoders"][name] = jax.tree.map(
            lambda g, factor=factor: factor * g, expected["encoders"][name]
        )
    move = jax.tree.map(np.subtract, two.params, one.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), move, expected)


def test_ogm_ge_slows_and_shakes_encoders_only():
    (one, metrics), _ = _two_steps("ogm_ge")
    start, (plain, _) = _ready(None)[-1].params, _two_steps(None)[0]
    factors = dict(zip(NAMES, metrics["imbalance/coefficient"], strict=True))
    assert min(factors.values()) < 1 == max(factors.values())
    for room in ("fusion", "heads"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
            one.params.get(room, {}),
            plain.params.get(room, {}),
        )
    for name, factor in factors.items():
        without = jax.tree.map(np.subtract, plain.params["encoders"][name], start["encoders"][name])
        moved = jax.tree.map(np.subtract, one.params["encoders"][name], start["encoders"][name])
        for own, new in zip(jax.tree.leaves(without), jax.tree.leaves(moved), strict=True):
            if own.size > 100:
                ratio = (new - factor * own).std() / own.std()
                assert abs(ratio - 1) < 4 / own.size**0.5


def test_pmr_is_a_row_after_the_tasks_that_moves_encoders_only():
    built, *_ = _ready("pmr")
    assert built.loss_names[-1] == "imbalance"
    (one, metrics), (two, later) = _two_steps("pmr")
    (first, _), (plain, _) = _two_steps(None)
    assert not metrics["present"][-1]  # no class has a prototype yet
    assert later["present"][-1]
    assert later["weights"][-1] == 1
    assert later["losses"][-1] != 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one.params, first.params)
    gap = jax.tree.map(lambda a, b: np.abs(a - b).max(), two.params, plain.params)
    for name, room in gap.items():
        largest = max(jax.tree.leaves(room))
        assert largest > 1e-4 if name == "encoders" else largest < 1e-6
    assert one.memory["imbalance"].seen.any()
    assert np.abs(two.memory["imbalance"].means - one.memory["imbalance"].means).max() > 0.01


@pytest.mark.usefixtures("uncached")
@pytest.mark.parametrize(
    ("kind", "form"),
    [
        ("pmr", 2),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("agm", 2), ("ogm_ge", 2), *((kind, "mesh") for kind in KINDS))
        ),
    ],
)
def test_devices_do_together_what_one_does(kind, form):
    for (state, metrics), (other, seen) in zip(
        _two_steps(kind), _two_steps(kind, form), strict=True
    ):
        for key in ("losses", "imbalance/coefficient", "imbalance/ratio"):
            np.testing.assert_allclose(seen[key], metrics[key], rtol=1e-4, atol=1e-5)
        assert not metrics["skipped"]
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(b, a, atol=2e-5),
            (state.params, state.memory["imbalance"]),
            (other.params, other.memory["imbalance"]),
        )


@pytest.mark.slow
def test_microbatches_score_as_the_whole_batch():
    for (state, metrics), (other, seen) in zip(
        _two_steps("agm"), _two_steps("agm", accumulate=2), strict=True
    ):
        for key in ("imbalance/coefficient", "imbalance/ratio"):
            np.testing.assert_allclose(seen[key], metrics[key], rtol=1e-4)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, atol=2e-5), state, other)


def test_the_second_gradient_of_sam_is_changed_too():
    """A step of `rho` near 0 is that of SGD, whose second gradient it descends with."""
    built, against, balancer, _ = _ready("agm")
    (start, _), (expected, _) = _two_steps("agm")
    config = {"kind": "sam", "inner": "sgd", "rho": 1e-6, "learning_rate": 1.0}
    optimizer, _ = optimizers.build(config, STEPS)
    state = start.replace(optimizer=jax.device_get(optimizer.init(start.params)))
    step = jax.jit(make_step(built, balancer, optimizer, seed=1, hooks=hooks_of(against)))
    new, _ = step(state, toy.batch(8, seed=6))
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4)  # noqa: E731
    jax.tree.map(close, jax.device_get(new.params), expected.params)


@pytest.mark.parametrize("kind", KINDS)
def test_a_modality_that_the_batch_lacks_keeps_its_factor_and_its_memory(kind):
    state, _ = _two_steps(kind)[-1]
    batch = toy.batch(8, seed=7)
    batch["inputs"]["table"]["present"][:] = False
    new, metrics = jax.device_get(_step(kind, devices=1, accumulate=1)[0](state, batch))
    assert metrics["imbalance/coefficient"][2] == (0 if kind == "pmr" else 1)
    assert np.isnan(metrics["imbalance/ratio"]).tolist() == [False, False, True]
    for old, now in zip(
        jax.tree.leaves(state.memory["imbalance"]),
        jax.tree.leaves(new.memory["imbalance"]),
        strict=True,
    ):
        np.testing.assert_array_equal(old[2], now[2])
        assert kind == "ogm_ge" or old.dtype == bool or (np.asarray(old[0] != now[0])).any()
    own = lambda state: jax.device_get(state.params["encoders"]["table"])  # noqa: E731
    jax.tree.map(np.testing.assert_array_equal, own(state), own(new))
    assert not metrics["skipped"]


def test_probes_learn_and_teach_nothing():
    built, _, _, state = _ready(None)
    assert built.probes == tuple(f"kind_{name}" for name in NAMES)

    def loss(params):
        batch = toy.batch(8, holes=False)
        predictions, _ = built({"params": params}, batch["inputs"])
        sums, _ = built.losses(predictions, batch)
        return sums[list(built.tasks).index("kind_image")]

    gradient = jax.device_get(jax.jit(jax.grad(loss))(state.params))
    norm = lambda tree: sum(np.square(leaf).sum() for leaf in jax.tree.leaves(tree)) ** 0.5  # noqa: E731
    assert norm(gradient["encoders"]) == 0
    assert norm(gradient["fusion"]) == 0
    assert norm(gradient["heads"]["kind_image"]) > 0.01
    assert not toy.build({**TASKS, "kind": {**TASKS["kind"], "unimodal": True}}, **PARTS).probes


UNIMODAL = {"kind": {"kind": "classification", "unimodal": True}, "size": {"kind": "regression"}}


def test_unimodal_losses_are_balanced_as_tasks():
    """The idea of MMPareto: the encoders' direction is that of K gradients, theirs among them."""
    few = {name: PARTS["encoders"][name] for name in ("text", "table")}
    built = toy.build(UNIMODAL, encoders=few, width=4)
    assert list(built.tasks) == ["kind", "kind_text", "kind_table", "size"]
    balancer, trainer = toy.balancer_of("mgda", built)
    assert balancer.num_tasks == 4
    split = built.split()
    params = toy.variables(built, toy.SPEC.example(2))["params"]
    args = ({}, toy.batch(8, holes=False), jax.random.key(1))
    balanced = balancing.value_and_grad(split, balancer, shared=model.shared_parameters, **trainer)

    @jax.jit
    def both(params):
        def losses(params):
            sums, counts, _ = split(params, *args)
            return sums / counts

        found = balanced(params, balancer.init(params, model.shared_parameters), *args)
        return found.grads, found.diagnostics["weights"], jax.jacrev(losses)(params)

    def shared_of(tree, *lead):
        leaves = jax.tree.leaves((tree["encoders"], tree["fusion"]))
        return np.concatenate([np.reshape(leaf, (*lead, -1)) for leaf in leaves], -1)

    grads, weights, rows = jax.device_get(both(params))
    direction, jacobian = shared_of(grads), shared_of(rows, 4)
    np.testing.assert_allclose(direction, weights @ jacobian, atol=1e-5)
    assert (weights[1:3] > 0.01).all(), weights
    assert (np.abs(jacobian[1:3]).max(1) > 0.01).all()
    # The shortest direction: no task, unimodal ones included, loses by it.
    assert (jacobian @ direction > 0.98 * direction @ direction).all()


@pytest.mark.parametrize(
    ("config", "tasks", "message"),
    [
        ({"kind": "ogm"}, None, "imbalance.kind: unknown kind 'ogm' .*ogm_ge"),
        ({}, None, "imbalance.kind: unknown kind None"),
        ({"kind": "agm"}, None, "imbalance: needs a `task`; choices: kind, kind_image"),
        ({"kind": "agm", "task": "kin"}, None, "imbalance.task: unknown task 'kin'"),
        ({"kind": "agm", "task": "size"}, None, "'size' is a regression.*choices: kind"),
        ({"kind": "agm", "task": "kind_text"}, None, "'kind_text' reads text and no fusion"),
        (
            {"kind": "agm", "task": "kind"},
            {"kind": {"kind": "classification"}},
            "'kind' has no head that reads image alone; set tasks.kind.unimodal",
        ),
        ({"kind": "agm", "task": "kind", "beta": 1}, None, "unknown hyper-parameter of agm 'beta'"),
        ({"kind": "agm", "task": "kind", "alpha": 0}, None, "imbalance.alpha: 0 is not a number"),
        (
            {"kind": "ogm_ge", "task": "kind", "end": 2},
            None,
            "imbalance.end: 2 is not a number from 0 to 1",
        ),
        (
            {"kind": "ogm_ge", "task": "kind", "begin": 0.5, "end": 0.5},
            None,
            "imbalance.end: 0.5 is not after begin, 0.5",
        ),
        (
            {"kind": "ogm_ge", "task": "kind", "noise": 1},
            None,
            "imbalance.noise: 1 is not True or False",
        ),
        ({"kind": "pmr", "task": "kind", "momentum": 1.0}, None, "imbalance.momentum: 1.0"),
        ({"kind": "blending", "task": "kind", "least": 0.25}, None, "blending.least: 0.25"),
        ({"kind": "blending", "task": "kind"}, TASKS, "kind_image, .* only score; set tasks.kind"),
    ],
)
def test_what_cannot_be_balanced_is_refused(config, tasks, message):
    with pytest.raises(ConfigError, match=message):
        prepare(config, toy.build(tasks or UNIMODAL, **PARTS), STEPS)


def test_what_does_not_go_together_is_refused():
    with pytest.raises(
        ConfigError, match="tasks.kind.unimodal: 'probes' is not True or False, or one of 'probe'"
    ):
        toy.build({"kind": {"kind": "classification", "unimodal": "probes"}}, **PARTS)
    probed = toy.build(TASKS, **PARTS)
    for method in ("mgda", "graddrop"):
        with pytest.raises(ConfigError, match="kind_image, .* only score .*set unimodal to True"):
            toy.balancer_of(method, probed)
    toy.balancer_of("uncertainty", probed)
    built, _, make = prepare({"kind": "blending", "task": "kind"}, toy.build(UNIMODAL), STEPS)
    with pytest.raises(ConfigError, match="blending sets the weights itself; choices: equal"):
        toy.balancer_of("dwa", built, make)
    balancer, _ = toy.balancer_of("equal", built, make)
    assert balancer.rule.observes == "losses"
    config = _config("agm")
    config["optimizer"]["private"] = {"noise": 1.0}
    with pytest.raises(ConfigError, match="imbalance: not with optimizer.private"):
        training.assemble(config)


def _config(kind):
    config = small_run.get_config().to_dict()
    tasks = {"kind": UNIMODAL["kind"], "size": {"kind": "regression"}}
    return {
        **config,
        "devices": 1,
        "model": {**config["model"], "encoders": {"text": "text_bag", "audio": "audio_mlp"}},
        "tasks": tasks,
        "balancing": {"kind": "equal"},
        "optimizer": {**config["optimizer"], "imbalance": {"kind": kind, "task": "kind"}},
        "evaluation": {**config["evaluation"], "every": 2},
    }


@pytest.fixture
def run(monkeypatch):
    """`run(experiment, folder) -> the last state`; each program is compiled once."""
    made = {}

    def wrap(step, devices, *, donate=True):
        del devices, donate
        fast = jax.jit(functools.partial(step, axis_name=None))
        return made.setdefault(step.__qualname__, fast)

    monkeypatch.setattr(parallel, "wrap", wrap)

    def train(experiment, folder):
        folder.mkdir(exist_ok=True)
        workdir = Workdir(folder)
        with contextlib.closing(Checkpoints(workdir.checkpoints)) as checkpoints:
            loop.train(experiment, workdir, checkpoints, Console(quiet=True))
            return jax.device_get(checkpoints.restore(6, experiment.shapes)[0])

    return train


def test_a_run_remembers_its_prototypes_and_goes_on_exactly(run, tmp_path, monkeypatch):
    config = _config("pmr")
    experiment = training.assemble({**config, "tasks": {"kind": UNIMODAL["kind"]}})
    with monkeypatch.context() as patched:
        patched.setattr(processes.Stop, "agreed", 15)
        with pytest.raises(processes.Interrupted):
            run(experiment, tmp_path / "stopped")
    whole, stopped = (run(experiment, tmp_path / name) for name in ("whole", "stopped"))
    jax.tree.map(np.testing.assert_array_equal, whole, stopped)
    assert whole.memory["imbalance"].seen.all()
    records = [r for r in read_journal(tmp_path / "whole/metrics.jsonl") if r["split"] == "train"]
    assert set(records[-1]["imbalance/coefficient"]) == {"text", "audio"}
    assert "imbalance" in records[-1]["loss"]
    assert records[0]["absent"]["imbalance"] == 1


def test_a_run_blends_by_its_validations(run, tmp_path):
    experiment = training.assemble(_config("blending"))
    end = run(experiment, tmp_path / "run")
    records = read_journal(tmp_path / "run/metrics.jsonl")
    steps = [r["weight"] for r in records if r["split"] == "train"]
    weights = np.array([[w[n] for n in ("kind", "kind_text", "kind_audio")] for w in steps])
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(weights[:4], 1 / 3, rtol=1e-5)
    assert weights[4:].std() > 0.01
    assert all(w["size"] == 1 for w in steps)
    record = [r for r in records if r["split"] == "validation"][-1]
    np.testing.assert_allclose(end.balancing.rule.validation[0], record["kind"]["loss"], rtol=1e-5)
