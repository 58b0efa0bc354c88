"""What a run keeps for its report and for look-ups."""

from types import SimpleNamespace

import jax
import numpy as np

from mtmm_jax.evaluation import Evaluator, extremes
from mtmm_jax.training import results
from mtmm_jax.training.results import save_examples
from tests import toy

WAYS = ("image_to_text", "text_to_image")


def test_examples_hold_counts_queries_and_their_pictures_and_the_gallery_all_splits(tmp_path):
    model = toy.build()
    batches = {"test": toy.batch(8, 0), "train": toy.batch(8, 1)}
    batches["train"]["id"] = batches["train"]["id"] + 4  # half of them are known already
    rows = batches["test"]
    evaluator, variables = Evaluator(model), _variables(model)
    states = {split: evaluator.states(variables, [batch]) for split, batch in batches.items()}
    source = SimpleNamespace(picture=lambda i: np.full((2, 2, 3), i), describe="row {}".format)
    workdir = SimpleNamespace(examples=tmp_path / "examples.npz", gallery=tmp_path / "gallery.npz")
    source.rows = {"test": rows["id"]}
    source.batches = lambda split, size: iter([rows])
    source.compose = lambda chosen, chance: jax.tree.map(lambda x: x[chosen], rows)
    config = {"evaluation": {"batch_size": 8}}
    experiment = SimpleNamespace(model=model, source=source, config=config)
    save_examples(experiment, workdir, states, pictures=2)
    kept, gallery = np.load(workdir.examples), np.load(workdir.gallery)
    ends = tuple(f"{end}/" for end in extremes.SIGNS)
    assert {key for key in kept if not key.startswith(("picture", "name", "row/", *ends))} == {
        "confusion/kind",
        "calibration/kind",
        "points/size",
        *(f"{part}/{way}/pairs" for part in ("query", "answer") for way in WAYS),
    }
    np.testing.assert_array_equal(kept["confusion/kind"], states["test"]["kind"]["confusion"])
    both = rows["inputs"]["image"]["present"] & rows["inputs"]["text"]["present"]
    for way in WAYS:
        assert set(kept[f"query/{way}/pairs"]) <= set(rows["id"][both])
        for i in kept[f"answer/{way}/pairs"].flat:
            assert kept[f"picture/{i}"][0, 0, 0] == i
            assert str(kept[f"name/{i}"]) == f"row {i}"
    for end in extremes.SIGNS:
        for i, loss in zip(kept[f"{end}/kind/id"], kept[f"{end}/kind/loss"], strict=True):
            at = rows["id"].tolist().index(i)
            assert rows["targets"]["kind"]["present"][at]
            assert np.isfinite(loss)
            image = rows["inputs"]["image"]
            assert (f"row/{i}/image/x" in kept) == image["present"][at]
            if image["present"][at]:
                np.testing.assert_array_equal(kept[f"row/{i}/image/x"], image["x"][at])
    counted = [
        b["id"][b["inputs"]["image"]["present"] & b["inputs"]["text"]["present"]]
        for b in batches.values()
    ]
    ids = np.unique(np.concatenate(counted))
    assert gallery["pairs/names"].tolist() == [f"row {i}" for i in ids]
    for read in ("image", "text"):
        assert gallery[f"pairs/{read}"].shape == (len(ids), 8)


def test_shares_of_modalities_are_those_of_evenly_spread_rows():
    batch = toy.batch(8, 0)
    spec = SimpleNamespace(modalities=dict.fromkeys([*batch["inputs"], "sound"]))
    source = SimpleNamespace(
        spec=spec,
        rows={"train": np.arange(8), "test": np.arange(0)},
        compose=lambda rows, chance: jax.tree.map(lambda x: x[rows], batch),
    )
    wanted = {name: entry["present"].mean() for name, entry in batch["inputs"].items()}
    assert results._presence(source) == {"train": {**wanted, "sound": 0.0}}


def _variables(model):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: abs(rng.normal(0, 0.3, x.shape)).astype(x.dtype), model.shapes)
