"""Fusions over token sequences: what their formulas in `test_fusions.py` do not say; alignment."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mtmm_jax.batch import Tokens
from mtmm_jax.fusion import alignment, cross, graph, perceiver, transformer
from mtmm_jax.registry import ConfigError, build
from tests import toy
from tests.fusion import formulas
from tests.fusion.formulas import WIDTH, dense, float64

EDGES = {"audio": ["image"], "table": ["table", "image"]}
FUSIONS = {
    "encoder_decoder": transformer.EncoderDecoder(WIDTH, layers=1),
    "nl_gate": cross.NonLocalGate(WIDTH, query="table"),
    "crossmodal": cross.CrossModal(WIDTH),
    "perceiver": perceiver.PerceiverFusion(WIDTH, latents=3, iterations=2),
    "gcn": graph.GraphConvolution(WIDTH, edges=EDGES),
    "gat": graph.GraphAttention(WIDTH),
    "population": graph.PopulationGraph(WIDTH, neighbours=2),
}
# Rows of the three modalities; the first is nobody's.
HERE = formulas.patterns(3)
SOMEBODY = HERE.any(1)
TABLE_ALONE, NO_IMAGE, NO_TABLE = 1, 5, 6


def _world(**options):
    return formulas.tokens_of(3, under=0.0, **options)


@functools.cache
def _made(kind):
    """Parameters, and a jitted `(params, tokens) -> (fused, intermediates)`."""

    @jax.jit
    def run(params, tokens):
        mutable = ["intermediates"]
        fused, seen = FUSIONS[kind].apply({"params": params}, tokens, mutable=mutable)
        return fused, seen.get("intermediates", {})

    params = toy.variables(FUSIONS[kind], _world())["params"]
    return params, lambda *given: jax.device_get(run(*given))


@functools.cache
def _result(kind):
    params, run = _made(kind)
    return run(params, _world())


def test_absent_nodes_have_no_edges():
    _, seen = _result("gcn")
    (adjacency,) = seen["adjacency"]
    half, root = 0.5, 6**-0.5
    np.testing.assert_allclose(
        adjacency[-1], [[half, root, 0], [root, 1 / 3, root], [0, root, half]], atol=1e-6
    )
    # Between audio and table there is no edge.
    np.testing.assert_allclose(adjacency[NO_IMAGE], np.diag([1, 0, 1]), atol=1e-6)
    np.testing.assert_allclose(adjacency[NO_TABLE], [[half, half, 0], [half, half, 0], [0, 0, 0]])
    np.testing.assert_array_equal(adjacency[0], np.zeros((3, 3)))
    loud = jax.jit(graph.normalised)(np.full((3, 3), 9.0, np.float32), np.arange(3) == 0)
    np.testing.assert_array_equal(loud, np.diag([1, 0, 0]))


def test_who_is_alone_asks_nobody():
    _, seen = _result("nl_gate")
    (weights,) = seen["weights"]
    np.testing.assert_allclose(weights[-1].sum(-1), 1.0, atol=1e-6)
    np.testing.assert_array_equal(weights[TABLE_ALONE], np.zeros_like(weights[0]))


@pytest.mark.parametrize("kind", ["encoder_decoder", "gcn", "gat"])
def test_originals_and_what_was_found_both_count(kind):
    params, run = _made(kind)
    fused, _ = _result(kind)
    for part in ("original", "found"):
        less = jax.tree.map(lambda x: x, params)
        where = less["combine"]["original"]["out"] if part == "original" else less["combine"][part]
        where["kernel"] = np.zeros_like(where["kernel"])
        other, _ = run(less, _world())
        assert (np.abs(other.values - fused.values).max((1, 2))[SOMEBODY] > 1e-2).all(), part


def test_latents_differ_and_later_iterations_share_their_parameters():
    latents, _ = _result("perceiver")
    assert not np.allclose(latents.values[-1, 0], latents.values[-1, 1], atol=1e-2)

    def sizes(iterations):
        module = perceiver.PerceiverFusion(WIDTH, iterations=iterations)
        return jax.eval_shape(module.init, jax.random.key(0), _world())

    assert sizes(2) == sizes(4)
    assert sizes(2) != sizes(1)


def test_an_absent_modality_leaves_the_crossmodal_rest_alone():
    params, run = _made("crossmodal")
    module, tokens = FUSIONS["crossmodal"], _world()
    pair = {name: tokens[name] for name in ("audio", "image")}
    names = jax.eval_shape(module.init, jax.random.key(0), pair)["params"]

    def only(tree, wanted):
        if not isinstance(wanted, dict):
            return tree
        return {key: only(tree[key], value) for key, value in wanted.items()}

    assert not any("table" in key for key in names)
    without = jax.jit(module.apply)({"params": only(params, names)}, pair)
    nowhere = dataclasses.replace(tokens["table"], mask=np.zeros_like(tokens["table"].mask))
    absent, _ = run(params, {**tokens, "table": nowhere})
    without = jax.device_get(without)
    there = without.present
    np.testing.assert_array_equal(absent.present, there)
    np.testing.assert_allclose(absent.values[there], without.values[there], atol=1e-5)
    present, _ = _result("crossmodal")
    changed = np.abs(present.values - absent.values).max((1, 2)) > 1e-2
    np.testing.assert_array_equal(changed, HERE[:, 2])


# The population graph: the only one that mixes rows, and only in training.


def _population(tokens, axis_name, params):
    module = FUSIONS["population"]
    return module.apply({"params": params}, tokens, train=True, axis_name=axis_name).values


def test_population_graph_is_its_formula():
    params, tokens = _made("population")[0], _world()
    fused = jax.device_get(jax.jit(lambda tokens: _population(tokens, None, params))(tokens))
    params = float64(params)
    rows = [formulas.row_of(tokens, i) for i in np.flatnonzero(SOMEBODY)]
    h = np.array([formulas.originals(params["pool"], row) for row in rows])
    unit = h / np.linalg.norm(h, axis=1, keepdims=True)
    cosine = unit @ unit.T
    near = np.zeros(cosine.shape, bool)
    for i in range(len(rows)):
        others = [j for j in np.argsort(-cosine[i]) if j != i]
        near[i, others[:2]] = True
    near |= near.T
    a = np.where(near, np.exp((cosine - 1) / 0.5), 0.0) + np.eye(len(rows))
    scale = 1 / np.sqrt(a.sum(1))
    a = scale[:, None] * a * scale
    h = dense(params["layer2"], a @ np.maximum(dense(params["layer1"], a @ h), 0))
    for i, row, found in zip(np.flatnonzero(SOMEBODY), rows, h, strict=True):
        expected = formulas.combined(params["combine"], found, row, FUSIONS["population"])
        np.testing.assert_allclose(fused[i, 0], expected, atol=1e-4)


@pytest.mark.usefixtures("uncached")
def test_population_graph_on_two_devices_is_that_on_one():
    params = _made("population")[0]
    tokens = jax.tree.map(lambda *x: np.concatenate(x)[:12], _world(), _world(seed=1))

    def gradient(params, tokens, axis_name):
        def loss(params):
            values = _population(tokens, axis_name, params)
            mask = jnp.stack([t.present for t in tokens.values()]).any(0)[:, None, None]
            return jnp.where(mask, jnp.sin(3 * values), 0.0).sum(), values

        found, values = jax.grad(loss, has_aux=True)(params)
        return (found if axis_name is None else jax.lax.psum(found, axis_name)), values

    one, values = jax.jit(functools.partial(gradient, axis_name=None))(params, tokens)
    halves = jax.tree.map(lambda x: x.reshape(2, 6, *x.shape[1:]), tokens)
    two, split = jax.pmap(
        functools.partial(gradient, axis_name="d"),
        axis_name="d",
        in_axes=(None, 0),
        devices=jax.devices()[:2],
    )(params, halves)
    one, values, two, split = jax.device_get((one, values, two, split))
    np.testing.assert_allclose(split.reshape(values.shape), values, atol=1e-4)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(b[0], a, atol=2e-3)


# Alignment.


ALIGNED = {
    "resample": alignment.Resample("audio", offset=True),
    "resample_points": alignment.Resample(6, kernel=0.7, offset=True),
    "attention": alignment.AlignAttention("audio", heads=1),
}


@functools.cache
def _alignment(kind):
    module = ALIGNED[kind]
    variables = toy.variables(module, _world(places=True))
    run = jax.jit(module.apply)
    return variables, lambda *given: jax.device_get(run(*given))


def _places(tokens, params, row, kind):
    """Common positions of a row and whether each is there; every clock's positions."""
    clock = {
        name: float64(part.positions)[row, :, 0] + params.get(f"offset_{name}", 0.0)
        for name, part in tokens.items()
    }
    masks = {name: part.mask[row] for name, part in tokens.items()}
    every = np.concatenate([clock[name][masks[name]] for name in tokens])
    count = 6 if kind == "resample_points" else 3
    even = every.min() + (every.max() - every.min()) * (np.arange(count) + 0.5) / count
    if kind != "resample_points" and masks["audio"].any():
        return clock["audio"], masks["audio"], clock, masks
    return even, np.ones(count, bool), clock, masks


