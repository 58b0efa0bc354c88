"""Early, middle, late and decision fusion, what stands in for the absent, losses next to tasks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from mtmm_jax import balancing, model
from mtmm_jax.batch import Modality, Spec, Target, Tokens
from mtmm_jax.fusion import DECISIONS, MISSING
from mtmm_jax.fusion.groups import factors, grouped_tokens, spread_out
from mtmm_jax.fusion.join import ProjectToModality
from mtmm_jax.model import STAGES
from mtmm_jax.registry import ConfigError
from mtmm_jax.training.step import TrainState, make_step
from tests import toy

KINDS = {
    "early": {"kind": "join", "stage": "early", "tokens": 8, "trunk": {"layers": 1}},
    "early_raw": {"kind": "join", "stage": "early_raw", "trunk": {"layers": 1}},
    "middle": {"kind": "join", "stage": "middle", "tokens": 8, "second": "concat"},
    "middle pooled": {"kind": "concat", "stage": "middle", "own": False},
    "middle_shared": {
        "kind": "join",
        "stage": "middle_shared",
        "tokens": 8,
        "trunk": {"layers": 1},
    },
    "middle filled": {"kind": "mean", "stage": "middle", "missing": "placeholder"},
    "late": {"kind": "bottleneck", "layers": 1},
    "decision": {"kind": "learned", "stage": "decision"},
}
EVERY = pytest.mark.parametrize("stage", KINDS)
NUMBERS = {"kind": {"kind": "classification"}, "size": {"kind": "regression"}}
SPEC = Spec(
    modalities={
        "image": Modality("image", (8, 8, 3), "float32"),
        "text": toy.SPEC.modalities["text"],
        "table": toy.SPEC.modalities["table"],
    },
    targets=toy.SPEC.targets,
)
MODEL = {"width": 8, "fusion": "concat"}
ENCODERS = {"image": "cnn", "text": "text_bag", "table": "table_mlp"}  # they compile fast


def _build(tasks=NUMBERS, **changes):
    return model.build({**MODEL, "encoders": ENCODERS, **changes}, tasks, SPEC)


def _batch(holes=True):
    batch = toy.batch(holes=holes)
    inputs = {name: batch["inputs"][name] for name in ENCODERS}
    inputs["image"] = {**inputs["image"], "x": inputs["image"]["x"][:, ::2, ::2]}
    inputs["table"] = {key: inputs["table"][key] for key in ("x", "present")}
    return {**batch, "inputs": inputs}


def test_every_stage_is_tested():
    assert {name.split()[0] for name in KINDS} == set(STAGES)


@functools.cache
def _ready(stage):
    """`(model, variables, passes)`: `passes` gives predictions and a training step's gradient."""
    fused = dict(KINDS[stage])
    built = _build(missing=fused.pop("missing", "mask"), fusion=fused)

    def loss(params, rest, batch):
        mode = {"train": True, "key": jax.random.key(0)}
        predictions, _ = built({**rest, "params": params}, batch["inputs"], **mode)
        return built.losses(predictions, batch)[0].sum()

    @jax.jit
    def passes(variables, batch):
        gradient = jax.grad(loss)(variables["params"], variables, batch)
        return built(variables, batch["inputs"])[0], gradient

    return built, toy.variables(built, SPEC.example(2)), passes


