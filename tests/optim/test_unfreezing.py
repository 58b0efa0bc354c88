"""Frozen parameters do not move and keep no state; then they learn as from the first step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mtmm_jax.model import flatten
from mtmm_jax.optim import optimizers, schedules
from mtmm_jax.optim.unfreezing import Late
from mtmm_jax.registry import ConfigError

RATE, STEPS = 0.1, 8
UNFREEZE = [["encoders/text/block2/.*", 2], ["encoders/.*", 5]]
BEGINS = {"block1": 5, "block2": 2, "kind": 0}
RULES = ("adamw", "sgd", "lion", "lamb", "muon", "rmsprop")


def params():
    rng = np.random.default_rng(0)
    dense = lambda: {"kernel": jnp.asarray(rng.normal(size=(3, 3)), jnp.float32)}  # noqa: E731
    blocks = {"block1": {"up": dense()}, "block2": {"up": dense()}}
    return {"encoders": {"text": blocks}, "heads": {"kind": dense()}}


def pull(values, number):
    return jax.tree.map(lambda x: jnp.cos((number + 1) * x), values)


def course(optimizer, begin=0, steps=STEPS, start=None):
    """Parameters and state after each update, the first of which is number `begin`."""
    values = params() if start is None else start
    state, found = optimizer.init(values), [(values, None)]

    @jax.jit
    def step(values, state, number):
        updates, state = optimizer.update(pull(values, number), state, values)
        return optax.apply_updates(values, updates), state

    for number in range(begin, steps):
        values, state = step(values, state, np.float32(number))
        found.append((values, state))
    return jax.device_get(found)


def built(**config):
    config = {"kind": "sgd", "learning_rate": RATE, **config}
    return optimizers.build(config, STEPS)[0]


def module(values, name):
    return next(x for path, x in flatten(values).items() if f"/{name}/" in f"/{path}/")


@pytest.mark.parametrize("kind", RULES)
def test_each_part_learns_as_alone_from_where_it_begins(kind):
    """With moments of its own and the run's learning rate."""
    found = course(built(kind=kind, unfreeze=UNFREEZE, schedule="cosine"))
    schedule = schedules.standalone(schedules.build("cosine", RATE, 0.0, STEPS))
    for name, begin in BEGINS.items():
        start = module(params(), name)
        for values, _ in found[: begin + 1]:
            np.testing.assert_array_equal(module(values, name), start)
        late = optimizers.COMPLETE[kind](
            optimizers.Setting(
                lambda count, b=begin: schedule(count + b),
                lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree),
                lambda tree: jax.tree.map(lambda x: False, tree),
                lambda rule: rule,
            )
        )
        with jax.numpy_dtype_promotion("standard"):  # Optax's own needs it
            alone = course(late, begin, start={"x": start})
        for (values, _), (wanted, _) in zip(found[begin:], alone, strict=True):
            np.testing.assert_allclose(module(values, name), wanted["x"], atol=1e-6)


def test_no_moment_is_collected_and_nothing_is_clipped_by_what_waits():
    found = course(built(kind="adam", unfreeze=UNFREEZE))
    late = lambda state: jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, Late))  # noqa: E731
    for number, (_, state) in enumerate(found[1:], start=1):
        for part in (x for x in late(state) if isinstance(x, Late)):
            moved = any(np.any(x) for x in jax.tree.leaves(part.inner))
            begin = min(b for b in (2, 5) if len(jax.tree.leaves(part.inner)) and _has(part, b))
            assert moved == (number > begin)
    clip = 0.5
    clipped = course(built(unfreeze=UNFREEZE, clip=clip))
    start = params()
    alone = flatten(pull(start, 0))["heads/kind/kernel"]
    step = np.asarray(
        flatten(start)["heads/kind/kernel"] - alone * RATE * clip / optax.tree.norm(alone)
    )
    np.testing.assert_allclose(module(clipped[1][0], "kind"), step, atol=1e-6)


def _has(part, begin):
    """Whether this is the state of what begins then: by the paths in it."""
    names = {5: "block1", 2: "block2"}
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(part.inner)]
    return any(names[begin] in path for path in paths)


def test_it_goes_with_freezing_and_with_rates():
    hyper = {"freeze": ["encoders/text/block1/.*"], "rates": [["heads/.*", 0.5]]}
    found = course(built(unfreeze=[["encoders/.*", 3]], **hyper))
    np.testing.assert_array_equal(module(found[-1][0], "block1"), module(params(), "block1"))
    np.testing.assert_array_equal(module(found[3][0], "block2"), module(params(), "block2"))
    assert np.any(module(found[4][0], "block2") != module(params(), "block2"))
    start = module(params(), "kind")
    step = start - 0.5 * RATE * np.cos(start)
    np.testing.assert_allclose(module(found[1][0], "kind"), step, atol=1e-6)


def test_without_it_states_are_those_that_they_were():
    plain, same = (built(kind="adam", **extra) for extra in ({}, {"unfreeze": []}))
    forms = [jax.tree.structure(o.init(params())) for o in (plain, same)]
    assert forms[0] == forms[1] == jax.tree.structure(optax.adam(lambda _: RATE).init(params()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"unfreeze": [["encoder/.*", 2]]},
            "optimizer.unfreeze: 'encoder/.*' matches none of: enc",
        ),
        (
            {"unfreeze": [["encoders/.*", 2], ["encoders/text/.*", 3]]},
            "comes after rules that match",
        ),
        ({"unfreeze": [[".*", 2]]}, "leaves nothing to begin with"),
        ({"unfreeze": [["heads/.*", STEPS]]}, "would begin after step 8, and the run has 8"),
        ({"unfreeze": [["heads/.*", 1.5]]}, r"unfreeze\[0\]\[1\]: 1.5 is not a whole number"),
        ({"unfreeze": [["(", 1]]}, r"unfreeze\[0\]\[0\]: '\(' is not a regular"),
        ({"unfreeze": ["heads/.*"]}, r"unfreeze\[0\]: 'heads/.*' is not a list of 2"),
        ({"unfreeze": "heads/.*"}, "unfreeze: 'heads/.*' is not a list, each a list of 2"),
        (
            {"unfreeze": UNFREEZE, "kind": "schedule_free"},
            "not with schedule_free, which moves all",
        ),
        ({"unfreeze": UNFREEZE, "kind": "sam"}, "not with sam"),
    ],
)
def test_rules_that_do_nothing_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        built(**change).init(params())
