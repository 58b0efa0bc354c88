"""The promise: a new entry of a table is one file and one row, and goes through every command.

Each table gets one entry that stands in this file alone. One run is made of all of them together;
nothing else in the package, and no other test, knows their names.
"""

import json
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mtmm_jax import (
    analyze,
    balancing,
    data,
    evaluate,
    export,
    fusion,
    predict,
    report,
    tasks,
    training,
)
from mtmm_jax import train as train_command
from mtmm_jax.assembly import Extension, StepHook
from mtmm_jax.balancing.base import Balancer, Rule, stateless
from mtmm_jax.batch import Modality, Spec, Target, Tokens
from mtmm_jax.data.pipeline import augment_jit
from mtmm_jax.data.pipeline.pipes import pipe
from mtmm_jax.data.pipeline.source import SPLITS, Source
from mtmm_jax.data.transforms import TRANSFORMS, Form, Stage
from mtmm_jax.data.transforms.stage import Transform
from mtmm_jax.encoders import ENCODERS
from mtmm_jax.encoders.encoder import Encoder
from mtmm_jax.heads import HEADS
from mtmm_jax.modalities import MODALITIES, ModalityKind
from mtmm_jax.optim import optimizers
from mtmm_jax.ranges import Natural, Positive, Share, SplitSizes
from mtmm_jax.sharing import SHARINGS
from mtmm_jax.store.checkpoints import restore_from
from mtmm_jax.store.workdir import Workdir
from mtmm_jax.targets import TARGETS, TargetKind
from mtmm_jax.targets.kind import blank
from mtmm_jax.tasks.metrics.monoids import Metric, add
from mtmm_jax.tasks.task import Task, find_target, masked
from mtmm_jax.tasks.terms.term import Regulariser
from mtmm_jax.tasks.traits import Labelling
from mtmm_jax.training.extensions import EXTENSIONS

POINTS, CENTRE = 6, 2  # of a cloud in the plane


# A kind of modality, and a kind of label.

CLOUD = ModalityKind("cloud", dimensions=2)
POSITION = TargetKind(blank=blank(np.float32, lambda target: target.shape))


# A source, whose clouds pass a pipe with a transform.


def stretch(form: Form, where: str, factor: float = 2.0) -> Stage:
    """Clouds that are larger."""
    return Stage(form, lambda x, u: x * np.float32(factor))


