"""What modalities do: subsets, Shapley values, damage, affinity, cost, what was looked at."""

import dataclasses
import itertools
import math

import jax
import numpy as np
import pytest
from sklearn.cross_decomposition import CCA
from sklearn.linear_model import Ridge

from mtmm_jax import fusion
from mtmm_jax.analysis import intermediates, pictures
from mtmm_jax.analysis import modality_affinity as related
from mtmm_jax.analysis.contribution import contributions, missing_modalities
from mtmm_jax.analysis.cost import operations, parameters_by_room
from mtmm_jax.analysis.intermediates import Known, Seen
from mtmm_jax.batch import Modality, Span
from mtmm_jax.evaluation import Evaluator, restrict, trivial_results
from mtmm_jax.evaluation import robustness as robust
from mtmm_jax.evaluation import subsets as subset_module
from mtmm_jax.modalities import MODALITIES
from mtmm_jax.modalities.corruption import SEVERITIES, Place
from mtmm_jax.model import Model
from mtmm_jax.registry import ConfigError
from tests import toy

ENCODERS = {
    "image": {"kind": "image_mlp"},
    "text": {"kind": "text_bag"},
    "table": {"kind": "table_mlp"},
}
TASKS = {
    "kind": {"kind": "classification"},
    "size": {"kind": "regression", "reads": ["image"]},
    "pairs": toy.TASKS["pairs"],
}


TRACES = []  # one entry for each time that the world's model was traced


class _Counted(Model):
    def __call__(self, *args, **mode):
        TRACES.append(self)
        return super().__call__(*args, **mode)


@pytest.fixture(scope="module")
def world():
    """A model of three small encoders, its probe, and two batches with holes."""
    built = toy.build(TASKS, encoders=ENCODERS)
    built = _Counted(**{f.name: getattr(built, f.name) for f in dataclasses.fields(built)})
    batches = [toy.batch(16, seed) for seed in (0, 1)]
    variables = toy.variables(built, batches[0])
    return built, subset_module.Probe(built), variables, batches


@pytest.fixture(scope="module")
def scores(world):
    _, probe, variables, batches = world
    TRACES.clear()
    found = subset_module.subset_scores(probe, variables, batches)
    assert len(TRACES) == 1
    return found


# Shapley values


def _by_permutations(values, names):
    total = dict.fromkeys(names, 0.0)
    orders = list(itertools.permutations(names))
    for order in orders:
        for i, name in enumerate(order):
            before = frozenset(order[:i])
            total[name] += values[before | {name}] - values[before]
    return {name: value / len(orders) for name, value in total.items()}


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_shapley_is_the_mean_over_all_orders_and_adds_up(count):
    rng = np.random.default_rng(count)
    names = "abcde"[:count]
    values = {s: float(rng.standard_normal()) for s in subset_module.subsets(names)}
    phi = subset_module.shapley(values)
    assert phi == pytest.approx(_by_permutations(values, names), abs=1e-12)
    gain = values[frozenset(names)] - values[frozenset()]
    assert sum(phi.values()) == pytest.approx(gain, abs=1e-12)


def test_shapley_gives_nothing_to_what_changes_nothing_and_halves_to_twins():
    values = {s: float(bool(s & {"a", "b"})) for s in subset_module.subsets("abc")}
    assert subset_module.shapley(values) == pytest.approx({"a": 0.5, "b": 0.5, "c": 0.0})


def test_shapley_names_the_subsets_that_it_misses():
    values = {frozenset(): 0.0, frozenset("a"): 1.0, frozenset("b"): 1.0}
    with pytest.raises(ConfigError, match=r"misses 1 subsets: \{a, b\}"):
        subset_module.shapley(values)


# Subsets


def test_every_subset_is_scored(scores):
    assert set(scores) == set(subset_module.subsets(ENCODERS))
    assert len(scores) == 8


def test_all_modalities_score_as_in_the_evaluation(world, scores):
    model, _, variables, batches = world
    results = Evaluator(model).results(variables, batches)
    for name, task in model.tasks.items():
        found = scores[frozenset(ENCODERS)][name]["metric"]
        assert found == pytest.approx(results[name][task.headline], abs=1e-6)


