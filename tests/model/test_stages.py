"""Early, middle, late and decision fusion, what stands in for the absent, losses beside tasks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

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
    "middle": {"kind": "bottleneck", "stage": "middle", "layers": 1, "tokens": 8},
    "middle pooled": {"kind": "concat", "stage": "middle", "own": False},
    "middle_shared": {"kind": "join", "stage": "middle_shared", "tokens": 8},
    "middle filled": {"kind": "mean", "stage": "middle", "missing": "placeholder"},
    "late": {"kind": "bottleneck"},
    "decision": {"kind": "learned", "stage": "decision"},
}
EVERY = pytest.mark.parametrize("stage", KINDS)
NUMBERS = {"kind": {"kind": "classification"}, "size": {"kind": "regression"}}
ENCODERS = {"image": "cnn", "text": "text_bag", "audio": "audio_mlp"}  # they compile fast


def test_every_stage_is_tested():
    assert {name.split()[0] for name in KINDS} == set(STAGES)


@functools.cache
def _ready(stage):
    fused = dict(KINDS[stage])
    changes = {"missing": fused.pop("missing", "mask"), "fusion": fused}
    built = toy.build(NUMBERS, **changes, encoders=ENCODERS)
    variables = toy.variables(built, toy.SPEC.example(2))
    return built, variables, jax.jit(built)


@EVERY
def test_fillers_reach_nothing_and_rows_stay_apart(stage):
    _, variables, apply = _ready(stage)
    nan = toy.batch()["inputs"]
    zero = jax.tree.map(lambda x: np.nan_to_num(x) if x.dtype == np.float32 else x, nan)
    there, _ = apply(variables, nan)
    back, _ = apply(variables, zero)
    order = np.random.default_rng(0).permutation(8)
    moved, _ = apply(variables, jax.tree.map(lambda x: x[order], nan))
    for a, b, c in zip(*map(jax.tree.leaves, (there, back, moved)), strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(c, a[order], atol=2e-5)


@EVERY
def test_a_modality_left_out_of_the_batch_is_one_nowhere_present(stage):
    built, variables, apply = _ready(stage)
    batch = toy.batch()
    batch["inputs"]["audio"]["present"][:] = False
    there, _ = apply(variables, batch["inputs"])
    fewer = {k: v for k, v in batch["inputs"].items() if k != "audio"}
    back, _ = jax.jit(lambda v, i: built(v, i))(variables, fewer)
    for a, b in zip(jax.tree.leaves(there), jax.tree.leaves(back), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@EVERY
def test_every_parameter_learns(stage):
    built, variables, _ = _ready(stage)
    batch = toy.batch(holes=False)
    batch["inputs"]["image"]["present"][:3] = False  # learned stand-ins need somebody absent
    batch["inputs"]["text"]["present"][3:5] = False
    batch["inputs"]["audio"]["present"][5:] = False
    variables = dict(variables)
    params = variables.pop("params")

    def loss(params):
        mode = {"train": True, "key": jax.random.key(0)}
        full = {"params": params, **variables}
        shared, _ = built.trunk(full, batch["inputs"], **mode)
        predictions, _ = built.readout(full, dict.fromkeys(built.tasks, shared), **mode)
        return built.losses(predictions, batch)[0].sum()

    gradient = jax.jit(jax.grad(loss))(params)
    for path, leaf in model.flatten(gradient).items():
        if "key/bias" in path:
            continue  # a constant added to all keys leaves the softmax alone
        assert np.abs(leaf).max() > 0, path


def test_statistics_move_once_where_a_half_runs_twice():
    tasks = {"kind": {"kind": "classification"}, "size": {"kind": "regression", "reads": "image"}}
    fused = {"kind": "concat", "stage": "middle"}
    encoders = {"image": toy.MODEL["encoders"]["image"], "audio": "audio_mlp"}
    inputs = toy.batch(holes=False)["inputs"]
    moved = []
    for wanted in (tasks, {"kind": tasks["kind"]}):
        built = toy.build(wanted, fusion=fused, encoders=encoders)
        variables = toy.variables(built, toy.SPEC.example(2))
        mode = {"train": True, "key": jax.random.key(0)}
        trunk = jax.jit(lambda v, built=built, mode=mode: built.trunk(v, inputs, **mode)[1])
        moved.append(model.flatten(trunk(variables)["batch_stats"]["encoders"]["image"]))
    assert moved[0].keys() == moved[1].keys()
    for path, stats in moved[0].items():
        np.testing.assert_allclose(stats, moved[1][path], atol=1e-5, err_msg=path)


def _halves(own):
    fused = {"kind": "concat", "stage": "middle", "own": own}
    built = toy.build({"kind": {"kind": "classification"}}, fusion=fused, encoders=ENCODERS)
    return built, toy.variables(built, toy.SPEC.example(2))


def test_middle_fusion_is_its_two_fusions_with_the_second_halves_between():
    built, variables = _halves(True)
    inputs = toy.batch(holes=False)["inputs"]
    first, later = {}, {}
    names = tuple(built.encoders)

    def half(name, method, *args):
        own = {
            key: variables[key]["encoders"][name]
            for key in variables
            if name in variables[key].get("encoders", {})
        }
        return built.encoders[name].apply(own, *args, method=method)

    for name in names:
        first[name] = half(name, "first", half(name, "stem", inputs[name]))
    fusing, own = built.fusions["fused"], variables["params"]["fusion"]["fused"]
    h1 = np.asarray(fusing.fusion.apply({"params": own["first"]}, first).values[:, 0])
    for name in names:
        into = own["into"][name]["project"]
        added = h1 @ into["kernel"] + into["bias"]
        read = first[name].values + added[:, None]
        read = jnp.where(first[name].mask[..., None], read, 0)
        later[name] = half(name, "second", first[name].replace_values(read))
    expected = fusing.second.apply({"params": own["second"]}, later)
    shared, _ = jax.jit(built.trunk)(variables, inputs)
    np.testing.assert_allclose(shared["fused"].values, expected.values, atol=1e-4)
    swapped = {**later, "image": later["audio"], "audio": later["image"]}
    other = fusing.second.apply({"params": own["second"]}, swapped)
    assert np.abs(np.asarray(other.values) - np.asarray(expected.values)).max() > 1e-3


TABLES = Spec(
    modalities={name: Modality("table", (3,), "float32", names=tuple("xyz")) for name in "ab"},
    targets={"kind": Target("class", classes=("p", "q"), frequencies=(0.5, 0.5))},
)


@pytest.mark.parametrize("cut", [0, 1, 2])
def test_second_halves_are_each_modalitys_own_wherever_the_cut_is(cut):
    encoder = {"kind": "table_transformer", "preset": "tiny", "cut": cut}
    config = {"width": 8, "encoders": {"a": encoder, "b": encoder}}
    config["fusion"] = {"kind": "concat", "stage": "middle"}
    built = model.build(config, {"kind": {"kind": "classification"}}, TABLES)
    inputs = TABLES.example(4)["inputs"]
    rng = np.random.default_rng(0)
    for entry in inputs.values():
        entry["x"] = rng.normal(size=entry["x"].shape).astype(np.float32)
        entry["present"] = np.ones(4, bool)
    variables = toy.variables(built, TABLES.example(2))
    trunk = jax.jit(lambda v: built.trunk(v, inputs)[0]["fused"].values)
    params = variables["params"]
    plain = trunk(variables)
    # The halves after the cut change places.
    after = [f"block{n}" for n in (1, 2) if n > cut] + ["project"]
    mine, other = params["encoders"]["a"], params["encoders"]["b"]
    swapped = {
        "a": {**mine, **{key: other[key] for key in after}},
        "b": {**other, **{key: mine[key] for key in after}},
    }
    moved = trunk({**variables, "params": {**params, "encoders": swapped}})
    assert np.abs(moved - plain).max() > 1e-3
    # Where nothing of the first fusion is read, what is left is late fusion by the second.
    own = params["fusion"]["fused"]
    deaf = {**own, "into": jax.tree.map(jnp.zeros_like, own["into"])}
    late = {
        name: built.encoders[name].apply({"params": params["encoders"][name]}, entry)
        for name, entry in inputs.items()
    }
    expected = built.fusions["fused"].second.apply({"params": own["second"]}, late).values
    found = trunk({**variables, "params": {**params, "fusion": {"fused": deaf}}})
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(plain - expected).max() > 1e-3


def test_project_to_modality_reads_the_fused_tokens_at_its_own_places():
    rng = np.random.default_rng(0)
    own = Tokens.of(
        jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32), jnp.ones((2, 3), bool), "a"
    )
    other = Tokens.of(jnp.zeros((2, 2, 5)), jnp.ones((2, 2), bool), "b")
    fused = Tokens.join(
        [own.replace_values(jnp.asarray(rng.normal(size=(2, 3, 5)), jnp.float32)), other]
    )
    module = ProjectToModality("a")
    variables = toy.variables(module, fused, own, own)
    kernel, bias = (variables["params"]["project"][key] for key in ("kernel", "bias"))
    mean = jnp.broadcast_to(fused.values.mean(1)[:, None], (2, 3, 5))
    read = jnp.concatenate([fused.values[:, :3], mean], axis=-1)
    expected = own.values + read @ kernel + bias
    found = module.apply(variables, fused, own, own).values
    np.testing.assert_allclose(found, expected, atol=1e-5)
    alone = ProjectToModality("a", own=False).apply(variables, fused, own, own).values
    np.testing.assert_allclose(alone, expected - own.values, atol=1e-5)


def test_groups_of_cells_hold_the_same_numbers_and_find_their_cells_again():
    assert factors((16, 16), 64) == (2, 2)
    assert factors((5, 40), 20) == (2, 8)
    values = jnp.arange(2 * 6 * 5 * 2, dtype=jnp.float32).reshape(2, 30, 2)
    mask = jnp.arange(30)[None] < jnp.array([[30], [11]])
    at = jnp.stack(jnp.meshgrid(jnp.arange(6.0), jnp.arange(5.0), indexing="ij"), -1)
    at = jnp.broadcast_to(at.reshape(1, 30, 2), (2, 30, 2))
    tokens = Tokens.of(values, mask, "image", grid=(6, 5), stride=(1.0, 1.0), positions=at)
    groups = grouped_tokens(tokens, 9)
    assert groups.layout[0].grid == (3, 3)
    assert groups.layout[0].stride == (2.0, 2.0)
    assert groups.values.shape == (2, 9, 8)
    np.testing.assert_array_equal(groups.values[0, 0], values[0, jnp.array([0, 1, 5, 6])].ravel())
    np.testing.assert_array_equal(groups.mask[1], [1, 1, 1, 1, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(groups.positions[0, 0], [0.5, 0.5])
    # Row 1 has cells 0 to 10: of the group at (2, 0) only (2, 0) itself.
    np.testing.assert_allclose(groups.positions[1, 3], [2.0, 0.0])
    back = spread_out(groups.values, groups, tokens).reshape(2, 6, 5, 8)
    np.testing.assert_array_equal(back[0, 5, 4], groups.values[0, 8])
    assert grouped_tokens(tokens, 30) is tokens


@pytest.mark.parametrize("kind", DECISIONS)
def test_decisions_are_their_formulas(kind):
    rng = np.random.default_rng(1)
    values = rng.normal(size=(5, 3, 4)).astype(np.float32)
    present = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 1, 0]], bool)
    rule = DECISIONS[kind](modalities=("a", "b", "c"))
    variables = rule.init(jax.random.key(0), values, present)
    if kind == "weighted":
        variables = {"params": {"scores": jnp.array([0.0, 1.0, -1.0])}}
    loud = np.where(present[..., None], values, 1e6)
    found = rule.apply(variables, loud, present)
    log_p = values - np.log(np.exp(values).sum(-1, keepdims=True))
    for row in range(5):
        here = np.flatnonzero(present[row])
        if kind == "learned":
            x = np.where(present[row][:, None], values[row], 0)
            x = np.concatenate([x, present[row][:, None]], -1).ravel()
            p = variables["params"]
            h = jax.nn.gelu(x @ p["hidden"]["kernel"] + p["hidden"]["bias"], approximate=False)
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
    values = jnp.array([[[1.0], [5.0]], [[1.0], [5.0]]])
    found = rule.apply({}, values, jnp.array([[True, True], [False, True]]))
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
            jnp.asarray(rng.normal(size=(*mask.shape, 4)) * mask[..., None], jnp.float32),
            jnp.asarray(mask),
            name,
        )
        for name, mask in masks.items()
    }
    module = MISSING[kind]()
    variables = toy.variables(module, tokens, tokens)
    filled = module.apply(variables, tokens, tokens)
    for name, mask in masks.items():
        there = mask.any(1)
        np.testing.assert_array_equal(
            np.asarray(filled[name].values)[there], np.asarray(tokens[name].values)[there]
        )
        np.testing.assert_array_equal(np.asarray(filled[name].mask)[there], mask[there])
        assert np.asarray(filled[name].mask)[~there][0].all()
    # Nobody is there in the last row: nothing is made up.
    assert not any(np.asarray(part.mask)[3].any() for part in filled.values())
    if kind == "zero":
        assert not np.asarray(filled["a"].values)[1].any()
    else:
        assert np.abs(np.asarray(filled["a"].values)[1]).max() > 0
    if kind == "reconstruct":
        louder = {**tokens, "b": tokens["b"].replace_values(2 * tokens["b"].values)}
        other = module.apply(variables, louder, louder)
        assert np.abs(np.asarray(other["a"].values - filled["a"].values))[1].max() > 1e-4


def test_reconstruction_loss_is_the_scaled_squared_error():
    rng = np.random.default_rng(0)
    values = {n: rng.normal(size=(6, 1, 3)).astype(np.float32) for n in "ab"}
    tokens = {n: Tokens.of(jnp.asarray(v), jnp.ones((6, 1), bool), n) for n, v in values.items()}
    module = MISSING["reconstruct"](hidden=5, weight=2.0)
    variables = toy.variables(module, tokens, tokens)
    _, sown = module.apply(
        variables, tokens, tokens, train=True, mutable=["losses", "intermediates"]
    )
    ((total, count),) = sown["losses"]["reconstruction"]
    expected = 0.0
    for name in "ab":
        (guess,) = sown["intermediates"][f"guess_{name}"]
        x = values[name][:, 0]
        expected += (((np.asarray(guess) - x) ** 2).mean(-1) / x.var(0).mean()).sum()
    np.testing.assert_allclose(total, 2 * expected, rtol=1e-4)
    assert count == 12


def test_auxiliary_losses_join_with_weight_one_whatever_the_balancing():
    missing = {"kind": "reconstruct", "hidden": 8}
    few = {"image": "image_mlp", "text": "text_bag"}
    built = toy.build(NUMBERS, missing=missing, encoders=few)
    assert built.auxiliaries == ("fusion/fused/missing/reconstruction",)
    assert built.loss_names == ("kind", "size", *built.auxiliaries)
    batch = toy.batch(holes=False)
    moved = {}
    for kind in ("equal", "mgda", "graddrop"):
        inner = balancing.build(kind, 2)
        balancer = balancing.with_auxiliary_losses(inner, 1)
        params = toy.variables(built, toy.SPEC.example(2))["params"]
        state = TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats={},
            optimizer=optax.sgd(0.1).init(params),
            balancing=balancer.init(params, model.shared_parameters),
        )
        step = jax.jit(make_step(built, balancer, optax.sgd(0.1), seed=0))
        new, figures = step(state, batch)
        assert figures["losses"].shape == (3,)
        assert figures["losses"][2] > 0
        assert figures["weights"][2] == 1
        path = "fusion/fused/missing/to_text/kernel"
        moved[kind] = np.asarray(model.flatten(new.params)[path]) - np.asarray(
            model.flatten(state.params)[path]
        )
        assert np.abs(moved[kind]).max() > 0
    # Nothing is absent: the tasks do not read the guesses, only the reconstruction moves them.
    np.testing.assert_allclose(moved["mgda"], moved["equal"], atol=1e-6)
    np.testing.assert_allclose(moved["graddrop"], moved["equal"], atol=1e-6)


@pytest.mark.parametrize("kind", ["uncertainty", "cagrad", "trimmed_mean"])
def test_beside_leaves_the_tasks_gradient_as_it_is(kind):
    rng = np.random.default_rng(0)
    rows = {"w": jnp.asarray(rng.normal(size=(4, 6)), jnp.float32)}
    losses = jnp.array([1.0, 2.0, 0.5, 3.0])
    params = {"w": jnp.zeros(6)}
    inner = balancing.build(kind, 3)
    outer = balancing.with_auxiliary_losses(inner, 1)
    first = {"w": rows["w"][:3]}
    alone, _ = inner.update(first, inner.init(params), params, losses=losses[:3])
    both, state = outer.update(rows, outer.init(params), params, losses=losses)
    np.testing.assert_allclose(both["w"], alone["w"] + rows["w"][3], atol=1e-5)
    assert balancing.current_weights(state)[3] == 1
    present = jnp.array([True, True, True, False])
    without, _ = outer.update(rows, outer.init(params), params, losses=losses, present=present)
    np.testing.assert_allclose(without["w"], alone["w"], atol=1e-5)


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
            "model.fusion.weights: no weight for text, audio",
        ),
    ],
)
def test_impossible_stages_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        built = toy.build(NUMBERS, **changes)
        jax.eval_shape(built.init, jax.random.key(0), toy.SPEC.example(2))