@EVERY
def test_fillers_reach_nothing_and_rows_stay_apart(stage):
    _, variables, passes = _ready(stage)
    nan = _batch()
    zero = jax.tree.map(lambda x: np.nan_to_num(x) if x.dtype == np.float32 else x, nan)
    order = np.random.default_rng(0).permutation(8)
    moved = jax.tree.map(lambda x: x[order], nan)
    there, back, other = (passes(variables, batch) for batch in (nan, zero, moved))
    for a, b in zip(*map(jax.tree.leaves, (there, back)), strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_array_equal(a, b)
    for a, b in zip(*map(jax.tree.leaves, (there[0], other[0])), strict=True):
        np.testing.assert_allclose(b, np.asarray(a)[order], atol=2e-5)


@EVERY
def test_a_modality_left_out_of_the_batch_is_one_nowhere_present(stage):
    built, variables, passes = _ready(stage)
    batch = _batch()
    batch["inputs"]["table"]["present"][:] = False
    there, _ = passes(variables, batch)
    fewer = {k: v for k, v in batch["inputs"].items() if k != "table"}
    back, _ = jax.jit(lambda v, i: built(v, i))(variables, fewer)
    for a, b in zip(jax.tree.leaves(there), jax.tree.leaves(back), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@EVERY
def test_every_parameter_learns(stage):
    _, variables, passes = _ready(stage)
    batch = _batch(holes=False)
    batch["inputs"]["image"]["present"][:3] = False  # learned stand-ins need somebody absent
    batch["inputs"]["text"]["present"][3:5] = False
    batch["inputs"]["table"]["present"][5:] = False
    _, gradient = passes(variables, batch)
    for path, leaf in model.flatten(gradient).items():
        if "key/bias" in path:
            continue  # a constant added to all keys leaves the softmax alone
        assert np.abs(leaf).max() > 0, path


def test_statistics_move_once_where_a_half_runs_twice():
    tasks = {"kind": {"kind": "classification"}, "size": {"kind": "regression", "reads": "image"}}
    fused = {"kind": "concat", "stage": "middle"}
    encoders = {"image": {"kind": "cnn", "norm": "batch"}, "table": "table_mlp"}
    inputs = _batch(holes=False)["inputs"]
    moved = []
    for wanted in (tasks, {"kind": tasks["kind"]}):
        built = _build(wanted, fusion=fused, encoders=encoders)
        variables = toy.variables(built, SPEC.example(2))
        mode = {"train": True, "key": jax.random.key(0)}
        trunk = jax.jit(lambda v, built=built, mode=mode: built.trunk(v, inputs, **mode)[1])
        moved.append(model.flatten(trunk(variables)["batch_stats"]["encoders"]["image"]))
    assert moved[0].keys() == moved[1].keys()
    for path, stats in moved[0].items():
        np.testing.assert_allclose(stats, moved[1][path], atol=1e-5, err_msg=path)


def test_middle_fusion_is_its_two_fusions_with_the_second_halves_between():
    fused = {"kind": "concat", "stage": "middle", "own": True}
    built = _build({"kind": {"kind": "classification"}}, fusion=fused)
    variables = toy.variables(built, SPEC.example(2))
    names = tuple(built.encoders)

    def half(name, method, *args):
        own = {
            key: variables[key]["encoders"][name]
            for key in variables
            if name in variables[key].get("encoders", {})
        }
        return built.encoders[name].apply(own, *args, method=method)

    fusing, own = built.fusions["fused"], variables["params"]["fusion"]["fused"]

    @jax.jit
    def by_hand(inputs):
        first = {name: half(name, "first", half(name, "stem", inputs[name])) for name in names}
        h1 = fusing.fusion.apply({"params": own["first"]}, first).values[:, 0]
        later = {}
        for name in names:
            into = own["into"][name]["project"]
            read = first[name].values + (h1 @ into["kernel"] + into["bias"])[:, None]
            read = jnp.where(first[name].mask[..., None], read, 0)
            later[name] = half(name, "second", first[name].replace_values(read))
        expected = fusing.second.apply({"params": own["second"]}, later)
        swapped = {**later, "image": later["table"], "table": later["image"]}
        other = fusing.second.apply({"params": own["second"]}, swapped)
        return built.trunk(variables, inputs)[0]["fused"].values, expected.values, other.values

    found, expected, other = by_hand(_batch(holes=False)["inputs"])
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(np.asarray(other) - np.asarray(expected)).max() > 1e-3


TABLES = Spec(
    modalities={name: Modality("table", (3,), "float32", names=tuple("xyz")) for name in "ab"},
    targets={"kind": Target("class", classes=("p", "q"), frequencies=(0.5, 0.5))},
)


def _tables():
    """Four rows of two tables; nothing is absent."""
    batch = TABLES.example(4)
    rng = np.random.default_rng(0)
    for entry in batch["inputs"].values():
        entry["x"] = rng.normal(size=entry["x"].shape).astype(np.float32)
        entry["present"] = np.ones(4, bool)
    batch["targets"]["kind"] = {"y": np.array([0, 1, 1, 0], np.int32), "present": np.ones(4, bool)}
    return {**batch, "weight": np.ones(4, np.float32)}


@pytest.mark.parametrize("cut", [0, 1, 2])
def test_second_halves_are_each_modalitys_own_wherever_the_cut_is(cut):
    encoder = {"kind": "table_transformer", "preset": "tiny", "cut": cut}
    config = {"width": 8, "encoders": {"a": encoder, "b": encoder}}
    config["fusion"] = {"kind": "concat", "stage": "middle"}
    built = model.build(config, {"kind": {"kind": "classification"}}, TABLES)
    inputs = _tables()["inputs"]
    variables = toy.variables(built, TABLES.example(2))

    @jax.jit
    def trunk(variables):
        late = {
            name: built.encoders[name].apply({"params": variables["params"]["encoders"][name]}, x)
            for name, x in inputs.items()
        }
        second = {"params": variables["params"]["fusion"]["fused"]["second"]}
        alone = built.fusions["fused"].second.apply(second, late).values
        return built.trunk(variables, inputs)[0]["fused"].values, alone

    params = variables["params"]
    plain, expected = map(np.asarray, trunk(variables))
    # The halves after the cut change places.
    after = [f"block{n}" for n in (1, 2) if n > cut] + ["project"]
    mine, other = params["encoders"]["a"], params["encoders"]["b"]
    swapped = {
        "a": {**mine, **{key: other[key] for key in after}},
        "b": {**other, **{key: mine[key] for key in after}},
    }
    moved, _ = trunk({**variables, "params": {**params, "encoders": swapped}})
    assert np.abs(moved - plain).max() > 1e-3
    # Where nothing of the first fusion is read, what is left is late fusion by the second.
    own = params["fusion"]["fused"]
    deaf = {**own, "into": jax.tree.map(np.zeros_like, own["into"])}
    found, _ = trunk({**variables, "params": {**params, "fusion": {"fused": deaf}}})
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(plain - expected).max() > 1e-3


def test_project_to_modality_reads_the_fused_tokens_at_its_own_places():
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(2, 3, d)).astype(np.float32) for d in (4, 5))
    own = Tokens.of(x, np.ones((2, 3), bool), "a")
    other = Tokens.of(np.zeros((2, 2, 5), np.float32), np.ones((2, 2), bool), "b")
    fused = jax.jit(lambda: Tokens.join([own.replace_values(y), other]))()
    module = ProjectToModality("a")
    variables = toy.variables(module, fused, own, own)
    kernel, bias = (variables["params"]["project"][key] for key in ("kernel", "bias"))
    mean = np.broadcast_to(np.asarray(fused.values).mean(1)[:, None], (2, 3, 5))
    added = np.concatenate([y, mean], axis=-1) @ kernel + bias

    @jax.jit
    def both(variables):
        alone = ProjectToModality("a", own=False).apply(variables, fused, own, own)
        return module.apply(variables, fused, own, own).values, alone.values

    found, alone = both(variables)
    np.testing.assert_allclose(found, x + added, atol=1e-5)
    np.testing.assert_allclose(alone, added, atol=1e-5)