def test_nothing_scores_as_the_trivial_predictor(world, scores):
    model, _, _, batches = world
    trivial = trivial_results(model, batches)
    for name, task in model.tasks.items():
        assert scores[frozenset()][name]["metric"] == pytest.approx(trivial[name][task.headline])
    p, counted = np.array([0.5, 0.3, 0.2]), []
    for batch in batches:
        there = np.any([batch["inputs"][m]["present"] for m in ENCODERS], axis=0)
        target = batch["targets"]["kind"]
        counted += list(target["y"][there & target["present"]])
    loss = -np.log(p[counted]).mean()
    assert scores[frozenset()]["kind"]["loss"] == pytest.approx(loss, abs=1e-5)


def test_rows_without_the_subset_get_the_trivial_answer(world, scores):
    model, _, variables, batches = world
    call = jax.jit(model)
    hits = []
    for batch in batches:
        seen = restrict(batch, ["text"])["inputs"]
        logits = np.array(call(variables, seen)[0]["kind"])
        logits[~batch["inputs"]["text"]["present"]] = model.tasks["kind"].trivial
        there = np.any([batch["inputs"][m]["present"] for m in ENCODERS], axis=0)
        target = batch["targets"]["kind"]
        keep = there & target["present"]
        hits += list((logits.argmax(1) == target["y"])[keep])
    assert scores[frozenset({"text"})]["kind"]["metric"] == pytest.approx(np.mean(hits))


def test_a_task_without_what_it_reads_is_at_chance(scores):
    for subset, found in scores.items():
        for name, needs in (("size", {"image"}), ("pairs", {"image", "text"})):
            if not needs <= subset:
                assert found[name] == pytest.approx(scores[frozenset()][name])


@pytest.mark.usefixtures("uncached")
def test_several_devices_find_the_same(world, scores):
    from mtmm_jax.devices import parallel

    model, _, variables, batches = world
    two = subset_module.Probe(model, 2)
    replicated = parallel.replicate(variables, 2)
    found = subset_module.subset_scores(two, replicated, batches)
    for subset in scores:
        # The loss of retrieval too: its negatives are gathered from both devices.
        for name in model.tasks:
            assert found[subset][name] == pytest.approx(scores[subset][name], abs=1e-5)


def test_contributions_add_up_and_know_which_way_is_better(world, scores):
    model, *_ = world
    shares = contributions(model, scores)
    full, empty = scores[frozenset(ENCODERS)], scores[frozenset()]
    for name in model.tasks:
        gain = full[name]["metric"] - empty[name]["metric"]
        assert sum(shares[name]["metric"].values()) == pytest.approx(gain, abs=1e-9)
        drop = empty[name]["loss"] - full[name]["loss"]
        assert sum(shares[name]["loss"].values()) == pytest.approx(drop, abs=1e-9)
    assert shares["size"]["metric"]["text"] == pytest.approx(0.0, abs=1e-12)
    table = missing_modalities(model, scores)
    assert [len(row["modalities"]) for row in table["subsets"]] == [0, 1, 1, 1, 2, 2, 2, 3]


def test_an_unknown_loss_is_reported_as_unknown(world, scores):
    model, *_ = world
    holes = {subset: {k: dict(v) for k, v in found.items()} for subset, found in scores.items()}
    holes[frozenset()]["kind"]["loss"] = math.nan
    shares = contributions(model, holes)
    assert shares["kind"]["loss"] is None
    assert shares["kind"]["metric"] is not None


# Damage

CORRUPTIONS = {kind: row.corruptions for kind, row in MODALITIES.items()}
DAMAGES = [(kind, name) for kind, names in CORRUPTIONS.items() for name in names]


def _modality(kind):
    shape = (7, 6, 5)[: MODALITIES[kind].dimensions]
    return toy.SPEC.modalities.get(kind, Modality(kind, shape, "float32"))


def _rows(kind, size=12):
    batch = toy.batch(size, seed=3)
    if kind not in batch["inputs"]:  # any numbers
        x = np.random.default_rng(3).normal(size=(size, *_modality(kind).shape))
        entry = {"x": x.astype(np.float32), "present": batch["inputs"]["image"]["present"]}
        return {key: np.asarray(value) for key, value in entry.items()}, np.asarray(batch["id"])
    entry = {key: np.asarray(value) for key, value in batch["inputs"][kind].items()}
    return entry, np.asarray(batch["id"])


