"""The generator's structure is what its docstring says: against brute force and scikit-learn."""

import itertools

import jax
import numpy as np
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression

from mtmm_jax.batch import Spec
from mtmm_jax.data.sources.generator import ceilings, directions, generator
from mtmm_jax.registry import ConfigError, build

KNOBS = {"redundancy": 0.5, "uniqueness": 0.6, "synergy": 1.0, "noise": 0.7}


def arrays(source, split="train"):
    """`(inputs by modality, targets by name)` of a whole split."""
    batch = next(source.batches(split, source.split_size(split)))
    flat = {
        name: entry["x"].reshape(len(batch["id"]), -1) for name, entry in batch["inputs"].items()
    }
    return flat, {name: entry["y"] for name, entry in batch["targets"].items()}


def accuracy(x, y):
    """Of a linear classifier, trained on half and tested on half."""
    half = len(y) // 2
    return LogisticRegression(max_iter=300).fit(x[:half], y[:half]).score(x[half:], y[half:])


@pytest.fixture(scope="module", params=["table", "series"])
def made(request):
    size = (16000 if request.param == "table" else 8000, 8, 8)
    source = generator(width=6, size=size, form=request.param, steps=4, **KNOBS)
    return arrays(source)


def test_each_factor_is_where_it_should_be_and_as_easy_as_the_formula_says(made):
    x, y = made
    both, alone = ceilings(**KNOBS), ceilings(**KNOBS, seen=1)
    together = np.c_[x["m1"], x["m2"]]
    # Linear classifiers are optimal here but for what they must learn from few examples.
    within = pytest.approx
    assert accuracy(together, y["redundant"]) == within(both["redundant"], abs=0.015)
    for mine, other in (("1", "2"), ("2", "1")):
        assert accuracy(x[f"m{mine}"], y["redundant"]) == within(alone["redundant"], abs=0.015)
        assert accuracy(x[f"m{mine}"], y[f"unique_{mine}"]) == within(both["unique"], abs=0.015)
        assert accuracy(x[f"m{other}"], y[f"unique_{mine}"]) == within(0.5, abs=0.02)
    assert 0.7 < alone["redundant"] < both["redundant"] - 0.05


def test_synergy_is_in_no_modality_and_in_the_products_of_both(made):
    x, y = made
    products = np.einsum("na,nb->nab", x["m1"], x["m2"]).reshape(len(y["synergy"]), -1)
    for features in (x["m1"], x["m2"], np.c_[x["m1"], x["m2"]]):
        assert accuracy(features, y["synergy"]) == pytest.approx(0.5, abs=0.025)
    best = ceilings(**KNOBS)["synergy"]
    # Products have heavy tails, and there are many of them: a little below the best.
    below = 0.04 if products.shape[1] < 100 else 0.08
    assert best - below < accuracy(products, y["synergy"]) < best + 0.01


@pytest.mark.parametrize("modalities", [2, 3])
def test_ceilings_agree_with_the_posterior_of_every_state(modalities):
    """The best guess by enumeration of all signs, given the coordinates before the rotation."""
    random = np.random.default_rng(0)
    signs = np.array(list(itertools.product([-1.0, 1.0], repeat=modalities)))
    true = signs[random.integers(len(signs), size=40000)]
    seen = KNOBS["synergy"] * true + KNOBS["noise"] * random.standard_normal(true.shape)
    distance = np.square(seen[:, None] - KNOBS["synergy"] * signs).sum(-1)
    posterior = np.exp(-distance / (2 * KNOBS["noise"] ** 2))
    guess = np.sign(posterior @ signs.prod(1))
    found = (guess == true.prod(1)).mean()
    assert found == pytest.approx(ceilings(modalities=modalities, **KNOBS)["synergy"], abs=0.008)
    same = KNOBS["redundancy"] * true[:, :1] + KNOBS["noise"] * random.standard_normal(true.shape)
    found = (np.sign(same.mean(1)) == true[:, 0]).mean()
    assert found == pytest.approx(ceilings(modalities=modalities, **KNOBS)["redundant"], abs=0.008)


def test_three_modalities_hide_their_parity_from_every_pair():
    x, y = arrays(generator(modalities=3, tasks=1, width=5, size=(8000, 8, 8), noise=0.2))
    for a, b in itertools.combinations(x, 2):
        pair = np.einsum("na,nb->nab", x[a], x[b]).reshape(8000, -1)
        assert accuracy(pair, y["synergy"]) == pytest.approx(0.5, abs=0.03)
    triple = np.einsum("na,nb,nc->nabc", *x.values()).reshape(8000, -1)
    assert accuracy(triple, y["synergy"]) > 0.95


@pytest.mark.parametrize(
    ("tasks", "relatedness", "conflict"), [(2, 0.5, 0), (4, 0.3, 0), (3, -0.5, 0), (4, 0.2, 0.8)]
)
def test_optimal_weights_and_gradients_have_the_cosines_asked_for(tasks, relatedness, conflict):
    source = generator(
        tasks=tasks, relatedness=relatedness, conflict=conflict, width=9, size=(20000, 8, 8)
    )
    x, y = arrays(source)
    inputs = np.c_[x["m1"], x["m2"]]
    aims = np.stack([y[f"task_{k + 1}"] for k in range(tasks)])
    weights = LinearRegression().fit(inputs, aims.T).coef_
    gradients = -aims @ inputs / len(inputs)  # of squared errors / 2, at the zero predictor
    odd = np.where(np.arange(tasks) % 2, 1, -1)
    asked = (relatedness + np.outer(odd, odd) * conflict**2) / (1 + conflict**2)
    np.fill_diagonal(asked, 1)
    for rows in (weights, gradients):
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        np.testing.assert_allclose(rows @ rows.T, asked, atol=0.05)
    if conflict:
        assert asked.min() < 0
    residual = np.mean((aims.T - LinearRegression().fit(inputs, aims.T).predict(inputs)) ** 2)
    assert 1 - residual == pytest.approx(ceilings()["task_number"], abs=0.01)


