"""Properties of every sharing: a new one is tested by being listed; formulas against NumPy."""

import functools
import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf, expit, softmax

from mtmm_jax import registry
from mtmm_jax.batch import Span, Tokens
from mtmm_jax.registry import ConfigError
from mtmm_jax.sharing import SHARINGS
from mtmm_jax.sharing.dselect import select, smooth_step
from tests import toy
from tests.made_up import packaged

ROWS, WIDTH, LENGTH = 4, 8, 5
NAMES = ("red", "green", "blue")
KEY = jax.random.key(3)

# Small sizes; a step wide enough that no expert is out.
SMALL = {
    "shared_middle": {"layers": 2},
    "separate": {"layers": 3, "hidden": 6},
    "mmoe": {"experts": 3},
    "cgc": {"own": 1},
    "ple": {"own": 1, "shared": 1},
    "dselect": {"experts": 4, "gamma": 8.0},
    "branching": {"branches": 2},
    "film": {"layers": 2, "embedding": 3},
    "adapter": {"size": 4},
    "task_attention": {"hidden": 5},
    "task_queries": {"queries": 2},
}
# Those whose output for one task reads the layers of the others, from that task's own copy.
MIXES = {"cross_stitch", "sluice", "ple", "task_attention"}

EVERY = pytest.mark.parametrize("kind", SHARINGS)
CASES = pytest.mark.parametrize(
    ("kind", "count", "length"),
    [
        # Three tasks over a sequence say most; one task, and pooled tokens, are run by CI.
        pytest.param(kind, *case, marks=[] if case == (3, LENGTH) else [pytest.mark.slow])
        for kind, case in itertools.product(SHARINGS, ((3, LENGTH), (1, LENGTH), (2, 1)))
    ],
)


def _tokens(length, seed=0, dtype=jnp.float32):
    """Tokens of two spans, or a pooled one; the last row has none."""
    rng = np.random.default_rng(seed)
    mask = rng.random((ROWS, length)) < 0.7
    mask[:, 0] = True
    mask[-1] = False
    values = rng.standard_normal((ROWS, length, WIDTH)).astype(np.float32)
    layout = (Span("image", 2, (2, 1), (1.0, 1.0)), Span("text", 3, (3,), (1.0,)))
    values = np.where(mask[..., None], values, 0.0).astype(dtype)
    positions = rng.random((ROWS, length, 1)).astype(np.float32)
    return Tokens(values, mask, positions, layout if length > 1 else ())


def _copies(count, length, **kwargs):
    return dict.fromkeys(NAMES[:count], _tokens(length, **kwargs))


def _wide(tokens):
    return tokens.replace_values(np.concatenate([tokens.values] * 2, axis=-1))


def _module(kind, count, **changes):
    spec = {"kind": kind, **SMALL.get(kind, {}), **changes}
    return registry.build(SHARINGS, spec, where="test", tasks=NAMES[:count])


def _params(module, copies):
    def init(key, copies):
        return module.init(key, copies, mutable=["params"])

    return toy.variables(SimpleNamespace(init=init), copies).get("params", {})


def _wavy(tokens):
    """A function of all unmasked values with a different slope in each channel."""
    waves = jnp.sin(tokens.values + jnp.arange(float(WIDTH)))
    return jnp.where(tokens.mask[..., None], waves, 0.0).sum()


@functools.cache
def _run(kind, count, length):
    """`(params, run)`; run(copies) gives the outputs in training, what was sown, and for every task
    the gradients of its loss, of parameters and of copies. One program for all copies."""
    module = _module(kind, count)
    params = _params(module, _copies(count, length))

    @jax.jit
    def run(copies):
        def losses(params, values):
            given = {name: copies[name].replace_values(values[name]) for name in copies}
            own, seen = module.apply(
                {"params": params},
                given,
                train=True,
                rngs={"dropout": KEY},
                mutable=["intermediates", "losses"],
            )
            return jnp.stack([_wavy(own[name]) for name in NAMES[:count]]), (own, seen)

        values = {name: tokens.values for name, tokens in copies.items()}
        _, pull, (own, seen) = jax.vjp(losses, params, values, has_aux=True)
        return own, seen, *jax.vmap(pull)(jnp.eye(count))

    return params, lambda copies: jax.device_get(run(copies))


