"""The words of a text, said from what the model kept of it: against loops, and what is hidden."""

import dataclasses

import jax
import numpy as np
import pytest

from mtmm_jax import registry
from mtmm_jax.batch import Modality
from mtmm_jax.inference.answers import named
from mtmm_jax.model.build import build
from mtmm_jax.registry import ConfigError
from mtmm_jax.tasks import TASKS, hidden
from mtmm_jax.tasks.task import Labels
from mtmm_jax.text import read_tokenizer, train_words
from tests import toy
from tests.tasks.measured import labels_of, measure, state

TEXT = toy.SPEC.modalities["text"]


def _task(spec=toy.SPEC, **options):
    made = lambda head, where, size: (head, size)  # noqa: E731
    options |= {"kind": "words"}
    return registry.build(TASKS, options, "text", spec, where="tasks.text", make_head=made)


def _labels(rows=4, length=5, seed=0):
    rng = np.random.default_rng(seed)
    known = rng.random((rows, length)) < 0.6
    known[:, 0] = True
    ids = np.where(known, rng.integers(0, TEXT.vocabulary, (rows, length)), 0)
    weight = np.array([1.0, 0.0, *[1.0] * (rows - 2)], np.float32)
    y = {"ids": ids.astype(np.int32), "known": known}
    return Labels(y, weight), rng.normal(size=(rows, TEXT.vocabulary))


def test_loss_and_figures_are_those_of_a_loop():
    task = _task()
    labels, z = _labels()
    surprise, share = [], []
    for row in range(4):
        if not labels.weight[row]:
            continue
        p = np.exp(z[row]) / np.exp(z[row]).sum()
        said = [int(i) for i in labels.y["ids"][row][labels.y["known"][row]]]
        best = set(np.argsort(-z[row])[:10].tolist())
        surprise.append(np.mean([-np.log(p[i]) for i in said]))
        share.append(np.mean([i in best for i in said]))
    z[1] = np.nan  # a row that does not count
    z = z.astype(np.float32)
    (total, count), slope, states = measure(task, z, labels)
    assert count == 3
    np.testing.assert_allclose(total, sum(surprise), rtol=1e-5)
    assert np.isfinite(slope[labels.weight > 0]).all()
    metric = task.metrics["words"]
    values = metric.compute(metric.merge(states["words"], states["words"]))
    np.testing.assert_allclose(values[task.headline], np.mean(share), rtol=1e-5)
    np.testing.assert_allclose(values["perplexity"], np.exp(np.mean(surprise)), rtol=1e-5)
    nothing = metric.compute(state(metric, z, Labels(None, np.zeros(4, np.float32))))
    assert all(np.isnan(value) for value in nothing.values())


def test_only_hidden_words_are_scored_and_they_reach_no_prediction():
    spec = dataclasses.replace(toy.SPEC, modalities={"text": TEXT})
    model = {**toy.MODEL, "encoders": {"text": "text_gru"}, "modality_dropout": 0.0}
    built = build(model, {"text": {"kind": "words", "hide": 0.5}}, spec)
    rows = toy.batch(8)
    rows["inputs"] = {"text": rows["inputs"]["text"]}
    hide = jax.jit(hidden.hider(built.tasks, spec.modalities))
    seen = hide(jax.random.split(jax.random.key(0), 8), rows)
    gone = np.asarray(seen["targets"]["hidden/text"]["gone"])
    before, after = rows["inputs"]["text"], seen["inputs"]["text"]
    np.testing.assert_array_equal(after["mask"], before["mask"] & ~gone)
    part, whole = (labels_of(built, batch)["text"] for batch in (seen, rows))
    here = before["present"][:, None] & before["mask"]
    np.testing.assert_array_equal(whole.y["known"], here)
    np.testing.assert_array_equal(part.y["known"], here & gone)
    np.testing.assert_array_equal(part.weight > 0, (here & gone).any(1))
    variables = toy.variables(built, spec.example(2))
    other = {**before, "x": np.where(gone, (before["x"] + 1) % TEXT.vocabulary, before["x"])}
    changed = hide(jax.random.split(jax.random.key(0), 8), {**rows, "inputs": {"text": other}})
    said = jax.jit(lambda inputs: built(variables, inputs)[0]["text"])
    one, two = (said(batch["inputs"]) for batch in (seen, changed))
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(changed["inputs"]["text"]["x"], after["x"])
    absent = labels_of(built, {**rows, "inputs": {"audio": before}})["text"]
    assert absent.y is None
    assert not np.asarray(absent.weight).any()


def test_a_text_of_any_length_and_what_is_no_text():
    free = Modality("text", (None,), "int32", vocabulary=7)
    spec = dataclasses.replace(toy.SPEC, modalities={"words": free})
    assert _task(spec, modality="words", hide=0.3).headline == "recall@10"
    with pytest.raises(ConfigError, match=r"tasks.text.patch: 2 does not divide \[None\]"):
        _task(spec, modality="words", hide=0.3, patch=2)
    with pytest.raises(ConfigError, match=r"tasks.text.modality: unknown text 'image'"):
        _task(modality="image")
    with pytest.raises(ConfigError, match=r"tasks.text.hide: 1.0 is not a number from 0, below 1"):
        _task(hide=1.0)
    without = {"image": toy.SPEC.modalities["image"]}
    with pytest.raises(ConfigError, match=r"tasks.text: the data has no text"):
        _task(dataclasses.replace(toy.SPEC, modalities=without))


def test_the_likeliest_words_are_reported():
    z = np.zeros(TEXT.vocabulary)
    z[3] = 5.0
    best = _task().decode(z)["best"]
    assert next(iter(best)) == "3"
    assert best["3"] == pytest.approx(np.exp(5) / (np.exp(5) + len(z) - 1))
    assert len(best) == 10
    tokenizer = read_tokenizer(train_words(["a b c"], 5))  # after two special ones
    assert named(tokenizer, {"3": 0.6, "2": 0.3, "99": 0.1}) == {"b": 0.6, "a": 0.3, "99": 0.1}
    assert named(None, {"3": 0.6}) == {"3": 0.6}  # a run that keeps no tokenizer
