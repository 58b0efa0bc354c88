"""Regularisers: each is its formula; together they add up to the total, outside balancing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mtmm_jax import balancing, model, registry
from mtmm_jax.batch import Tokens
from mtmm_jax.registry import ConfigError
from mtmm_jax.tasks import REGULARISERS
from mtmm_jax.tasks.terms.term import View
from mtmm_jax.training.step import TrainState, make_step
from tests import toy

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(2, 6, 3, 4)).astype(np.float32)
MASK = np.array([[1, 1, 1], [1, 1, 0], [0, 0, 0], [1, 0, 0], [1, 1, 1], [0, 1, 1]], bool)
HERE = np.array([1, 0, 1, 1, 1, 1], bool)
PARAMS = {
    "heads": {
        name: {"out": {"kernel": RNG.normal(size=(4, 3)), "bias": RNG.normal(size=3)}}
        for name in "abc"
    }
}
VIEW = View(
    params=jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), PARAMS),
    tokens={
        "image": Tokens.of(jnp.asarray(X), jnp.asarray(MASK), "image"),
        "fused": Tokens.of(jnp.asarray(Y), jnp.ones((6, 3), bool), "fused"),
    },
    predictions={"a": jnp.asarray(X[:, 0]), "b": jnp.asarray(Y[:, 0])},
    present={"a": jnp.asarray(HERE), "b": jnp.ones(6, bool)},
)


def _value(kind, **hyper):
    term = registry.build(REGULARISERS, {"kind": kind, **hyper}, where="test").term
    total, count = jax.jit(lambda tokens: term(_with(tokens)))(VIEW.tokens)
    return float(total), float(count)


def _with(tokens):
    return View(VIEW.params, tokens, VIEW.predictions, VIEW.present)


def _means():
    """Masked means of the rows that have the image, and all of the fused."""
    there = MASK.any(1)
    image = np.array(
        [x[m].mean(0) if m.any() else np.zeros(4) for x, m in zip(X, MASK, strict=True)]
    )
    return there, image, Y.mean(1)


def _softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _jeffreys(x, y):
    p, q = _softmax(x), _softmax(y)
    return 0.5 * ((p - q) * (np.log(p) - np.log(q))).sum(-1)


def test_agreement_is_half_jeffreys_divergence():
    there, image, fused = _means()
    total, count = _value("agreement", between=["image", "fused"])
    np.testing.assert_allclose(total, _jeffreys(image, fused)[there].sum(), rtol=1e-4)
    assert count == 5
    total, count = _value("agreement", between=["a", "b"], on="outputs")
    np.testing.assert_allclose(total, _jeffreys(X[:, 0], Y[:, 0])[HERE].sum(), rtol=1e-4)
    assert count == 5
    for measure in ("cca", "contrastive"):
        total, count = _value("agreement", between=["image", "fused"], measure=measure)
        assert 0 <= total / count < 20


def test_orthogonality_is_the_squared_cosine():
    there, image, fused = _means()
    cosine = (image * fused).sum(-1) / (
        np.linalg.norm(image, axis=-1) * np.linalg.norm(fused, axis=-1) + 1e-30
    )
    total, _ = _value("orthogonality", between=["fused", "image"])
    np.testing.assert_allclose(total, (cosine[there] ** 2).sum(), rtol=1e-4)


def test_sparsity_and_smoothness():
    there, image, _ = _means()
    total, count = _value("sparsity", of=["image"])
    np.testing.assert_allclose(total, np.abs(image).mean(-1)[there].sum(), rtol=1e-4)
    assert count == 5
    total, count = _value("sparsity", of=["a"], on="outputs")
    np.testing.assert_allclose(total, np.abs(X[:, 0]).mean(-1)[HERE].sum(), rtol=1e-4)
    total, count = _value("smoothness", of=["image"])
    expected, pairs = 0.0, 0
    for x, m in zip(X, MASK, strict=True):
        for t in (0, 1):
            if m[t] and m[t + 1]:
                expected += ((x[t + 1] - x[t]) ** 2).mean()
                pairs += 1
    np.testing.assert_allclose((total, count), (expected, pairs), rtol=1e-4)


def test_distance_and_trace_norm_of_the_tasks_networks():
    paths = ["heads/a", "heads/b", "heads/c"]
    rows = np.stack(
        [
            np.concatenate([t["out"]["bias"], t["out"]["kernel"].ravel()])
            for t in PARAMS["heads"].values()
        ]
    )
    total, count = _value("distance", paths=paths)
    np.testing.assert_allclose(total, ((rows - rows.mean(0)) ** 2).sum(), rtol=1e-4)
    assert count == 1
    total, _ = _value("trace_norm", paths=paths)
    np.testing.assert_allclose(total, np.linalg.svd(rows, compute_uv=False).sum(), rtol=1e-3)


TASKS = {"kind": {"kind": "classification"}, "size": {"kind": "regression"}}
FEW = {"image": "image_mlp", "text": "text_bag"}
TERMS = [
    {"kind": "sparsity", "of": ["fused"], "alpha": 0.5},
    {"kind": "agreement", "between": ["image", "text"]},
    {"kind": "distance", "paths": ["heads/kind/norm", "heads/size/norm"], "alpha": 3.0},
]


@pytest.mark.parametrize("way", ["added", "balanced"])
def test_terms_are_logged_and_add_up(way):
    built = toy.build(TASKS, encoders=FEW, regularisers=TERMS, regulariser_scale=2.0)
    assert built.auxiliaries == (
        "regularisers/0_sparsity",
        "regularisers/1_agreement",
        "regularisers/2_distance",
    )
    batch = toy.batch()
    params = toy.variables(built, toy.SPEC.example(2))["params"]
    if way == "added":
        balancer = balancing.with_auxiliary_losses(balancing.build("mgda", 2), 3)
    else:
        balancer = balancing.build("equal", 5)
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats={},
        optimizer=optax.sgd(1.0).init(params),
        balancing=balancer.init(params, model.shared_parameters),
    )
    step = make_step(built, balancer, optax.sgd(1.0), seed=0, head_gradients="own")
    new, metrics = jax.jit(step)(state, batch)
    expected = 1.0 if way == "added" else 1 / 5  # one of five tasks
    np.testing.assert_allclose(metrics["weights"][2:], expected)
    assert (np.asarray(metrics["losses"]) > 0).all()

    def total(params):
        """The same by one plain backward pass, tasks weighted as the step did."""
        key = jax.random.fold_in(jax.random.key(0), 0)
        sums, counts, _ = built.split()(params, {}, batch, key)
        losses = sums / counts
        return (metrics["weights"] * losses).sum(), losses

    expected, losses = jax.jit(jax.grad(total, has_aux=True))(params)
    np.testing.assert_allclose(metrics["losses"], losses, rtol=1e-4)
    moved = jax.tree.map(lambda a, b: a - b, state.params, new.params)
    for path, leaf in model.flatten(moved).items():
        if not path.startswith("heads"):  # heads take their own gradient, whatever the weights
            wanted = model.flatten(expected)[path]
            np.testing.assert_allclose(leaf, wanted, atol=2e-5, err_msg=path)


@pytest.mark.parametrize(
    ("term", "message"),
    [
        ({"kind": "sparse"}, r"model.regularisers\[0\].kind: unknown kind 'sparse'"),
        ({"kind": "sparsity", "of": ["smell"]}, r"regularisers\[0\]: unknown modality 'smell'"),
        ({"kind": "sparsity", "of": ["fused"], "alpha": -1}, "alpha: -1"),
        ({"kind": "agreement", "between": ["image", "image"]}, "two different names"),
        ({"kind": "agreement", "between": ["a", "b"], "on": "outputs"}, "unknown task 'a'"),
        ({"kind": "distance", "paths": ["heads/kind", "heads/smell"]}, "no 'smell' in heads"),
        ({"kind": "distance", "paths": ["heads/kind", "heads/size"]}, "differ in shape"),
    ],
)
def test_impossible_terms_are_refused(term, message):
    with pytest.raises(ConfigError, match=message):
        built = toy.build(TASKS, encoders=FEW, regularisers=[term])
        params = toy.variables(built, toy.SPEC.example(2))["params"]
        _, term = next(iter(built.regularisers.values()))
        term.term(View(params, {}, {}, {}))