@functools.cache
def _result(kind, count, length):
    return _run(kind, count, length)[1](_copies(count, length))


@functools.cache
def _used(kind, count):
    """`(params, run)` as it is used, without noise."""
    params, module = _run(kind, count, LENGTH)[0], _module(kind, count)
    run = jax.jit(lambda copies: module.apply({"params": params}, copies))
    return params, lambda copies: jax.device_get(run(copies))


@functools.cache
def _plain(kind, count):
    return _used(kind, count)[1](_copies(count, LENGTH))


def _paths(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _close(one, other, **kwargs):
    """Same tasks, masks and unmasked values."""
    assert set(one) == set(other)
    for name in one:
        kept = np.asarray(one[name].mask)
        np.testing.assert_array_equal(kept, other[name].mask)
        a, b = (np.asarray(t[name].values[kept], np.float32) for t in (one, other))
        np.testing.assert_allclose(a, b, **kwargs)


@CASES
def test_gives_every_task_tokens_where_there_were_some(kind, count, length):
    own = _result(kind, count, length)[0]
    copies = _copies(count, length)
    assert set(own) == set(NAMES[:count])
    for name, tokens in own.items():
        assert np.isfinite(tokens.values).all()
        np.testing.assert_array_equal(tokens.present, copies[name].present)
        if SHARINGS[kind].keeps_layout:
            assert tokens.values.shape == (ROWS, length, WIDTH)
            np.testing.assert_array_equal(tokens.mask, copies[name].mask)
            np.testing.assert_array_equal(tokens.positions, copies[name].positions)
            assert tokens.layout == copies[name].layout
        else:
            assert tokens.values.shape[2] == WIDTH
            assert tokens.layout == ()


@CASES
def test_masked_values_change_nothing(kind, count, length):
    run = _run(kind, count, length)[1]
    loud = {
        name: t.replace_values(np.where(t.mask[..., None], t.values, np.float32(9.0)))
        for name, t in _copies(count, length).items()
    }
    _close(_result(kind, count, length)[0], run(loud)[0], atol=1e-5)


@CASES
def test_treats_rows_apart(kind, count, length):
    run = _run(kind, count, length)[1]
    order = np.array([2, 0, 3, 1])
    moved = run(jax.tree.map(lambda x: x[order], _copies(count, length)))[0]
    there = jax.tree.map(lambda x: x[order], _result(kind, count, length)[0])
    _close(there, moved, atol=1e-5)


@CASES
def test_every_parameter_learns(kind, count, length):
    learned = _paths(_result(kind, count, length)[2])
    assert bool(learned) == (kind != "hard")
    for path, rows in learned.items():
        if path.endswith("key/bias"):
            continue  # a constant added to all keys leaves the softmax alone
        alone = ("attention/query", "attention/key", "query_norm")
        if length == 1 and kind == "task_queries" and path.startswith(alone):
            continue  # with one token there is nowhere else to look
        assert np.abs(rows.sum(0)).max() > 0, path


@CASES
def test_a_loss_reaches_its_own_copy_and_no_other(kind, count, length):
    reached = _result(kind, count, length)[3]
    for k, name in enumerate(NAMES[:count]):
        for other in NAMES[:count]:
            size = np.abs(reached[other][k]).max()
            assert size > 0 if other == name else size == 0, (name, other)


@EVERY
def test_towers_are_mixed_where_it_is_said(kind):
    learned = _paths(_result(kind, 3, LENGTH)[2])
    of_green = {path: rows for path, rows in learned.items() if "_green" in path}
    assert all(np.abs(rows[1]).max() > 0 for rows in of_green.values())
    from_red = any(np.abs(rows[0]).max() > 0 for rows in of_green.values())
    assert from_red == (kind in MIXES)


@pytest.mark.parametrize("kind", sorted(set(SHARINGS) - {"branching"}))
def test_training_differs_by_noise_alone(kind):
    _close(_plain(kind, 3), _result(kind, 3, LENGTH)[0], atol=1e-5)


# Some of them: the same Python is traced, and each eager operation is a program.
@pytest.mark.slow
@pytest.mark.parametrize("kind", list(SHARINGS)[::4])
def test_compiled_is_as_written(kind):
    eager = _module(kind, 2).apply({"params": _used(kind, 2)[0]}, _copies(2, LENGTH))
    _close(_plain(kind, 2), eager, atol=1e-5)


@EVERY
def test_bfloat16_stays_and_is_near(kind):
    coarse = _used(kind, 3)[1](_copies(3, LENGTH, dtype=jnp.bfloat16))
    assert {tokens.values.dtype for tokens in coarse.values()} == {np.dtype(jnp.bfloat16)}
    assert all(np.isfinite(t.values.astype(np.float32)).all() for t in coarse.values())
    _close(coarse, _plain(kind, 3), atol=0.1, rtol=0.05)


def _gelu(x):
    return 0.5 * x * (1 + erf(x / np.sqrt(2)))


def _dense(p, x):
    return x @ p["kernel"] + p.get("bias", 0.0)


def _network(p, x):
    return _dense(p["down"], _gelu(_dense(p["up"], x)))


def _mean(x, mask):
    return (x * mask[..., None]).sum(1) / np.maximum(mask.sum(1), 1)[:, None]


def _mix(weights, parts):
    return sum(weights[:, e, None, None] * part for e, part in enumerate(parts))


def _cross_stitch(p, h, mask, names):
    tasks, x = range(len(names)), [h] * len(names)
    for layer in "12":
        g = [_gelu(_dense(p[f"layer{layer}_{name}"], x[k])) for k, name in enumerate(names)]
        a = p.get(f"matrix{layer}", np.ones((1, 1)))  # one task has nothing to stitch
        x = [sum(a[k, j] * g[j] for j in tasks) / np.abs(a[k]).sum() for k in tasks]
    return x


def _sluice(p, h, mask, names):
    tasks, x, z = range(len(names)), [h] * len(names), [0.0] * len(names)
    half = WIDTH // 2
    for layer in "12":
        g = [_gelu(_dense(p[f"layer{layer}_{name}"], x[k])) for k, name in enumerate(names)]
        g = [[part[..., :half], part[..., half:]] for part in g]
        a = p[f"alpha{layer}"]
        x = [
            np.concatenate(
                [sum(a[k, s, j, t] * g[j][t] for j in tasks for t in range(2)) for s in range(2)],
                axis=-1,
            )
            for k in tasks
        ]
        z = [z[k] + p["beta"][k, int(layer) - 1] * x[k] for k in tasks]
    return z


def _mtan(p, h, mask, names):
    own = []
    for name in names:
        u = _gelu(_dense(p["first1"], h))
        shared = _gelu(_dense(p["second1"], u))
        seen = _gelu(_dense(p[f"see1_{name}"], u))
        x = expit(_dense(p[f"mask1_{name}"], seen)) * shared
        u = _gelu(_dense(p["first2"], shared))
        shared = _gelu(_dense(p["second2"], u))
        seen = np.concatenate([u, _gelu(_dense(p["carry2"], x))], -1)
        seen = _gelu(_dense(p[f"see2_{name}"], seen))
        own.append(expit(_dense(p[f"mask2_{name}"], seen)) * shared)
    return own


def _mmoe(p, h, mask, names):
    parts = [_network(p[f"expert{e}"], h) for e in (1, 2, 3)]
    means = _mean(h, mask)
    return [_mix(softmax(_dense(p[f"score_{name}"], means), -1), parts) for name in names]


def _cgc(p, h, mask, names):
    p, means, own = p["level1"], _mean(h, mask), []
    for name in names:
        parts = [_network(p[key], h) for key in (f"own1_{name}", "shared1", "shared2")]
        own.append(_mix(softmax(_dense(p[f"score_{name}"], means), -1), parts))
    return own


def _ple(p, h, mask, names):
    first, means = p["level1"], _mean(h, mask)
    parts = {name: _network(first[f"own1_{name}"], h) for name in names}
    common = _network(first["shared1"], h)
    scores = [_dense(first[f"shared_score_{name}"], means) for name in names]
    scores.append(_dense(first["shared_score"], means))
    shared = _mix(softmax(np.concatenate(scores, -1), -1), [*parts.values(), common])
    own = []
    for name in names:
        weights = softmax(_dense(first[f"score_{name}"], means), -1)
        x = _mix(weights, [parts[name], common])
        weights = softmax(_dense(p["level2"][f"score_{name}"], _mean(x, mask)), -1)
        ours, theirs = p["level2"][f"own1_{name}"], p["level2"]["shared1"]
        own.append(_mix(weights, [_network(ours, x), _network(theirs, shared)]))
    return own


def _step(t, gamma):
    inside = -2 / gamma**3 * t**3 + 3 / (2 * gamma) * t + 0.5
    return np.where(t <= -gamma / 2, 0.0, np.where(t >= gamma / 2, 1.0, inside))


def _dselect_gates(p, means, name):
    codes = _step(_dense(p[f"code_{name}"], means).reshape(ROWS, 2, 2), 8.0)
    low, high = codes[..., 0], codes[..., 1]
    choice = [(1 - high) * (1 - low), (1 - high) * low, high * (1 - low), high * low]
    return softmax(_dense(p[f"share_{name}"], means), -1), np.stack(choice, -1)


def _dselect(p, h, mask, names):
    parts, own = [_network(p[f"expert{e}"], h) for e in (1, 2, 3, 4)], []
    for name in names:
        shares, selectors = _dselect_gates(p, _mean(h, mask), name)
        own.append(_mix((shares[..., None] * selectors).sum(1), parts))
    return own


def _film(p, h, mask, names):
    own = []
    for name in names:
        x = h
        for layer in "12":
            film = _dense(p[f"film{layer}"], p[f"embedding_{name}"])
            gamma, beta = film[:WIDTH], film[WIDTH:]
            x = x + _gelu((1 + gamma) * _dense(p[f"layer{layer}"], x) + beta)
        own.append(x)
    return own


def _normed(p, x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def _adapter(p, h, mask, names):
    own = []
    for name in names:
        x = _normed(p[f"norm_{name}"], h)
        own.append(h + _dense(p[f"up_{name}"], _gelu(_dense(p[f"down_{name}"], x))))
    return own


def _task_attention(p, h, mask, names):
    features = [_gelu(_dense(p[f"feature_{name}"], h)) for name in names]
    if len(names) == 1:  # nothing to weigh
        return features
    scores = [_dense(p["score"], np.tanh(_dense(p["hidden"], _mean(f, mask)))) for f in features]
    return [_mix(softmax(np.concatenate(scores, -1), -1), features)] * len(names)


def _task_gates(p, h, mask, names):
    means = _mean(h, mask)
    return [h * expit(_network(p[f"network_{name}"], means))[:, None] for name in names]


def _shared_middle(p, h, mask, names):
    own = []
    for name in names:
        x = _gelu(_dense(p[f"in_{name}"], h))
        for layer in ("middle1", "middle2"):
            x = _gelu(_dense(p[layer], x))
        own.append(_dense(p[f"out_{name}"], x))
    return own


def _separate(p, h, mask, names):
    own = []
    for name in names:
        x = _gelu(_dense(p[f"layer2_{name}"], _gelu(_dense(p[f"in_{name}"], h))))
        own.append(_dense(p[f"out_{name}"], x))
    return own


def _likeliest(scores):
    return np.eye(scores.shape[-1])[scores.argmax(-1)]


def _branching(p, h, mask, names, routes=None):
    """Along `routes`; without, along the likeliest."""
    routes = routes or {key: _likeliest(p[key]) for key in p if key.startswith("parent")}
    x = [_gelu(_dense(p[f"layer1_{n}"], h)) for n in (1, 2)]
    inputs = [row[0] * x[0] + row[1] * x[1] for row in routes["parents2"]]
    x = [_gelu(_dense(p[f"layer2_{n}"], part)) for n, part in zip((1, 2), inputs, strict=True)]
    leaves = [routes[f"parent_{name}"][0] for name in names]
    return [leaf[0] * x[0] + leaf[1] * x[1] for leaf in leaves]


def _task_queries(p, h, mask, names):
    """Row by row, and head by head, over the tokens that are there."""
    attention, own = p["attention"], []
    for name in names:
        q, z = p[f"queries_{name}"], np.zeros((ROWS, 2, WIDTH))
        query = _dense(attention["query"], _normed(p["query_norm"], q))
        for row in np.flatnonzero(mask.any(1)):
            tokens = _normed(p["token_norm"], h[row][mask[row]])
            key, value = (_dense(attention[part], tokens) for part in ("key", "value"))
            heads = []
            for part in np.split(np.arange(WIDTH), 4):
                scores = query[:, part] @ key[:, part].T / np.sqrt(WIDTH / 4)
                heads.append(softmax(scores, -1) @ value[:, part])
            y = q + _dense(attention["out"], np.concatenate(heads, -1))
            z[row] = y + _network(p["feed_forward"], _normed(p["feed_forward_norm"], y))
        own.append(z)
    return own


FORMULAS = {
    "hard": lambda p, h, mask, names: [h] * len(names),
    "shared_middle": _shared_middle,
    "separate": _separate,
    "cross_stitch": _cross_stitch,
    "sluice": _sluice,
    "mtan": _mtan,
    "mmoe": _mmoe,
    "cgc": _cgc,
    "ple": _ple,
    "dselect": _dselect,
    "branching": _branching,
    "film": _film,
    "adapter": _adapter,
    "task_attention": _task_attention,
    "task_gates": _task_gates,
    "task_queries": _task_queries,
}


def test_every_sharing_has_its_formula():
    assert set(FORMULAS) == set(packaged(SHARINGS))


def _expected(kind, count, tokens=None, **options):
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), _run(kind, count, LENGTH)[0])
    tokens = _tokens(LENGTH) if tokens is None else tokens
    values = np.asarray(tokens.values, np.float64)
    found = FORMULAS[kind](params, values, tokens.mask, NAMES[:count], **options)
    return dict(zip(NAMES, found, strict=False))


