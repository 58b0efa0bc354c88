"""`value_and_grad`: every engine against a per-sample loop, NaN kept apart, many devices."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mtmm_jax import balancing
from mtmm_jax.registry import ConfigError
from tests.balancing import toy
from tests.balancing.cases import make
from tests.toy import variables

# One method of each tier and mechanism: (method, engine).
TIERS = [
    ("equal", "auto"),
    ("uncertainty", "auto"),
    ("cagrad", "representation"),
    ("cagrad", "full"),
    ("pcgrad", "representation"),
    ("graddrop", "full"),
    ("db_mtl", "full"),
    ("modo", "full"),
]


P0, B0 = jax.tree.map(np.asarray, (toy.params(), toy.batch()))


def _stepper(kind: str, engine: str, losses_fn: Any = toy.SPLIT, axis_name: Any = None, **kw: Any):
    balancer = make(kind, toy.K)
    fn = balancing.value_and_grad(
        losses_fn, balancer, engine=engine, axis_name=axis_name, shared=toy.shared_labels, **kw
    )
    return balancer, fn


@functools.cache
def _jitted(kind: str, engine: str, losses_fn: Any = toy.SPLIT, **kw: Any) -> Any:
    """The initial state, and the step `(state, batch) -> Balanced`, with the batch as the other."""
    balancer, fn = _stepper(kind, engine, losses_fn, **kw)
    other = balancer.rule.second_sample
    step = jax.jit(lambda s, b: fn(P0, s, b, other=(b,)) if other else fn(P0, s, b))
    return balancer.init(P0), step


def _absent(b: Any, task: int) -> Any:
    """The same batch without the labels of a task."""
    present = b["present"].copy()
    present[:, task] = False
    return b | {"present": present}


def _close(a: Any, b: Any, atol: float = 1e-5) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


@functools.cache
def _loop_gradients() -> tuple[np.ndarray, list[Any]]:
    """Mean loss and gradient of every task, by a loop over samples and backpropagation by hand."""
    p, b = jax.tree.map(lambda x: np.asarray(x, np.float64), (P0, B0))
    w1, w2 = p["trunk"]["w1"], p["trunk"]["w2"]
    losses, tasks = [], []
    for k in range(toy.K):
        rows = []
        for i in np.flatnonzero(b["present"][:, k]):
            first = np.tanh(b["x"][i] @ w1)
            hidden = np.tanh(first @ w2)
            error = hidden @ p["heads"][k]["w"] - b["y"][i, k]
            back = 2 * (p["heads"][k]["w"] @ error) * (1 - hidden**2)
            grads = {
                "trunk": {
                    "w1": np.outer(b["x"][i], (w2 @ back) * (1 - first**2)),
                    "w2": np.outer(first, back),
                },
                "heads": [{"w": np.zeros_like(h["w"])} for h in p["heads"]],
            }
            grads["heads"][k]["w"] = 2 * np.outer(hidden, error)
            rows.append((np.sum(error**2), grads))
        loss, grads = jax.tree.map(lambda *g: sum(g) / len(g), *rows)
        losses.append(loss)
        tasks.append(grads)
    return np.stack(losses), tasks


@functools.cache
def _looped(kind: str) -> Any:
    """The balanced gradient from the loop's task gradients, through the Optax transformation."""
    losses, tasks = jax.tree.map(lambda x: np.asarray(x, np.float32), _loop_gradients())
    balancer = make(kind, toy.K)
    rows = jax.tree.map(lambda *g: np.stack(g), *[t["trunk"] for t in tasks])

    @jax.jit
    def balanced() -> Any:
        state = balancer.init(P0["trunk"])
        return balancer.update(rows, state, losses=losses, other=rows)

    trunk, state = balanced()
    heads = jax.tree.map(lambda *g: sum(g), *[t["heads"] for t in tasks])
    return trunk, heads, state.task_weights


