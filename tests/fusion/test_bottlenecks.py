"""Bottlenecks between encoders and fusion: formulas, and properties over the table."""

import dataclasses
import functools
import json
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import integrate, stats

from mtmm_jax import balancing, registry
from mtmm_jax.batch import Tokens
from mtmm_jax.benchmarks.studies import width
from mtmm_jax.devices import parallel
from mtmm_jax.fusion import BOTTLENECKS
from mtmm_jax.fusion.bottlenecks import closed_at, divergence, drawn, passing, settled
from mtmm_jax.model import flatten, shared_parameters
from mtmm_jax.registry import ConfigError
from mtmm_jax.training.step import init_state, make_step
from tests import toy

WIDTH = 8
SPECS = {
    "gates": {"kind": "gates", "weight": 0.5},
    "pca": {"kind": "pca", "k": 3},
    "information": {"kind": "information", "k": 3, "beta": 0.25},
    "linear": {"kind": "linear", "k": 3},
}
EVERY = pytest.mark.parametrize("kind", BOTTLENECKS)


def _tokens(seed=0, rows=6):
    """Some tokens masked, the last row absent, silent values where there is nothing."""
    rng = np.random.default_rng(seed)
    mask = rng.random((rows, 4)) < 0.7
    mask[:, 0], mask[-1] = True, False
    x = rng.standard_normal((rows, 4, WIDTH)) * np.linspace(0.3, 2, WIDTH) + 1
    values = np.where(mask[..., None], x, 0).astype(np.float32)
    return Tokens.of(values, mask, "text")


@functools.cache
def _built(kind):
    module = registry.build(BOTTLENECKS, SPECS[kind], where="test")
    variables = toy.variables(module, _tokens())
    if kind == "pca":
        _, variables = _train(module, variables, _tokens())
    return module, variables


def _in_training(module, variables, tokens):
    rngs = {"dropout": jax.random.key(1)}
    own = {key: value for key, value in variables.items() if key in ("params", "batch_stats")}
    return module.apply(own, tokens, train=True, rngs=rngs, mutable=["batch_stats", "losses"])


_train_program = jax.jit(_in_training, static_argnums=0)
_use_program = jax.jit(lambda module, *given: module.apply(*given), static_argnums=0)


def _train(module, variables, tokens):
    """The output and what training changes, the terms included."""
    return jax.device_get(_train_program(module, variables, tokens))


def _use(module, variables, tokens):
    """The output in evaluation."""
    return jax.device_get(_use_program(module, variables, tokens))


def _term(kind, tokens=None):
    module, variables = _built(kind)
    _, more = _train(module, variables, _tokens() if tokens is None else tokens)
    (((total, count),),) = more["losses"].values()
    return float(total), float(count)


def test_the_table_is_tested_whole():
    assert set(SPECS) == set(BOTTLENECKS)


@EVERY
@pytest.mark.parametrize("train", [False, True])
def test_properties(kind, train):
    module, variables = _built(kind)
    tokens = _tokens(seed=2)

    def run(tokens):
        return _train(module, variables, tokens)[0] if train else _use(module, variables, tokens)

    out = run(tokens)
    np.testing.assert_array_equal(out.mask, tokens.mask)
    assert out.layout == tokens.layout
    assert out.values.shape == tokens.values.shape
    assert np.isfinite(out.values).all()
    assert not out.values[~tokens.mask].any()
    # What is masked, NaN included, changes nothing.
    loud = np.where(tokens.mask[..., None], tokens.values, np.float32(np.nan))
    np.testing.assert_allclose(run(tokens.replace_values(loud)).values, out.values, atol=1e-6)
    # Rows know nothing of each other (in training they share statistics or draw by place).
    if not train:
        order = np.array([5, 3, 0, 1, 4, 2])
        moved = run(jax.tree.map(lambda leaf: leaf[order], tokens))
        np.testing.assert_allclose(moved.values, out.values[order], atol=1e-6)
    half = tokens.replace_values(tokens.values.astype(jnp.bfloat16))
    rough = run(half).values
    assert rough.dtype == jnp.bfloat16
    np.testing.assert_allclose(rough.astype(np.float32), out.values, atol=0.15)


@EVERY
def test_every_parameter_learns_and_gradients_pass(kind):
    module, variables = _built(kind)
    tokens = _tokens(seed=3)

    def total(params, values):
        own = {**variables, "params": params} if params else variables
        out, more = _in_training(module, own, tokens.replace_values(values))
        terms = [total for ((total, _),) in more.get("losses", {}).values()]
        return jnp.sin(out.values).sum() + sum(terms)

    gradient = jax.jit(jax.grad(total, argnums=(0, 1)))
    slope, passed = jax.device_get(gradient(variables.get("params", {}), tokens.values))
    for path, leaf in flatten(slope).items():
        assert np.abs(leaf).max() > 0, path
    assert np.isfinite(passed).all()
    assert passed[tokens.mask].any()
    assert not passed[~tokens.mask].any()