def _distance(kind, a, b):
    """How far apart two entries are, over the rows that `b` has."""
    here = b["present"]
    if not (a["present"] == b["present"]).all():
        return float((a["present"] != b["present"]).sum())
    masks = [e.get("mask", np.ones(b["x"].shape[:2], bool))[here] for e in (a, b)]
    gap = a["x"][here].astype(np.float64) - b["x"][here].astype(np.float64)
    changed = (gap != 0).sum() if kind == "text" else np.square(gap).sum()
    return float((masks[0] != masks[1]).sum() or changed)


@pytest.mark.parametrize(("kind", "name"), DAMAGES)
def test_damage_is_graded_and_belongs_to_the_row(kind, name):
    entry, ids = _rows(kind)
    corruption, modality = CORRUPTIONS[kind][name], _modality(kind)
    found = [corruption(entry, Place(ids, modality), severity) for severity in SEVERITIES]
    for key in entry:
        np.testing.assert_array_equal(found[0][key], entry[key])
        assert found[3][key].shape == entry[key].shape
        assert found[3][key].dtype == entry[key].dtype
    distances = [_distance(kind, changed, entry) for changed in found]
    assert distances[0] == 0.0
    assert all(a <= b + 1e-9 for a, b in itertools.pairwise(distances)), distances
    assert distances[5] > distances[1] >= 0.0
    order = np.random.default_rng(0).permutation(len(ids))[:7]
    part = {key: value[order] for key, value in entry.items()}
    again = corruption(part, Place(ids[order], modality), 3)
    for key in again:
        np.testing.assert_array_equal(again[key], found[3][key][order])
    other, here = corruption(entry, Place(ids, modality, seed=1), 3), entry["present"]
    differs = any((other[key][here] != found[3][key][here]).any() for key in other)
    assert differs == (name not in ("blur", "clipping"))


@pytest.mark.parametrize(("kind", "name"), DAMAGES)
def test_damage_leaves_something_and_spreads_no_filler(kind, name):
    entry, ids = _rows(kind)
    changed = CORRUPTIONS[kind][name](entry, Place(ids, _modality(kind)), 5)
    here = changed["present"]
    assert (here <= entry["present"]).all()
    assert np.isfinite(changed["x"][here].astype(np.float64)).all()
    if "mask" in changed:
        assert changed["mask"][here].any(1).all()
        assert name == "absent" or here.any()


def test_missing_words_move_the_others_up():
    entry, ids = _rows("text")
    changed = CORRUPTIONS["text"]["missing words"](
        entry, Place(ids, toy.SPEC.modalities["text"]), 4
    )
    for x, mask, new, kept in zip(
        entry["x"], entry["mask"], changed["x"], changed["mask"], strict=True
    ):
        left = list(new[kept])
        assert (np.diff(kept.astype(int)) <= 0).all()
        assert not new[~kept].any()
        said = iter(x[mask])
        assert all(any(word == other for other in said) for word in left)  # in their order


def test_sound_noise_has_the_level_it_says():
    entry, ids = _rows("audio")
    entry["x"] = 0.5 * np.where(entry["present"][:, None], entry["x"], 0)
    changed = CORRUPTIONS["audio"]["noise"](entry, Place(ids, toy.SPEC.modalities["audio"]), 2)
    here = entry["present"]
    power = np.square(entry["x"][here]).mean(1)
    noise = np.square(changed["x"][here] - entry["x"][here]).mean(1)
    np.testing.assert_allclose(10 * np.log10(power / noise), 10.0, atol=0.5)


def test_severity_is_one_of_six():
    entry, ids = _rows("image")
    with pytest.raises(ConfigError, match="severity: 6; choices"):
        CORRUPTIONS["image"]["blur"](entry, Place(ids, toy.SPEC.modalities["image"]), 6)


@pytest.fixture(scope="module")
def damaged(world, scores):
    _, probe, variables, batches = world
    TRACES.clear()
    found = robust.curves(probe, variables, batches)
    assert not TRACES  # the compile of `scores` serves
    return found