@pytest.mark.parametrize("losses_fn", [toy.SPLIT, toy.whole], ids=["split", "whole"])
@pytest.mark.parametrize("kind", ["equal", "uncertainty", "cagrad", "upgrad", "db_mtl", "modo"])
def test_full_gradients_equal_a_loop_over_samples(kind, losses_fn):
    state, step = _jitted(kind, "full", losses_fn, head_gradients="own")
    out = step(state, B0)
    trunk, heads, weights = _looped(kind)
    _close(out.grads["trunk"], trunk)
    _close(out.grads["heads"], heads)
    _close(out.diagnostics["weights"], weights)


@pytest.mark.parametrize("chunk", [2, 3])  # 1, the default, is the test above
def test_chunks_agree(chunk):
    state, step = _jitted("upgrad", "full", chunk=chunk)
    _close(step(state, B0).grads["trunk"], _looped("upgrad")[0])


def test_losses_only_methods_agree_over_engines():
    ways = [
        ("losses", toy.SPLIT),
        ("losses", toy.whole),
        ("full", toy.whole),
        ("representation", toy.SPLIT),
        ("full", toy.SPLIT),
    ]

    @jax.jit
    def grads(p: Any, b: Any) -> Any:
        found = []
        for engine, losses_fn in ways:
            for heads in ("weighted", "own"):
                balancer, fn = _stepper("static", engine, losses_fn, head_gradients=heads)
                found.append(fn(p, balancer.init(p), b).grads)
        return found

    results = grads(P0, B0)
    for number, got in enumerate(results[2:]):
        _close(got, results[number % 2])


def test_representation_rows_are_the_gradients_at_the_cut():
    """Its Gramian equals that of task-by-task gradients at the shared tensor."""
    state, step = _jitted("mgda", "representation")
    out = step(state, B0)

    @jax.jit
    @jax.jacrev
    def rows_at(hidden: Any) -> Any:
        shared, aux = toy.trunk(P0, B0)
        sums, counts, _ = toy.readout(P0, [shared | {"hidden": hidden}] * toy.K, aux, B0)
        return sums / counts

    hidden = np.tanh(np.tanh(B0["x"] @ P0["trunk"]["w1"]) @ P0["trunk"]["w2"])
    rows = np.asarray(rows_at(hidden)).reshape(toy.K, -1)
    np.testing.assert_allclose(out.diagnostics["norms"], np.linalg.norm(rows, axis=1), atol=1e-6)
    w = np.asarray(out.diagnostics["weights"])
    _close(
        out.grads["trunk"],
        jax.tree.map(
            lambda *g: sum(a * b for a, b in zip(w, g, strict=True)),
            *[t["trunk"] for t in _loop_gradients()[1]],
        ),
    )


def _diverging(p: Any, copies: Any, aux: Any, b: Any) -> Any:
    """The second task diverges in the way `b["how"]`, or is not there."""
    sums, counts, rest = toy.readout(p, copies, aux, b)
    hidden, w = copies[1]["hidden"], p["heads"][1]["w"]
    zero = jnp.sum(hidden @ w) * 0
    ways = {
        "loss": lambda: jnp.log(-1 - zero),
        "gradient": lambda: jnp.sqrt(zero),  # finite value, slope inf * 0
        "filler": lambda: jnp.sum(hidden @ w - jnp.nan),  # only the count masks it
        "absent": lambda: jnp.zeros_like(zero),
    }
    value = jax.lax.switch(b["how"], list(ways.values()))
    count = jnp.where(b["how"] < 2, counts[1], 0)
    return sums.at[1].set(value), counts.at[1].set(count), rest


DIVERGING = balancing.Split(toy.trunk, _diverging)