def _is(own, expected):
    assert set(own) == set(expected)
    for name, values in expected.items():
        kept = own[name].mask
        np.testing.assert_allclose(own[name].values[kept], values[kept], atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "count"),
    # Where towers are mixed or a tree is chosen, one task is another case than three.
    [(kind, n) for kind in FORMULAS for n in (1, 3) if n == 3 or kind in {*MIXES, "branching"}],
)
def test_is_its_formula(kind, count):
    _is(_plain(kind, count), _expected(kind, count))


@EVERY
def test_what_a_task_gets_is_made_of_its_own_tokens(kind):
    """As many of them as there are. Those of a task that does not pass are left alone; they may be
    of any width, and stand first."""
    # Where towers are not mixed, a task's output is the same whoever else is there.
    names = NAMES if kind in MIXES else ("red", "blue")
    inputs = [_tokens(LENGTH, seed=2), _tokens(LENGTH), _tokens(1, seed=1)]
    copies = dict(zip(names, inputs[-len(names) :], strict=True))
    own = _used(kind, 3)[1]({"black": _wide(inputs[0]), **copies})
    assert set(own) == set(names)
    for name, tokens in copies.items():
        if kind in FORMULAS:
            _is({name: own[name]}, {name: _expected(kind, 3, tokens)[name]})
        assert own[name].layout == (tokens.layout if SHARINGS[kind].keeps_layout else ())


