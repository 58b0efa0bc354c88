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


def _stepper(kind: str, engine: str, losses_fn: Any = toy.SPLIT, axis_name: Any = None, **kw: Any):
    balancer = make(kind, toy.K)
    fn = balancing.value_and_grad(
        losses_fn, balancer, engine=engine, axis_name=axis_name, shared=toy.shared_labels, **kw
    )
    return balancer, fn


def _close(a: Any, b: Any, atol: float = 1e-5) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


def _loop_gradients(p: Any, b: Any) -> list[Any]:
    """Mean gradient of every task by a Python loop over samples, missing labels skipped."""

    def one(p: Any, x: Any, y: Any, k: int) -> jax.Array:
        hidden = jnp.tanh(jnp.tanh(x @ p["trunk"]["w1"]) @ p["trunk"]["w2"])
        return jnp.sum((hidden @ p["heads"][k]["w"] - y) ** 2)

    grad = jax.jit(jax.grad(one), static_argnums=3)
    tasks = []
    for k in range(toy.K):
        rows = [grad(p, b["x"][i], b["y"][i, k], k) for i in range(toy.BATCH) if b["present"][i, k]]
        tasks.append(jax.tree.map(lambda *g: sum(np.asarray(x) for x in g) / len(g), *rows))
    return tasks


@functools.cache
def _looped(kind: str) -> Any:
    """The balanced gradient from the loop's task gradients, through the Optax transformation."""
    p, b = toy.params(), toy.batch()
    tasks = _loop_gradients(p, b)
    balancer = make(kind, toy.K)
    rows = jax.tree.map(lambda *g: jnp.stack(g), *[t["trunk"] for t in tasks])
    losses = jnp.asarray(
        balancing.value_and_grad(toy.SPLIT, make("equal", toy.K))(
            p, make("equal", toy.K).init(p), b
        ).losses
    )
    trunk, state = balancer.update(rows, balancer.init(p["trunk"]), losses=losses, other=rows)
    heads = jax.tree.map(lambda *g: sum(g), *[t["heads"] for t in tasks])
    return trunk, heads, state.task_weights


@pytest.mark.parametrize("losses_fn", [toy.SPLIT, toy.whole], ids=["split", "whole"])
@pytest.mark.parametrize("kind", ["equal", "uncertainty", "cagrad", "upgrad", "db_mtl", "modo"])
def test_full_gradients_equal_a_loop_over_samples(kind, losses_fn):
    p, b = toy.params(), toy.batch()
    balancer, fn = _stepper(kind, "full", losses_fn, head_gradients="own")
    out = jax.jit(fn)(p, balancer.init(p), b, other=(b,))
    trunk, heads, weights = _looped(kind)
    _close(out.grads["trunk"], trunk)
    _close(out.grads["heads"], heads)
    _close(out.diagnostics["weights"], weights)


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_chunks_agree(chunk):
    p, b = toy.params(), toy.batch()
    balancer, fn = _stepper("upgrad", "full", chunk=chunk)
    _close(jax.jit(fn)(p, balancer.init(p), b).grads["trunk"], _looped("upgrad")[0])


def test_losses_only_methods_agree_over_engines():
    p, b = toy.params(), toy.batch()
    results = []
    for engine, losses_fn in [
        ("losses", toy.SPLIT),
        ("losses", toy.whole),
        ("full", toy.whole),
        ("representation", toy.SPLIT),
        ("full", toy.SPLIT),
    ]:
        for heads in ("weighted", "own"):
            balancer, fn = _stepper("static", engine, losses_fn, head_gradients=heads)
            results.append((heads, jax.jit(fn)(p, balancer.init(p), b).grads))
    for heads, grads in results[2:]:
        _close(grads, results[0][1] if heads == "weighted" else results[1][1])