@pytest.mark.parametrize(
    ("kind", "engine"),
    [
        ("equal", "auto"),
        ("uncertainty", "auto"),
        ("cagrad", "auto"),
        ("cagrad", "full"),
        ("db_mtl", "full"),
    ],
)
@pytest.mark.parametrize("how", ["loss", "gradient", "filler"])
def test_a_diverged_task_is_left_out_exactly(kind, engine, how):
    """NaN loss, NaN gradient of a finite loss, or a NaN filler that only the count masks."""
    state, step = _jitted(kind, engine, DIVERGING)
    number = ["loss", "gradient", "filler"].index(how)
    got, expected = (step(state, B0 | {"how": np.int32(i)}) for i in (number, 3))
    if how == "gradient" and make(kind, toy.K).rule.needs == "losses":
        # One backward pass cannot tell beforehand; the step is reported, and teaches nothing.
        assert got.diagnostics["skipped"]
        return
    _close(got.grads, expected.grads, 1e-7)
    assert not got.diagnostics["present"][1]
    assert got.diagnostics["weights"][1] == 0
    assert not got.diagnostics["skipped"]


def test_a_step_without_any_task_is_zero_and_a_bad_trunk_is_reported():
    state, step = _jitted("cagrad", "auto")
    out = step(state, B0 | {"present": np.zeros_like(B0["present"])})
    assert not any(np.any(g) for g in jax.tree.leaves(out.grads))
    np.testing.assert_array_equal(out.state.absences, [1, 1, 1])
    state, step = _jitted("uncertainty", "auto", toy.whole)
    bad = B0["x"].copy()
    bad[0, 0] = np.nan
    out = step(state, B0 | {"x": bad})
    assert not np.asarray(out.diagnostics["present"]).any()
    _close(out.state.rule, state.rule)


@pytest.mark.usefixtures("uncached")
@pytest.mark.parametrize(("kind", "engine"), TIERS)
def test_many_devices_equal_one(kind, engine):
    """SGD on 1 and 4 devices, with a task absent from some devices and one from all."""
    b = _absent(B0, 2)
    b["present"][2:, 0] = False
    state, step = _jitted(kind, engine)
    expected = step(state, b)
    _, fn = _stepper(kind, engine, axis_name="devices")
    parts = jax.tree.map(lambda x: x.reshape(4, -1, *x.shape[1:]), b)
    step = jax.pmap(
        lambda p, s, b: fn(p, s, b, other=(b,)), axis_name="devices", in_axes=(None, None, 0)
    )
    out = jax.device_get(step(P0, state, parts))
    for device in (0, 3):
        got = jax.tree.map(lambda x, d=device: x[d], out)
        _close(got.grads, expected.grads)
        _close(got.state, expected.state)
        _close(got.losses, expected.losses)


@pytest.mark.usefixtures("uncached")
@pytest.mark.parametrize(("kind", "engine"), TIERS)
def test_sharded_mesh_equals_one_device(kind, engine):
    state, step = _jitted(kind, engine)
    expected = step(state, B0)
    _, fn = _stepper(kind, engine)
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    split = jax.device_put(B0, NamedSharding(mesh, P("data")))
    params = jax.device_put(P0, NamedSharding(mesh, P(None, "model")))
    out = jax.jit(fn)(
        params, jax.device_put(state, NamedSharding(mesh, P())), split, other=(split,)
    )
    _close(out.grads, expected.grads)
    _close(out.state, expected.state)


@pytest.mark.usefixtures("uncached")
@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize(
    ("kind", "engine"), [("equal", "auto"), ("cagrad", "representation"), ("cagrad", "full")]
)
def test_shard_map_equals_one_device(kind, engine, check_vma):
    state, step = _jitted(kind, engine)
    expected = step(state, B0)
    _, fn = _stepper(kind, engine, axis_name="d")
    mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    step = jax.shard_map(
        lambda p, s, b: fn(p, s, b).grads,
        mesh=mesh,
        in_specs=(P(), P(), P("d")),
        out_specs=P(),
        check_vma=check_vma,
    )
    _close(jax.jit(step)(P0, state, B0), expected.grads)


