"""Explain a finished run's prediction, for a reader who does not train models."""

from __future__ import annotations

import dataclasses
import functools
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtmm_jax.analysis.explanation_attention import Attention, deletion
from mtmm_jax.evaluation.attribution import Explainer
from mtmm_jax.evaluation.subsets import MOST, shapley, subsets
from mtmm_jax.heads.bound_module import row_of
from mtmm_jax.inference.finished import Finished
from mtmm_jax.inference.prediction import absent
from mtmm_jax.modalities import kind_of
from mtmm_jax.modalities.units import Parts
from mtmm_jax.registry import ConfigError, choose
from mtmm_jax.store.workdir import Workdir
from mtmm_jax.tasks.task import Task, modalities_of

SHARES = tuple(round(0.1 * i, 1) for i in range(11))  # of the units, that are taken away


@dataclasses.dataclass(frozen=True)
class Explanation:
    """Attributions of one task's prediction.

    Attributes:
        task: its name.
        kind: of task.
        answer: the prediction, in words.
        value: how sure it is of it, a probability; or a number.
        likelihood: whether `value` is a probability.
        nothing: the value without any input: how frequent the answer is, or the mean.
        modalities: what each that was given adds to `nothing`, up to `value` (Shapley values).
        missing: what the task could have read besides.
        units: modality -> attribution of each of its units, `[U]`.
        names: modality -> what the units are called.
        gap: what the attributions miss of what they should add up to, as a share of it.
        attention: modality -> what of the model's attention falls on each unit, where it has any.
        curves: modality -> {"highest", "random", "attention"}: the value when each share of
            `SHARES` is gone, of the last what was attended to most first.
    """

    task: str
    kind: str
    answer: str
    value: float
    likelihood: bool
    nothing: float
    modalities: dict[str, float]
    missing: tuple[str, ...]
    units: dict[str, np.ndarray]
    names: dict[str, list[str]]
    gap: float
    attention: dict[str, np.ndarray]
    curves: dict[str, dict[str, np.ndarray]]

    def harm(self, modality: str, share: float = 0.2) -> dict[str, float]:
        """By curve: what is lost when that share of the units is gone."""
        at, curves = SHARES.index(share), self.curves[modality]
        return {key: float(abs(curve[0] - curve[at])) for key, curve in curves.items()}


def explainable(run: Finished, given: Sequence[str]) -> list[str]:
    """The tasks whose answers can be explained from these modalities."""
    model = run.experiment.model
    return [
        name
        for name, task in model.tasks.items()
        if task.explained is not None
        and all(set(modalities_of(read, model.encoders)) & set(given) for read in task.reads)
    ]


def explain(
    run: Finished,
    inputs: Mapping[str, Any],
    tasks: Sequence[str] | None = None,
    steps: int = 32,
    seed: int = 0,
) -> list[Explanation]:
    """Explains a run's predictions for one sample.

    Args:
        run: the run.
        inputs: of a batch of one, the modalities that there are.
        tasks: whose answers; None: of all that can be explained.
        steps: of the integrals.
        seed: of the random deletions.
    """
    possible = explainable(run, tuple(inputs))
    for name in tasks or ():
        choose(name, possible, "--task", "task that can be explained from these inputs")
    known = run.experiment.model.tasks
    if not possible:
        raise ConfigError(
            f"--explain: no task of {', '.join(known)} can be explained from "
            f"{', '.join(inputs)}; the run can explain: "
            f"{', '.join(n for n, t in known.items() if t.explained is not None) or 'none'}"
        )
    if len(inputs) > MOST:
        raise ConfigError(f"--explain: {len(inputs)} modalities; at most {MOST}")
    parts, names = taken_apart(run, inputs)
    whole = {**absent(run, 1), **inputs}
    explainer = Explainer(run.experiment.model, tasks or possible, steps)
    predictions, answers, found, gap = explainer.attribute(run.variables, whole, parts)
    game = _game(explainer, run, whole, parts, answers)
    curves = explainer.deletion(
        run.variables, whole, parts, answers, found, jnp.asarray(SHARES), jax.random.key(seed)
    )
    attended = Attention(explainer.model, explainer.tasks)(run.variables, whole, parts)
    looked = deletion(
        explainer, run.variables, whole, parts, answers, attended, jnp.asarray(SHARES)
    )
    predictions, answers, found, gap, curves = jax.device_get(
        (predictions, answers, found, gap, curves)
    )
    explanations = []
    for k, name in enumerate(explainer.tasks):
        task = run.experiment.model.tasks[name]
        reads = {
            m for read in task.reads for m in modalities_of(read, run.experiment.model.encoders)
        }
        mine = [modality for modality in inputs if modality in reads]
        readable = task.explained.readable
        trivial = jax.tree.map(lambda x: jnp.asarray(x)[None], task.trivial)
        empty = task.explained.value(trivial, answers[k])
        values = {s: readable(float(game[s][k])) for s in subsets(mine)[1:]}
        values[frozenset()] = readable(float(empty[0]))
        moved = sum(abs(float(found[m][k, 0].sum())) for m in mine)
        explanations.append(
            Explanation(
                task=name,
                kind=task.kind,
                answer=_answer(task, predictions[name], answers[k][0]),
                value=values[frozenset(mine)],
                likelihood=task.explained.likelihood,
                nothing=values[frozenset()],
                modalities=shapley(values),
                missing=tuple(m for m in run.experiment.model.encoders
                              if m in reads and m not in inputs),
                units={m: found[m][k, 0] for m in mine},
                names={m: names[m][0] for m in mine},
                gap=abs(float(gap[k, 0])) / max(moved, 1e-9),
                attention={m: attended[name][m][0] for m in mine if m in attended[name]},
                curves={
                    m: {key: np.array([readable(float(v)) for v in curve])
                        for key, curve in _curves(curves[m], looked[name].get(m), k).items()}
                    for m in mine
                },
            )
        )  # fmt: skip
    return explanations