# Formulas


def test_information_is_the_closed_form():
    rng = np.random.default_rng(0)
    mean, log_variance = rng.normal(0, 1, 3), rng.normal(0, 0.7, 3)
    expected = 0.0
    for m, v in zip(mean, np.exp(log_variance), strict=True):
        p, q = stats.norm(m, np.sqrt(v)), stats.norm(0, 1)
        part, _ = integrate.quad(lambda t, p=p, q=q: p.pdf(t) * (p.logpdf(t) - q.logpdf(t)), -9, 9)
        expected += part
    np.testing.assert_allclose(divergence(mean, log_variance), expected, rtol=1e-5)

    module, variables = _built("information")
    tokens = _tokens()
    layer = variables["params"]["belief"]
    belief = np.asarray(tokens.values, np.float64) @ layer["kernel"] + layer["bias"]
    mean, log_variance = belief[..., :3], belief[..., 3:]
    each = 0.5 * (mean**2 + np.exp(log_variance) - 1 - log_variance).sum(-1)
    mask = tokens.mask
    total, count = _term("information")
    np.testing.assert_allclose(total, 0.25 * each[mask].sum(), rtol=1e-4)
    assert count == mask.sum()
    out = _use(module, variables, tokens).values
    layer = variables["params"]["out"]
    np.testing.assert_allclose(out[mask], (mean @ layer["kernel"] + layer["bias"])[mask], atol=1e-4)


def test_gates_are_open_as_often_as_the_formula_says():
    _, variables = _built("gates")
    params = variables["params"]
    log_alpha = np.array([-2.0, -0.5, 1.0], np.float32)
    chance = np.random.default_rng(0).random((40000, 1))

    @jax.jit
    def run(log_alpha, noise, params):
        share = passing(params["modality"]) * passing(params["features"]).mean()
        chances = passing(log_alpha), passing(jnp.float32(closed_at(0.3)))
        return drawn(log_alpha[None], noise), settled(log_alpha), *chances, share

    noise = np.log(chance / (1 - chance)).astype(np.float32)
    gates, still, open_, third, share = jax.device_get(run(log_alpha, noise, params))
    np.testing.assert_allclose((gates > 0).mean(0), open_, atol=0.01)
    assert (gates.min(), gates.max()) == (0, 1)
    np.testing.assert_allclose(third, 0.3, rtol=1e-5)
    stretched = 1.2 / (1 + np.exp(-log_alpha)) - 0.1
    np.testing.assert_allclose(still, np.clip(stretched, 0, 1), rtol=1e-5)
    # The penalty: the share of features that is expected to pass, the modality's gate included.
    np.testing.assert_allclose(_term("gates"), (0.5 * share, 1.0), rtol=1e-5)


def test_closed_gates_let_nothing_through():
    module, variables = _built("gates")
    tokens = _tokens()
    for name in ("features", "modality"):
        params = {**variables["params"], name: np.full_like(variables["params"][name], -9.0)}
        assert not _use(module, {"params": params}, tokens).values.any()
        assert not _train(module, {"params": params}, tokens)[0].values.any()
    params = jax.tree.map(lambda x: np.full_like(x, 9.0), variables["params"])
    np.testing.assert_allclose(_use(module, {"params": params}, tokens).values, tokens.values)


def test_pca_keeps_the_directions_that_vary_most():
    module = registry.build(BOTTLENECKS, {"kind": "pca", "k": 3}, where="test")
    start = jax.device_get(jax.jit(module.init)(jax.random.key(0), _tokens()))
    assert not flatten(start["batch_stats"])["second"].any()
    many = [_tokens(seed, rows=40) for seed in range(3)]
    state = start
    for tokens in many:
        _, state = _train(module, state, tokens)
    weights = np.array([0.99**2, 0.99, 1.0])
    weights = weights / weights.sum()
    parts = [t.values[t.mask].astype(np.float64) for t in many]
    mean = sum(w * x.mean(0) for w, x in zip(weights, parts, strict=True))
    second = sum(w * x.T @ x / len(x) for w, x in zip(weights, parts, strict=True))
    _, vectors = np.linalg.eigh(second - np.outer(mean, mean))
    kept = vectors[:, -3:]
    found = _use(module, state, many[0]).values[many[0].mask]
    expected = mean + (parts[0] - mean) @ kept @ kept.T
    np.testing.assert_allclose(found, expected, atol=1e-3)
    whole = registry.build(BOTTLENECKS, {"kind": "pca", "k": WIDTH}, where="test")
    np.testing.assert_allclose(_use(whole, state, many[0]).values, many[0].values, atol=1e-4)
    # A batch without the modality moves nothing.
    nobody = dataclasses.replace(many[0], mask=np.zeros_like(many[0].mask))
    _, after = _train(module, state, nobody)
    jax.tree.map(np.testing.assert_array_equal, after["batch_stats"], state["batch_stats"])


