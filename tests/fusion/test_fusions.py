"""Properties of all that is in the fusion room: an entry is tested by being listed in its table.

The rows of a batch are all subsets of present modalities. They enter as a batch's features do, NaN
where nothing is, through `batch.clean`; beneath the masks of the tokens stands anything.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtmm_jax import registry
from mtmm_jax.batch import Tokens
from mtmm_jax.fusion import ALIGNMENTS, DECISIONS, FUSIONS, MISSING
from mtmm_jax.model import flatten
from tests import toy
from tests.fusion import formulas
from tests.fusion.formulas import FORMULAS, NAMES, WIDTH

# What makes an entry's program small.
SMALL = {
    "tensor": {"reduced": 3},
    "mlb": {"hidden": 8},
    "mfb": {"hidden": 8},
    "tucker": {"hidden": 8, "rank": 3},
    "block": {"hidden": 12, "chunks": 4, "rank": 2},
    "transformer": {"layers": 1},
    "transformer_tokens": {"layers": 1},
    "bottleneck": {"bottlenecks": 2},
    "perceiver": {"latents": 3},
    "perceiver_io": {"queries": 2, "latents": 3, "layers": 1},
    "encoder_decoder": {"queries": 2, "layers": 1},
}


def _last(names):
    return names[-1]


def _shares(names):
    return {name: 0.5 + i for i, name in enumerate(names)}


def _edges(names):
    return {names[0]: [names[-1]], names[-1]: [names[-1]]}


# Entries again, with other options than their own; a function is called with the modalities' names.
OPTIONS = {
    "concat, hidden": {"kind": "concat", "hidden": 5},
    "weighted, fixed": {"kind": "weighted", "weights": _shares},
    "weighted, by sample": {"kind": "weighted", "by_sample": True},
    "gated, query": {"kind": "gated", "query": _last},
    "film, query": {"kind": "film", "query": _last},
    "multiplicative, unreduced": {"kind": "multiplicative", "reduced": 0},
    "multiplicative, vector": {
        "kind": "multiplicative",
        "form": "vector",
        "query": _last,
        "reduced": 3,
    },
    "multiplicative, three_way": {
        "kind": "multiplicative",
        "form": "three_way",
        "query": _last,
        "reduced": 3,
    },
    "mixture_of_experts, k=1": {"kind": "mixture_of_experts", "k": 1},
    "mixture_of_experts, tokens": {"kind": "mixture_of_experts", "k": 1, "route": "token"},
    "nl_gate, query": {"kind": "nl_gate", "query": _last},
    "encoder_decoder, gated": {
        "kind": "encoder_decoder",
        **SMALL["encoder_decoder"],
        "combine": "gated",
    },
    "gcn, edges": {"kind": "gcn", "edges": _edges},
    "gcn, tokens": {"kind": "gcn", "nodes": "token", "combine": "gated"},
    "gat, tokens": {"kind": "gat", "nodes": "token", "edges": _edges, "combine": "gated"},
    "decision weighted, fixed": {"kind": "weighted", "weights": _shares},
    "align resample": {"kind": "resample", "reference": "audio", "offset": True},
    "align resample, points": {"kind": "resample", "reference": 5, "offset": True},
    "align attention": {"kind": "attention", "reference": "audio", "heads": 1},
}
LIMITS = {
    "multiplicative, vector": (2, 2),
    "multiplicative, three_way": (3, 3),
    "encoder_decoder, gated": (1, 1),
}
# They compute in float32 whatever they are given.
FLOAT32 = {
    *("transformer", "transformer_tokens", "bottleneck", "nl_gate", "crossmodal", "perceiver"),
    *("perceiver_io", "encoder_decoder", "gcn", "gat", "population"),
}


def _votes(tokens):
    """Predictions, which are whatever stands first in the features, and who votes."""
    parts = [tokens[name] for name in sorted(tokens)]
    votes = jnp.stack([part.values[:, 1, :5] for part in parts], axis=1)
    return votes, jnp.stack([part.present for part in parts], axis=1)


class Room(NamedTuple):
    """A table, what its entries are called with, and what they give, as a dict of `Tokens`."""

    table: dict
    arguments: Callable = lambda tokens: (tokens,)
    given: Callable = lambda given, tokens: given


def _fused(given, tokens):
    return {"fused": given}


def _decided(given, tokens):
    return {"fused": Tokens(given[:, None], _votes(tokens)[1].any(1, keepdims=True))}


ROOMS = {
    "fusion": Room(FUSIONS, given=_fused),
    "decision": Room(DECISIONS, _votes, _decided),
    "missing": Room(MISSING, lambda tokens: (tokens, tokens)),
    "align": Room(ALIGNMENTS),
}


class Entry(NamedTuple):
    """An entry of a room's table, its options, and the numbers of modalities that it takes."""

    room: Room
    spec: dict
    counts: range

    @property
    def constructor(self):
        return self.room.table[self.spec["kind"]]

    def module(self, names):
        spec = {key: v(names) if callable(v) else v for key, v in self.spec.items()}
        context = {"width": WIDTH, "modalities": names}
        return registry.build(self.room.table, spec, where="test", **context)