@pytest.mark.usefixtures("uncached")
@pytest.mark.parametrize("engine", ["losses", "representation", "full"])
def test_collectives_inside_the_losses(engine):
    """Contrastive negatives gathered and statistics summed over devices transpose correctly."""

    def trunk(p: Any, b: Any, axis: Any = None) -> Any:
        h = b["x"] @ p["trunk"]["w1"]
        total, count = h.sum(0), jnp.asarray(h.shape[0], h.dtype)
        if axis:
            total, count = jax.lax.psum((total, count), axis)
        return jnp.tanh(h - total / count), None

    def readout(p: Any, copies: Any, aux: Any, b: Any, axis: Any = None) -> Any:
        a, c = copies[0] @ p["heads"][0]["w"], copies[0] @ p["heads"][1]["w"]
        everyone = jax.lax.all_gather(c, axis, tiled=True) if axis else c
        first = jax.lax.axis_index(axis) * a.shape[0] if axis else 0
        logits = a @ everyone.T
        own = jnp.arange(a.shape[0]) + first
        nce = -jax.nn.log_softmax(logits)[jnp.arange(a.shape[0]), own].sum()
        other = ((copies[1] @ p["heads"][2]["w"] - b["y"][:, 0]) ** 2).sum()
        n = jnp.asarray(a.shape[0], a.dtype)
        return jnp.stack([nce, other]), jnp.stack([n, n]), None

    p, b = P0, B0
    kind = "equal" if engine == "losses" else "cagrad"
    results = []
    for axis in (None, "d"):
        model = balancing.Split(
            functools.partial(trunk, axis=axis), functools.partial(readout, axis=axis)
        )
        balancer = make(kind, 2)
        fn = balancing.value_and_grad(
            model, balancer, engine=engine, axis_name=axis, shared=toy.shared_labels
        )
        state = balancer.init(p)
        if axis is None:
            results.append(jax.jit(fn)(p, state, b).grads)
        else:
            parts = jax.tree.map(lambda x: x.reshape(4, -1, *x.shape[1:]), b)
            out = jax.pmap(fn, axis_name=axis, in_axes=(None, None, 0))(p, state, parts)
            results.append(jax.tree.map(lambda x: x[0], out.grads))
    _close(results[1], results[0])


def test_half_precision_models_are_balanced_in_single():
    p, b = toy.params(dtype=jnp.bfloat16), toy.batch(dtype=jnp.bfloat16)
    for engine in ("representation", "full"):
        balancer, fn = _stepper("upgrad", engine)
        out = jax.jit(fn)(p, balancer.init(p), b)
        assert out.diagnostics["weights"].dtype == jnp.float32
        assert out.losses.dtype == jnp.float32
        assert {g.dtype for g in jax.tree.leaves(out.grads)} == {jnp.dtype(jnp.bfloat16)}
        assert np.isfinite(np.asarray(out.grads["trunk"]["w1"], np.float32)).all()


REMATTED = balancing.Split(jax.checkpoint(toy.trunk), toy.readout)


@pytest.mark.parametrize(
    ("kind", "engine"), [("cagrad", "representation"), ("equal", "auto"), ("cagrad", "full")]
)
def test_remat_changes_nothing(kind, engine):
    got, expected = (
        step(state, B0).grads
        for state, step in (_jitted(kind, engine, REMATTED), _jitted(kind, engine))
    )
    _close(got, expected)