# In a model

FEW = {"image": "image_mlp", "text": "text_bag"}
TASKS = {"kind": {"kind": "classification"}, "size": {"kind": "regression", "reads": "image"}}


def test_a_model_narrows_what_fusion_reads_and_nothing_else():
    plain = toy.build(TASKS, encoders=FEW)
    gated = toy.build(TASKS, encoders=FEW, bottleneck={"text": "gates"})
    assert list(gated.bottlenecks) == ["text"]
    assert gated.auxiliaries == ("bottleneck/text/passing",)
    batch = toy.batch()
    variables = toy.variables(gated, toy.SPEC.example(2))
    assert set(variables["params"]["bottleneck"]["text"]) == {"features", "modality"}
    labels = shared_parameters(variables["params"])
    assert all(jax.tree.leaves(labels["bottleneck"]))
    rest = {k: v for k, v in variables["params"].items() if k != "bottleneck"}
    before, _ = jax.jit(plain)({"params": rest}, batch["inputs"])
    closed = jax.tree.map(lambda x: np.full_like(x, -9), variables["params"]["bottleneck"])
    after, _ = jax.jit(gated)({"params": {**rest, "bottleneck": closed}}, batch["inputs"])
    np.testing.assert_array_equal(before["size"], after["size"])
    text = batch["inputs"]["text"]["present"]
    here = text & batch["inputs"]["image"]["present"]
    assert not np.allclose(before["kind"][here], after["kind"][here])
    np.testing.assert_allclose(before["kind"][~text], after["kind"][~text], atol=1e-6)


@pytest.mark.usefixtures("uncached")
@EVERY
def test_two_devices_do_what_one_does(kind):
    module, variables = _built(kind)
    tokens = _tokens(seed=4, rows=8)

    def step(variables, values, mask, axis_name=None):
        """Summed over devices: the gradient and the terms; and the output and the statistics."""

        def total(params):
            own = {**variables, "params": params} if params else variables
            part = dataclasses.replace(tokens, values=values, mask=mask)
            out, more = module.apply(
                {key: own[key] for key in own if key != "losses"},
                part,
                train=True,
                axis_name=axis_name,
                rngs={"dropout": jax.random.key(1)},
                mutable=["batch_stats", "losses"],
            )
            return jnp.sin(out.values).sum(), (out.values, more)

        gradient, (out, more) = jax.grad(total, has_aux=True)(variables.get("params", {}))
        summed = parallel.total((gradient, more.get("losses", {})), axis_name)
        return summed, out, more.get("batch_stats", {})

    summed, out, stats = jax.jit(step)(variables, tokens.values, tokens.mask)
    mapped = jax.pmap(
        functools.partial(step, axis_name="d"), "d", in_axes=(None, 0, 0), devices=jax.devices()[:2]
    )
    parts = mapped(variables, *(parallel.split(x, 2) for x in (tokens.values, tokens.mask)))
    np.testing.assert_allclose(parts[1].reshape(out.shape), out, atol=1e-5)
    both = {"summed": summed, "stats": stats}
    if kind == "gates":  # summed by each device, and divided by as many
        loss, count = parts[0][1]["passing"][0]
        np.testing.assert_allclose(loss / count, summed[1]["passing"][0][0], rtol=1e-5)
        both["summed"], parts = summed[0], (parts[0][0], *parts[1:])
    found = jax.tree.map(lambda x: x[0], {"summed": parts[0], "stats": parts[2]})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-4), both, found)


def test_a_step_trains_the_bottlenecks():
    specs = {"text": SPECS["gates"], "image": SPECS["information"]}
    built = toy.build({"kind": TASKS["kind"]}, encoders=FEW, bottleneck=specs)
    balancer = balancing.with_auxiliary_losses(balancing.build("equal", 1), 2)
    state = init_state(built, balancer, optax.sgd(1.0), seed=0)
    step = jax.jit(make_step(built, balancer, optax.sgd(1.0), seed=0))
    new, metrics = step(state, toy.batch(8))
    assert (np.asarray(metrics["losses"]) > 0).all()
    before, after = (flatten(jax.device_get(s.params["bottleneck"])) for s in (state, new))
    assert {path.split("/")[0] for path in after} == set(specs)
    for path, leaf in after.items():
        assert np.any(leaf != before[path]), path