def test_curves_begin_undamaged_and_end_where_the_modality_is_gone(world, scores, damaged):
    model, *_ = world
    everything = frozenset(ENCODERS)
    for modality, kinds in damaged.items():
        assert set(kinds) == set(CORRUPTIONS[model.spec.modalities[modality].kind])
        for views in kinds.values():
            assert len(views["all"]) == len(views["alone"]) == len(SEVERITIES)
            for task in model.tasks:
                assert views["all"][0][task] == pytest.approx(scores[everything][task])
                assert views["alone"][0][task] == pytest.approx(scores[frozenset({modality})][task])
        for task in model.tasks:
            gone = kinds["absent"]["all"][5][task]
            assert gone == pytest.approx(scores[everything - {modality}][task], abs=1e-6)
            gone = kinds["absent"]["alone"][5][task]
            assert gone == pytest.approx(scores[frozenset()][task], abs=1e-6)


def test_damage_to_what_a_task_does_not_read_changes_nothing(damaged):
    for views in damaged["text"].values():
        metrics = {scores["size"]["metric"] for scores in views["all"]}
        assert len(metrics) == 1


def test_the_baseline_is_the_best_single_modality(world, damaged):
    model, *_ = world
    summary = robust.summary(model, damaged)
    alone = {m: damaged[m]["absent"]["alone"][0]["kind"]["metric"] for m in damaged}
    best = summary["kind"]["baseline"]
    assert alone[best] == max(alone.values())
    for modality, kinds in summary["kind"]["modalities"].items():
        line = kinds["absent"]["baseline"]
        assert line[0] == alone[best]
        if modality == best:
            assert line == [s["kind"]["metric"] for s in damaged[best]["absent"]["alone"]]
        else:
            assert line == [alone[best]] * len(SEVERITIES)


def test_robustness_numbers_by_hand():
    falls, flat = [0.8, 0.8, 0.4, 0.4, 0.4, 0.4], [0.6] * 6
    # (1 + 2 * (1 + .5 + .5 + .5) + .5) / 2 / 5
    assert robust.relative_robustness(falls) == pytest.approx(0.65)
    assert robust.relative_robustness([0.7] * 6) == pytest.approx(1.0)
    assert math.isnan(robust.relative_robustness([-0.1, *falls[1:]]))
    effective = robust.effective_robustness(falls, flat)
    assert effective == pytest.approx({"raw": 0.52 - 0.6, "equalised": 0.52 - 0.8})
    errors = robust.effective_robustness(falls, flat, smaller_is_better=True)
    assert errors == pytest.approx({"raw": 0.08, "equalised": 0.28})
    rises = [0.2, 0.2, 0.4, 0.4, 0.4, 0.4]
    assert robust.relative_robustness(rises, smaller_is_better=True) == pytest.approx(0.65)


# Affinity

RNG = np.random.default_rng(0)


def _turned(x, seed=1):
    rotation = np.linalg.qr(np.random.default_rng(seed).standard_normal((x.shape[1],) * 2))[0]
    return 3.7 * x @ rotation + 5.0


@pytest.mark.parametrize("unbiased", [True, False])
def test_cka_does_not_see_rotations_and_scales(unbiased):
    x, y = RNG.standard_normal((60, 8)), RNG.standard_normal((60, 5))
    assert related.cka(x, _turned(x), unbiased) == pytest.approx(1.0)
    mixed = y + x[:, :5]
    value = related.cka(x, mixed, unbiased)
    assert 0.1 < value < 0.95
    assert related.cka(_turned(x), _turned(mixed, 2), unbiased) == pytest.approx(value)


def test_unbiased_cka_is_not_fooled_by_many_dimensions():
    x, y = RNG.standard_normal((40, 400)), RNG.standard_normal((40, 400))
    assert related.cka(x, y, unbiased=False) > 0.8
    assert abs(related.cka(x, y)) < 0.1


def test_orthogonal_features_have_no_cka():
    basis = np.linalg.qr(np.c_[np.ones(50), RNG.standard_normal((50, 8))])[0][:, 1:]
    assert related.cka(basis[:, :4], basis[:, 4:], unbiased=False) == pytest.approx(0.0, abs=1e-12)
    assert related.mean_cca(basis[:, :4], basis[:, 4:]) == pytest.approx(0.0, abs=1e-9)