@pytest.mark.parametrize("kind", ALIGNED)
def test_alignment_is_its_formula(kind):
    variables, run = _alignment(kind)
    tokens, params = _world(places=True), float64(variables["params"])
    aligned = run(variables, tokens)
    assert set(aligned) == set(tokens)
    fixed = None if kind == "resample_points" else "audio"
    kernel = 0.7 if kind == "resample_points" else 0.5
    for row in np.flatnonzero(SOMEBODY):
        at, there, clock, masks = _places(tokens, params, row, kind)
        for name, part in tokens.items():
            result = aligned[name]
            np.testing.assert_array_equal(result.mask[row], there & masks[name].any())
            assert [span.name for span in result.layout] == [name]
            if not masks[name].any():
                continue
            np.testing.assert_allclose(result.positions[row, :, 0], at, atol=1e-5)
            values = float64(part.values)[row][masks[name]]
            if name == fixed:
                np.testing.assert_array_equal(result.values[row], part.values[row])
                continue
            logits = -0.5 * ((at[:, None] - clock[name][masks[name]]) / kernel) ** 2
            if kind == "attention":
                asking = float64(tokens["audio"].values)[row]
                if not masks["audio"].any():
                    asking = np.repeat(params["absent_audio"]["values"], len(at), axis=0)
                query = dense(params[f"query_{name}"], asking)
                key = dense(params[f"key_{name}"], values)
                logits = logits * np.exp(params[f"sharpness_{name}"])
                logits = logits + query @ key.T / np.sqrt(values.shape[1])
                values = dense(params[f"value_{name}"], values)
            weights = np.exp(logits - logits.max(1, keepdims=True))
            expected = weights / weights.sum(1, keepdims=True) @ values
            if kind == "attention":
                expected = dense(params[f"out_{name}"], expected)
            np.testing.assert_allclose(result.values[row][there], expected[there], atol=1e-4)