def test_representation_rows_are_the_gradients_at_the_cut():
    """Its Gramian equals that of task-by-task gradients at the shared tensor."""
    p, b = toy.params(), toy.batch()
    balancer, fn = _stepper("mgda", "representation")
    out = jax.jit(fn)(p, balancer.init(p), b)
    shared, aux = toy.trunk(p, b)

    def loss(hidden: Any, k: int) -> Any:
        sums, counts, _ = toy.readout(p, [shared | {"hidden": hidden}] * toy.K, aux, b)
        return sums[k] / counts[k]

    rows = np.stack([jax.grad(loss)(shared["hidden"], k).ravel() for k in range(toy.K)])
    np.testing.assert_allclose(out.diagnostics["norms"], np.linalg.norm(rows, axis=1), atol=1e-6)
    w = np.asarray(out.diagnostics["weights"])
    _close(
        out.grads["trunk"],
        jax.tree.map(
            lambda *g: sum(a * b for a, b in zip(w, g, strict=True)),
            *[t["trunk"] for t in _loop_gradients(p, b)],
        ),
    )


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
@pytest.mark.parametrize("how", ["loss", "gradient", "absent"])
def test_a_diverged_task_is_left_out_exactly(kind, engine, how):
    """NaN loss, NaN gradient of a finite loss, or a NaN filler that only the count masks."""

    def readout(p: Any, copies: Any, aux: Any, b: Any) -> Any:
        sums, counts, rest = toy.readout(p, copies, aux, b)
        hidden, w = copies[1]["hidden"], p["heads"][1]["w"]
        zero = jnp.sum(hidden @ w) * 0
        if how == "loss":
            sums = sums.at[1].set(jnp.log(-1 - zero))
        elif how == "gradient":
            sums = sums.at[1].set(jnp.sqrt(zero))  # finite value, slope inf * 0
        else:
            sums = sums.at[1].set(jnp.sum(hidden @ w - jnp.nan))
            counts = counts.at[1].set(0)
        return sums, counts, rest

    def without(p: Any, copies: Any, aux: Any, b: Any) -> Any:
        sums, counts, rest = toy.readout(p, copies, aux, b)
        return sums.at[1].set(0), counts.at[1].set(0), rest

    p, b = toy.params(), toy.batch()
    outs = []
    for function in (readout, without):
        balancer, fn = _stepper(kind, engine, balancing.Split(toy.trunk, function))
        outs.append(jax.jit(fn)(p, balancer.init(p), b))
    if how == "gradient" and balancer.rule.needs == "losses":
        # One backward pass cannot tell beforehand; the step is reported, and teaches nothing.
        assert outs[0].diagnostics["skipped"]
        return
    _close(outs[0].grads, outs[1].grads, 1e-7)
    assert not outs[0].diagnostics["present"][1]
    assert outs[0].diagnostics["weights"][1] == 0
    assert not outs[0].diagnostics["skipped"]


def test_a_step_without_any_task_is_zero_and_a_bad_trunk_is_reported():
    p, b = toy.params(), toy.batch()
    balancer, fn = _stepper("cagrad", "auto")
    step = jax.jit(fn)
    out = step(p, balancer.init(p), b | {"present": jnp.zeros_like(b["present"])})
    assert not any(np.any(g) for g in jax.tree.leaves(out.grads))
    np.testing.assert_array_equal(out.state.absences, [1, 1, 1])
    balancer, fn = _stepper("uncertainty", "auto", toy.whole)
    bad = jax.tree.map(lambda x: x, b) | {"x": b["x"].at[0, 0].set(jnp.nan)}
    state = balancer.init(p)
    out = jax.jit(fn)(p, state, bad)
    assert not out.diagnostics["present"].any()
    _close(out.state.rule, state.rule)


@pytest.mark.usefixtures("uncached")
@pytest.mark.parametrize(("kind", "engine"), TIERS)
def test_many_devices_equal_one(kind, engine):
    """SGD on 1, 2 and 4 devices, with a task absent from some devices and one from all."""
    p, b = toy.params(), toy.batch()
    b["present"] = b["present"].at[2:, 0].set(False).at[:, 2].set(False)
    balancer, fn = _stepper(kind, engine)
    state = balancer.init(p)
    expected = jax.jit(fn)(p, state, b, other=(b,))
    _, fn = _stepper(kind, engine, axis_name="devices")
    for n in (2, 4):
        parts = jax.tree.map(lambda x, n=n: x.reshape(n, -1, *x.shape[1:]), b)
        step = jax.pmap(
            lambda p, s, b: fn(p, s, b, other=(b,)),
            axis_name="devices",
            in_axes=(None, None, 0),
            devices=jax.devices()[:n],
        )
        out = step(p, state, parts)
        for device in (0, n - 1):
            got = jax.tree.map(lambda x, d=device: x[d], out)
            _close(got.grads, expected.grads)
            _close(got.state, expected.state)
            _close(got.losses, expected.losses)