def test_unbiased_hsic_against_its_sums():
    n = 7
    a, b = (v @ v.T for v in (RNG.standard_normal((n, 3)), RNG.standard_normal((n, 4))))
    for kernel in (a, b):
        np.fill_diagonal(kernel, 0.0)
    distinct = list(itertools.permutations(range(n), 4))
    terms = [a[i, j] * (b[i, j] + b[k, m] - 2 * b[i, k]) for i, j, k, m in distinct]
    want = np.mean(terms) * n * (n - 3)
    assert related._hsic(a, b) == pytest.approx(want)


def test_cca_against_scikit_learn():
    x = RNG.standard_normal((200, 3))
    y = x @ RNG.standard_normal((3, 3)) + 1.5 * RNG.standard_normal((200, 3))
    u, v = CCA(n_components=3, max_iter=5000, tol=1e-10).fit_transform(x, y)
    want = [np.corrcoef(u[:, i], v[:, i])[0, 1] for i in range(3)]
    found = related.cca(x, y, keep=1.0, ridge=0.0)
    np.testing.assert_allclose(found, want, atol=1e-4)
    np.testing.assert_allclose(related.cca(_turned(x), _turned(y, 2), keep=1.0, ridge=0.0), want,
                               atol=1e-4)  # fmt: skip


def test_cca_on_held_out_rows_tells_chance_from_kinship():
    x, y = RNG.standard_normal((120, 40)), RNG.standard_normal((120, 40))
    assert related.mean_cca(x[:60], y[:60]) > 0.5
    assert related.mean_cca(x[:60], y[:60], held_out=(x[60:], y[60:])) < 0.15
    same = _turned(x)
    assert related.mean_cca(x, same) == pytest.approx(1.0, abs=0.02)
    assert related.mean_cca(x[:60], same[:60], held_out=(x[60:], same[60:])) > 0.99


def test_cca_of_what_does_not_vary_is_empty():
    x = RNG.standard_normal((20, 3))
    assert len(related.cca(x, np.ones((20, 2)))) == 0
    assert related.mean_cca(x, np.ones((20, 2))) == 0.0


def test_cross_prediction_goes_one_way_where_information_does():
    x = RNG.standard_normal((200, 6))
    y = x[:, :2] @ RNG.standard_normal((2, 4)) + 0.01 * RNG.standard_normal((200, 4))
    there = related.cross_prediction(x[:100], y[:100], (x[100:], y[100:]))
    back = related.cross_prediction(y[:100], x[:100], (y[100:], x[100:]))
    assert there > 0.99
    assert 0.2 < back < 0.45  # two of six dimensions
    noise = RNG.standard_normal((200, 4))
    assert related.cross_prediction(x[:100], noise[:100], (x[100:], noise[100:])) < 0.1


def test_cross_prediction_is_ridge_regression(monkeypatch):
    x, y = RNG.standard_normal((50, 5)) + 2, RNG.standard_normal((50, 3))
    y = y + x @ RNG.standard_normal((5, 3)) + 1
    monkeypatch.setattr(related, "_PENALTIES", np.array([0.3]))
    scale = np.linalg.svd(x[:30] - x[:30].mean(0))[1]
    fitted = Ridge(alpha=0.3 * np.square(scale).mean()).fit(x[:30], y[:30])
    left = np.square(y[30:] - fitted.predict(x[30:])).sum()
    want = 1 - left / np.square(y[30:] - y[:30].mean(0)).sum()
    found = related.cross_prediction(x[:30], y[:30], (x[30:], y[30:]))
    assert found == pytest.approx(want)


def test_affinity_uses_the_rows_that_have_both():
    n = 300
    x = RNG.standard_normal((n, 4))
    features = {"a": x, "b": _turned(x), "c": RNG.standard_normal((n, 4)), "d": x.copy()}
    present = {name: np.ones(n, bool) for name in features}
    features["b"][::3] = 1e6  # filler
    present["b"][::3] = False
    present["d"][5:] = False
    matrices = related.affinity(features, present, np.arange(n))
    assert matrices["samples"][0][1] == 200
    assert matrices["cka"][0][1] == pytest.approx(1.0)
    assert matrices["r2"][0][1] > 0.99
    assert abs(matrices["cka"][0][2]) < 0.1
    assert math.isnan(matrices["cka"][0][3])


