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
# # Fusion, and what a missing modality costs
#
# Data made up by a generator whose truth is known: what two modalities share, what each has alone,
# and what only both together tell. A fusion is one line of the config.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("mtmm_jax") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "mtmm_jax"], check=True)

# %%
from mtmm_jax.command import prepare_jax

prepare_jax()

import matplotlib.pyplot as plt
import numpy as np

from mtmm_jax import fusion, training
from mtmm_jax.benchmarks.tables.short_runs import ShortRun
from mtmm_jax.data.sources.generator import ceilings

print(len(fusion.FUSIONS), "fusions:", ", ".join(fusion.FUSIONS))

# %% [markdown]
# ## What only both tell: XOR
#
# Each modality hides a sign; the label says whether the signs differ. Either modality alone knows
# nothing of it. What adds up the modalities' own say cannot learn it, be it decisions or, under a
# linear head, features side by side; fusions in which features meet can.

# %%
MENU = {
    "decision: mean": {"kind": "mean", "stage": "decision"},
    "concat": {"kind": "concat"},
    "low_rank": {"kind": "low_rank"},
    "bottleneck": {"kind": "bottleneck"},
}


def xor(entry):
    """The config `generator` with another fusion and fewer steps."""
    config = training.load("generator")
    config.steps = 250
    with config.unlocked(), config.ignore_type():
        config.model.fusion = entry
    return config


accuracy = {}
for name, entry in MENU.items():
    short = ShortRun(xor(entry))
    accuracy[name] = short.metrics(short.evaluate(short.train(0), "test"))["synergy"]
    print(f"{name:15s} {accuracy[name]:.3f}")

# %%
best = ceilings(redundancy=0.0, uniqueness=0.0, synergy=1.0, noise=0.3)["synergy"]
plt.figure(figsize=(6, 2.2))
plt.barh(list(accuracy), list(accuracy.values()))
plt.axvline(0.5, color="grey", linestyle=":")
plt.axvline(best, color="grey", linestyle="--")
plt.xlabel("accuracy on XOR; dotted: chance, dashed: the best that can be reached")
plt.show()

# %% [markdown]
# ## A modality is missing
#
# Now three modalities show one sign, each with noise of its own: the more of them are there, the
# surer one can be. An absent one is masked, not filled in: its tokens take part in
# nothing, and a model that was trained with all comes near the limit with fewer. Modality dropout,
# which hides modalities in training, has little to add where all say the same.


# %%
def shared_sign(dropout):
    """Three modalities that say the same."""
    config = xor({"kind": "concat"})
    config.data.update({"modalities": 3, "redundancy": 0.5, "synergy": 0.0, "noise": 0.6})
    config.model.encoders.m3 = {"kind": "table_mlp"}
    config.model.modality_dropout = dropout
    del config.tasks.synergy
    config.tasks.redundant = {"kind": "classification"}
    return config


seen = {"all three": ["m1", "m2", "m3"], "two": ["m1", "m2"], "one": ["m1"]}
robustness = {}
for dropout in (0.0, 0.5):
    short = ShortRun(shared_sign(dropout))
    variables = short.train(0)
    robustness[dropout] = [
        short.metrics(short.evaluate(variables, "test", only))["redundant"]
        for only in seen.values()
    ]

# %%
places = np.arange(len(seen))
limits = [
    ceilings(modalities=3, redundancy=0.5, noise=0.6, seen=len(only))["redundant"]
    for only in seen.values()
]
plt.figure(figsize=(6, 3))
for i, (dropout, metrics) in enumerate(robustness.items()):
    plt.bar(places + 0.36 * (i - 0.5), metrics, 0.34, label=f"modality dropout {dropout}")
plt.plot(places, limits, "k_", markersize=60, label="the best that can be reached")
plt.xticks(places, seen)
plt.ylim(0.5, 1.0)
plt.ylabel("accuracy on test")
plt.legend(fontsize=8)
plt.show()

# %% [markdown]
# `config.model.missing` names what may stand in for an absent modality, and
# `python -m mtmm_jax.benchmarks.studies.missing` compares the ways on the emoji, with dropout and
# without.

# %%
print("model.missing: mask,", ", ".join(fusion.MISSING))