@pytest.mark.usefixtures("uncached")
@pytest.mark.parametrize(
    ("kind", "engine"), [*TIERS[1:4], *TIERS[5:], ("cagrad", "plain"), ("uncertainty", "plain")]
)
@pytest.mark.slow
def test_microbatches_equal_the_whole_batch(kind, engine):
    """Labels are missing unevenly, one task from a whole microbatch; on one device and on two."""
    p, b = P0, jax.tree.map(np.array, toy.batch(filler=np.nan))
    b["present"][0::4, 0] = False
    losses_fn = toy.whole if engine == "plain" else toy.SPLIT
    losses_fn = _masked(losses_fn)
    engine = "auto" if engine == "plain" else engine
    _, plain = _stepper(kind, engine, losses_fn)
    split = lambda b: [(part,) for part in balancing.split_rows(b, 4)]  # noqa: E731
    balancer, fn = _stepper(kind, engine, losses_fn, microbatches=split)
    state = balancer.init(p)
    expected = jax.jit(plain)(p, state, b, other=(b,))
    got = jax.jit(fn)(p, state, b, other=(b,))
    for name in ("losses", "grads", "state", "diagnostics"):
        _close(getattr(got, name), getattr(expected, name))
    assert got.aux["seen"].shape == (4,)
    assert got.aux["seen"].sum() == b["present"].sum()
    half = lambda b: [(part,) for part in balancing.split_rows(b, 2)]  # noqa: E731
    _, fn = _stepper(kind, engine, losses_fn, axis_name="d", microbatches=half)
    parts = jax.tree.map(lambda x: x.reshape(2, -1, *x.shape[1:]), b)
    step = lambda p, s, b: fn(p, s, b, other=(b,)).grads  # noqa: E731
    many = jax.pmap(step, axis_name="d", in_axes=(None, None, 0))(p, state, parts)
    _close(jax.tree.map(lambda x: x[1], many), expected.grads)


def _masked(losses_fn: Any) -> Any:
    """Fillers replaced before the losses, as a plain function has to do it itself."""
    clean = lambda b: b | {"y": jnp.where(b["present"][:, :, None], b["y"], 0)}  # noqa: E731
    if not isinstance(losses_fn, balancing.Split):
        return lambda p, b: losses_fn(p, clean(b))
    return balancing.Split(
        losses_fn.trunk, lambda p, copies, aux, b: losses_fn.readout(p, copies, aux, clean(b))
    )


@pytest.mark.slow
def test_a_task_diverging_in_one_microbatch_is_left_out_of_all():
    p, b = P0, B0
    infinite = b["y"].copy()
    infinite[0, 1] = np.inf
    split = lambda b: [(part,) for part in balancing.split_rows(b, 2)]  # noqa: E731
    for kind in ("cagrad", "uncertainty", "db_mtl"):
        balancer, fn = _stepper(kind, "auto", microbatches=split)
        step, state = jax.jit(fn), balancer.init(p)
        bad = step(p, state, b | {"y": infinite})
        absent = step(p, state, _absent(b, 1))
        _close(bad.grads, absent.grads)
        _close(bad.state, absent.state)
        np.testing.assert_array_equal(bad.diagnostics["present"], [True, False, True])


@pytest.mark.slow
def test_microbatches_need_less_memory():
    """The activations of one microbatch at a time; what is compiled says so."""
    rng = np.random.default_rng(0)
    p = {"trunk": [jnp.asarray(rng.normal(size=(64, 64)), jnp.float32) for _ in range(8)]}
    b = {"x": jnp.asarray(rng.normal(size=(4096, 64)), jnp.float32)}

    def losses_fn(p: Any, b: Any) -> Any:
        x = functools.reduce(lambda x, w: jnp.tanh(x @ w), p["trunk"], b["x"])
        return jnp.stack([x.sum(), (x**2).sum()]), jnp.full((2,), x.shape[0], x.dtype), None

    sizes = []
    for parts in (1, 8):
        split = lambda b, n=parts: [(part,) for part in balancing.split_rows(b, n)]  # noqa: E731
        balancer = make("pcgrad", 2)
        fn = balancing.value_and_grad(
            losses_fn, balancer, microbatches=split if parts > 1 else None
        )
        compiled = jax.jit(fn).lower(p, balancer.init(p), b).compile()
        sizes.append(compiled.memory_analysis().temp_size_in_bytes)
    assert sizes[1] < sizes[0] / 3


