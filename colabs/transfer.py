# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Transfer: few labels, a model that has seen more
#
# A model learns which name belongs to which picture, for which nobody has to label anything. Then
# one emoji in thirty gets a category, and three models learn to tell it from the picture: one from
# scratch, and two that start from the first model, whose eye stays as it is or is tuned. About a
# minute on two CPU cores.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("mtmm_jax") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "mtmm_jax"], check=True)

# %%
import tempfile
from pathlib import Path

from mtmm_jax.command import prepare_jax

prepare_jax()

import matplotlib.pyplot as plt

from mtmm_jax import training
from mtmm_jax.store.workdir import Workdir
from mtmm_jax.train import fit
from mtmm_jax.training.logs import read_journal

folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## Pretraining: pictures and names, no label


# %%
def small(config, steps):
    """Small pictures and names only, and not for long."""
    del config.model.encoders.audio
    config.model.encoders.image = {"kind": "cnn"}
    config.data.image_size = 32
    config.steps = steps
    config.checkpoint.every = config.evaluation.every = steps // 2
    config.evaluation.baselines = False
    return config


config = small(training.load("pretrain_contrastive"), 240)
config.tasks.retrieval.reads = ["image", "text"]
results = fit(training.assemble(config), folder / "pretrained")

# %% [markdown]
# ## One label in thirty
#
# `config.init_from` names the run; which of its parameters go where, and what stays frozen, are
# regexes over paths. The table says what was loaded.

# %%
EYE = "encoders/image/.*"
PRETRAINED = {"workdir": str(folder / "pretrained"), "map": [[EYE, r"\g<0>"]]}


def few(name, init_from):
    """The category from few labels: its accuracy, and its loss while learning."""
    config = small(training.load("finetune"), 80)
    config.data.hide.category = 0.03
    del config.model.encoders.text
    with config.unlocked(), config.ignore_type():
        config.init_from = init_from
        if init_from is None:
            config.optimizer.rates = []  # nothing is known yet that a large rate would undo
    results = fit(training.assemble(config), folder / name)
    journal = read_journal(folder / name / "metrics.jsonl")
    losses = [(r["step"], r["loss"]["category"]) for r in journal if r["split"] == "train"]
    return results["test"]["category"]["accuracy"], losses


found = {
    "from scratch": few("scratch", None),
    "its eye frozen": few("frozen", {**PRETRAINED, "freeze": [EYE]}),
    "tuned": few("tuned", PRETRAINED),
}

# %%
figure, (bars, curves) = plt.subplots(1, 2, figsize=(11, 3.5))
bars.bar(
    list(found), [accuracy for accuracy, _ in found.values()], color=["#999", "#7aa6c2", "#1f77b4"]
)
bars.set_title("category, accuracy on test; 3% of the labels")
for name, (_, losses) in found.items():
    curves.plot(*zip(*losses, strict=True), label=name)
curves.set_title("its loss while learning")
curves.set_xlabel("step")
curves.legend()
plt.show()

# %% [markdown]
# ## Classes that nobody showed it
#
# The contrastive head puts pictures and names in one space. So a class is known by its name alone:
# a picture belongs to the category whose name is nearest.

# %%
from mtmm_jax.evaluation.zero_shot import measure
from mtmm_jax.inference.finished import open_run

run = open_run(folder / "pretrained", Workdir(folder / "pretrained").config())
accuracies = measure(run.experiment.model, run.variables, run.experiment.source, "category", 128)
shown = {
    "chance": accuracies["names"]["chance_seen"],
    "by its name": accuracies["names"]["seen"],
    **{f"by {n} examples": row["seen"] for n, row in accuracies["examples"].items()},
}
plt.figure(figsize=(6, 3))
plt.barh(list(shown), list(shown.values()), color="#7aa6c2")
plt.title("category of test pictures, no label used in training")
plt.xlabel("accuracy, mean over categories")
plt.show()

# %% [markdown]
# ## Further
#
# `config.lora` learns thin matrices next to frozen kernels, `config.optimizer.unfreeze` wakes
# layers one after the other, `config.semi` uses the rows without a label, `config.teachers` distils
# one model into a smaller one; the configs `finetune`, `linear_probe`, `unfreeze`, `semi_pseudo`,
# `distil_small` and `domain_adversarial` are a few lines each.