def test_what_is_left_after_the_common_part_is_opposed():
    aims = directions(4, 1.0, 0.7)
    left = aims - aims.mean(0)  # minus the gradients at the predictor that is best on average
    left /= np.linalg.norm(left, axis=1, keepdims=True)
    odd = np.array([-1, 1, -1, 1])
    np.testing.assert_allclose(left @ left.T, np.outer(odd, odd), atol=1e-6)


def test_tasks_can_be_classes():
    x, y = arrays(generator(task_kind="class", width=6, size=(16000, 8, 8), noise=1.0))
    best = ceilings(noise=1.0)["task_class"]
    assert accuracy(np.c_[x["m1"], x["m2"]], y["task_2"]) == pytest.approx(best, abs=0.015)


def test_an_amplitude_of_zero_takes_the_factor_out():
    x, y = arrays(generator(redundancy=0, noise=0, width=6, size=(4000, 8, 8)))
    assert accuracy(np.c_[x["m1"], x["m2"]], y["redundant"]) == pytest.approx(0.5, abs=0.04)
    assert accuracy(x["m1"], y["unique_1"]) == 1 == ceilings(noise=0)["unique"]


def test_modalities_and_labels_are_missing_by_row():
    source = generator(modalities=3, missing=0.4, label_missing=0.3, size=(3000, 600, 8))
    batch = next(source.batches("train", 3000))
    present = np.stack([entry["present"] for entry in batch["inputs"].values()], 1)
    assert present.any(1).all()
    np.testing.assert_allclose(1 - present.mean(0), 0.4 - 0.4**3 / 3, atol=0.03)
    for entry in batch["targets"].values():
        assert entry["present"].mean() == pytest.approx(0.7, abs=0.03)
    held_out = next(source.batches("validation", 600))
    assert all(entry["present"].all() for entry in held_out["targets"].values())
    whole = next(generator(modalities=3, size=(3000, 600, 8)).batches("train", 3000))
    for name, entry in batch["inputs"].items():
        kept = entry["present"]
        assert np.array_equal(entry["x"][kept], whole["inputs"][name]["x"][kept])
        assert (entry["x"][~kept] == 0).all()


def test_rows_depend_on_seed_split_and_place_alone():
    large, small = (next(generator(size=(n, 64, 8)).batches("train", 32)) for n in (100, 40))
    assert jax.tree.all(jax.tree.map(np.array_equal, large, small))
    first, second = (generator(size=(n, 64, 8)) for n in (100, 40))
    a, b = (next(s.batches("validation", 64))["inputs"]["m1"]["x"] for s in (first, second))
    assert np.array_equal(a, b)
    other = next(generator(size=(100, 64, 8), seed=1).batches("train", 32))
    assert not np.array_equal(other["inputs"]["m1"]["x"], large["inputs"]["m1"]["x"])
    held_out = next(first.batches("validation", 32))
    for name, entry in large["targets"].items():
        assert not np.array_equal(entry["y"], held_out["targets"][name]["y"])
    assert not np.array_equal(a[:32], large["inputs"]["m1"]["x"])


@pytest.mark.parametrize("form", ["table", "series"])
def test_batches_pass_the_spec(form):
    source = generator(form=form, modalities=3, tasks=3, size=(300, 20, 20), missing=0.2)
    for batch in (next(iter(source.train(16))), next(source.batches("test", 16))):
        source.spec.check(batch)
    assert Spec.from_dict(source.spec.to_dict()) == source.spec
    known = source.spec.targets["task_1"]
    y = np.concatenate([b["targets"]["task_1"]["y"] for b in source.batches("train", 300)])
    assert (known.mean, known.std) == pytest.approx((y.mean(), y.std()), rel=1e-4)
    assert source.describe(3) == "train row 3"
    assert source.describe(319) == "validation row 19"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"form": "image"}, "data.form: 'image' is not one of 'table', 'series'"),
        ({"modalities": 0}, "data.modalities: 0 is not a whole number from 1"),
        ({"synergy": -1.0}, "data.synergy: -1.0"),
        ({"missing": 1.0}, "data.missing: 1.0 is not a number from 0, below 1"),
        ({"tasks": 3, "relatedness": -0.6}, "pairwise cosine of -0.5 to 1"),
        ({"tasks": 13}, "13 tasks need 17 or more"),
        ({"size": (100, 10)}, r"data.size: \(100, 10\) is not a list of 3, each a whole number"),
        ({"redundant": 1}, "did you mean 'redundancy'"),
    ],
)
def test_wrong_settings_are_named(wrong, message):
    with pytest.raises(ConfigError, match=message):
        build({"generator": generator}, {"kind": "generator", **wrong}, where="data")