@pytest.mark.parametrize(
    ("bottleneck", "message"),
    [
        ({"text": {"kind": "gate"}}, "bottleneck.text.kind: unknown kind 'gate'.*gates"),
        ({"smell": "gates"}, "model.bottleneck: unknown modality 'smell'; choices: all, image"),
        ({"text": "linear"}, "model.bottleneck.text: linear needs k"),
        ({"all": {"kind": "linear", "k": 17}}, "bottleneck.all.k: 17; choose from 1 to 16"),
        ({"all": {"kind": "pca", "k": 0}}, "bottleneck.all.k: 0 is not a whole number from 1"),
        (
            {"all": {"kind": "pca", "k": 2, "momentum": 1}},
            "momentum: 1 is not a number from 0, below 1",
        ),
        ({"text": {"kind": "gates", "open": 1}}, "open: 1 is not a number above 0, below 1"),
        ({"text": {"kind": "gates", "weight": -1}}, "text.weight: -1 is not a number from 0"),
        ({"text": {"kind": "information", "k": 2, "beta": -1}}, "text.beta: -1 is not a number"),
        ("gates", "model.bottleneck: 'gates' is not a section"),
    ],
)
def test_impossible_bottlenecks_are_refused(bottleneck, message):
    with pytest.raises(ConfigError, match=message):
        assert toy.build(TASKS, encoders=FEW, bottleneck=bottleneck).shapes


def test_a_bottleneck_before_no_fusion_is_refused():
    tasks = {"size": TASKS["size"]}
    with pytest.raises(ConfigError, match=r"bottleneck.image: no task reads a fusion of image"):
        toy.build(tasks, encoders=FEW, bottleneck={"image": "gates"})


# The benchmark


def test_widths_are_reported_by_entry_and_size():
    plan = width.settings(["linear", "gates"], [1, 4], [0.5])
    assert plan == [
        ("none", 0, None),
        ("linear", 1, ({"kind": "linear", "k": 1}, None)),
        ("linear", 4, ({"kind": "linear", "k": 4}, None)),
        ("gates", 0.5, ({"kind": "gates", "weight": 0.5}, [["bottleneck/.*", 20.0]])),
    ]
    gated = width.config_of("digits", plan[3][2], (), 3)
    assert gated.optimizer.rates == [["bottleneck/.*", 20.0]]
    config = width.config_of("digits", plan[1][2], ["--config.model.width=16"], 3)
    assert config.model.bottleneck.all.k == 1
    assert (config.model.width, config.steps) == (16, 3)
    gates = {"features": jnp.array([9.0, -9.0, 9.0, -9.0]), "modality": jnp.float32(9)}
    shut = {**gates, "modality": jnp.float32(-9)}
    room = {"bottleneck": {"a": gates, "b": shut}}
    assert width.open_share({"params": room}) == pytest.approx(0.25)
    assert width.open_share({"params": {}}) is None


class _Short:
    """Trains nothing: the metric grows with k."""

    ran: ClassVar[list[tuple[int, int]]] = []

    def __init__(self, config):
        self.k = config.model.get("bottleneck", {"all": {"k": 9}})["all"]["k"]

    def train(self, seed):
        self.ran.append((self.k, seed))
        return {"params": {}}

    def evaluate(self, variables, split):
        assert (variables, split) == ({"params": {}}, "test")

    def metrics(self, results):
        del results
        return {"synergy": self.k / 10}


def test_the_curve_is_drawn_and_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(width, "prepare_jax", lambda: None)
    monkeypatch.setattr("mtmm_jax.benchmarks.tables.short_runs.ShortRun", _Short)
    rows, picture = tmp_path / "rows.json", tmp_path / "width.png"
    arguments = ["--config", "generator", "--entries", "linear", "--json", str(rows)]
    arguments += ["--plot", str(picture), "--sizes"]
    assert width.main([*arguments, "2", "--seeds", "0"]) == 0
    assert width.main([*arguments, "2,4", "--seeds", "0,1"]) == 0
    assert sorted(_Short.ran) == [(2, 0), (2, 1), (4, 0), (4, 1), (9, 0), (9, 1)]
    found = json.loads(rows.read_text())["rows"]
    assert {(row["entry"], row["left"], row["metric"]) for row in found} == {
        ("none", 32.0, 0.9),
        ("linear", 2.0, 0.2),
        ("linear", 4.0, 0.4),
    }
    assert picture.stat().st_size > 1000
    assert "synergy, test" in capsys.readouterr().out
    assert width.main(["--entries", "linea"]) == 2
    assert "did you mean 'linear'" in capsys.readouterr().err