def clouds(
    *, size: SplitSizes = (128, 32, 32), spread: Positive = 0.1, seed: Natural = 0
) -> Source:
    """Clouds of points; the label is where their middle is."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(sum(size), CENTRE)).astype(np.float32)
    x = centres[:, None] + spread * rng.normal(size=(sum(size), POINTS, CENTRE))
    made = pipe("stretch(factor=2.0)", Form("cloud", (POINTS, CENTRE), "float32"))
    stops = np.cumsum(size)

    def compose(rows, chance):
        del chance
        entry = made.entry(list(x[rows].astype(np.float32)), None)
        present = np.ones(len(rows), bool)
        labelled = rows % 5 != 0
        y = np.where(labelled[:, None], centres[rows], np.nan).astype(np.float32)
        return {
            "inputs": {"scan": entry},
            "targets": {"middle": {"y": y, "present": labelled & present}},
            "id": rows.astype(np.int32),
        }

    return Source(
        name="clouds",
        spec=Spec({"scan": made.modality()}, {"middle": Target("position", shape=(CENTRE,))}),
        rows={s: np.arange(b - n, b) for s, b, n in zip(SPLITS, stops, size, strict=True)},
        compose=compose,
        draws=0,
        assets={},
        describe=lambda row: f"cloud {row}",
        seed=seed,
    )


def jitter(keys, x, amount: Positive = 0.01):
    """Points that are moved a little, inside the training step."""
    return x + amount * jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys)


# Parts of a model.


class CloudEncoder(Encoder):
    """A token for each point."""

    modality: str = "cloud"
    scale: Positive = 1.0

    @staticmethod
    def accepts(modality: Modality) -> bool:
        return modality.is_a("cloud")

    def setup(self):
        self.read, self.project = nn.Dense(8), nn.Dense(self.width)

    def stem(self, entry, **mode):
        del mode
        values = nn.gelu(self.read(self.scale * entry["x"]))
        mask = jnp.broadcast_to(entry["present"][:, None], values.shape[:2])
        return Tokens.of(values, mask, self.modality)

    def first(self, tokens, **mode):
        del mode
        return tokens

    def second(self, tokens, **mode):
        del mode
        return tokens.replace_values(self.project(tokens.values))


class Largest(nn.Module):
    """The largest of each feature over all tokens."""

    width: int
    sharpness: Positive = 1.0

    modalities: ClassVar = (1, None)
    keeps_layout: ClassVar = False

    @nn.compact
    def __call__(self, tokens, *, train=False, axis_name=None):
        del train, axis_name
        best, there = [], []
        for name, part in sorted(tokens.items()):
            read = nn.Dense(self.width, dtype=part.values.dtype, name=f"read_{name}")
            values = read(part.values) * self.sharpness
            best.append(jnp.where(part.mask[..., None], values, -1e3).max(1))
            there.append(part.present)
        present = jnp.stack(there).any(0)
        highest = jnp.where(present[:, None], jnp.stack(best).max(0), 0.0)
        return Tokens(highest[:, None], present[:, None])


class Shifted(nn.Module):
    """Each task adds a vector of its own."""

    tasks: tuple[str, ...]

    keeps_layout: ClassVar = True

    @nn.compact
    def __call__(self, copies, *, train=False, axis_name=None):
        del train, axis_name
        shifted = {}
        for name in (name for name in self.tasks if name in copies):
            values = copies[name].values
            shift = self.param(f"own_{name}", nn.initializers.zeros, values.shape[-1:])
            shifted[name] = copies[name].replace_values(values + shift.astype(values.dtype))
        return shifted


class Plain(nn.Module):
    """One linear map of the pooled tokens."""

    size: int
    start: Share = 0.0

    @nn.compact
    def __call__(self, tokens, *, train=False, axis_name=None):
        del train, axis_name
        pooled = jnp.concatenate([part.mean() for part in tokens.values()], -1)
        return nn.Dense(self.size)(pooled) + self.start


def locate(name, spec, *, make_head, where, reads="fused", target=None, head="plain"):
    """Where something is: squared distance."""
    target, label = find_target(name, target, "position", spec, where)

    def distances(z, labels):
        rows = labels.weight.reshape(-1, *(1,) * (labels.y.ndim - 1)) > 0
        y = jnp.where(rows, labels.y, 0.0)
        return jnp.square(z.astype(jnp.float32) - y.reshape(z.shape)).sum(-1)

    def loss(z, labels, axis_name):
        del axis_name
        values = z[:, 0] if labels.y is None else distances(z, labels)
        return masked(values.astype(jnp.float32), labels.weight)

    def update(z, labels):
        if labels.y is None:
            return {"sum": jnp.zeros(()), "count": jnp.zeros(())}
        total, count = masked(distances(z, labels), labels.weight)
        return {"sum": total, "count": count}

    def compute(state):
        return {"distance": float(state["sum"]) / (float(state["count"]) or float("nan"))}

    return Task(
        name=name,
        kind="locate",
        reads=reads,
        target=target,
        head=make_head(head, where=f"{where}.head", size=label.shape[0]),
        loss=loss,
        metrics={"distance": Metric(update, add, compute)},
        headline="distance",
        smaller=("distance",),
        decode=lambda z: {"prediction": np.asarray(z).tolist()},
        trivial=np.zeros(label.shape, np.float32),
        outputs=lambda z: {"place": z},
        labelling=Labelling(lambda outputs: (np.asarray(outputs["place"]).tolist(), None)),
    )


# What trains it.


def first_only(num_tasks, share: Share = 1.0):
    """The first task counts for a share, the others for what is left."""

    def weigh(state, evidence):
        rest = (1.0 - share) / max(num_tasks - 1, 1)
        weights = jnp.full((num_tasks,), rest).at[0].set(share)
        return jnp.where(evidence.present, weights, 0.0), state

    return Balancer(Rule("losses", stateless, weigh), num_tasks)


def small_predictions(*, of: str, where="regularisers"):
    """The mean square of a task's prediction."""
    del where

    def term(view):
        there = view.present[of]
        values = jnp.square(view.predictions[of]).sum(-1)
        return jnp.where(there, values, 0.0).sum(), there.sum().astype(jnp.float32)

    return Regulariser(term, tasks=(of,))