def test_wrong_microbatches_are_refused():
    with pytest.raises(ConfigError, match="3 equal parts"):
        balancing.split_rows(toy.batch(), 3)
    with pytest.raises(ConfigError, match="choices: full, or representation"):
        _stepper("cagrad", "gramian", microbatches=lambda b: [(b,)])


def test_wrong_engines_are_refused():
    p, b = toy.params(), toy.batch()
    with pytest.raises(ConfigError, match="needs a balancing.Split"):
        balancer, fn = _stepper("cagrad", "representation", toy.whole)
        fn(p, balancer.init(p), b)
    with pytest.raises(ConfigError, match="choices: auto, full"):
        balancer, fn = _stepper("db_mtl", "representation")
        fn(p, balancer.init(p), b)
    with pytest.raises(ConfigError, match="other"):
        balancer, fn = _stepper("modo", "auto")
        fn(p, balancer.init(p), b)
    with pytest.raises(ConfigError, match="choices: full, gramian, representation"):
        _stepper("cagrad", "losses")


def _tapped() -> Any:
    """A Linen trunk with two Dense layers, a norm between them, heads outside; taps by name."""
    import flax.linen as nn

    from mtmm_jax.layers import taps

    class Trunk(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Dense(7, name="first")(x)
            return nn.Dense(toy.HIDDEN, use_bias=False, name="second")(nn.LayerNorm()(nn.tanh(x)))

    def trunk(p: Any, b: Any) -> Any:
        hidden = Trunk().apply({"params": p["trunk"]}, b["x"])
        return {"hidden": hidden, "mask": b["present"].any(1)}, {"seen": b["present"].sum()}

    p = P0 | {"trunk": variables(Trunk(), B0["x"])["params"]}
    tapped, layers = taps.tap(trunk, prefix="trunk/")
    return p, balancing.Split(trunk, toy.readout), balancing.Tapped(tapped, toy.readout, layers)


@pytest.mark.usefixtures("uncached")
@pytest.mark.parametrize("kind", ["equal", "cagrad", "upgrad"])
def test_layerwise_gramian_equals_the_full_one(kind):
    p, losses, tapped = _tapped()
    b = B0
    assert set(tapped.layers(p, b)) == {"first", "second"}
    balancer = make(kind, toy.K)

    @jax.jit
    def three_ways(s: Any, b: Any) -> Any:
        ways = (losses, "full"), (tapped, "gramian"), (tapped, "full")
        steps = [_stepper(kind, e, f, head_gradients="own")[1] for f, e in ways]
        return [step(p, s, b) for step in steps]

    outs = three_ways(balancer.init(p), b)
    for out in outs[1:]:
        _close(out.grads, outs[0].grads)
        _close(out.diagnostics["cosines"], outs[0].diagnostics["cosines"])
    _, fn = _stepper(kind, "gramian", tapped, "d", head_gradients="own")
    parts = jax.tree.map(lambda x: x.reshape(4, -1, *x.shape[1:]), b)
    many = jax.pmap(fn, axis_name="d", in_axes=(None, None, 0))(p, balancer.init(p), parts)
    _close(jax.tree.map(lambda x: x[1], many.grads), outs[0].grads)


@pytest.mark.parametrize("bias", [True, False])
def test_both_ways_through_a_layer_agree(bias):
    from mtmm_jax.balancing.engines import layer_gramian

    rng = np.random.default_rng(0)
    for samples, width in ((4, 30), (30, 4)):
        x, d = rng.normal(size=(samples, width)), rng.normal(size=(3, samples, 5))
        rows = np.concatenate(
            [np.einsum("ni,knd->kid", x, d).reshape(3, -1)] + ([d.sum(1)] if bias else []), axis=1
        )
        got = jax.jit(layer_gramian, static_argnums=2)(
            x.astype(np.float32), d.astype(np.float32), bias
        )
        np.testing.assert_allclose(got, rows @ rows.T, rtol=1e-4, atol=1e-3)