@EVERY
def test_works_for_the_tasks_that_are_there(kind):
    """A task that never comes has no layer, and the others' have all the shapes they need."""
    copies = _copies(3, LENGTH)
    some = {name: copies[name] for name in ("red", "blue")}
    if kind in MIXES:
        own = _used(kind, 3)[1](some)
        assert set(own) == set(some)
        assert all(np.isfinite(tokens.values).all() for tokens in own.values())
    params = _paths(_params(_module(kind, 3), some))
    every = _paths(_run(kind, 3, LENGTH)[0])
    assert {path for path in every if "_green" not in path} == set(params)
    assert all(every[path].shape == params[path].shape for path in params)


def test_branching_follows_the_parents_that_it_draws():
    own, seen, *_ = _result("branching", 3, LENGTH)
    routes = {
        key.removeprefix("routing_"): np.asarray(x[0]) for key, x in seen["intermediates"].items()
    }
    _is(own, _expected("branching", 3, routes=routes))


def test_sluice_keeps_subspaces_apart():
    seen = _result("sluice", 3, LENGTH)[1]
    params = _run("sluice", 3, LENGTH)[0]
    expected = 0.0
    for path, kernel in _paths(params).items():
        if path.endswith("kernel"):
            expected += np.square(kernel[:, : WIDTH // 2].T @ kernel[:, WIDTH // 2 :]).sum()
    ((total, count),) = seen["losses"]["orthogonality"]
    np.testing.assert_allclose(total / count, 1e-3 * expected, rtol=1e-4)
    off = _module("sluice", 3, orthogonality=0.0)
    given = {"params": params}, _copies(3, LENGTH)
    assert not jax.eval_shape(lambda *given: off.apply(*given, mutable=["losses"])[1], *given)


def test_dselect_adds_the_entropy_of_its_selectors():
    seen = _result("dselect", 3, LENGTH)[1]["losses"]
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), _run("dselect", 3, LENGTH)[0])
    tokens = _tokens(LENGTH)
    means = _mean(np.asarray(tokens.values, np.float64), np.asarray(tokens.mask))
    present = np.asarray(tokens.present)
    for name in NAMES:
        ((total, count),) = seen[f"entropy_{name}"]
        _, selectors = _dselect_gates(params, means, name)
        entropy = -(selectors * np.log(np.maximum(selectors, 1e-300))).sum((1, 2))
        assert float(count) == present.sum() == ROWS - 1
        np.testing.assert_allclose(total, 1e-3 * entropy[present].sum(), rtol=1e-4)