def test_affinity_keeps_views_of_one_thing_on_one_side():
    # Each thing seen ten times: known by heart on both sides, unrelated across things.
    ids = np.repeat(np.arange(40), 10)
    x, y = (RNG.standard_normal((40, 60))[ids] for _ in range(2))
    present = {name: np.ones(len(ids), bool) for name in "ab"}
    matrices = related.affinity({"a": x, "b": y}, present, ids)
    assert matrices["r2"][0][1] < 0.1
    matrices = related.affinity({"a": x, "b": y}, present, np.arange(len(ids)))
    assert matrices["r2"][0][1] > 0.9


@pytest.mark.parametrize(
    ("cka", "cca", "r2", "name", "why"),
    [
        (0.8, 0.9, 0.7, "weighted", "redundant"),
        (0.3, 0.4, 0.2, "bottleneck", "complementary"),
        (0.02, 0.05, -0.1, "concat", "weakly related"),
        (math.nan, math.nan, math.nan, "concat", "too few"),
    ],
)
def test_the_suggestion_follows_its_rule(cka, cca, r2, name, why):
    def table(value):
        return [[1.0, value], [value, 1.0]]

    matrices = {"modalities": ["a", "b"], "cka": table(cka), "cca": table(cca), "r2": table(r2)}
    found, reason = related.suggested_fusion(matrices)
    assert found == name
    assert reason.startswith(why)
    assert found in fusion.FUSIONS


def test_features_are_the_encoders_own(world):
    model, _, variables, batches = world
    features, present, ids = related.pooled_features(model, variables, batches)
    assert set(features) == set(ENCODERS)
    assert len(ids) == 32
    here = np.concatenate([batch["inputs"]["table"]["present"] for batch in batches])
    np.testing.assert_array_equal(present["table"], here)
    tokens = jax.jit(lambda v, i: related.encode(model, v, i))(variables, batches[0]["inputs"])
    np.testing.assert_allclose(features["text"][:16], tokens["text"].mean(), atol=1e-5)
    for name in ENCODERS:
        assert not features[name][~present[name]].any()


# Cost


def test_operations_are_the_compilers():
    a, b = np.zeros((8, 16), np.float32), np.zeros((16, 4), np.float32)
    compiled = jax.jit(lambda a, b: a @ b).lower(a, b).compile()
    assert operations(compiled) == pytest.approx(2 * 8 * 16 * 4, rel=0.1)

    class Silent:
        def cost_analysis(self):
            return None

    class Refuses:
        def cost_analysis(self):
            raise NotImplementedError

    assert operations(Silent()) is None
    assert operations(Refuses()) is None


def test_parameters_are_counted_by_room(world):
    _, _, variables, _ = world
    rooms = parameters_by_room(variables["params"])
    assert set(rooms) >= {"encoders", "fusion", "heads"}
    assert set(rooms["encoders"]) == set(ENCODERS)
    total = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert sum(sum(modules.values()) for modules in rooms.values()) == total


# What was looked at

SPANS = {
    "image": Span("image", 16, (4, 4), (4.0, 4.0)),
    "text": Span("text", 6, (6,), (1.0,)),
}
KNOWN = Known(
    samples=("cat", "dog", "cow"),
    words={"text": [["a", "cat"], ["the", "big", "dog"], []]},
    spans=SPANS,
    fused=((*SPANS.values(), Span("bottleneck", 4, (4,), (1.0,))),),
    tasks=("kind", "size", "pairs"),
)


@pytest.mark.parametrize(
    ("path", "size", "keys", "want"),
    [
        ("fusion/fused/text_from_image_layer1/attention/weights", 6, False, ["text"]),
        ("fusion/fused/text_from_image_layer1/attention/weights", 16, True, ["image"]),
        ("fusion/fused/layer1_text/attention/weights", 10, False, ["text", "bottleneck"]),
        ("fusion/fused/trunk/layer1/attention/weights", 22, False, ["image", "text"]),
        ("fusion/fused/trunk/layer1/attention/weights", 23, True, ["own", "image", "text"]),
        ("heads/kind/pool_0/weights", 26, False, ["image", "text", "bottleneck"]),
        ("fusion/fused/weights", 6, False, ["text"]),
        ("fusion/fused/weights", 7, False, []),
        ("sharing/gate", 999, False, []),
    ],
)
def test_token_axes_are_recognised_by_length_and_name(path, size, keys, want):
    assert [s.name for s in intermediates.layout_of(path, size, KNOWN, keys)] == want


