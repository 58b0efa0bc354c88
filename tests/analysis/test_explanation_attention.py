"""What a model attended to: the way back through an encoder, onto parts, checked by deletion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtmm_jax import training
from mtmm_jax.analysis import explanation_attention
from mtmm_jax.analysis.explanation_attention import Attention
from mtmm_jax.batch import Modality, Span, Tokens
from mtmm_jax.benchmarks.studies import explanations
from mtmm_jax.evaluation.attribution import Explainer
from mtmm_jax.inference.finished import Finished
from mtmm_jax.modalities import kind_of
from mtmm_jax.store.workdir import Workdir
from tests import toy
from tests.training import small_run

ENCODERS = {
    "image": {"kind": "vit", "preset": "tiny"},
    "text": {"kind": "text_gru", "preset": "tiny"},
}


def parts_of(modality, entry, *words):
    return kind_of(modality).units.parts(modality, entry, *words)


def drawn(rows, queries, keys, seed=0):
    x = np.random.default_rng(seed).random((rows, queries, keys)).astype(np.float32)
    return x / x.sum(-1, keepdims=True)


def tokens(count, rows=2, grid=None):
    return Tokens.of(
        np.zeros((rows, count, 1), np.float32), np.ones((rows, count), bool), "image", grid=grid
    )


def test_attention_is_rolled_out_as_a_product_of_matrices():
    blocks = [drawn(2, 4, 4, seed) for seed in (1, 2)]
    onto = drawn(2, 1, 4)[:, 0]
    rolled = explanation_attention._rolled_out(onto, blocks, tokens(4), tokens(4))
    for row in range(2):
        way = np.linalg.multi_dot([(blocks[i][row] + np.eye(4)) / 2 for i in (1, 0)])
        np.testing.assert_allclose(rolled[row], onto[row] @ way, rtol=1e-5)
    alone = explanation_attention._rolled_out(None, blocks, tokens(4), tokens(4))
    even = explanation_attention._rolled_out(np.full((2, 4), 0.25), blocks, tokens(4), tokens(4))
    np.testing.assert_allclose(alone, even, rtol=1e-6)
    summary = explanation_attention._rolled_out(np.ones((2, 1)), blocks, tokens(1), tokens(3))
    last = np.array([[0, 0, 0, 1.0]] * 2)
    for block in reversed(blocks):
        last = (last + np.einsum("bq,bqk->bk", last, block)) / 2
    np.testing.assert_allclose(summary, last[:, :3], rtol=1e-5)


def test_a_patch_gives_its_share_to_the_parts_that_it_covers():
    modality = Modality("image", (16, 16, 3), "float32")
    entry = {"x": np.zeros((1, 16, 16, 3), np.float32), "present": np.ones(1, bool)}
    parts = parts_of(modality, entry)
    weights = np.zeros((1, 4), np.float32)
    weights[0, 1] = 1.0  # of 2 x 2 patches the one at the top right
    found = explanation_attention._onto_units(weights, tokens(4, 1, (2, 2)), parts)[0]
    np.testing.assert_array_equal(found.reshape(8, 8) > 0, np.arange(64).reshape(8, 8) % 8 // 4
                                  * (np.arange(64).reshape(8, 8) < 32) > 0)  # fmt: skip
    np.testing.assert_allclose(found[found > 0], 1 / 16)


@pytest.fixture(scope="module")
def fused():
    """Two modalities whose tokens attend to each other, one sample without a picture."""
    tasks = {
        "kind": {"kind": "classification", "head": {"kind": "vector", "pool": "attention"}},
        "spelling": {"kind": "classification", "reads": "image"},
    }
    built = toy.build(tasks, encoders=ENCODERS, fusion="transformer_tokens")
    variables = toy.variables(built, toy.SPEC.example(2))
    inputs = {name: toy.batch(6, holes=False)["inputs"][name] for name in ENCODERS}
    inputs["image"] = {**inputs["image"], "present": np.arange(6) > 0}
    parts = {
        "image": parts_of(toy.SPEC.modalities["image"], inputs["image"]),
        "text": parts_of(
            toy.SPEC.modalities["text"],
            inputs["text"],
            np.where(inputs["text"]["mask"], np.arange(6) // 2, -1),
        ),
    }
    return built, variables, inputs, parts


def test_fusion_and_encoder_are_read_for_the_tasks_that_read_them(fused):
    built, variables, inputs, parts = fused
    found = Attention(built, ["kind", "spelling"])(variables, inputs, parts)
    assert set(found["kind"]) == {"image", "text"}
    assert set(found["spelling"]) == {"image"}  # an encoder of its own attention, no fusion
    for attention in found.values():
        for name, values in attention.items():
            assert values.shape == parts[name].there.shape
            assert (values >= 0).all()
            assert not values[~parts[name].there].any(), name
    both = found["kind"]
    assert (both["text"][1:].sum(1) > 0.1).all()
    total = both["image"].sum(1) + both["text"].sum(1)
    assert ((total > 0.7) & (total < 0.99)).all()  # the rest is on tokens of the fusion's own
    np.testing.assert_allclose(found["spelling"]["image"][1:].sum(1), 1, atol=1e-5)


def test_what_is_looked_at_first_goes_first(fused):
    built, variables, inputs, parts = fused
    explainer = Explainer(built, ["kind", "spelling"], 2)
    answers = np.zeros((2, 6), np.int32)
    attended = Attention(built, explainer.tasks)(variables, inputs, parts)
    shares = jnp.asarray([0.0, 0.4, 1.0])
    curves = explanation_attention.deletion(
        explainer, variables, inputs, parts, answers, attended, shares
    )
    assert {task: set(found) for task, found in curves.items()} == {
        "kind": {"image", "text"},
        "spelling": {"image"},
    }
    order = np.argsort(-np.where(parts["text"].there, attended["kind"]["text"], -1), axis=1)
    there = parts["text"].there.sum(1)
    keep = np.ones(parts["text"].there.shape, bool)
    for row in range(6):
        keep[row, order[row, : max(1, round(0.4 * there[row]))]] = False
    whole = np.ones(parts["image"].there.shape, bool)
    expected = explainer.values(
        variables, inputs, parts, answers, {"text": keep[None], "image": whole[None]}
    )
    np.testing.assert_allclose(curves["kind"]["text"][1], expected[0, 0], atol=1e-6)
    only = explanation_attention.deletion(
        explainer, variables, inputs, parts, answers, attended, shares, "image"
    )
    assert set(only["kind"]) == {"image"}


def test_the_table_sets_attention_next_to_gradients():
    row = {"modality": "image", "alone": True, "highest": 0.4, "random": 0.1}
    shown = explanations.table([{**row, "attention": 0.2}, {**row, "modality": "text"}])
    cells = {column.header: list(column.cells) for column in shown.columns}
    assert cells["gradients to random"] == ["4.00", "4.00"]
    assert cells["attention to random"] == ["2.00", "-"]
    assert cells["attention"][1] == "-"


def test_tokens_without_a_place_are_left_out():
    entry = {"x": np.zeros((1, 16, 16, 3), np.float32), "present": np.ones(1, bool)}
    parts = parts_of(Modality("image", (16, 16, 3), "float32"), entry)
    pooled = tokens(1, 1)
    assert pooled.layout[0] == Span("image", 1, (1,), pooled.layout[0].stride)
    assert explanation_attention._onto_units(np.ones((1, 1)), pooled, parts) is None
    assert jax.tree.leaves(pooled)


def test_rows_are_means_over_the_samples_of_a_split(tmp_path, monkeypatch):
    plain = {**small_run.get_config().to_dict(), "devices": 1, "balancing": "equal"}
    plain["model"] = {**plain["model"], "encoders": {"audio": "audio_mlp"}}
    made = training.assemble(plain)
    variables = toy.variables(made.model, made.model.spec.example(2))
    run = Finished(Workdir(tmp_path), made, 1, variables)
    monkeypatch.setattr("mtmm_jax.inference.finished.open_run", lambda *_: run)
    monkeypatch.setattr(Workdir, "config", lambda *_: {})
    options = ["--workdirs", str(tmp_path), "--task", "kind", "--samples", "8", "--steps", "1"]
    options = explanations.parser().parse_args(options)
    rows = explanations.measured(str(tmp_path), options)
    assert [(row["modality"], row["alone"]) for row in rows] == [("audio", True), ("audio", False)]
    for row in rows:
        assert 0 < row["samples"] <= 8
        assert row["highest"] == pytest.approx(
            row["curve_highest"][0] - row["curve_highest"][2], abs=2e-4
        )
        assert "attention" not in row  # its encoder has none


def test_runs_whose_rows_are_there_are_not_asked_again(tmp_path, monkeypatch):
    asked = []

    def measured(path, options):
        asked.append((path, options.samples))
        row = {"alone": True, "samples": 3, "highest": 0.4, "random": 0.1}
        return [{"modality": name, **row} for name in ("image", "text")]

    monkeypatch.setattr(explanations, "measured", measured)
    options = ["--json", str(tmp_path / "rows.json"), "--workdirs"]
    for runs in (["a"], ["a,b"], ["a", "--samples", "8"], ["b,a"]):
        assert explanations.main([*options, *runs]) == 0
    assert asked == [("a", 256), ("b", 256), ("a", 8)]
