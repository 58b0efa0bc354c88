"""Fusions over token sequences: their formulas in NumPy, their masks, and what they refuse."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mtmm_jax.batch import Tokens
from mtmm_jax.fusion import alignment, cross, graph, perceiver, transformer
from mtmm_jax.layers import sinusoid
from mtmm_jax.registry import ConfigError, build
from tests import toy

WIDTH = 16
# modality -> length, width, presence by row: all, two of them, each alone, nobody
SIZES = {
    "audio": (4, 5, (1, 1, 0, 1, 0, 0, 0)),
    "image": (3, 6, (1, 0, 1, 1, 0, 1, 0)),
    "text": (5, 7, (1, 1, 1, 0, 1, 0, 0)),
}
EDGES = {"audio": ["image"], "text": ["text", "image"]}
FUSIONS = {
    "transformer": transformer.FusionTransformer(WIDTH, layers=1),
    "transformer_tokens": transformer.FusionTransformerTokens(WIDTH, layers=1),
    "encoder_decoder": transformer.EncoderDecoder(WIDTH, layers=1, combine="gated"),
    "non_local_gate": cross.NonLocalGate(WIDTH, query="text"),
    "crossmodal": cross.CrossModal(WIDTH),
    "perceiver": perceiver.PerceiverFusion(WIDTH, latents=3, iterations=2),
    "perceiver_io": perceiver.PerceiverIO(WIDTH, queries=2, latents=3, layers=1),
    "gcn": graph.GraphConvolution(WIDTH, edges=EDGES),
    "gcn_tokens": graph.GraphConvolution(WIDTH, nodes="token", combine="gated"),
    "gat": graph.GraphAttention(WIDTH, combine="gated"),
    "gat_tokens": graph.GraphAttention(WIDTH, nodes="token", edges=EDGES, heads=1),
    "population": graph.PopulationGraph(WIDTH, neighbours=2),
}
EVERY = pytest.mark.parametrize("kind", FUSIONS)


def _world(names=tuple(SIZES), seed=0, **forced):
    """Seven rows with holes; `forced` sets a modality's presence in all rows."""
    rng = np.random.default_rng(seed)
    tokens = {}
    for name, (length, width, present) in SIZES.items():
        mask = rng.random((7, length)) < 0.7
        mask[:, 1] = True
        mask &= np.asarray(forced.get(name, np.array(present, bool)))[..., None]
        values = rng.standard_normal((7, length, width)).astype(np.float32) * mask[..., None]
        at = np.sort(rng.uniform(0, length, (7, length, 1)), axis=1).astype(np.float32)
        if name in names:
            tokens[name] = Tokens.of(
                jnp.asarray(values),
                jnp.asarray(mask),
                name,
                positions=None if name == "image" else jnp.asarray(at),
            )
    return tokens


def _loud(tokens):
    """Other values and positions wherever nothing is there."""

    def shout(part):
        values = jnp.where(part.mask[..., None], part.values, 100.0)
        at = part.positions
        at = None if at is None else jnp.where(part.mask[..., None], at, -50.0)
        return dataclasses.replace(part, values=values, positions=at)

    return {name: shout(part) for name, part in tokens.items()}


@functools.cache
def _made(kind):
    """Parameters, and a jitted `(params, tokens) -> (gradient, (fused, intermediates))`."""
    module = FUSIONS[kind]

    def loss(params, tokens):
        fused, seen = module.apply({"params": params}, tokens, mutable=["intermediates"])
        waves = jnp.sin(fused.values + jnp.arange(float(WIDTH)))
        return jnp.where(fused.mask[..., None], waves, 0.0).sum(), (
            fused,
            seen.get("intermediates", {}),
        )

    return toy.variables(module, _world())["params"], jax.jit(jax.grad(loss, has_aux=True))


@functools.cache
def _result(kind):
    params, run = _made(kind)
    return run(params, _world())