@pytest.mark.parametrize("kind", ALIGNED)
def test_alignment_sees_positions(kind):
    variables, run = _alignment(kind)
    tokens = _world(places=True)
    table = tokens["table"]
    wrong = dataclasses.replace(table, positions=table.positions[:, ::-1])
    right, wrong = (run(variables, {**tokens, "table": part})["table"] for part in (table, wrong))
    difference = np.where(right.mask[..., None], np.abs(wrong.values - right.values), 0)
    assert (difference.max((1, 2))[HERE[:, 0] & HERE[:, 2]] > 1e-2).all()


def test_resampling_in_space():
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid([1.0, 3.0, 5.0], [1.0, 3.0], indexing="ij"), -1).reshape(1, 6, 2)
    coarse = Tokens.of(
        rng.standard_normal((1, 6, 4)).astype(np.float32),
        np.ones((1, 6), bool),
        "map",
        grid=(3, 2),
        stride=(2.0, 2.0),
        positions=grid.astype(np.float32),
    )
    moved = np.array([4, 0, 5, 3, 1, 2])  # the same points in another order
    image = dataclasses.replace(
        coarse.replace_values(coarse.values[:, moved]), positions=coarse.positions[:, moved]
    )
    module = alignment.Resample("map", kernel=0.1)
    given = {"map": coarse, "photo": image}
    aligned = jax.jit(module.apply)({}, given)
    np.testing.assert_allclose(aligned["photo"].values, coarse.values, atol=1e-5)
    assert aligned["photo"].layout[0].grid == (3, 2)
    aligned = jax.jit(alignment.Resample(2).apply)({}, given)
    assert aligned["map"].layout[0].grid == (2, 2)
    np.testing.assert_allclose(
        aligned["map"].positions[0], [[2, 1.5], [2, 2.5], [4, 1.5], [4, 2.5]], atol=1e-6
    )


