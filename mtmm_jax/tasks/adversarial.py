"""Adversarial reconstruction: a critic discriminates it from real data, and it learns to fool
it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax.heads.with_critic import WithCritic
from mtmm_jax.layers.reversal import reverse
from mtmm_jax.ranges import Positive, Size
from mtmm_jax.registry import section_of
from mtmm_jax.tasks.metrics.monoids import Metric, add
from mtmm_jax.tasks.task import Labels, Task, masked


@dataclasses.dataclass(frozen=True)
class Critic:
    """`adversarial` of a reconstruction.

    Attributes:
        weight: of the critic's loss.
        hidden: width of the critic.
        scale: of the reversed gradient.
    """

    weight: Positive = 0.1
    hidden: Size = 64
    scale: Positive = 1.0


def adversarial(task: Task, config: Any, where: str) -> Task:
    """L = L_rec - weight [log D(x) + log(1 - D(R(z)))], R(z) the reconstruction and x the data.

    D is a critic in the head, which minimises L; R turns its gradient round (`layers.reversal`), so
    that what says z maximises D's loss and one step trains both (Goodfellow et al. 2014; in one
    step as in Ganin et al. 2016). Squared errors alone give the mean of all pictures that fit; the
    critic asks for one that could be there. Values that are not known are 0 for both. The metric
    `critic` is the share that D tells rightly: .5 where it cannot. The loss holds D's own, so it
    does not go to 0. Costs three passes through the critic, F hidden each.

    Args:
        task: gives a vector; its labels are `{"values": [B, F], "known": [B, F]}`.
        config: True, or a section of `weight` (default 0.1), `hidden` (64) of the critic, and
            `scale` (1.0) of the reversed gradient.
        where: the place in the config.
    """
    section = {} if config is True else config
    critic = Critic(**section_of(section, Critic, where, "{'weight': 0.1}, nor True"))
    weight, scale = float(critic.weight), float(critic.scale)

    def critic_logits(
        prediction: Any, labels: Labels, turn: float | None
    ) -> tuple[jax.Array, jax.Array]:
        """The critic's logits of the reconstruction and of the data, `[B]` each."""
        known = labels.y["known"]
        values = jnp.where(known, prediction["values"].astype(jnp.float32), 0.0)
        values = values if turn is None else reverse(values, turn)
        real = jnp.where(known, labels.y["values"], 0.0)
        return prediction["method"]("critic_logit", values), prediction["method"](
            "critic_logit", real
        )

    def loss(prediction: Any, labels: Labels, axis_name: str | None):
        total, count = task.loss(prediction["values"], labels, axis_name)
        if labels.y is None:
            return total, count
        values, real = critic_logits(prediction, labels, scale)
        critic_loss, _ = masked(jax.nn.softplus(values) + jax.nn.softplus(-real), labels.weight)
        return total + weight * critic_loss, count

    def update(prediction: Any, labels: Labels) -> dict[str, jax.Array]:
        if labels.y is None or "method" not in prediction:
            return {"hits": jnp.zeros(()), "count": jnp.zeros(())}
        values, real = critic_logits(prediction, labels, None)
        hits = 0.5 * ((values < 0).astype(jnp.float32) + (real > 0).astype(jnp.float32))
        total, count = masked(hits, labels.weight)
        return {"hits": total, "count": count}

    def compute(state: Mapping[str, Any]) -> dict[str, float]:
        count = float(state["count"])
        return {"critic": float(state["hits"]) / count if count else float("nan")}

    return dataclasses.replace(
        task,
        head=WithCritic(task.head, critic.hidden),
        loss=loss,
        metrics={
            **{name: _of_values(metric) for name, metric in task.metrics.items()},
            "critic": Metric(update, add, compute),
        },
        decode=lambda prediction: task.decode(np.asarray(prediction["values"])),
        trivial={"values": task.trivial},
        outputs=lambda prediction: task.outputs(prediction["values"]),
        restore=None,  # the critic's score needs the head
        decode_outputs=task.answer,
    )


def _of_values(metric: Metric) -> Metric:
    return metric._replace(
        update=lambda prediction, labels: metric.update(prediction["values"], labels)
    )