def _entries():
    for room, (table, *_) in ROOMS.items():
        prefix = "" if room == "fusion" else f"{room} "
        specs = {prefix + kind: {"kind": kind, **SMALL.get(kind, {})} for kind in table}
        specs |= {label: spec for label, spec in OPTIONS.items() if label.split(",")[0] in specs}
        for label, spec in specs.items():
            own = table[spec["kind"]].modalities if room == "fusion" else (1, None)
            fewest, most = LIMITS.get(label, own)
            yield label, Entry(ROOMS[room], spec, range(fewest, (most or len(NAMES)) + 1))


ENTRIES = dict(_entries())


# Those whose formula is another one for two or four modalities, or whose limit is four.
BY_NUMBER = {"gated_unit": (2,), "multiplicative": (2, 4), "tensor": (4,), "gat": (4,)}
# Those that join all tokens first, as "transformer" does: one modality is one of several.
JOINED = {"transformer_tokens", "perceiver", "perceiver_io", "encoder_decoder", "population"}


def _every(chosen=lambda entry: True):
    """Every entry, or those that are chosen, alone and with three modalities, whose subsets hold
    all that happens among several; its other options with as many as they take, three at most."""
    cases = []
    for label, entry in ENTRIES.items():
        most = min(3, entry.counts[-1])
        alone = label not in OPTIONS and label not in JOINED
        counts = {1 if alone else most, most, *BY_NUMBER.get(label, ())}
        if chosen(entry.constructor):
            cases += [(label, count) for count in sorted(counts)]
    return pytest.mark.parametrize(("label", "modalities"), cases)


def _three(chosen=lambda entry: True, without=()):
    """Every entry, or those that are chosen, with three modalities or the most that it takes."""
    return pytest.mark.parametrize(
        ("label", "modalities"),
        [
            (label, min(3, entry.counts[-1]))
            for label, entry in ENTRIES.items()
            if chosen(entry.constructor) and label not in without
        ],
    )


class Suite(NamedTuple):
    """The module, random parameters, `(fused, variables)` of them and inputs, and, compiled and
    with these parameters, the gradient next to the two."""

    module: Any
    params: dict
    forward: Callable
    run: Callable


@functools.cache
def _suite(label, modalities, train=False, dropout=None):
    entry = ENTRIES[label]
    module = entry.module(NAMES[:modalities])
    module = module if dropout is None else module.clone(dropout=dropout)
    example = entry.room.arguments(formulas.tokens_of(modalities, places=True))
    params = toy.variables(module, *example).get("params", {})

    def forward(params, inputs, under=0.0):
        tokens = formulas.entrance(inputs, under)
        mode = {"train": train, "rngs": {"dropout": jax.random.key(1)}}
        arguments = entry.room.arguments(tokens)
        mutable = ["intermediates", "losses"]
        given, variables = module.apply({"params": params}, *arguments, **mode, mutable=mutable)
        return entry.room.given(given, tokens), variables

    def wavy(params, inputs, under):
        fused, variables = forward(params, inputs, under)
        total = sum(jax.tree.leaves(variables.get("losses")), jnp.float32(0))
        for part in fused.values():  # all that is unmasked, each channel at a slope of its own
            values = part.values.astype(jnp.float32)
            waves = jnp.sin(values + jnp.arange(float(values.shape[-1])))
            total += jnp.where(part.mask[..., None], waves, 0.0).sum()
        return total, (fused, variables)

    compiled = jax.jit(jax.grad(wavy, has_aux=True))

    def run(inputs, under=0.0):
        return jax.device_get(compiled(params, inputs, under))

    return Suite(module, params, forward, run)


def _inputs(label, modalities, **options):
    return formulas.inputs(modalities, places=label.startswith("align"), **options)


def _same(one, two, rows=slice(None), atol=2e-5):
    """The same tokens are there, with the same values."""
    for name, part in one.items():
        mask, other = np.asarray(part.mask)[rows], two[name]
        np.testing.assert_array_equal(np.asarray(other.mask)[rows], mask)
        values = [np.asarray(t.values, np.float32)[rows][mask] for t in (part, other)]
        np.testing.assert_allclose(*values, atol=atol, rtol=1e-5)