@pytest.mark.parametrize("kind", ["resample", "attention"])
def test_a_shifted_clock_is_recovered(kind):
    rng, shift = np.random.default_rng(0), 0.6
    at = np.sort(rng.uniform(0, 8, (2, 4, 32, 1)), axis=2).astype(np.float32)
    phase = rng.uniform(0, 6, (4, 1, 2))

    def signal(t):
        return np.sin(t * [1.0, 1.7] + phase).astype(np.float32)

    here = np.ones((4, 32), bool)
    tokens = {
        "audio": Tokens.of(signal(at[0]), here, "audio", positions=at[0]),
        "video": Tokens.of(signal(at[1]), here, "video", positions=at[1] + np.float32(shift)),
    }
    inner = (at[0] > 1.5) & (at[0] < 6.5)
    hyper = {"heads": 1} if kind == "attention" else {}
    module = build(
        alignment.ALIGNMENTS,
        {"kind": kind, "reference": "audio", "kernel": 0.25, "offset": True, **hyper},
        where="test",
    )
    params = jax.tree.map(np.zeros_like, toy.variables(module, tokens)["params"])
    for name in ("value_video", "out_video"):
        if name in params:  # content is ignored and handed on as it is
            params[name]["kernel"] = np.eye(2, dtype=np.float32)
    clock = params.pop("offset_video")

    def loss(clock):
        aligned = module.apply({"params": {**params, "offset_video": clock}}, tokens)
        error = jnp.square(aligned["video"].values - aligned["audio"].values)
        return jnp.where(inner, error, 0.0).mean()

    @jax.jit
    def fit(clock):
        rule = optax.sgd(0.3)

        def step(carry, _):
            clock, state = carry
            updates, state = rule.update(jax.grad(loss)(clock), state)
            return (optax.apply_updates(clock, updates), state), loss(clock)

        return jax.lax.scan(step, (clock, rule.init(clock)), length=200)

    (clock, _), losses = fit(clock)
    np.testing.assert_allclose(clock, [-shift], atol=0.05)
    losses = np.asarray(losses)
    assert losses[-1] < 0.1 * losses[0]


# Alignment losses.

BOTH = np.array([1, 1, 0, 1, 1, 1, 0, 1, 1, 1], bool)


def _features(size, other, rows=10, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, size)).astype(np.float32)
    y = (x[:, :1] + rng.standard_normal((rows, other))).astype(np.float32)
    return x, y


def _on_two_devices(function, x, y, both, *more):
    """`(sum, count)` and the gradient of `sum`, summed over two devices."""

    def run(x, y, both, *more):
        grad = jax.grad(lambda x: function(x, y, both, *more, axis_name="d")[0])(x)
        total, count = function(x, y, both, *more, axis_name="d")
        return jax.lax.psum(total, "d"), jax.lax.psum(count, "d"), grad

    halves = jax.tree.map(lambda a: a.reshape(2, -1, *a.shape[1:]), (x, y, both, *more))
    total, count, grad = jax.pmap(run, axis_name="d", devices=jax.devices()[:2])(*halves)
    return total[0], count[0], grad.reshape(x.shape)