def signs(on, *, momentum: Share = 0.0):
    """Steps of one size."""
    return on.around(optax.chain(optax.scale_by_sign(), optax.trace(momentum),
                                 optax.scale_by_learning_rate(on.rate)))  # fmt: skip


def halve(section, parts):
    """`config.halve`: every second step's gradient is halved, and the steps are counted."""

    def react(context, memory, sums, key):
        del sums, key
        scale = jnp.where(context.step % 2 == 1, section["by"], 1.0)
        change = lambda grads: jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)  # noqa: E731
        return change, memory + 1, {"halve/scale": scale}

    return parts.add_hook(StepHook("halve", init=lambda: jnp.zeros(()), react=react))


ENTRIES = {
    "modality kind": (MODALITIES, "cloud", CLOUD),
    "target kind": (TARGETS, "position", POSITION),
    "transform": (TRANSFORMS, "stretch", Transform(stretch, ("cloud",))),
    "source": (data.SOURCES, "clouds", clouds),
    "augmentation": (
        augment_jit.AUGMENTATIONS,
        "jitter",
        augment_jit.Augmentation(jitter, ("cloud",)),
    ),
    "encoder": (ENCODERS, "cloud", CloudEncoder),
    "fusion": (fusion.FUSIONS, "largest", Largest),
    "sharing": (SHARINGS, "shifted", Shifted),
    "head": (HEADS, "plain", Plain),
    "task": (tasks.TASKS, "locate", locate),
    "method": (balancing.METHODS, "first_only", first_only),
    "regulariser": (tasks.REGULARISERS, "small_predictions", small_predictions),
    "optimizer": (optimizers.OPTIMIZERS, "signs", signs),
    "extension": (EXTENSIONS, "halve", Extension(halve, 55)),
}
CONFIG = {
    "seed": 0,
    "steps": 80,
    "batch_size": 8,
    "devices": 1,
    "data": {"kind": "clouds", "spread": 0.2, "in_step": {"scan": "jitter(0.05)"}},
    "model": {
        "width": 8,
        "encoders": {"scan": {"kind": "cloud", "scale": 0.5}},
        "fusion": "largest",
        "sharing": "shifted",
        "regularisers": [{"kind": "small_predictions", "of": "middle", "alpha": 0.01}],
    },
    "tasks": {
        "middle": {"kind": "locate", "head": {"kind": "plain", "start": 0.1}},
        "again": {"kind": "locate", "target": "middle"},
    },
    "balancing": {"kind": "first_only", "share": 0.7},
    "optimizer": {"kind": "signs", "momentum": 0.5, "learning_rate": 0.01},
    "halve": {"by": 0.5},
    "checkpoint": {"every": 40, "keep": 2, "best": "mean"},
    "evaluation": {"every": 40, "batch_size": 32, "log_every": 10, "baselines": True},
}


@pytest.fixture(scope="module", autouse=True)
def registered():
    before = {what: tuple(table) for what, (table, _, _) in ENTRIES.items()}
    with pytest.MonkeyPatch.context() as patch:
        for table, name, entry in ENTRIES.values():
            patch.setitem(table, name, entry)
        yield
    assert before == {what: tuple(table) for what, (table, _, _) in ENTRIES.items()}