def _absent_is_silent(label, modalities, suite):
    """What is masked or absent, NaN included, changes no output, no term and no gradient."""
    # No entrance stands before decisions: a run that is absent from an ensemble says NaN.
    loud = np.nan if label.startswith("decision") else 1e3
    found = suite.run(_inputs(label, modalities))
    other = suite.run(_inputs(label, modalities, filler=7.0), loud)
    for leaf in jax.tree.leaves((found[0], found[1][1], other[0], other[1][1])):
        assert np.isfinite(leaf).all()
    (gradient, (fused, variables)), (slope, (again, tells)) = found, other
    assert all(np.isfinite(part.values).all() for part in fused.values())
    _same(fused, again)
    both = (gradient, variables.get("losses")), (slope, tells.get("losses"))
    for one, two in zip(*map(jax.tree.leaves, both), strict=True):
        np.testing.assert_allclose(two, one, atol=1e-4, rtol=1e-4)
    return gradient, fused


def _rows_are_apart(label, modalities, suite, fused, order, mixes=False):
    """Rows may stand in any order, and who the last is changes no other; unless it `mixes` them."""
    inputs = _inputs(label, modalities)
    last = len(order) - 1
    for entry in inputs.values():
        entry["x"][last] = -2 * entry["x"][last] + 1
    _, (other, _) = suite.run(jax.tree.map(lambda x: x[order], inputs))
    other = jax.tree.map(lambda x: x[np.argsort(order)], other)
    if mixes:
        with pytest.raises(AssertionError):
            _same(fused, other, slice(last), atol=1e-3)
    else:
        _same(fused, other, slice(last))


def _is_flat(label, modalities, path):
    """Whether a parameter has no slope, by mathematics."""
    if path.endswith("key/bias"):
        return True  # a constant added to all keys leaves the softmax alone
    if modalities > 1:
        return False
    if "absent_" in path or label == "missing placeholder":
        return True  # who is alone is absent only where nobody is
    one_entry = label in ("weighted", "weighted, by sample", "decision weighted", "gat")
    return one_entry and "score" in path  # the softmax over one modality is 1


def _parameters_learn(label, modalities, gradient):
    for path, leaf in flatten(gradient).items():
        if path == "layer2/score_own" and modalities < 4:
            continue  # LeakyReLU has to bend between two neighbours; among few it may not
        ranks = leaf if label == "low_rank" and "factor" in path else [leaf]
        for slope in ranks:
            flat = _is_flat(label, modalities, path)
            assert (np.abs(slope).max() > 1e-5) != flat, path


def _is_its_formula(label, modalities, suite, fused):
    params = formulas.float64(suite.params)
    tokens = formulas.tokens_of(modalities)
    for i in np.flatnonzero(fused.present):
        row = formulas.row_of(tokens, i)
        expected = FORMULAS[ENTRIES[label].spec["kind"]](params, row, suite.module)
        found = fused.values[i][fused.mask[i]]
        np.testing.assert_allclose(found, np.atleast_2d(expected), atol=2e-4, err_msg=str(i))


def test_tables_say_their_limits_and_formulas_are_of_fusions():
    assert set(FORMULAS) <= set(FUSIONS)
    assert set(OPTIONS) < set(ENTRIES)
    for fusion in FUSIONS.values():
        fewest, most = fusion.modalities
        assert fewest == 1
        assert most is None or most >= 4
        assert isinstance(fusion.keeps_layout, bool)


@_every()
def test_properties(label, modalities):
    suite = _suite(label, modalities)
    gradient, fused = _absent_is_silent(label, modalities, suite)
    _parameters_learn(label, modalities, gradient)
    order = np.random.default_rng(0).permutation(len(formulas.patterns(modalities)))
    _rows_are_apart(label, modalities, suite, fused, order)
    here = formulas.patterns(modalities)
    for name, part in fused.items():
        aligned = ENTRIES[label].room.table is ALIGNMENTS  # what is absent stays absent
        there = here[:, NAMES.index(name)] if aligned else here.any(1)
        np.testing.assert_array_equal(part.present, there)
    if ENTRIES[label].room.table is FUSIONS and ENTRIES[label].spec["kind"] in FORMULAS:
        _is_its_formula(label, modalities, suite, fused["fused"])
        if suite.module.keeps_layout:
            for name, part in formulas.tokens_of(modalities).items():
                found = fused["fused"].select(name)
                np.testing.assert_array_equal(found.mask, part.mask)
                assert found.layout == part.layout