@pytest.mark.usefixtures("uncached")
def test_contrastive_loss_is_its_formula_on_any_number_of_devices():
    x, y = _features(4, 4)
    ids = np.array([0, 1, 2, 3, 0, 5, 6, 7, 8, 1])

    def function(x, y, both, ids, axis_name=None):
        return alignment.contrastive_loss(x, y, both, scale=3.0, ids=ids, axis_name=axis_name)

    run = jax.jit(jax.value_and_grad(lambda *args: function(*args)[0]))
    total, gradient = run(x, y, BOTH, ids)
    noise = np.where(BOTH[:, None], x, 1e3).astype(np.float32)
    np.testing.assert_allclose(run(noise, y, BOTH, ids)[0], total, rtol=1e-6)
    u, v = (f / np.linalg.norm(f, axis=1, keepdims=True) for f in float64((x, y)))
    expected = 0.0
    for one, two in ((u, v), (v, u)):
        for i in np.flatnonzero(BOTH):
            rivals = [j for j in np.flatnonzero(BOTH) if j == i or ids[j] != ids[i]]
            logits = 3.0 * two[rivals] @ one[i]
            expected += 0.5 * (np.log(np.exp(logits).sum()) - 3.0 * two[i] @ one[i])
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    two, count, split = _on_two_devices(function, x, y, BOTH, ids)
    np.testing.assert_allclose((two, count), (expected, 8), rtol=1e-5)
    np.testing.assert_allclose(split, gradient, atol=1e-5)
    assert (np.abs(gradient[~BOTH]) == 0).all()


def test_kl_loss_is_its_formula():
    x, y = _features(5, 5)
    p, q = (np.exp(f / 2) / np.exp(f / 2).sum(1, keepdims=True) for f in float64((x, y)))
    y[2] = np.inf  # of a row that does not count

    @jax.jit
    def run(x, y):
        """Of both, of one with itself, and of both in two parts."""
        parts = [alignment.kl_loss(x[s], y[s], BOTH[s], temperature=2.0)[0] for s in _halves()]
        return alignment.kl_loss(x, y, BOTH, temperature=2.0), alignment.kl_loss(x, x, BOTH), parts

    (total, count), (none, _), parts = jax.device_get(run(x, y))
    expected = 0.0
    for i in np.flatnonzero(BOTH):
        expected += 0.5 * (p[i] @ np.log(p[i] / q[i]) + q[i] @ np.log(q[i] / p[i]))
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert count == 8
    np.testing.assert_allclose(none, 0.0, atol=1e-6)
    np.testing.assert_allclose(sum(parts), total, rtol=1e-5)


def _halves():
    return slice(0, 5), slice(5, 10)


@pytest.mark.usefixtures("uncached")
def test_cca_loss_is_its_formula_on_any_number_of_devices():
    x, y = _features(3, 2)

    def function(x, y, both, axis_name=None):
        return alignment.cca_loss(x, y, both, ridge=1e-3, axis_name=axis_name)

    run = jax.jit(jax.value_and_grad(lambda *args: function(*args)[0]))
    total, gradient = run(x, y, BOTH)
    a, b = (f[BOTH] - f[BOTH].mean(0) for f in float64((x, y)))

    def whiten(f):
        s = f.T @ f / 7
        values, vectors = np.linalg.eigh(s + (1e-3 * np.trace(s) / len(s) + 1e-6) * np.eye(len(s)))
        return vectors / np.sqrt(values) @ vectors.T

    correlations = np.linalg.svd(whiten(a) @ (a.T @ b / 7) @ whiten(b), compute_uv=False)
    expected = 8 * (1 - correlations.mean())
    np.testing.assert_allclose(total, expected, rtol=1e-4)
    two, count, split = _on_two_devices(function, x, y, BOTH)
    np.testing.assert_allclose((two, count), (expected, 8), rtol=1e-4)
    np.testing.assert_allclose(split, gradient, atol=1e-4)