def test_smooth_steps_end_and_choose_one_expert():
    t = np.linspace(-1.0, 1.0, 41, dtype=np.float32)
    codes = np.array([[9.0, -9.0, 9.0], [0.1, -0.3, 0.2]], np.float32)

    @jax.jit
    def run(t, codes):
        value, slope = jax.vmap(jax.value_and_grad(smooth_step), (0, None))(t, 1.0)
        return value, slope, jax.vmap(select, (0, None))(codes, 1.0)

    value, slope, (hard, soft) = jax.device_get(run(t, codes))
    np.testing.assert_allclose(value, _step(t, 1.0), atol=1e-6)
    assert (slope[(t < -0.5) | (t > 0.5)] == 0).all()
    np.testing.assert_array_equal(hard, np.eye(8)[5])
    np.testing.assert_allclose(soft.sum(), 1.0, atol=1e-6)


@pytest.mark.parametrize("k", [1, 2])
def test_dselect_may_choose_for_all_samples(k):
    module = _module("dselect", 2, by_sample=False, k=k)
    params = _params(module, _copies(2, 1))
    assert ("share_red" in params) == (k > 1)
    run = jax.jit(functools.partial(module.apply, mutable=["intermediates"]))
    (gate,) = jax.device_get(run({"params": params}, _copies(2, 1))[1]["intermediates"]["gate_red"])
    assert gate.shape == (ROWS, 4)
    np.testing.assert_allclose(gate, gate[:1].repeat(ROWS, 0))
    np.testing.assert_allclose(gate.sum(-1), 1.0, atol=1e-6)


