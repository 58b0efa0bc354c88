"""A task that the package does not have: several quantiles of a number."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax.tasks.metrics.monoids import Metric, add
from mtmm_jax.tasks.task import Task, find_target, masked
from mtmm_jax.tasks.traits import Labelling


def quantile(
    name,
    spec,
    *,
    make_head,
    where,
    reads="fused",
    target=None,
    head="vector",
    levels=(0.1, 0.5, 0.9),
):
    """mean_q max(q (t - z_q), (q - 1) (t - z_q)), t standardised (Koenker and Bassett 1978).

    Args:
        name, spec, make_head, where: given by the model.
        reads: what the head reads.
        target: the label's name, of kind "number"; the task's own name by default.
        head: an entry of `heads.HEADS`.
        levels: q, rising; the one nearest to .5 is the prediction.
    """
    target, label = find_target(name, target, "number", spec, where)
    q = np.asarray(levels, np.float32)
    middle = int(np.abs(q - 0.5).argmin())

    def pinball(z, labels):
        y = jnp.where(labels.weight > 0, (labels.y - label.mean) / label.std, 0.0)
        gap = y[:, None] - z.astype(jnp.float32)
        return jnp.maximum(q * gap, (q - 1) * gap).mean(1)

    def loss(z, labels, axis_name):
        del axis_name
        if labels.y is None:
            return masked(z[:, 0].astype(jnp.float32), labels.weight)
        return masked(pinball(z, labels), labels.weight)

    def update(z, labels):
        if labels.y is None:
            return dict.fromkeys(("loss", "below", "count"), jnp.zeros(()))
        total, count = masked(pinball(z, labels), labels.weight)
        y = (labels.y - label.mean) / label.std
        below = jnp.where(y <= z.astype(jnp.float32).max(1), 1.0, 0.0)
        return {"loss": total, "below": masked(below, labels.weight)[0], "count": count}

    def compute(state):
        count = float(state["count"]) or float("nan")
        return {
            "pinball": label.std * float(state["loss"]) / count,
            "below": float(state["below"]) / count,
        }

    def units(z):
        return z * label.std + label.mean

    def decode(z):
        found = units(np.asarray(z, np.float64)).tolist()
        named = {f"{level:g}": value for level, value in zip(levels, found, strict=True)}
        return {"prediction": found[middle], "quantiles": named}

    return Task(
        name=name,
        kind="quantile",
        reads=reads,
        target=target,
        head=make_head(head, where=f"{where}.head", size=len(levels)),
        loss=loss,
        metrics={"quantiles": Metric(update, add, compute)},
        headline="pinball",
        decode=decode,
        trivial=np.asarray(jax.scipy.stats.norm.ppf(q), np.float32),
        smaller=("pinball",),
        outputs=lambda z: {"quantiles": units(z)},
        restore=lambda outputs: (outputs["quantiles"] - label.mean) / label.std,
        labelling=Labelling(lambda outputs: (float(outputs["quantiles"][middle]), None)),
    )