def _curves(
    gradients: Mapping[str, np.ndarray], attention: np.ndarray | None, k: int
) -> dict[str, np.ndarray]:
    """`{name: [S]}`, of the one sample and task k."""
    found = {key: curve[:, k, 0] for key, curve in gradients.items()}
    return found if attention is None else {**found, "attention": attention[:, 0]}


def _game(
    explainer: Explainer,
    run: Finished,
    inputs: Mapping[str, Any],
    parts: Mapping[str, Parts],
    answers: Sequence[jax.Array],
) -> dict[frozenset[str], np.ndarray]:
    """`{subset: [K]}`: the values with only some of the modalities that were given."""
    coalitions = subsets(parts)[1:]
    present = {name: np.array([name in subset for subset in coalitions]) for name in parts}
    keep = {name: np.ones((len(coalitions), *own.there.shape), bool) for name, own in parts.items()}
    values = explainer.values(run.variables, inputs, parts, answers, keep, present)
    return dict(zip(coalitions, np.asarray(values)[:, :, 0], strict=True))


def taken_apart(
    run: Finished, inputs: Mapping[str, Any]
) -> tuple[dict[str, Parts], dict[str, list[list[str]]]]:
    """`{modality: Parts}` of a batch, and what each row's units are called."""
    parts, names = {}, {}
    for name, entry in inputs.items():
        modality = run.experiment.model.spec.modalities[name]
        tokenizer = functools.partial(run.workdir.tokenizer, name)
        units = kind_of(modality).units
        parts[name], names[name] = units.named_parts(modality, entry, tokenizer)
    return parts, names


def _answer(task: Task, prediction: Any, answer: Any) -> str:
    """The task's prediction in words, from `explained` or else from `decode`."""
    if task.explained.text is not None:
        return task.explained.text(prediction, answer)
    decoded = task.decode(row_of(prediction, 0))
    shown = decoded.get("prediction", decoded)
    return textwrap.shorten(str(shown), 80, placeholder=" ..")


def reliability(workdir: Workdir, task: str) -> dict[str, float]:
    """Accuracy on the test split, calibration error and the number of rows ("n") behind both."""
    if not workdir.results.exists():
        return {}
    results = workdir.read("results.json")
    metrics = results.get("test", {}).get(task, {})
    found = metrics.get("fused", metrics)
    known = {
        k: v for k, v in found.items() if k in ("accuracy", "ece", "r2", "mae") and v is not None
    }
    certain = results.get("intervals", {}).get("test", {}).get(task, {})
    rows = [entry["n"] for k in known if (entry := certain.get(k))]
    return known | ({"n": rows[0]} if rows else {})


def worth(workdir: Workdir, task: str, missing: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Modality -> (metric with everything, metric without it), of a run that was analysed."""
    from mtmm_jax.analysis import pages

    if not pages.present(workdir):
        return {}
    rows = {
        frozenset(row["modalities"]): row["metric"].get(task)
        for row in workdir.read(pages.NUMBERS)["subsets"]["subsets"]
    }
    everything = max(rows, key=len)
    found = {name: (rows[everything], rows.get(everything - {name})) for name in missing}
    return {name: pair for name, pair in found.items() if None not in pair}


def as_json(explanations: Sequence[Explanation]) -> list[dict[str, Any]]:
    """All that explanations hold, as JSON has it."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(entry) for key, entry in value.items()}
        return value.tolist() if isinstance(value, np.ndarray) else value

    return [plain(dataclasses.asdict(explanation)) for explanation in explanations]