def test_branching_draws_one_tree_and_settles_for_the_likeliest():
    params = _run("branching", 3, LENGTH)[0]

    @functools.partial(jax.jit, static_argnames=("train", "temperature"))
    def seen(key, train=True, temperature=1.0):
        _, seen = _module("branching", 3, temperature=temperature).apply(
            {"params": params},
            _copies(3, 1),
            train=train,
            rngs={"dropout": jax.random.key(key)},
            mutable=["intermediates"],
        )
        return {name: route for name, (route,) in seen["intermediates"].items()}

    likely, one, other = (jax.device_get(seen(*of)) for of in ((0, False), (0,), (1,)))
    cold = jax.device_get(seen(0, temperature=1e-3))
    assert set(likely) == {f"routing_parent_{name}" for name in NAMES} | {"routing_parents2"}
    for name, route in likely.items():
        likeliest = params[name.removeprefix("routing_")].argmax(-1)
        np.testing.assert_allclose(route, np.eye(2)[likeliest], atol=1e-6)
    for name, route in one.items():
        np.testing.assert_allclose(route.sum(-1), 1.0, atol=1e-6)
        assert route.shape[1] == 2  # no axis of rows: one tree for the batch
        assert np.abs(route - other[name]).max() > 1e-3
        np.testing.assert_allclose(cold[name], route == route.max(-1, keepdims=True), atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("mmoe", ["gate_red"]),
        ("cgc", ["gate1_red"]),
        ("ple", ["gate1_red", "gate2_red", "shared_gate1"]),
        ("dselect", ["gate_red"]),
        ("task_attention", ["task_weights"]),
        ("branching", ["routing_parents2", "routing_parent_red"]),
    ],
)
def test_gates_are_shown_once_and_sum_to_one(kind, names):
    seen = _result(kind, 3, LENGTH)[1]["intermediates"]
    for name in names:
        (gate,) = seen[name]
        np.testing.assert_allclose(gate.sum(-1), 1.0, atol=1e-5)


