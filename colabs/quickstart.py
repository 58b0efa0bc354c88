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
# # mtmm_jax: see it, name it, hear it
#
# One model reads a picture, a name and a spoken name, and answers four questions at once: which
# category, which subcategory, which year, and which picture belongs to which name. The data are
# about 1,900 emoji inside the package: drawings and names are real, the speech is synthetic.
#
# Training below takes about a minute on two CPU cores.

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
import numpy as np
from IPython.display import Audio, display

from mtmm_jax import training

# %% [markdown]
# ## The config
#
# A config is a nested dictionary; every value can be changed, here or on the command line.

# %%
config = training.load("emoji")
config.steps = 100
config.evaluation.every = 50
config.balancing.kind = "uncertainty"
config.model

# %% [markdown]
# ## The data
#
# A batch has `inputs`, `targets`, and for each of them who is `present`.

# %%
experiment = training.assemble(config)
source = experiment.source
batch = next(iter(source.train(8)))
figure, axes = plt.subplots(1, 8, figsize=(14, 2.2))
for axis, picture, identity in zip(axes, batch["inputs"]["image"]["x"], batch["id"], strict=True):
    axis.imshow((picture + 1) / 2)
    axis.set_title(source.describe(int(identity))[:18], fontsize=8)
    axis.axis("off")
plt.show()
display(Audio(batch["inputs"]["audio"]["x"][0], rate=16_000))

# %% [markdown]
# ## Who reads what

# %%
from rich import print as show

from mtmm_jax.training.tables import parameter_table, task_table

show(task_table(experiment.model))
state = experiment.init()
show(parameter_table(state.params))

# %% [markdown]
# ## Training
#
# The same loop as `python -m mtmm_jax.train`: checkpoints, metrics and a report stand in the
# run's folder, and running it again resumes where it stopped.

# %%
from mtmm_jax.train import fit

workdir = Path(tempfile.mkdtemp()) / "emoji"
results = fit(experiment, workdir)

# %% [markdown]
# ## What came of it
#
# All modalities together next to each one alone (the same model, the others absent) and next to a
# predictor that looks at nothing.

# %%
from mtmm_jax.analysis import figures
from mtmm_jax.store.workdir import Workdir

for name, figure in figures(Workdir(workdir)).items():
    if name != "confusion subcategory":
        display(figure)
        plt.close(figure)

# %% [markdown]
# ## Asking the model
#
# Any subset of the modalities will do; what is missing is masked, not guessed.

# %%
from mtmm_jax.inference.finished import open_run
from mtmm_jax.inference.sample import read_values
from mtmm_jax.predict import ask, show

run = open_run(workdir)
show(ask(run, read_values({"text": "red apple fruit"}, run.workdir)))

# %% [markdown]
# ## One part in your own project
#
# A balancing method is an Optax transform: it stands first in a chain.

# %%
import jax
import jax.numpy as jnp
import optax

from mtmm_jax import balancing


def losses(x):
    """Two tasks that pull in different directions."""
    return jnp.stack([jnp.sum((x - 1) ** 2), jnp.sum((x + 1) ** 2 * jnp.array([1.0, 8.0]))])


optimizer = optax.chain(balancing.pcgrad(2), optax.sgd(0.02))
x = jnp.array([3.0, 2.0])
opt_state = optimizer.init(x)
path = [x]
for _ in range(60):
    updates, opt_state = optimizer.update(jax.jacrev(losses)(x), opt_state, x, losses=losses(x))
    x = optax.apply_updates(x, updates)
    path.append(x)
plt.plot(*np.array(path).T, ".-")
plt.plot([1, -1], [1, -1], "*", markersize=12)
plt.title("PCGrad between two optima")
plt.show()
