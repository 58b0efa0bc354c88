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
# # Balancing: K losses, one update
#
# A balancing method decides what one step does for several tasks at once. In `mtmm_jax` each of
# them is an Optax transform that runs inside jit, usable without the rest of the package.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("mtmm_jax") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "mtmm_jax"], check=True)

# %%
import tempfile

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image, display

from mtmm_jax import balancing
from mtmm_jax.benchmarks.balancing import pareto

print(len(balancing.METHODS), "methods:", ", ".join(balancing.METHODS))

# %% [markdown]
# ## The toy landscape
#
# Two tasks, each with a valley of its own and a bowl where they disagree; five starting points.
# Some methods reach the Pareto front from all of them, and some get stuck where the gradients
# cancel. (The published runs take 50,000 steps: `python -m mtmm_jax.benchmarks.balancing.pareto`.)

# %%
paths = {
    name: pareto.descend(name, steps=8000, learning_rate=5e-3)
    for name in ("equal", "mgda", "pcgrad", "nash")
}
picture = tempfile.mktemp(suffix=".png")
pareto.plot(paths, picture)
display(Image(picture))

# %%
on_front = pareto.front()
for name, path in paths.items():
    ends = [pareto.gap(np.asarray(pareto.losses(end)), on_front) for end in path[:, -1]]
    reached = sum(gap < pareto.TOLERANCE for gap in ends)
    print(f"{name:8s} reaches the front from {reached} of {len(ends)} starts")

# %% [markdown]
# ## Who disagrees with whom
#
# Six regressions share a linear trunk; tasks 0 to 2 want one direction, 3 and 4 its opposite, and 5
# something else. The step returns the cosines of the task gradients, and the weights that the
# method gave.

# %%
key = jax.random.key(0)
x = jax.random.normal(key, (256, 16))
wanted = jnp.zeros((6, 16)).at[:3, :4].set(1.0).at[3:5, :4].set(-1.0).at[5, 8:12].set(1.0)
y = x @ wanted.T + 0.1 * jax.random.normal(jax.random.key(1), (256, 6))


def losses(params, x, y):
    """Sums and counts of each task, as masked losses give them."""
    prediction = (x @ params["trunk"]) @ params["heads"]
    squares = (prediction - y) ** 2
    return squares.sum(0), jnp.full(6, len(x)), None


params = {"trunk": 0.1 * jax.random.normal(key, (16, 8)), "heads": jnp.ones((8, 6))}
shared = {"trunk": True, "heads": False}
figure, axes = plt.subplots(1, 4, figsize=(15, 3), layout="constrained")
for axis, method in zip(axes, ("mgda", "cagrad", "upgrad", "nash"), strict=True):
    balancer = balancing.build(method, 6)
    step = jax.jit(balancing.value_and_grad(losses, balancer, shared=shared))
    out = step(params, balancer.init(params, shared), x, y)
    weights = out.diagnostics["weights"]
    axis.bar(range(6), weights / weights.sum())
    axis.set_title(f"{method}: share of the weights")
    axis.set_xlabel("task")
plt.show()

# %%
cosines = out.diagnostics["cosines"]
plt.figure(figsize=(4.2, 3.6))
plt.imshow(cosines, cmap="RdBu", vmin=-1, vmax=1)
for i, j in np.ndindex(*cosines.shape):
    plt.text(j, i, f"{cosines[i, j]:.1f}", ha="center", va="center", fontsize=8)
plt.colorbar(label="cosine of the task gradients")
plt.title(f"conflict rate {float(out.diagnostics['conflict_rate']):.2f}")
plt.show()

# %% [markdown]
# ## A task without labels
#
# Count 0 leaves a task out exactly as if it were not there: weight 0, and the others unchanged.


# %%
def without_the_last(params, x, y):
    sums, counts, aux = losses(params, x, y)
    there = jnp.arange(6) < 5
    return jnp.where(there, sums, jnp.nan), jnp.where(there, counts, 0), aux


balancer = balancing.upgrad(6)
step = jax.jit(balancing.value_and_grad(without_the_last, balancer, shared=shared))
print(step(params, balancer.init(params, shared), x, y).diagnostics["weights"].round(3))