def test_stitches_start_near_identity_with_normalised_rows():
    module = _module("cross_stitch", 3)
    params = jax.device_get(jax.jit(module.init)(KEY, _copies(3, 1))["params"])
    expected = np.where(np.eye(3) > 0, 0.9, 0.05)
    np.testing.assert_allclose(params["matrix1"], expected, atol=1e-6)
    skew = np.array([[1.0], [2.0], [-3.0]], np.float32)
    skewed = {**params, "matrix1": params["matrix1"] * skew}
    run = jax.jit(functools.partial(module.apply, mutable=["intermediates"]))
    some = {name: t for name, t in _copies(3, 1).items() if name != "green"}
    for copies, wanted in (
        (_copies(3, 1), expected * [[1.0], [1.0], [-1.0]]),
        (some, np.array([[0.9, 0.05], [-0.05, -0.9]]) / 0.95),
    ):
        _, seen = run({"params": skewed}, copies)
        np.testing.assert_allclose(seen["intermediates"]["stitch1"][0], wanted, atol=1e-6)


def test_adapters_start_as_hard_sharing_and_may_be_isolated():
    copies = _copies(3, LENGTH)
    module = _module("adapter", 3, isolated=["green"])

    def loss(values):
        given = {name: copies[name].replace_values(values[name]) for name in NAMES}
        own = module.apply({"params": _run("adapter", 3, LENGTH)[0]}, given)
        return sum(_wavy(tokens) for tokens in own.values())

    @jax.jit
    def run(copies):
        values = {name: tokens.values for name, tokens in copies.items()}
        return module.init_with_output(KEY, copies)[0], jax.grad(loss)(values)

    start, reached = jax.device_get(run(copies))
    _close(start, copies, atol=0)
    assert [bool(np.abs(reached[name]).max() > 0) for name in NAMES] == [True, False, True]