def test_groups_of_cells_hold_the_same_numbers_and_find_their_cells_again():
    assert factors((16, 16), 64) == (2, 2)
    assert factors((5, 40), 20) == (2, 8)
    values = np.arange(2 * 6 * 5 * 2, dtype=np.float32).reshape(2, 30, 2)
    mask = np.arange(30)[None] < np.array([[30], [11]])
    at = np.stack(np.meshgrid(np.arange(6.0), np.arange(5.0), indexing="ij"), -1)
    at = np.broadcast_to(at.reshape(1, 30, 2), (2, 30, 2)).astype(np.float32)
    tokens = Tokens.of(values, mask, "image", grid=(6, 5), stride=(1.0, 1.0), positions=at)

    @jax.jit
    def there_and_back(tokens):
        groups = grouped_tokens(tokens, 9)
        return groups, spread_out(groups.values, groups, tokens)

    groups, back = jax.device_get(there_and_back(tokens))
    assert groups.layout[0].grid == (3, 3)
    assert groups.layout[0].stride == (2.0, 2.0)
    assert groups.values.shape == (2, 9, 8)
    np.testing.assert_array_equal(groups.values[0, 0], values[0, [0, 1, 5, 6]].ravel())
    np.testing.assert_array_equal(groups.mask[1], [1, 1, 1, 1, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(groups.positions[0, 0], [0.5, 0.5])
    # Row 1 has cells 0 to 10: of the group at (2, 0) only (2, 0) itself.
    np.testing.assert_allclose(groups.positions[1, 3], [2.0, 0.0])
    np.testing.assert_array_equal(back.reshape(2, 6, 5, 8)[0, 5, 4], groups.values[0, 8])
    assert grouped_tokens(tokens, 30) is tokens


@pytest.mark.parametrize("kind", DECISIONS)
def test_decisions_are_their_formulas(kind):
    rng = np.random.default_rng(1)
    values = rng.normal(size=(5, 3, 4)).astype(np.float32)
    present = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 1, 0]], bool)
    rule = DECISIONS[kind](modalities=("a", "b", "c"))
    variables = toy.variables(rule, values, present)
    if kind == "weighted":
        variables = {"params": {"scores": np.array([0.0, 1.0, -1.0], np.float32)}}
    loud = np.where(present[..., None], values, 1e6)
    found = jax.jit(rule.apply)(variables, loud.astype(np.float32), present)
    log_p = values - np.log(np.exp(values).sum(-1, keepdims=True))
    for row in range(5):
        here = np.flatnonzero(present[row])
        if kind == "learned":
            x = np.where(present[row][:, None], values[row], 0)
            x = np.concatenate([x, present[row][:, None]], -1).ravel()
            p = variables["params"]
            h = x @ p["hidden"]["kernel"] + p["hidden"]["bias"]
            h = h * scipy.stats.norm.cdf(h)  # GELU
            expected = h @ p["out"]["kernel"] + p["out"]["bias"]
        elif not len(here):
            expected = np.zeros(4)
        elif kind == "mean":
            expected = values[row, here].mean(0)
        elif kind == "weighted":
            a = np.exp(np.array([0.0, 1.0, -1.0])[here])
            expected = (a[:, None] * values[row, here]).sum(0) / a.sum()
        elif kind == "product":
            expected = log_p[row, here].sum(0)
        else:
            expected = log_p[row, here].max(0)
        np.testing.assert_allclose(found[row], expected, atol=1e-4)


