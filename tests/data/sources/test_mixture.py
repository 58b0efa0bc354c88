"""Mixtures: nothing is lost, nothing made up, and every interruption goes unnoticed."""

import dataclasses
import json

import jax
import numpy as np
import optax
import pytest

from mtmm_jax import balancing, data
from mtmm_jax.batch import Spec
from mtmm_jax.data.pipeline.mixing import mixing
from mtmm_jax.data.sources.mixture import keep, mix, rename
from mtmm_jax.registry import ConfigError
from mtmm_jax.training.step import init_state, make_step
from tests import toy
from tests.data.pipeline.test_source import same, take
from tests.data.small import source


def pair(kind="proportional", **changes) -> data.Source:
    both = {"left": source("left"), "right": source("right", 10)}
    return dataclasses.replace(mix(both, mixing(kind)), **changes)


def test_rows_come_out_as_in_their_own_source():
    whole, left, right = pair(augment=False), source("left"), source("right", 10)
    batch = next(iter(whole.train(12)))
    whole.spec.check(batch)
    assert set(batch["inputs"]) == {"image", "text", "audio"}
    which, own = batch["id"] % 2, batch["id"] // 2
    assert sorted(set(which)) == [0, 1]
    for i, (child, lacks) in enumerate(((left, "audio"), (right, "image"))):
        here = which == i
        alone = child.compose(own[here].astype(int), None)
        for key in ("inputs", "targets"):
            for name, entry in alone[key].items():
                assert same(jax.tree.map(lambda x, h=here: x[h], batch[key][name]), entry)
        assert not batch["inputs"][lacks]["present"][here].any()
    assert not batch["targets"]["size"]["present"][which == 0].any()
    assert [whole.describe(int(i)) for i in batch["id"][:2]] == [
        f"{'left' if i % 2 == 0 else 'right'} {i // 2}" for i in batch["id"][:2]
    ]


def test_an_epoch_holds_every_row_of_every_part_once_on_any_number_of_hosts():
    for hosts in (1, 2, 3):
        runs = [pair().train(6, shard=(i, hosts)) for i in range(hosts)]
        ids = [run.__next__()["id"] for _ in range(5) for run in runs]
        counts = np.unique(np.concatenate(ids), return_counts=True)[1]
        assert len(counts) == 30
        assert (counts == 1).all()


def test_shares_hold_from_the_first_batch_on():
    batches = take(iter(pair({"kind": "fixed", "weights": [1, 3]}).train(8)), 10)
    for batch in batches:
        assert (batch["id"] % 2 == 1).sum() == 6
        assert (batch["id"][:4] % 2 == 1).sum() == 3


def observing(workers, shard=(0, 1)):
    return pair("performance", workers=workers).train(6, shard=shard)


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("shard", [(0, 1), (1, 2)])
def test_killed_at_any_point_it_goes_on_exactly(workers, shard):
    """Whatever was made ahead, and though the shares change on the way."""
    scores = {4: np.array([0.9, 0.2]), 8: np.array([0.1, 0.8])}

    def run(iterator, start, stop):
        batches = []
        for step in range(start, stop):
            batches.append(next(iterator))
            if step in scores:
                iterator.observe(scores[step])
        return batches

    whole = run(observing(0, shard), 0, 12)
    for killed in (0, 1, 4, 5, 9):
        first = observing(workers, shard)
        run(first, 0, killed)
        kept = json.loads(json.dumps(first.get_state()))
        again = observing((workers + 1) % 3, shard)
        again.set_state(kept)
        assert same(run(again, killed, 12), whole[killed:])


def test_performance_moves_the_shares():
    iterator = observing(1)
    take(iterator, 3)
    iterator.observe(np.array([0.95, 0.1]))
    later = np.concatenate([batch["id"] % 2 for batch in take(iterator, 20)])
    assert later.mean() > 0.9
    assert iterator.shares[1] > 0.9
    assert iterator.epochs[1] > 10


@pytest.mark.slow
def test_a_step_of_one_source_is_compiled_once_for_each():
    whole = pair("round_robin", augment=False)
    tasks = {"kind": "classification", "size": "regression"}
    model = toy.build(tasks, fusion="concat")
    balancer, optimizer = balancing.equal(2), optax.sgd(0.1)
    state, traces = init_state(model, balancer, optimizer, 0), []
    pure = make_step(model, balancer, optimizer, seed=0)

    def counted(state, batch):
        traces.append(sorted(batch["inputs"]))
        return pure(state, batch)

    step = jax.jit(counted)
    for batch in take(iter(whole.train(8)), 5):
        state, metrics = step(state, batch)
        assert bool(metrics["present"][1]) == ("audio" in batch["inputs"])
    assert traces == [["image", "text"], ["audio", "text"]]