def test_a_shared_middle_takes_inputs_of_different_widths():
    copies = _copies(2, LENGTH)
    copies["green"] = _wide(copies["green"])
    own, params = jax.eval_shape(_module("shared_middle", 2).init_with_output, KEY, copies)
    assert params["params"]["middle1"]["kernel"].shape == (2 * WIDTH, 2 * WIDTH)
    assert [own[name].values.shape[-1] for name in ("red", "green")] == [WIDTH, 2 * WIDTH]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"kind": "shared_middle", "layers": 0}, ["layers", "0", "from 1"]),
        ({"kind": "separate", "layers": 1}, ["layers", "1", "from 2"]),
        ({"kind": "cross_stitch", "own": 1.5}, ["own", "1.5", "up to 1"]),
        ({"kind": "sluice", "subspaces": 1}, ["subspaces", "from 2"]),
        ({"kind": "sluice", "orthogonality": -1.0}, ["orthogonality", "-1.0", "from 0"]),
        ({"kind": "mtan", "layers": True}, ["layers", "True", "a whole number"]),
        ({"kind": "mmoe", "experts": 1}, ["experts", "from 2"]),
        ({"kind": "mmoe", "expert": 4}, ["expert", "experts"]),
        ({"kind": "cgc", "shared": 0}, ["shared", "from 1"]),
        ({"kind": "ple", "levels": 1}, ["levels", "from 2"]),
        ({"kind": "dselect", "experts": 6}, ["experts", "6", "power of two"]),
        ({"kind": "dselect", "k": 9}, ["k", "9", "8 experts"]),
        ({"kind": "dselect", "gamma": 0.0}, ["gamma", "0.0", "above 0"]),
        ({"kind": "branching", "branches": 1}, ["branches", "from 2"]),
        ({"kind": "branching", "temperature": float("inf")}, ["temperature", "inf", "above 0"]),
        ({"kind": "film", "embedding": 0}, ["embedding", "from 1"]),
        ({"kind": "adapter", "isolated": ["pink"]}, ["isolated", "pink", "green, red"]),
        ({"kind": "task_attention", "hidden": 0}, ["hidden", "from 1"]),
        ({"kind": "task_gates", "reduction": 0.5}, ["reduction", "0.5", "a whole number"]),
        ({"kind": "task_queries", "queries": 0}, ["queries", "from 1"]),
        ({"kind": "mix"}, ["mix", "mtan", "cross_stitch"]),
    ],
)
def test_bad_fields_are_named(config, words):
    with pytest.raises(ConfigError) as error:
        registry.build(SHARINGS, config, where="model.sharing", tasks=("green", "red"))
    assert all(word in str(error.value) for word in ["model.sharing", *words])


@pytest.mark.parametrize(
    ("kind", "field", "choices"),
    [("sluice", "subspaces", "2, 4, 8"), ("task_queries", "heads", "1, 2, 4, 8")],
)
def test_parts_that_do_not_divide_the_width_are_named(kind, field, choices):
    module = _module(kind, 2, **{field: 3})
    with pytest.raises(ConfigError, match=f"model.sharing.{field}: 3 .* width 8; .*{choices}"):
        jax.eval_shape(module.init, KEY, _copies(2, 1))
