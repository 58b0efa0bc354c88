"""Mixing: shares are exact, resumable at any row, and change only from the step that is given."""

import numpy as np
import pytest

from mtmm_jax.chance import Order, bits, uniform
from mtmm_jax.data.pipeline.mixing import MIXINGS, Plan, mixing, webster
from mtmm_jax.registry import ConfigError


@pytest.mark.parametrize("weights", [(1.0,), (0.5, 0.5), (0.7, 0.2, 0.1), (0.96, 0.01, 0.01, 0.02)])
def test_webster_never_takes_back_and_keeps_the_shares(weights):
    before = np.zeros(len(weights), int)
    for total in range(400):
        counts = webster(weights, total)
        assert counts.sum() == total
        assert (counts >= before).all()
        assert (np.abs(counts - np.array(weights) * total) < len(weights) / 2 + 0.5).all()
        before = counts
    far = webster(weights, 10**9 + 1)
    assert far.sum() == 10**9 + 1
    assert (np.abs(far - np.array(weights) * (10**9 + 1)) < len(weights)).all()


@pytest.mark.parametrize("per", ["batch", "step"])
def test_a_plan_takes_every_position_once_in_order(per):
    plan, seen = Plan((0.6, 0.3, 0.1), per), [[], [], []]
    for step in range(50):
        part, position = plan.rows(step, 8)
        assert len(part) == 8
        assert per == "batch" or len(set(part)) == 1
        for i, p in zip(part, position, strict=True):
            seen[i].append(int(p))
        if step == 20:
            plan = plan.change(np.array([0.1, 0.1, 0.8]), 21, 8)
    for positions in seen:
        assert sorted(positions) == list(range(len(positions)))
    assert len(seen[2]) > len(seen[0])


def test_a_batch_spreads_its_parts():
    part, _ = Plan((0.5, 0.5), "batch").rows(0, 8)
    assert sorted(part[:4]) == [0, 0, 1, 1]


SIZES = np.array([900.0, 100.0])
SHARES = {
    "fixed": ({"weights": [1, 3]}, (0.25, 0.75)),
    "proportional": ({}, (0.9, 0.1)),
    "temperature": ({"temperature": 2.0}, (0.75, 0.25)),
    "round_robin": ({}, (0.5, 0.5)),
    "accumulate": ({}, (0.5, 0.5)),
    "performance": ({}, (0.5, 0.5)),
}


@pytest.mark.parametrize("kind", MIXINGS)
def test_shares(kind):
    options, wanted = SHARES[kind]
    built = mixing({"kind": kind, **options})
    np.testing.assert_allclose(built.shares(SIZES), wanted)
    assert built.per == ("step" if kind == "round_robin" else "batch")


def test_performance_gives_more_to_what_goes_badly():
    observe = mixing("performance").observe
    even = np.array([0.5, 0.5])
    low, high = observe(even, np.array([0.9, 0.3]))
    k = np.array([0.9, 0.3])
    wanted = -(1 - k) * np.log(k)
    wanted = 0.05 / 2 + 0.95 * wanted / wanted.sum()
    np.testing.assert_allclose((low, high), wanted)
    np.testing.assert_array_equal(observe(even, np.array([np.nan, np.nan])), even)
    assert observe(even, np.array([-3.0, 1.0])).min() >= 0.025


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("alphabetical", "unknown kind 'alphabetical'"),
        ({"kind": "fixed", "weights": [1, 0]}, "data.mixing.weights[1]: 0 is not a number above 0"),
        ({"kind": "temperature", "temperature": 0.5}, "data.mixing.temperature: 0.5"),
        (
            {"kind": "proportional", "per": "epoch"},
            "data.mixing.per: 'epoch' is not one of 'batch', 'step'",
        ),
        ({"kind": "performance", "floor": 0.0}, "data.mixing"),
    ],
)
def test_refusals(spec, said):
    with pytest.raises(ConfigError) as error:
        mixing(spec)
    assert said in str(error.value)
    with pytest.raises(ConfigError, match="2 of them for 3 sources"):
        mixing({"kind": "fixed", "weights": [1, 2]}).shares([1, 2, 3])


def test_chance_is_uniform_and_independent():
    x = uniform(4, 0, np.arange(20_000))
    assert x.dtype == np.float32
    assert x.min() >= 0
    assert x.max() < 1
    counts = np.stack([np.histogram(column, 20, (0, 1))[0] for column in x.T])
    assert (((counts - 1000) ** 2 / 1000).sum(1) < 50).all()  # chi squared, 19 degrees: p ~ 1e-4
    wide = np.concatenate([x, uniform(4, 1, np.arange(20_000)), np.roll(x, 1, axis=0)], axis=1)
    correlations = np.corrcoef(wide.T) - np.eye(12)
    assert np.abs(correlations).max() < 0.04


def split_mix(state: int, coordinate: int) -> int:
    """One step of SplitMix64 in Python's integers."""
    z = ((state ^ coordinate) + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def test_chance_depends_on_all_coordinates_and_on_nothing_else():
    all_of = uniform(3, 7, np.array([0, 0, 1]), np.array([5, 6, 5]))
    np.testing.assert_array_equal(all_of[1], uniform(3, 7, 0, 6))
    assert len(np.unique(all_of)) == 9
    assert int(bits(1, 2, 3)) == split_mix(split_mix(split_mix(0, 1), 2), 3)


def test_an_order_holds_everything_once_an_epoch():
    order = Order(10, 3)
    epochs, places = order(np.arange(30))
    np.testing.assert_array_equal(epochs, np.repeat([0, 1, 2], 10))
    by_epoch = places.reshape(3, 10)
    assert (np.sort(by_epoch, axis=1) == np.arange(10)).all()
    assert len({tuple(row) for row in by_epoch.tolist()}) == 3
    np.testing.assert_array_equal(order(np.array([23, 4]))[1], places[[23, 4]])