def test_of_two_modalities_of_one_length_the_path_says_which_asks():
    spans = {name: Span(name, 6, (6,), (1.0,)) for name in ("image", "text")}
    path, known = "fusion/fused/text_from_image_layer1/weights", KNOWN._replace(spans=spans)
    assert [s.name for s in intermediates.layout_of(path, 6, known)] == ["text"]
    assert [s.name for s in intermediates.layout_of(path, 6, known, keys=True)] == ["image"]


def test_words_attend_over_the_patches_of_their_picture():
    path = "fusion/fused/text_from_image_layer1/attention/weights"
    attention = np.random.default_rng(0).random((3, 2, 6, 16)).astype(np.float32)
    heat, patches = intermediates.drawn({path: Seen(attention, True)}, KNOWN)
    assert [p.sample for p in patches] == [0, 1, 2]
    assert patches[1].rows.labels == ("the", "big", "dog")
    np.testing.assert_allclose(patches[1].values[2], attention[1, :, 2].mean(0).reshape(4, 4))
    assert patches[2].rows.labels == ("all tokens",)  # a text that is not there
    assert heat[0].rows.labels[0] == "text 1"
    assert heat[0].columns.labels[5] == "image 2,2"


@pytest.mark.parametrize(
    ("path", "shape", "per_sample", "rows", "columns"),
    [
        ("fusion/fused/modality_weights", (3, 2), True, "sample", "modality"),
        ("sharing/gates", (3, 4), False, "task", "part"),
        ("sharing/stitch1", (3, 3), False, "task", "task"),
        ("fusion/fused/routed/gates", (3, 22, 4), True, "sample", "expert"),
        ("sharing/expert_gates", (3, 3, 5), True, "task", "expert"),
        ("fusion/fused/gates", (3, 2, 64), True, "sample", "modality"),
        ("fusion/fused/routed/expert_use", (4,), False, "", "expert"),
    ],
)
def test_gates_find_the_names_of_their_axes(path, shape, per_sample, rows, columns):
    values = np.random.default_rng(0).random(shape).astype(np.float32)
    (heat,), patches = intermediates.drawn({path: Seen(values, per_sample)}, KNOWN)
    assert (heat.rows.name, heat.columns.name) == (rows, columns)
    assert heat.values.shape == (len(heat.rows.labels), len(heat.columns.labels))
    assert not patches


def test_a_models_intermediates_are_found_with_their_samples_first():
    encoders = {"image": {"kind": "cnn"}, "text": {"kind": "text_bag"}}
    model = toy.build(
        {"kind": TASKS["kind"]}, encoders=encoders, fusion={"kind": "bottleneck", "layers": 1}
    )
    batch = toy.batch(5, holes=False)
    batch["inputs"] = {name: batch["inputs"][name] for name in encoders}
    variables = toy.variables(model, batch)
    seen, spans, fused = intermediates.collect(model, variables, batch)
    assert set(spans) == {"image", "text"}
    assert [span.name for span in fused[0]] == ["image", "text", "bottleneck"]
    path = "fusion/fused/layer1_image/attention/weights"
    length = spans["image"].length + 4
    assert seen[path].per_sample
    assert seen[path].values.shape == (5, 4, length, length)
    known = Known(("s",) * 5, {}, spans, fused, ("kind",))
    heat, patches = intermediates.drawn(seen, known)
    first = next(p for p in patches if p.path == path)
    assert first.rows.labels[0] == "bottleneck 1"
    want = seen[path].values[0].mean(0)[-4, : spans["image"].length]
    np.testing.assert_allclose(first.values[0].ravel(), want, atol=1e-6)
    for figure in (
        pictures.heat_maps(heat),
        pictures.patch_attention(patches[:2], {0: np.zeros((16, 16, 3))}),
    ):
        figure.draw_without_rendering()
        pictures.plt.close(figure)