def test_cca_loss_is_blind_to_linear_maps_and_safe_with_few_rows():
    x, _ = _features(3, 3, rows=40)
    every = np.ones(40, bool)
    turned = x @ np.array([[2, 1, 0], [0, 1, 0], [3, 0, 1]], np.float32) + 5
    run = jax.jit(jax.value_and_grad(lambda *args: alignment.cca_loss(*args)[0]))
    assert run(x, turned, every)[0] / 40 < 0.01
    assert run(x, _features(3, 3, rows=40, seed=1)[0], every)[0] / 40 > 0.5
    for rows in range(4):
        loss, gradient = run(x, turned, np.arange(40) < rows)
        assert np.isfinite(loss), rows
        assert np.isfinite(gradient).all(), rows
        assert rows > 1 or loss == 0


# What is refused, and how.


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            lambda: transformer.FusionTransformer(WIDTH, heads=3),
            "heads: 3 .* width 16; choices: 1, 2, 4",
        ),
        (lambda: transformer.FusionTransformer(WIDTH, layers=0), "fusion.layers: 0"),
        (lambda: transformer.EncoderDecoder(WIDTH, combine="sum"), "combine.*'sum'.*concat, gated"),
        (lambda: transformer.EncoderDecoder(WIDTH, queries=0), "fusion.queries: 0"),
        (
            lambda: cross.NonLocalGate(WIDTH, query="smell"),
            "query.*'smell'; choices: audio, image, table",
        ),
        (lambda: cross.CrossModal(WIDTH, heads=5), "heads: 5"),
        (lambda: perceiver.PerceiverFusion(WIDTH, latents=0), "fusion.latents: 0"),
        (lambda: perceiver.PerceiverIO(WIDTH, queries=-1), "fusion.queries: -1"),
        (lambda: graph.GraphConvolution(WIDTH, nodes="word"), "nodes.*'word'.*modality, token"),
        (lambda: graph.GraphConvolution(WIDTH, edges={"smell": ["text"]}), "edges: .*'smell'"),
        (lambda: graph.GraphAttention(WIDTH, edges={"table": ["smell"]}), "edges.table: .*'smell'"),
        (lambda: graph.GraphAttention(WIDTH, combine=""), "fusion.combine"),
        (lambda: graph.PopulationGraph(WIDTH, neighbours=0), "fusion.neighbours: 0"),
        (lambda: graph.PopulationGraph(WIDTH, temperature=0.0), "fusion.temperature: 0.0"),
        (lambda: alignment.Resample("smell"), "align.reference: .*'smell'; choices: audio"),
        (lambda: alignment.Resample(0), "align.reference: 0"),
        (lambda: alignment.Resample("audio"), "'image' have no positions .*: audio, table"),
        (lambda: alignment.AlignAttention("audio", kernel=-1.0), "align.kernel: -1.0"),
        (lambda: alignment.AlignAttention(3), "align.reference: .*3; choices: audio"),
    ],
)
def test_refusals(module, message):
    with pytest.raises(ConfigError, match=message):
        jax.eval_shape(module().init, jax.random.key(0), _world())


def test_alignment_refusals_of_positions_and_widths():
    tokens = _world(places=True)
    flat = tokens["image"]
    flat = dataclasses.replace(flat, positions=np.tile(flat.positions, 2))
    with pytest.raises(ConfigError, match="'image' have 2 coordinates, those of 'audio' 1"):
        jax.eval_shape(alignment.Resample("audio").apply, {}, {**tokens, "image": flat})
    with pytest.raises(ConfigError, match="'image' has 2 coordinates on a grid of"):
        jax.eval_shape(alignment.Resample("image").apply, {}, {"image": flat})
    module = alignment.AlignAttention("audio", heads=5)
    with pytest.raises(ConfigError, match="align.heads: 5 .* width 12; choices: 1, 2, 3, 4, 6, 12"):
        jax.eval_shape(module.init, jax.random.key(0), {m: tokens[m] for m in ("audio", "table")})
    x, y = _features(3, 4)
    with pytest.raises(ConfigError, match="alignment loss"):
        alignment.kl_loss(x, y, BOTH)
