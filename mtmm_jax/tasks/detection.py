"""Things in a picture: which and where. A map of centres or a set of guesses; cross-entropy + box.

{"kind": "detection", "reads": "image", "head": {"kind": "centres", "upsample": 1}}
{"kind": "detection", "reads": "image", "head": {"kind": "queries"}, "box_loss": "mse"}
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax.batch import Spec, Target
from mtmm_jax.fusion import FUSIONS
from mtmm_jax.heads.detection import Centres, Queries
from mtmm_jax.ranges import NonNegative, Positive, Share, Size
from mtmm_jax.registry import ConfigError, choose
from mtmm_jax.tasks.boxes import centres, matching
from mtmm_jax.tasks.boxes import geometry as boxes
from mtmm_jax.tasks.metrics.mean_ap import Found, Truth, mean_average_precision
from mtmm_jax.tasks.task import Labels, Task, find_target, masked

Guesses = Callable[[Any], tuple[jax.Array, jax.Array]]


class Form(NamedTuple):
    """Learning and decoding of one head's prediction.

    Attributes:
        guesses: name of a class loss, the default first -> how what it taught is read:
            `prediction -> (boxes [B, G, 4], scores [B, G, C])`, with what is no guess at 0.
        empty_weight: the default weight of saying that nothing is there.
        loss: `(prediction, Truth, class_loss, box_losses, empty_weight) -> [B]`.
        trivial: `(class log odds, mean box) -> prediction of one sample` that looks at nothing.
    """

    guesses: Mapping[str, Guesses]
    empty_weight: float
    loss: Callable[..., jax.Array]
    trivial: Callable[[np.ndarray], Any]


FORMS: dict[type, Form] = {
    Centres: Form(
        {
            "focal": centres.guesses,
            "cross_entropy": centres.guesses,
            "softmax": centres.guesses_of_one_class,
        },
        1.0,
        centres.loss,
        centres.trivial,
    ),
    Queries: Form({"cross_entropy": matching.guesses}, 0.1, matching.loss, matching.trivial),
}


def detection(
    name: str,
    spec: Spec,
    *,
    make_head: Any,
    where: str,
    reads: str | Iterable[str] = "fused",
    target: str | None = None,
    head: str | Mapping[str, Any] = "centres",
    class_loss: str | None = None,
    box_loss: str | Mapping[str, NonNegative] = "l1",
    empty_weight: Positive | None = None,
    suppression: Share = 0.5,
    detections: Size = 32,
    threshold: Share = 0.3,
) -> Task:
    """Cross-entropy or focal loss of what is where, plus an error of the boxes of what is there.

    A picture's loss is divided by the number of its boxes (one, if it has none), so that each
    picture counts the same. How a box is scored depends on the head: `centres` compares it at the
    cells around its centre, `queries` at the guess that the cheapest one-to-one matching gives it.

    Paper: Lin et al. 2017, arXiv:1708.02002; Carion et al. 2020, arXiv:2005.12872. Costs cells x
    classes, or queries x boxes for the matching. Use it: for objects in pictures. Not: where one
    object fills the picture.

    Args:
        name, spec, make_head, where: given by the model.
        reads: what the head reads; the centre map needs tokens that still have the image's grid.
        target: the label's name; the task's own name by default.
        head: "centres" or "queries", an entry of `heads.HEADS`.
        class_loss: focal (the default), cross_entropy or, where things of different classes do not
            share a place, softmax for centres; cross_entropy for queries.
        box_loss: l1, giou or mse, or a weight for each of several: {"l1": 5.0, "giou": 2.0}. l1
            and mse compare offsets and logarithms of sizes in cells with centres, and centres and
            sizes in shares of the picture with queries.
        empty_weight: of the class loss where nothing is, 1 for centres and 0.1 for queries.
        suppression: a box goes if a surer one of its class overlaps it by more than this.
        detections: boxes a picture that are kept.
        threshold: the score from which on a box is described in words; metrics take all.
    """
    target, label = find_target(name, target, "boxes", spec, where)
    losses = _box_losses(box_loss, f"{where}.box_loss")
    keeping = tuple(k for k, fusion in FUSIONS.items() if fusion.keeps_layout)
    module = make_head(head, where=f"{where}.head", size=len(label.classes), fusions=keeping)
    if type(module) not in FORMS:
        raise ConfigError(
            f"{where}.head: {type(module).__name__} finds no boxes; choices: centres, queries"
        )
    form = FORMS[type(module)]
    if isinstance(module, Queries) and module.queries < label.length:
        raise ConfigError(
            f"{where}.head.queries: {module.queries} guesses cannot be {label.length} boxes"
        )
    class_loss = class_loss or next(iter(form.guesses))
    choose(class_loss, form.guesses, f"{where}.class_loss", "loss")
    empty = form.empty_weight if empty_weight is None else empty_weight
    truth_of = functools.partial(_truth, label)
    detect = functools.partial(_detect, form.guesses[class_loss], suppression, detections)

    def loss(prediction: Any, labels: Labels, axis_name: str | None):
        del axis_name
        prediction = jax.tree.map(lambda x: x.astype(jnp.float32), prediction)
        values = form.loss(prediction, truth_of(labels), class_loss, losses, empty)
        return masked(values, labels.weight)

    found = jax.jit(detect)

    def outputs(prediction: Any) -> dict[str, jax.Array]:
        """The surest boxes in falling order; `shown` are those that decode lists."""
        places, scores, classes, alone = found(prediction)
        return {
            "boxes": places,
            "score": scores,
            "class": classes.astype(jnp.int32),
            "shown": alone & (scores >= threshold),
        }

    frequencies = np.asarray(label.frequencies or (0.0,) * len(label.classes), np.float32)
    return Task(
        name=name,
        kind="detection",
        reads=reads,
        target=target,
        head=module,
        loss=loss,
        metrics={"detections": mean_average_precision(detect, truth_of)},
        headline="mAP@.5",
        decode=functools.partial(_decode, found, label.classes, threshold),
        trivial=form.trivial(frequencies),
        outputs=outputs,
        decode_outputs=functools.partial(_decode_outputs, label.classes),
        explained=None,
    )


def _box_losses(value: Any, where: str) -> dict[str, float]:
    given = {value: 1.0} if isinstance(value, str) else value
    if not given:
        raise ConfigError(f"{where}: {value!r}; needs a name, or a weight for each of several")
    for key in given:
        choose(key, ("l1", "giou", "mse"), where, "loss")
    return {key: float(weight) for key, weight in given.items()}


def _truth(label: Target, labels: Labels) -> Truth:
    """The boxes of the rows that count, with zeros for all filler."""
    y = labels.y
    if y is None:
        y = jax.tree.map(jnp.asarray, label.blank(labels.weight.shape[0]))
    valid = y["valid"] & (labels.weight > 0)[:, None]
    return Truth(
        jnp.where(valid[..., None], y["boxes"], 0.0).astype(jnp.float32),
        jnp.where(valid, jnp.clip(y["classes"], 0, len(label.classes) - 1), 0),
        valid,
    )


def _detect(guesses: Guesses, suppression: float, count: int, prediction: Any) -> Found:
    """The surest guesses, each class suppressed by itself."""
    prediction = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), prediction)
    places, scores = guesses(prediction)
    kinds = scores.shape[-1]
    flat = scores.reshape(scores.shape[0], -1)
    best, index = jax.lax.top_k(flat, min(count, flat.shape[1]))
    found = jnp.take_along_axis(places, (index // kinds)[..., None], axis=1)
    classes = index % kinds
    rule = jax.vmap(functools.partial(boxes.suppress, threshold=suppression))
    kept = rule(found, classes, best > 0)
    alone = rule(found, jnp.zeros_like(classes), kept)
    return Found(jnp.clip(found, 0.0, 1.0), jnp.where(kept, best, 0.0), classes, alone)


def _decode(
    detect: Callable[[Any], Found], names: tuple[str, ...], threshold: float, prediction: Any
) -> dict[str, Any]:
    """`{"boxes": [{"class", "score", "box"}], "best": {words: score}}`: one a place, best first."""
    found = jax.device_get(detect(jax.tree.map(lambda x: np.asarray(x)[None], prediction)))
    shown = found.alone & (found.scores >= threshold)
    return _described(names, found.boxes[0], found.scores[0], found.classes[0], shown[0])


def _decode_outputs(names: tuple[str, ...], outputs: Mapping[str, Any]) -> dict[str, Any]:
    return _described(names, *(outputs[key] for key in ("boxes", "score", "class", "shown")))


def _described(
    names: tuple[str, ...], places: Any, scores: Any, classes: Any, shown: Any
) -> dict[str, Any]:
    boxes = [
        {"class": names[kind], "score": float(score), "box": [round(float(x), 4) for x in box]}
        for box, score, kind, keep in zip(places, scores, classes, shown, strict=True)
        if keep
    ]
    words = "{class} at y {box[0]:.2f}-{box[2]:.2f}, x {box[1]:.2f}-{box[3]:.2f}"
    return {"boxes": boxes, "best": {words.format_map(one): one["score"] for one in boxes}}