@pytest.mark.usefixtures("uncached")
@pytest.mark.parametrize(("kind", "engine"), TIERS)
def test_sharded_mesh_equals_one_device(kind, engine):
    p, b = toy.params(), toy.batch()
    balancer, fn = _stepper(kind, engine)
    state = balancer.init(p)
    expected = jax.jit(fn)(p, state, b, other=(b,))
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    split = jax.device_put(b, NamedSharding(mesh, P("data")))
    params = jax.device_put(p, NamedSharding(mesh, P(None, "model")))
    out = jax.jit(fn)(
        params, jax.device_put(state, NamedSharding(mesh, P())), split, other=(split,)
    )
    _close(out.grads, expected.grads)
    _close(out.state, expected.state)


@pytest.mark.usefixtures("uncached")
@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize(
    ("kind", "engine"), [("equal", "auto"), ("cagrad", "auto"), ("cagrad", "full")]
)
def test_shard_map_equals_one_device(kind, engine, check_vma):
    p, b = toy.params(), toy.batch()
    balancer, fn = _stepper(kind, engine)
    state = balancer.init(p)
    expected = jax.jit(fn)(p, state, b)
    _, fn = _stepper(kind, engine, axis_name="d")
    mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    step = jax.shard_map(
        lambda p, s, b: fn(p, s, b).grads,
        mesh=mesh,
        in_specs=(P(), P(), P("d")),
        out_specs=P(),
        check_vma=check_vma,
    )
    _close(jax.jit(step)(p, state, b), expected.grads)


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

    p, b = toy.params(), toy.batch()
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


def test_remat_changes_nothing():
    p, b = toy.params(), toy.batch()
    rematted = balancing.Split(jax.checkpoint(toy.trunk), toy.readout)
    for kind, engine in (("cagrad", "auto"), ("equal", "auto"), ("cagrad", "full")):
        grads = []
        for losses_fn in (toy.SPLIT, rematted):
            balancer, fn = _stepper(kind, engine, losses_fn)
            grads.append(jax.jit(fn)(p, balancer.init(p), b).grads)
        _close(*grads)


@pytest.mark.usefixtures("uncached")
@pytest.mark.parametrize(
    ("kind", "engine"), [*TIERS[1:4], *TIERS[5:], ("cagrad", "plain"), ("uncertainty", "plain")]
)
@pytest.mark.slow
def test_microbatches_equal_the_whole_batch(kind, engine):
    """Labels are missing unevenly, one task from a whole microbatch; on one device and on two."""
    p, b = toy.params(), toy.batch(filler=np.nan)
    b["present"] = b["present"].at[0::4, 0].set(False)
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
    p, b = toy.params(), toy.batch()
    split = lambda b: [(part,) for part in balancing.split_rows(b, 2)]  # noqa: E731
    for kind in ("cagrad", "uncertainty", "db_mtl"):
        balancer, fn = _stepper(kind, "auto", microbatches=split)
        step, state = jax.jit(fn), balancer.init(p)
        bad = step(p, state, b | {"y": b["y"].at[0, 1].set(jnp.inf)})
        absent = step(p, state, b | {"present": b["present"].at[:, 1].set(False)})
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

    p = toy.params()
    p["trunk"] = Trunk().init(jax.random.key(0), toy.batch()["x"])["params"]
    tapped, layers = taps.tap(trunk, prefix="trunk/")
    return p, balancing.Split(trunk, toy.readout), balancing.Tapped(tapped, toy.readout, layers)


@pytest.mark.usefixtures("uncached")
@pytest.mark.parametrize("kind", ["equal", "cagrad", "upgrad"])
def test_layerwise_gramian_equals_the_full_one(kind):
    p, losses, tapped = _tapped()
    b = toy.batch()
    assert set(tapped.layers(p, b)) == {"first", "second"}
    outs = []
    for losses_fn, engine in ((losses, "full"), (tapped, "gramian"), (tapped, "full")):
        balancer, fn = _stepper(kind, engine, losses_fn, head_gradients="own")
        outs.append(jax.jit(fn)(p, balancer.init(p), b))
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
        got = layer_gramian(jnp.asarray(x, jnp.float32), jnp.asarray(d, jnp.float32), bias)
        np.testing.assert_allclose(got, rows @ rows.T, rtol=1e-4, atol=1e-3)