def test_fixed_decision_weights_are_renormalised_over_the_present():
    rule = DECISIONS["weighted"](("a", "b"), {"a": 3.0, "b": 1.0})
    values = np.float32([[[1.0], [5.0]], [[1.0], [5.0]]])
    found = jax.jit(rule.apply)({}, values, np.array([[True, True], [False, True]]))
    np.testing.assert_allclose(found[:, 0], [2.0, 5.0], atol=1e-6)


@pytest.mark.parametrize("kind", MISSING)
def test_stand_ins_fill_absent_rows_and_no_others(kind):
    rng = np.random.default_rng(0)
    masks = {
        "a": np.array([[1, 1], [0, 0], [1, 0], [0, 0]], bool),
        "b": np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0], [0, 0, 0]], bool),
    }
    tokens = {
        name: Tokens.of(
            (rng.normal(size=(*mask.shape, 4)) * mask[..., None]).astype(np.float32), mask, name
        )
        for name, mask in masks.items()
    }
    module = MISSING[kind]()
    variables = toy.variables(module, tokens, tokens)
    apply = jax.jit(module.apply)
    filled = jax.device_get(apply(variables, tokens, tokens))
    for name, mask in masks.items():
        there = mask.any(1)
        np.testing.assert_array_equal(filled[name].values[there], tokens[name].values[there])
        np.testing.assert_array_equal(filled[name].mask[there], mask[there])
        assert filled[name].mask[~there][0].all()
    # Nobody is there in the last row: nothing is made up.
    assert not any(part.mask[3].any() for part in filled.values())
    if kind == "zero":
        assert not filled["a"].values[1].any()
    else:
        assert np.abs(filled["a"].values[1]).max() > 0
    if kind == "reconstruct":
        louder = {**tokens, "b": tokens["b"].replace_values(2 * tokens["b"].values)}
        other = jax.device_get(apply(variables, louder, louder))
        assert np.abs(other["a"].values - filled["a"].values)[1].max() > 1e-4


def test_reconstruction_loss_is_the_scaled_squared_error():
    rng = np.random.default_rng(0)
    values = {n: rng.normal(size=(6, 1, 3)).astype(np.float32) for n in "ab"}
    tokens = {n: Tokens.of(v, np.ones((6, 1), bool), n) for n, v in values.items()}
    module = MISSING["reconstruct"](hidden=5, weight=2.0)
    variables = toy.variables(module, tokens, tokens)
    mode = {"train": True, "mutable": ["losses", "intermediates"]}
    _, sown = jax.jit(lambda v: module.apply(v, tokens, tokens, **mode))(variables)
    ((total, count),) = sown["losses"]["reconstruction"]
    expected = 0.0
    for name in "ab":
        (guess,) = sown["intermediates"][f"guess_{name}"]
        x = values[name][:, 0]
        expected += (((np.asarray(guess) - x) ** 2).mean(-1) / x.var(0).mean()).sum()
    np.testing.assert_allclose(total, 2 * expected, rtol=1e-4)
    assert count == 12