def _trains_otherwise(entry):
    return getattr(entry, "has_auxiliary", False) or getattr(entry, "mixes_rows", False)


@pytest.mark.slow
@_three(chosen=lambda entry: not _trains_otherwise(entry))
def test_others_do_in_training_what_they_do_in_evaluation(label, modalities):
    suites = [_suite(label, modalities, train=train) for train in (False, True)]
    programs = [
        jax.jit(suite.forward).lower(suite.params, _inputs(label, modalities)).as_text()
        for suite in suites
    ]
    assert programs[0] == programs[1]


def _check_training(label, modalities, **options):
    """With the same key; draws belong to places, so that rows stay where they are."""
    suite = _suite(label, modalities, train=True, **options)
    _, fused = _absent_is_silent(label, modalities, suite)
    mixes = getattr(suite.module, "mixes_rows", False)
    order = np.arange(len(formulas.patterns(modalities)))
    _rows_are_apart(label, modalities, suite, fused, order, mixes)
    return fused


@_three(chosen=_trains_otherwise)
def test_properties_in_training(label, modalities):
    _check_training(label, modalities)


@pytest.mark.slow
@_three(chosen=lambda entry: hasattr(entry, "dropout"), without=OPTIONS)
def test_properties_with_dropout(label, modalities):
    fused = _check_training(label, modalities, dropout=0.5)
    _, (plain, _) = _suite(label, modalities).run(_inputs(label, modalities))
    with pytest.raises(AssertionError):
        _same(fused, plain, atol=1e-2)


@_three(without=[label for label in OPTIONS if label.split(",")[0] in FLOAT32])
def test_half_precision_in_is_half_precision_through(label, modalities):
    suite = _suite(label, modalities)
    inputs = _inputs(label, modalities)
    _, (exact, _) = suite.run(inputs)
    for entry in inputs.values():
        entry["x"] = entry["x"].astype(jnp.bfloat16)
    rough = jax.device_get(jax.jit(lambda inputs: suite.forward(suite.params, inputs)[0])(inputs))
    for name, part in exact.items():
        given = np.dtype("float32" if label in FLOAT32 else jnp.bfloat16)
        assert rough[name].values.dtype == given
        mask = np.asarray(part.mask)
        values, other = (np.asarray(t.values, np.float32)[mask] for t in (part, rough[name]))
        error = np.abs(values - other).mean()
        assert error < 0.05 * max(np.abs(values).mean(), 0.1)


# Some of them: the same Python is traced, and each eager operation is a program.
@pytest.mark.slow
@_three(without=set(ENTRIES) - set(list(ENTRIES)[::6]))
def test_compiled_is_as_written(label, modalities):
    suite = _suite(label, modalities)
    inputs = _inputs(label, modalities)
    _, (compiled, _) = suite.run(inputs)
    _same(compiled, suite.forward(suite.params, inputs)[0])


def _ways(kind):
    """What a model sees of a fusion: whether tokens stay, rows mix, and it has a loss."""
    flags = ("keeps_layout", "mixes_rows", "has_auxiliary")
    return tuple(bool(getattr(FUSIONS[kind], flag, False)) for flag in flags)


# One fusion of each way; all of them, without the model, are in `test_properties`.
ONE_OF_EACH = {_ways(kind): kind for kind in FUSIONS}.values()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_fillers_reach_no_prediction_loss_or_gradient_of_a_model(kind):
    encoders = {"table": "table_mlp", "text": "text_bag", "audio": "audio_mlp"}
    tasks = {"kind": {"kind": "classification"}, "size": {"kind": "regression"}}
    built = toy.build(tasks, fusion={"kind": kind, **SMALL.get(kind, {})}, encoders=encoders)
    variables = toy.variables(built, toy.SPEC.example(2))

    @functools.partial(jax.value_and_grad, has_aux=True)
    def run(params, batch):
        mode = {"train": True, "key": jax.random.key(1)}
        predictions, _ = built({**variables, "params": params}, batch["inputs"], **mode)
        return built.losses(predictions, batch)[0].sum(), predictions

    nan = toy.batch()
    assert not any(nan["inputs"][name]["present"].all() for name in encoders)
    zero = jax.tree.map(lambda x: np.nan_to_num(x) if x.dtype == np.float32 else x, nan)
    results = [jax.jit(run)(variables["params"], batch) for batch in (nan, zero)]
    for one, two in zip(*map(jax.tree.leaves, results), strict=True):
        assert np.isfinite(one).all()
        np.testing.assert_array_equal(one, two)