def test_names_can_be_distinguished():
    other = rename(source("right", 10), {"text": "caption", "kind": "sort"})
    assert set(other.spec.modalities) == {"caption", "audio"}
    whole = mix({"left": source("left"), "right": other}, mixing("accumulate"))
    batch = next(whole.batches("test", 8))
    assert set(batch["inputs"]) == {"image", "text", "caption", "audio"}
    assert set(batch["targets"]) == {"kind", "sort", "size"}


def test_a_source_may_keep_some_of_its_modalities():
    left = keep(source("left"), "image", "data.keep")
    assert set(left.spec.modalities) == {"image"}
    assert all(set(t.made_from) <= {"image"} for t in left.spec.targets.values())
    whole = mix(
        {"left": left, "right": keep(source("right", 10), ["text"], "")}, mixing("accumulate")
    )
    batch = next(iter(whole.train(8)))
    here = {name: np.asarray(one["present"]) for name, one in batch["inputs"].items()}
    assert here["image"].any()
    assert here["text"].any()
    assert not (here["image"] & here["text"]).any()
    with pytest.raises(ConfigError, match=r"data.keep: unknown modality 'sound'.*image"):
        keep(source("left"), ["sound"], "data.keep")
    with pytest.raises(ConfigError, match=r"data.keep: is empty"):
        keep(source("left"), [], "data.keep")


def test_every_text_keeps_its_tokenizer():
    left = dataclasses.replace(source("left"), assets={"tokenizer.json": b"a"})
    right = dataclasses.replace(source("right"), assets={"tokenizer.json": b"b"})
    whole = mix({"left": left, "right": rename(right, {"text": "said"})}, mixing("accumulate"))
    assert whole.assets == {"text.tokenizer.json": b"a", "said.tokenizer.json": b"b"}


def test_built_from_a_config(monkeypatch):
    monkeypatch.setitem(data.SOURCES, "left", lambda: source("left"))
    monkeypatch.setitem(data.SOURCES, "right", lambda size=10: source("right", size))
    config = {
        "kind": "mixture",
        "sources": {"a": "left", "b": {"kind": "right", "size": 5, "rename": {"size": "length"}}},
        "mixing": {"kind": "temperature", "temperature": 3.0},
        "seed": 3,
        "workers": 2,
    }
    built = data.build(config)
    assert built.workers == 2
    assert built.seed == 3
    assert [len(part) for part in built.parts] == [20, 5]
    assert "length" in built.spec.targets
    with pytest.raises(ConfigError, match="data.sources.b.kind: unknown kind 'wrong'"):
        data.build({**config, "sources": {"b": "wrong"}})
    with pytest.raises(ConfigError, match="data.mixing.kind: unknown kind 'mean'"):
        data.build({**config, "mixing": "mean"})
    for key in ("bucket", "workers", "in_step"):
        with pytest.raises(ConfigError, match=f"data.sources.b.{key}: is about whole batches"):
            data.build({**config, "sources": {"b": {"kind": "right", key: 2}}})
    with pytest.raises(ConfigError, match="data.workers: -1"):
        data.build({**config, "workers": -1})


def test_what_does_not_agree_is_refused():
    right = source("right")
    changed = dataclasses.replace(right.spec.modalities["text"], vocabulary=99)
    spec = dataclasses.replace(right.spec, modalities={**right.spec.modalities, "text": changed})
    with pytest.raises(ConfigError, match="data.sources.right: its 'text' is .*rename"):
        mix(
            {"left": source("left"), "right": dataclasses.replace(right, spec=spec)},
            mixing("accumulate"),
        )
    a, b = (dataclasses.replace(s, assets={"x": s.name.encode()}) for s in (source("left"), right))
    with pytest.raises(ConfigError, match="its x differs"):
        mix({"left": a, "right": b}, mixing("accumulate"))
    with pytest.raises(ConfigError, match="is empty"):
        mix({}, mixing("accumulate"))
    with pytest.raises(ConfigError, match="unknown modality or target 'txt'"):
        rename(right, {"txt": "text"})
    with pytest.raises(ConfigError, match="would be called 'audio'"):
        rename(right, {"text": "audio"})
    with pytest.raises(ConfigError, match="the checkpoint mixes 1 parts, the config 2"):
        pair().train(4).set_state({"step": 1, "plan": {"shares": [1.0], "per": "batch"}})


def test_labels_of_other_shapes_or_rates_are_refused():
    plain = source("left", 10)
    for mine, other in (({"shape": (4, 2)}, {"shape": (5, 2)}), ({"rate": 8e3}, {"rate": 16e3})):
        both = {}
        for name, about in (("left", mine), ("other", other)):
            label = dataclasses.replace(plain.spec.targets["kind"], **about)
            spec = Spec(plain.spec.modalities, {**plain.spec.targets, "kind": label})
            both[name] = dataclasses.replace(plain, spec=spec)
        with pytest.raises(ConfigError, match="data.sources.other: its 'kind' is .*rename"):
            mix(both, mixing("accumulate"))
