"""Thin matrices next to frozen kernels, and adapters: nothing at first, exact when merged,
apart."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

from mtmm_jax import training
from mtmm_jax.inference import export, exported
from mtmm_jax.inference.finished import Finished
from mtmm_jax.model import flatten, shared_parameters
from mtmm_jax.optim import optimizers
from mtmm_jax.paths import matches
from mtmm_jax.registry import ConfigError
from mtmm_jax.store.workdir import Workdir
from mtmm_jax.transfer import lora
from tests import toy
from tests.training import small_run

TASKS = ("kind", "size")
LORA = {"rank": 2, "alpha": 4.0, "on": [".*/kernel"]}
SHAPES = {
    "encoders/image/conv/kernel": (3, 3, 4, 5),
    "encoders/audio/conv/kernel": (3, 4, 5),
    "encoders/text/attention/query/kernel": (6, 2, 3),
    "encoders/text/attention/out/kernel": (2, 3, 6),
    "fusion/fused/out/kernel": (6, 4),
}
SIDES = [(36, 5), (12, 5), (6, 6), (6, 6), (6, 4)]


def config(**sections):
    plain = {**small_run.get_config().to_dict(), "devices": 1, "balancing": "equal"}
    plain["model"] = {**plain["model"], **sections.pop("model", {})}
    return {**plain, **sections}


def drawn(tree, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), tree)


def batch(experiment):
    return next(iter(experiment.source.train(8, seed=0)))


@pytest.fixture(scope="module")
def pair():
    """The same model with LoRA and without, and variables of the first with B away from zero."""
    thin, plain = (training.assemble(config(lora=x)) for x in (LORA, None))
    return thin, plain, drawn(thin.model.shapes)


@pytest.fixture(scope="module")
def predict(pair):
    """The predictions of both models, each compiled once: `thin, plain`."""
    thin, plain, _ = pair
    return tuple(jax.jit(lambda v, x, m=m: m(v, x)[0]) for m in (thin.model, plain.model))


def test_kernels_of_any_rank_are_matrices_and_sums_are_those_of_numpy():
    flat = {path: np.zeros(shape, np.float32) for path, shape in SHAPES.items()}
    assert [lora.sides(path, shape) for path, shape in SHAPES.items()] == SIDES
    params = drawn(jax.tree.map(np.asarray, _nested(flat)))
    settings = lora.read({**LORA, "on": [r"encoders/.*/kernel", "fusion/.*"]})
    own = jax.device_get(jax.jit(lambda p: lora.init(settings, jax.random.key(0), p))(params))
    assert not np.any([np.any(x) for path, x in flatten(own).items() if path.endswith("/b")])
    spread = {
        p: float(x.std()) * x.shape[0] ** 0.5 for p, x in flatten(own).items() if p[-1] == "a"
    }
    assert all(0.4 < s < 1.6 for s in spread.values()), spread
    thin = drawn(own, 1)
    merge = jax.jit(lambda: lora.merge({**params, "lora": thin}, settings))
    merged = flatten(jax.device_get(merge()))
    assert merged.keys() == flat.keys()
    for (path, shape), (rows, columns) in zip(SHAPES.items(), SIDES, strict=True):
        a, b = (flatten(thin)[f"{path}/{side}"] for side in "ab")
        assert (a.shape, b.shape) == ((rows, 2), (2, columns))
        expected = flatten(params)[path].reshape(rows, columns) + 4.0 / 2 * a @ b
        np.testing.assert_allclose(merged[path], expected.reshape(shape), atol=1e-6)
    back = flatten(jax.jit(lora.unmerge, static_argnums=2)(_nested(merged), thin, settings))
    assert {path for path in back if path.startswith("lora/")}
    for path, value in flatten(params).items():
        np.testing.assert_allclose(back[path], value, atol=1e-6)


def _nested(flat):
    from flax import traverse_util

    return traverse_util.unflatten_dict(flat, sep="/")


def test_heads_of_query_key_and_value_are_their_own_outputs():
    """What is added to `[D, H, Dh]` acts on queries as it does on `[D, H Dh]`."""
    settings = lora.read(LORA)
    path = "encoders/text/attention/query/kernel"
    params = drawn(_nested({path: np.zeros((6, 2, 3), np.float32)}))
    thin = jax.eval_shape(lambda: lora.init(settings, jax.random.key(0), params))
    thin = drawn(thin, 1)
    x = np.random.default_rng(2).standard_normal((4, 6)).astype(np.float32)
    merged = flatten(jax.jit(lambda: lora.merge({**params, "lora": thin}, settings))())[path]
    a, b = (flatten(thin)[f"{path}/{side}"] for side in "ab")
    expected = np.einsum("nd,dhk->nhk", x, flatten(params)[path])
    expected += 2.0 * (x @ a @ b).reshape(4, 2, 3)
    np.testing.assert_allclose(np.einsum("nd,dhk->nhk", x, merged), expected, atol=1e-5)


def test_it_begins_as_the_plain_model(pair, predict):
    thin, _, variables = pair
    inputs = batch(thin)["inputs"]
    drawn = {room: tree for room, tree in variables["params"].items() if room != "lora"}
    init = jax.jit(lambda params: lora.init(lora.read(LORA), jax.random.key(0), params))
    variables = {**variables, "params": {**drawn, "lora": init(drawn)}}
    params = {room: tree for room, tree in variables["params"].items() if room != "lora"}
    assert set(variables["params"]) - set(params) == {"lora"}
    both = zip(predict, (variables, {**variables, "params": params}), strict=True)
    jax.tree.map(np.testing.assert_array_equal, *(model(v, inputs) for model, v in both))


def test_merged_computes_the_same(pair, predict):
    thin, plain, variables = pair
    inputs = batch(thin)["inputs"]
    merge = jax.jit(lambda params: lora.merge(params, lora.read(LORA)))
    merged = {**variables, "params": merge(variables["params"])}
    assert jax.tree.map(np.shape, merged) == jax.tree.map(np.shape, plain.model.shapes)
    found, expected = predict[1](merged, inputs), predict[0](variables, inputs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)
    bare = {**variables, "params": {**variables["params"], "lora": {}}}
    gap = np.asarray(predict[1](bare, inputs)["kind"]) - np.asarray(found["kind"])
    assert np.abs(gap).max() > 1e-2


def test_only_thin_matrices_and_heads_move(pair):
    thin, _, variables = pair
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), thin.shapes)
    own = jax.tree_util.tree_map_with_path(
        lambda path, x: 0 * x if path[-1].key == "b" else x, variables["params"]["lora"]
    )
    state = zeros.replace(params={**variables["params"], "lora": own})  # as at the start: B is zero
    after, _ = jax.jit(lambda s, b: thin.step()(s, b, axis_name=None))(state, batch(thin))
    state, after = jax.device_get((state, after))
    moved = {p for p, x in flatten(after.params).items() if np.any(x != flatten(state.params)[p])}
    assert moved >= {"heads/kind/out/kernel", "lora/encoders/text/hidden/kernel/b"}
    assert {path.split("/")[0] for path in moved} == {"heads", "lora"}
    assert not any(p.endswith("/a") for p in moved if "/encoders/" in p)
    labels = flatten(shared_parameters(state.params))
    assert labels["lora/encoders/text/hidden/kernel/a"] is True
    assert labels["lora/heads/kind/out/kernel/a"] is False


def test_a_task_has_its_own_where_its_kernels_are_its_own():
    """Thin matrices of tasks, over networks of theirs that stay: the sharing `separate`."""
    kernels = ["sharing/.*/kernel"]
    optimizer = {"kind": "sgd", "learning_rate": 0.5, "freeze": ["(sharing|heads)/.*"]}
    made = training.assemble(
        config(lora={"rank": 2, "on": kernels}, model={"sharing": "separate"}, optimizer=optimizer)
    )
    variables, rows = drawn(made.model.shapes), batch(made)
    own = {path for path in flatten(variables["params"]) if path.startswith("lora/")}
    assert {task for task in TASKS if any(task in path for path in own)} == set(TASKS)

    @jax.jit
    def step(params, weights):
        def loss(params):
            predictions, _ = made.model({**variables, "params": params}, rows["inputs"])
            return jnp.dot(made.model.losses(predictions, rows)[0], weights)

        updates, _ = made.optimizer.update(
            jax.grad(loss)(params), made.optimizer.init(params), params
        )
        return optax.apply_updates(params, updates)

    before = flatten(variables["params"])
    for weights, task in zip(np.eye(len(TASKS), dtype=np.float32), made.model.tasks, strict=True):
        after = flatten(jax.device_get(step(variables["params"], weights)))
        moved = {path for path in before if np.any(after[path] != before[path])}
        assert moved == {path for path in own if task in path}


def test_norms_may_learn_with_it_and_frozen_rules_say_what_stays():
    free, frozen = (lora.read({**LORA, "norms": norms}).frozen for norms in (True, False))
    paths = ("encoders/text/block1/attention_norm/scale", "fusion/fused/norm_text/bias")
    kernels = ("encoders/text/norm/dense/kernel", "fusion/fused/out/bias")
    rules = matches
    assert all(rules(frozen, path) for path in (*paths, *kernels))
    assert [rules(free, path) for path in (*paths, *kernels)] == [False, False, True, True]
    assert not rules(frozen, "lora/encoders/text/hidden/kernel/a")
    assert lora.read({**LORA, "freeze": False}).frozen == ()


def test_a_run_with_it_is_exported_merged(pair, predict, tmp_path):
    thin, plain, variables = pair
    run = Finished(Workdir(tmp_path), thin, 1, variables)
    small = exported.load(export.export_run(run, tmp_path / "thin.zip", rows=8, tasks=["kind"]))
    inputs = {k: dict(v) for k, v in batch(thin)["inputs"].items() if k == "text"}
    expected = predict[0](variables, inputs)["kind"]
    expected = scipy.special.softmax(expected, axis=-1)
    np.testing.assert_allclose(small.predict(inputs)["kind"]["probability"], expected, atol=1e-5)
    whole = export.plain(plain.model, variables)[1]
    assert len(flatten(whole["params"])) > len(flatten(plain.model.shapes["params"]))
    merged = export.plain(thin.model, variables)[1]
    assert jax.tree.structure(merged) == jax.tree.structure(plain.model.shapes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 0}, "lora.rank: 0 is not a whole number from 1"),
        ({"alpha": -1}, "lora.alpha: -1 is not a number above 0"),
        ({"on": []}, "lora.on: is empty"),
        ({"on": ["["]}, "lora.on.0.: '.' is not a regular expression"),
        ({"on": ["encoders/.*/bias"]}, "'encoders/.*/bias' matches no parameter of two dimensions"),
        ({"freeze": 1}, "lora.freeze: 1 is not True or False"),
        ({"ranks": 1}, "did you mean 'rank'"),
    ],
)
def test_bad_sections_are_refused_before_anything_compiles(change, message):
    with pytest.raises(ConfigError, match=message):
        training.assemble(config(lora={**LORA, **change}))


# Adapters of modalities.

ADAPTED = {"encoders": {"text": "text_bag", "audio": "audio_mlp"}}


def test_adapters_begin_as_nothing_and_are_labelled_shared():
    adapters = {"text": {"width": 3}, "audio": {"width": 5}}
    made = training.assemble(config(model={**ADAPTED, "adapters": adapters}))
    plain = training.assemble(config(model=ADAPTED))
    variables = drawn(made.model.shapes)
    params = variables["params"]
    assert flatten(params)["adapters/text/down/kernel"].shape == (8, 3)
    assert set(jax.tree.leaves(shared_parameters(params)["adapters"])) == {True}
    example = made.model.spec.example(2)
    start = jax.jit(lambda: made.model.init(jax.random.key(0), example)["params"]["adapters"])()
    assert not np.any(start["audio"]["up"]["kernel"])
    inputs = batch(made)["inputs"]
    bare = {**variables, "params": {r: t for r, t in params.items() if r != "adapters"}}
    expected = jax.jit(plain.model)(bare, inputs)[0]
    ask = jax.jit(made.model)
    assert np.abs(ask(variables, inputs)[0]["kind"] - expected["kind"]).max() > 1e-3
    for side in params["adapters"].values():
        side["up"] = jax.tree.map(np.zeros_like, side["up"])
    jax.tree.map(np.testing.assert_array_equal, ask(variables, inputs)[0], expected)


def test_adapters_that_cannot_be_are_refused():
    for model, message in [
        ({"adapters": {"smell": {}}}, "model.adapters: unknown modality 'smell'"),
        ({"adapters": {"text": {"width": 0}}}, "adapters.text.width: 0"),
        ({"adapters": {"text": {"size": 3}}}, "model.adapters.text.size: unknown"),
        ({"adapters": {"text": 3}}, "model.adapters.text: 3 is not a section"),
        (
            {"adapters": {"text": {}}, "fusion": {"kind": "join", "stage": "early"}},
            "stage 'early' fuses before",
        ),
    ]:
        with pytest.raises(ConfigError, match=message):
            training.assemble(config(model=model))


def test_a_task_moves_nothing_that_another_reads():
    """`isolated_features`: adapters of tasks over frozen encoders and fusion."""
    isolated = training.load("isolated_features")
    encoders = {"image": "image_mlp", "text": "text_bag"}
    sharing = isolated.model.sharing.to_dict()
    built = toy.build(sharing=sharing, fusion={"kind": "concat"}, encoders=encoders)
    frozen = {"kind": "sgd", "learning_rate": 0.5, "freeze": list(isolated.optimizer.freeze)}
    optimizer, _ = optimizers.build(frozen, 10)
    variables = toy.variables(built, toy.SPEC.example(2))
    rows = toy.batch(holes=False)
    tasks = list(built.tasks)

    @jax.jit
    def losses(variables):
        predictions, _ = built(variables, rows["inputs"])
        return predictions, built.losses(predictions, rows)[0]

    @jax.jit
    def step(params, weights):
        grads = jax.grad(lambda p: jnp.dot(losses({**variables, "params": p})[1], weights))(params)
        updates, _ = optimizer.update(grads, optimizer.init(params), params)
        return optax.apply_updates(params, updates)

    before, _ = losses(variables)
    for k, task in enumerate(tasks):
        if task == "pairs":
            continue  # reads the encoders, and no adapter
        params = step(variables["params"], jnp.asarray(np.eye(len(tasks))[k], jnp.float32))
        after, _ = losses({**variables, "params": params})
        for other in tasks:
            same = jax.tree.map(lambda a, b: bool((a == b).all()), before[other], after[other])
            assert jax.tree.all(same) == (other != task), (task, other)