def _config(folder, **changes):
    text = f"from ml_collections import ConfigDict\n\ndef get_config():\n    return ConfigDict({ {**CONFIG, **changes}!r})\n"  # noqa: E501
    path = folder / "config.py"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made_up")
    workdir = folder / "run"
    assert train_command.main(["--config", str(_config(folder)), "--workdir", str(workdir)]) == 0
    return workdir


def test_every_table_has_an_entry_here():
    """A table that a config can name, and that this file forgot, is found."""
    assert len({id(table) for table, _, _ in ENTRIES.values()}) == len(ENTRIES)


def test_it_learns_is_reported_and_evaluated(run, capsys):
    results = json.loads((run / "results.json").read_text())
    trivial = results["baselines"]["trivial"]["test"]
    for name in CONFIG["tasks"]:
        assert results["test"][name]["distance"] < trivial[name]["distance"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scales = [line["halve/scale"] for line in lines if "halve/scale" in line]
    assert scales
    assert set(scales) == {0.75}
    assert any("regularisers/0_small_predictions" in json.dumps(line) for line in lines)
    capsys.readouterr()
    assert evaluate.main(["--workdir", str(run), "--json"]) == 0
    assert "distance" in capsys.readouterr().out
    (run / "report.html").unlink()
    assert report.main(["--workdir", str(run)]) == 0
    assert "distance" in (run / "report.html").read_text()
    assert analyze.main(["--workdir", str(run), "--examples", "4"]) == 0


def test_it_predicts_and_explains(run, tmp_path, capsys):
    cloud = json.dumps(np.full((POINTS, CENTRE), 0.5).tolist())
    capsys.readouterr()
    assert predict.main(["--workdir", str(run), "--scan", cloud, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert np.shape(found["answers"]["middle"]["prediction"]) == (CENTRE,)
    explain = ["--workdir", str(run), "--scan", cloud, "--explain", str(tmp_path), "--json"]
    assert predict.main(explain) == 0
    assert {one["task"] for one in json.loads(capsys.readouterr().out)} == set(CONFIG["tasks"])


def test_it_labels_and_is_exported(run, tmp_path):
    rng = np.random.default_rng(1)
    rows = [{"id": i, "scan": rng.normal(size=(POINTS, CENTRE)).tolist()} for i in range(5)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "labels.jsonl"
    label = ["--workdir", str(run), "--label", str(path), "--out", str(out), "--least", "0"]
    assert predict.main(label) == 0
    labels = [json.loads(line)["middle"] for line in out.read_text().splitlines()]
    file, predictions = tmp_path / "run.zip", tmp_path / "predictions.jsonl"
    assert export.main(["--workdir", str(run), "--out", str(file)]) == 0
    given = ["--exported", str(file), "--manifest", str(path), "--out", str(predictions)]
    assert predict.main(given) == 0
    exported = [json.loads(line)["answers"] for line in predictions.read_text().splitlines()]
    # The first of the label's two tasks, of a kind that cannot be decoded from its outputs.
    places = [one["again"]["outputs"]["place"] for one in exported]
    np.testing.assert_allclose(places, labels, atol=1e-4)


def test_a_checkpoint_keeps_what_its_hook_remembers(run):
    workdir = Workdir(run)
    shapes = training.assemble(workdir.config(), workdir.spec()).shapes
    _, state = restore_from(workdir, "last", shapes, 1, "--workdir")
    assert float(state.memory["halve"]) == CONFIG["steps"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"balancing": {"kind": "first_only", "share": 2}}, "balancing.share: 2 is not a number"),
        ({"data": {"kind": "clouds", "spread": 0}}, "data.spread: 0 is not a number above 0"),
        ({"data": {"kind": "clouds", "size": [1, 2]}}, "data.size: [1, 2] is not a list of 3"),
        ({"halves": {"by": 1}}, "config.halves: unknown key 'halves' (did you mean 'halve'?)"),
    ],
)
def test_its_values_are_checked_like_all_others(changes, message, tmp_path, capsys):
    path, workdir = _config(tmp_path, **changes), tmp_path / "run"
    assert train_command.main(["--config", str(path), "--workdir", str(workdir)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not workdir.exists()