def test_auxiliary_losses_join_with_weight_one_whatever_the_balancing():
    config = {
        "width": 4,
        "encoders": dict.fromkeys("ab", "table_mlp"),
        "fusion": "concat",
        "missing": {"kind": "reconstruct", "hidden": 4},
    }
    tasks = {name: {"kind": "classification", "target": "kind"} for name in ("kind", "again")}
    built = model.build(config, tasks, TABLES)
    assert built.auxiliaries == ("fusion/fused/missing/reconstruction",)
    assert built.loss_names == ("kind", "again", *built.auxiliaries)
    batch, optimizer = _tables(), optax.sgd(0.1)
    params = toy.variables(built, TABLES.example(2))["params"]
    path = "fusion/fused/missing/to_b/kernel"
    moved = {}
    for kind in ("equal", "mgda", "graddrop"):
        balancer = balancing.with_auxiliary_losses(balancing.build(kind, 2), 1)
        step = make_step(built, balancer, optimizer, seed=0)

        @jax.jit
        def first(params, balancer=balancer, step=step):
            start = balancer.init(params, model.shared_parameters)
            return step(TrainState(jnp.int32(0), params, {}, optimizer.init(params), start), batch)

        new, metrics = first(params)
        assert metrics["losses"].shape == (3,)
        assert metrics["losses"][2] > 0
        assert metrics["weights"][2] == 1
        moved[kind] = np.asarray(model.flatten(new.params)[path]) - model.flatten(params)[path]
        assert np.abs(moved[kind]).max() > 0
    # Nothing is absent: the tasks do not read the guesses, only the reconstruction moves them.
    np.testing.assert_allclose(moved["mgda"], moved["equal"], atol=1e-6)
    np.testing.assert_allclose(moved["graddrop"], moved["equal"], atol=1e-6)


@pytest.mark.parametrize("kind", ["uncertainty", "cagrad", "trimmed_mean"])
def test_auxiliary_losses_leave_the_tasks_gradient_as_it_is(kind):
    rows = {"w": np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)}
    losses = np.float32([1.0, 2.0, 0.5, 3.0])
    params = {"w": np.zeros(6, np.float32)}
    inner = balancing.build(kind, 3)
    outer = balancing.with_auxiliary_losses(inner, 1)

    @jax.jit
    def alone(rows):
        return inner.update(rows, inner.init(params), params, losses=losses[:3])[0]["w"]

    @jax.jit
    def both(rows, present):
        found = outer.update(rows, outer.init(params), params, losses=losses, present=present)
        return found[0]["w"], balancing.current_weights(found[1])

    expected = alone({"w": rows["w"][:3]})
    found, weights = both(rows, np.ones(4, bool))
    np.testing.assert_allclose(found, expected + rows["w"][3], atol=1e-5)
    assert weights[3] == 1
    without, _ = both(rows, np.array([True, True, True, False]))
    np.testing.assert_allclose(without, expected, atol=1e-5)


def test_unimodal_tasks_read_each_modality_alone_and_never_a_leak():
    built = toy.build(
        {
            "kind": {"kind": "classification", "unimodal": True},
            "spelling": {"kind": "classification", "unimodal": True, "reads": "image+audio"},
        }
    )
    assert {name: task.reads for name, task in built.tasks.items()} == {
        "kind": ("fused",),
        "kind_image": ("image",),
        "kind_text": ("text",),
        "kind_audio": ("audio",),
        "spelling": ("audio+image",),
        "spelling_audio": ("audio",),
        "spelling_image": ("image",),
    }
    assert built.tasks["kind_text"].target == "kind"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fusion": {"kind": "concat", "stage": "sooner"}}, "model.fusion.stage: unknown stage"),
        ({"fusion": {"kind": "concat", "trunk": {}}}, "model.fusion.trunk: stage 'late' has none"),
        ({"fusion": {"kind": "concat", "stage": "decision"}}, "model.fusion.kind: unknown kind"),
        ({"fusion": {"kind": "product", "stage": "decision"}}, "tasks.size is a regression"),
        (
            {"fusion": {"kind": "mean", "stage": "decision"}, "missing": "zero"},
            "model.missing: stage 'decision'",
        ),
        ({"missing": "guess"}, "model.missing.kind: unknown kind 'guess'"),
        (
            {"fusion": {"kind": "join", "stage": "early", "tokens": 0}},
            "model.fusion.tokens: 0",
        ),
        (
            {"fusion": {"kind": "weighted", "weights": {"image": 1.0}, "stage": "decision"}},
            "model.fusion.weights: no weight for text, table",
        ),
    ],
)
def test_impossible_stages_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        built = _build(**changes)
        jax.eval_shape(built.init, jax.random.key(0), SPEC.example(2))