def _numpy(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


@EVERY
def test_every_parameter_learns(kind):
    gradient, (fused, seen) = _result(kind)
    assert fused.values.shape[2] == WIDTH
    there = np.stack([t.present for t in _world().values()]).any(0)
    np.testing.assert_array_equal(fused.present, there)
    assert kind == "population" or jax.tree.leaves(seen), "attention, gates or adjacency are sown"
    for path, leaf in jax.tree_util.tree_leaves_with_path((gradient, fused.values, seen)):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(leaf).all(), name
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        name = jax.tree_util.keystr(path)
        # A constant added to all keys leaves the softmax alone.
        if not ("key" in name and "bias" in name):
            assert np.abs(leaf).max() > 0, name


@EVERY
def test_what_is_masked_or_absent_changes_nothing(kind):
    params, run = _made(kind)
    gradient, (fused, _) = _result(kind)
    other_gradient, (other, _) = run(params, _loud(_world()))
    kept = np.asarray(fused.mask)
    np.testing.assert_array_equal(other.mask, kept)
    np.testing.assert_allclose(other.values[kept], fused.values[kept], atol=1e-5)
    for one, two in zip(*map(jax.tree.leaves, (gradient, other_gradient)), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-4)


@EVERY
def test_rows_are_apart(kind):
    params, run = _made(kind)
    order = np.array([3, 6, 0, 5, 1, 4, 2])
    _, (fused, _) = _result(kind)
    _, (moved, _) = run(params, jax.tree.map(lambda x: x[order], _world()))
    np.testing.assert_allclose(moved.values, fused.values[order], atol=1e-5)
    assert getattr(FUSIONS[kind], "mixes_rows", False) == (kind == "population")


@EVERY
def test_half_precision_and_dropout_trace(kind):
    module, tokens = FUSIONS[kind], _world()
    half = {n: t.replace_values(t.values.astype(jnp.bfloat16)) for n, t in tokens.items()}
    if hasattr(module, "dropout"):
        module = module.clone(dropout=0.5)
    call = functools.partial(module.apply, train=True, rngs={"dropout": jax.random.key(0)})
    fused = jax.eval_shape(call, {"params": _made(kind)[0]}, half)
    assert fused.values.shape == _result(kind)[1][0].values.shape
    assert fused.values.dtype == jnp.float32
    alone = {"audio": tokens["audio"]}
    if module.modalities[0] == 1 and not getattr(module, "edges", None):
        variables = jax.eval_shape(module.init, jax.random.key(0), alone)
        jax.eval_shape(call, variables, alone)


# The formulas, a row at a time in float64.


def _norm(params, x):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * params["scale"] + params["bias"]


def _dense(params, x):
    return x @ params["kernel"] + params.get("bias", 0.0)


def _read(params, tokens):
    """`{modality: [B, N, WIDTH]}` as `Join` reads it in."""
    read = {}
    for name, part in tokens.items():
        x = _dense(params[f"project_{name}"], _numpy(part.values)) + params[f"modality_{name}"]
        if part.positions is not None:
            x = x + np.asarray(sinusoid(part.positions, WIDTH), np.float64)
        read[name] = x
    return read


def _original(params, tokens, row):
    """`Concat` of one row."""
    parts = []
    for name, part in tokens.items():
        mask = np.asarray(part.mask[row])
        if mask.any():
            mean = _numpy(part.values)[row][mask].mean(0)
            parts.append(_norm(params[f"norm_{name}"], mean))
        else:
            parts.append(params[f"absent_{name}"])
    return _dense(params["out"], np.concatenate(parts))


def _combined(params, found, tokens, row, gated):
    u = _dense(params["found"], _norm(params["norm"], found))
    o = _original(params["original"], tokens, row)
    if not gated:
        return u + o
    gate = 1 / (1 + np.exp(-_dense(params["gate"], np.concatenate([u, o]))))
    return gate * u + (1 - gate) * o


def _nodes(params, tokens, row, by_token, edges):
    """The present nodes of a row, and which are neighbours, with themselves."""
    read, nodes, owners = _read(params["read"], tokens), [], []
    for name, part in tokens.items():
        mask = np.asarray(part.mask[row])
        own = list(read[name][row][mask])
        own = own if by_token or not own else [np.mean(own, axis=0)]
        nodes += own
        owners += [name] * len(own)
    linked = np.eye(len(nodes), dtype=bool)
    for i, one in enumerate(owners):
        for j, two in enumerate(owners):
            if edges is None or two in edges.get(one, ()) or one in edges.get(two, ()):
                linked[i, j] = True
    return np.array(nodes), linked


@pytest.mark.parametrize("kind", ["gcn", "gcn_tokens"])
def test_graph_convolution_is_its_formula(kind):
    params, tokens, module = _numpy(_made(kind)[0]), _world(), FUSIONS[kind]
    _, (fused, _) = _result(kind)
    for row in range(6):
        edges = EDGES if kind == "gcn" else None
        h, linked = _nodes(params, tokens, row, kind == "gcn_tokens", edges)
        degree = linked.sum(1)
        for layer in (1, 2):
            mixed = np.zeros_like(h)
            for i, j in np.argwhere(linked):
                mixed[i] += h[j] / np.sqrt(degree[i] * degree[j])
            h = _dense(params[f"layer{layer}"], mixed)
            h = np.maximum(h, 0) if layer == 1 else h
        gated = module.combine == "gated"
        expected = _combined(params["combine"], h.mean(0), tokens, row, gated)
        np.testing.assert_allclose(fused.values[row, 0], expected, atol=1e-4)


def test_absent_nodes_have_no_edges():
    _, (_, seen) = _result("gcn")
    (adjacency,) = seen["adjacency"]
    half, root = 0.5, 6**-0.5
    np.testing.assert_allclose(
        adjacency[0], [[half, root, 0], [root, 1 / 3, root], [0, root, half]], atol=1e-6
    )
    np.testing.assert_allclose(adjacency[1], np.diag([1, 0, 1]), atol=1e-6)  # audio, text: no edge
    np.testing.assert_allclose(adjacency[3], [[half, half, 0], [half, half, 0], [0, 0, 0]])
    np.testing.assert_array_equal(adjacency[6], np.zeros((3, 3)))
    loud = graph.normalised(jnp.full((3, 3), 9.0), jnp.array([True, False, False]))
    np.testing.assert_array_equal(loud, np.diag([1, 0, 0]))


def test_graph_attention_is_its_formula():
    params, tokens = _numpy(_made("gat_tokens")[0]), _world()
    _, (fused, _) = _result("gat_tokens")
    for row in range(6):
        h, linked = _nodes(params, tokens, row, True, EDGES)
        for layer in (1, 2):
            own = params[f"layer{layer}"]
            projected = _dense(own["project"], h)
            mixed = np.zeros_like(projected)
            for i in range(len(h)):
                near = np.flatnonzero(linked[i])
                score = projected[i] @ own["score_own"][0]
                logits = np.array([score + projected[j] @ own["score_other"][0] for j in near])
                logits = np.where(logits > 0, logits, 0.2 * logits)
                weights = np.exp(logits) / np.exp(logits).sum()
                mixed[i] = weights @ projected[near]
            h = mixed + own["bias"]
            h = np.where(h > 0, h, np.expm1(np.minimum(h, 0))) if layer == 1 else h
        expected = _combined(params["combine"], h.mean(0), tokens, row, False)
        np.testing.assert_allclose(fused.values[row, 0], expected, atol=1e-4)


def test_non_local_gate_is_its_formula():
    params, tokens = _numpy(_made("non_local_gate")[0]), _world()
    _, (fused, seen) = _result("non_local_gate")
    read = _read(params["read"], tokens)
    for row in range(6):
        there = {name: np.asarray(part.mask[row]) for name, part in tokens.items()}
        others = np.concatenate([read[name][row][there[name]] for name in ("audio", "image")])
        asking = np.concatenate([params["absent_text"]["values"], read["text"][row]])
        alone = not there["text"].any()
        kept = np.concatenate([[alone], there["text"]])
        np.testing.assert_array_equal(fused.mask[row], kept)
        query = _dense(params["query"], asking)
        expected = query.copy()
        if len(others):
            logits = query @ _dense(params["key"], others).T
            weights = np.exp(logits - logits.max(1, keepdims=True))
            weights /= weights.sum(1, keepdims=True)
            expected += weights @ _dense(params["value"], others)
        np.testing.assert_allclose(fused.values[row][kept], expected[kept], atol=1e-4)
    (weights,) = seen["weights"]
    np.testing.assert_allclose(weights[:3].sum(-1), 1.0, atol=1e-6)
    np.testing.assert_array_equal(weights[4], np.zeros((6, 7)))  # text alone asks nobody


@pytest.mark.parametrize("kind", ["encoder_decoder", "gcn", "gat"])
def test_originals_and_what_was_found_both_count(kind):
    params, run = _made(kind)
    _, (fused, _) = _result(kind)
    for part in ("original", "found"):
        less = jax.tree.map(lambda x: x, params)
        where = less["combine"]["original"]["out"] if part == "original" else less["combine"][part]
        where["kernel"] = np.zeros_like(where["kernel"])
        _, (other, _) = run(less, _world())
        assert (np.abs(other.values - fused.values).max((1, 2))[:6] > 1e-2).all(), part


def test_transformer_gives_its_class_token_or_all():
    params, _ = _made("transformer")
    _, (one, _) = _result("transformer")
    _, run = _made("transformer_tokens")
    _, (every, _) = run(params, _world())
    assert one.values.shape == (7, 1, WIDTH)
    assert not FUSIONS["transformer"].keeps_layout
    assert FUSIONS["transformer_tokens"].keeps_layout
    np.testing.assert_allclose(every.select("cls").values, one.values, atol=1e-5)
    for name, part in _world().items():
        found = every.select(name)
        np.testing.assert_array_equal(found.mask, part.mask)
        assert found.layout == part.layout


def test_perceiver_gives_its_latents_and_io_its_queries():
    _, (latents, _) = _result("perceiver")
    _, (queries, _) = _result("perceiver_io")
    assert latents.values.shape == (7, 3, WIDTH)
    assert queries.values.shape == (7, 2, WIDTH)
    assert not np.allclose(latents.values[0, 0], latents.values[0, 1], atol=1e-2)

    def sizes(iterations):
        module = perceiver.PerceiverFusion(WIDTH, iterations=iterations)
        return jax.eval_shape(module.init, jax.random.key(0), _world())

    assert sizes(2) == sizes(4)  # later iterations share their parameters
    assert sizes(2) != sizes(1)


def test_an_absent_modality_leaves_the_crossmodal_rest_alone():
    params, run = _made("crossmodal")
    module = FUSIONS["crossmodal"]
    pair = _world(names=("audio", "image"))
    names = jax.eval_shape(module.init, jax.random.key(0), pair)["params"]

    def only(tree, wanted):
        if not isinstance(wanted, dict):
            return tree
        return {key: only(tree[key], value) for key, value in wanted.items()}

    assert not any("text" in key for key in names)
    without = jax.jit(module.apply)({"params": only(params, names)}, pair)
    _, (absent, _) = run(params, _world(text=np.zeros(7, bool)))
    there = np.asarray(without.present)
    np.testing.assert_array_equal(absent.present, there)
    np.testing.assert_allclose(absent.values[there], without.values[there], atol=1e-5)
    _, (present, _) = run(params, _world(text=np.ones(7, bool)))
    assert (np.abs(present.values - absent.values).max((1, 2)) > 1e-2).all()


# The population graph: the only one that mixes rows, and only in training.


def _population(tokens, axis_name, params):
    module = FUSIONS["population"]
    return module.apply({"params": params}, tokens, train=True, axis_name=axis_name).values


def test_population_graph_is_its_formula():
    params, tokens = _made("population")[0], _world()
    fused = jax.jit(lambda tokens: _population(tokens, None, params))(tokens)
    params = _numpy(params)
    h = np.array([_original(params["pool"], tokens, row) for row in range(6)])  # row 6 is nobody
    unit = h / np.linalg.norm(h, axis=1, keepdims=True)
    cosine = unit @ unit.T
    near = np.zeros((6, 6), bool)
    for i in range(6):
        others = [j for j in np.argsort(-cosine[i]) if j != i]
        near[i, others[:2]] = True
    near |= near.T
    a = np.where(near, np.exp((cosine - 1) / 0.5), 0.0) + np.eye(6)
    scale = 1 / np.sqrt(a.sum(1))
    a = scale[:, None] * a * scale
    h = _dense(params["layer2"], a @ np.maximum(_dense(params["layer1"], a @ h), 0))
    for row in range(6):
        expected = _combined(params["combine"], h[row], tokens, row, False)
        np.testing.assert_allclose(fused[row, 0], expected, atol=1e-4)
    _, (alone, _) = _result("population")
    assert (np.abs(fused - alone.values).max((1, 2))[:6] > 1e-3).any()


@pytest.mark.usefixtures("uncached")
def test_population_graph_on_two_devices_is_that_on_one():
    params = _made("population")[0]
    tokens = jax.tree.map(lambda *x: jnp.concatenate(x)[:12], _world(), _world(seed=1))

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
    np.testing.assert_allclose(split.reshape(values.shape), values, atol=1e-4)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(b[0], a, atol=2e-3)


# Alignment.


def _clocks(names=("audio", "image", "text"), seed=0):
    """Tokens with positions: `_world` with the image's on a line too."""
    tokens = _world(seed=seed)
    at = jnp.broadcast_to(jnp.array([0.3, 1.1, 2.0])[:, None], (7, 3, 1))
    tokens["image"] = dataclasses.replace(tokens["image"], positions=at)
    return {name: tokens[name] for name in names}


ALIGNED = {
    "resample": alignment.Resample("audio", offset=True),
    "resample_points": alignment.Resample(6, kernel=0.7, offset=True),
    "attention": alignment.AlignAttention("audio", heads=1),
}


@functools.cache
def _alignment(kind):
    module = ALIGNED[kind]
    variables = toy.variables(module, _clocks())

    def loss(variables, tokens):
        aligned = module.apply(variables, tokens)
        total = sum(
            jnp.where(t.mask[..., None], jnp.sin(t.values), 0.0).sum() for t in aligned.values()
        )
        return total, aligned

    return variables, jax.jit(jax.grad(loss, has_aux=True))


def _places(tokens, params, row, kind):
    """Common positions of a row and whether each is there; every clock's positions."""
    clock = {
        name: _numpy(part.positions)[row, :, 0] + params.get(f"offset_{name}", 0.0)
        for name, part in tokens.items()
    }
    masks = {name: np.asarray(part.mask[row]) for name, part in tokens.items()}
    every = np.concatenate([clock[name][masks[name]] for name in tokens])
    count = 6 if kind == "resample_points" else 4
    even = every.min() + (every.max() - every.min()) * (np.arange(count) + 0.5) / count
    if kind != "resample_points" and masks["audio"].any():
        return clock["audio"], masks["audio"], clock, masks
    return even, np.ones(count, bool), clock, masks


@pytest.mark.parametrize("kind", ALIGNED)
def test_alignment_is_its_formula(kind):
    variables, run = _alignment(kind)
    tokens, params = _clocks(), _numpy(variables["params"])
    gradient, aligned = run(variables, tokens)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(leaf).all(), name
        assert np.abs(leaf).max() > 0, name
    assert set(aligned) == set(tokens)
    fixed = None if kind == "resample_points" else "audio"
    kernel = 0.7 if kind == "resample_points" else 0.5
    for row in range(6):
        at, there, clock, masks = _places(tokens, params, row, kind)
        for name, part in tokens.items():
            result = aligned[name]
            np.testing.assert_array_equal(result.mask[row], there & masks[name].any())
            assert [span.name for span in result.layout] == [name]
            if not masks[name].any():
                continue
            np.testing.assert_allclose(result.positions[row, :, 0], at, atol=1e-5)
            values = _numpy(part.values)[row][masks[name]]
            if name == fixed:
                np.testing.assert_array_equal(result.values[row], part.values[row])
                continue
            logits = -0.5 * ((at[:, None] - clock[name][masks[name]]) / kernel) ** 2
            if kind == "attention":
                asking = _numpy(tokens["audio"].values)[row]
                if not masks["audio"].any():
                    asking = np.repeat(params["absent_audio"]["values"], len(at), axis=0)
                query = _dense(params[f"query_{name}"], asking)
                key = _dense(params[f"key_{name}"], values)
                logits = logits * np.exp(params[f"sharpness_{name}"])
                logits = logits + query @ key.T / np.sqrt(values.shape[1])
                values = _dense(params[f"value_{name}"], values)
            weights = np.exp(logits - logits.max(1, keepdims=True))
            expected = weights / weights.sum(1, keepdims=True) @ values
            if kind == "attention":
                expected = _dense(params[f"out_{name}"], expected)
            np.testing.assert_allclose(result.values[row][there], expected[there], atol=1e-4)


@pytest.mark.parametrize("kind", ALIGNED)
def test_alignment_sees_positions_but_not_what_is_masked(kind):
    variables, run = _alignment(kind)
    tokens = _clocks()
    _, aligned = run(variables, tokens)
    _, loud = run(variables, _loud(tokens))
    wrong = dict(tokens)
    wrong["text"] = dataclasses.replace(tokens["text"], positions=tokens["text"].positions[:, ::-1])
    _, other = run(variables, wrong)
    order = np.array([3, 6, 0, 5, 1, 4, 2])
    _, moved = run(variables, jax.tree.map(lambda x: x[order], tokens))
    for name, part in aligned.items():
        kept = np.asarray(part.mask)
        np.testing.assert_array_equal(loud[name].mask, kept)
        np.testing.assert_allclose(loud[name].values[kept], part.values[kept], atol=1e-5)
        np.testing.assert_allclose(moved[name].values, part.values[order], atol=1e-5)
    seen = np.asarray(aligned["text"].mask[:3])
    difference = np.abs(other["text"].values - aligned["text"].values)[:3]
    assert (np.where(seen[..., None], difference, 0).max((1, 2)) > 1e-2).all()


def test_resampling_in_space():
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid([1.0, 3.0, 5.0], [1.0, 3.0], indexing="ij"), -1).reshape(1, 6, 2)
    here = jnp.ones((1, 6), bool)
    coarse = Tokens.of(
        jnp.asarray(rng.standard_normal((1, 6, 4)), jnp.float32),
        here,
        "map",
        grid=(3, 2),
        stride=(2.0, 2.0),
        positions=jnp.asarray(grid, jnp.float32),
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
        return jnp.asarray(np.sin(t * [1.0, 1.7] + phase), jnp.float32)

    here = jnp.ones((4, 32), bool)
    tokens = {
        "audio": Tokens.of(signal(at[0]), here, "audio", positions=jnp.asarray(at[0])),
        "video": Tokens.of(signal(at[1]), here, "video", positions=jnp.asarray(at[1] + shift)),
    }
    inner = jnp.asarray((at[0] > 1.5) & (at[0] < 6.5))
    hyper = {"heads": 1} if kind == "attention" else {}
    module = build(
        alignment.ALIGNMENTS,
        {"kind": kind, "reference": "audio", "kernel": 0.25, "offset": True, **hyper},
        where="test",
    )
    params = jax.tree.map(jnp.zeros_like, toy.variables(module, tokens)["params"])
    for name in ("value_video", "out_video"):
        if name in params:  # content is ignored and handed on as it is
            params[name]["kernel"] = jnp.eye(2)
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
    u, v = (f / np.linalg.norm(f, axis=1, keepdims=True) for f in _numpy((x, y)))
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
    p, q = (np.exp(f / 2) / np.exp(f / 2).sum(1, keepdims=True) for f in _numpy((x, y)))
    y[2] = np.inf  # of a row that does not count
    total, count = alignment.kl_loss(x, y, BOTH, temperature=2.0)
    expected = 0.0
    for i in np.flatnonzero(BOTH):
        expected += 0.5 * (p[i] @ np.log(p[i] / q[i]) + q[i] @ np.log(q[i] / p[i]))
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert count == 8
    np.testing.assert_allclose(alignment.kl_loss(x, x, BOTH)[0], 0.0, atol=1e-6)
    parts = [alignment.kl_loss(x[s], y[s], BOTH[s], temperature=2.0)[0] for s in _halves()]
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
    a, b = (f[BOTH] - f[BOTH].mean(0) for f in _numpy((x, y)))

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
        (transformer.FusionTransformer(WIDTH, heads=3), "heads: 3 .* width 16; choices: 1, 2, 4"),
        (transformer.FusionTransformer(WIDTH, layers=0), "fusion.layers: 0"),
        (transformer.EncoderDecoder(WIDTH, combine="sum"), "combine.*'sum'.*concat, gated"),
        (transformer.EncoderDecoder(WIDTH, queries=0), "fusion.queries: 0"),
        (cross.NonLocalGate(WIDTH, query="smell"), "query.*'smell'; choices: audio, image, text"),
        (cross.CrossModal(WIDTH, heads=5), "heads: 5"),
        (perceiver.PerceiverFusion(WIDTH, latents=0), "fusion.latents: 0"),
        (perceiver.PerceiverIO(WIDTH, queries=-1), "fusion.queries: -1"),
        (graph.GraphConvolution(WIDTH, nodes="word"), "nodes.*'word'.*modality, token"),
        (graph.GraphConvolution(WIDTH, edges={"smell": ["text"]}), "edges: .*'smell'"),
        (graph.GraphAttention(WIDTH, edges={"text": ["smell"]}), "edges.text: .*'smell'"),
        (graph.GraphAttention(WIDTH, combine=""), "fusion.combine"),
        (graph.PopulationGraph(WIDTH, neighbours=0), "fusion.neighbours: 0"),
        (graph.PopulationGraph(WIDTH, temperature=0.0), "fusion.temperature: 0.0"),
        (alignment.Resample("smell"), "align.reference: .*'smell'; choices: audio"),
        (alignment.Resample(0), "align.reference: 0"),
        (alignment.Resample("audio"), "'image' have no positions .*: audio, text"),
        (alignment.AlignAttention("audio", kernel=-1.0), "align.kernel: -1.0"),
        (alignment.AlignAttention(3), "align.reference: .*3; choices: audio"),
    ],
)
def test_refusals(module, message):
    with pytest.raises(ConfigError, match=message):
        jax.eval_shape(module.init, jax.random.key(0), _world())


def test_alignment_refusals_of_positions_and_widths():
    tokens = _clocks()
    flat = tokens["image"]
    flat = dataclasses.replace(flat, positions=jnp.tile(flat.positions, 2))
    with pytest.raises(ConfigError, match="'image' have 2 coordinates, those of 'audio' 1"):
        jax.eval_shape(alignment.Resample("audio").apply, {}, {**tokens, "image": flat})
    with pytest.raises(ConfigError, match="'image' has 2 coordinates on a grid of"):
        jax.eval_shape(alignment.Resample("image").apply, {}, {"image": flat})
    module = alignment.AlignAttention("audio", heads=2)
    with pytest.raises(ConfigError, match="align.heads: 2 .* width 7; choices: 1, 7"):
        jax.eval_shape(module.init, jax.random.key(0), _clocks(("audio", "text")))
    x, y = _features(3, 4)
    with pytest.raises(ConfigError, match="alignment loss"):
        alignment.kl_loss(x, y, BOTH)
