"""An explanation as a picture and as a page that needs no other file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mtmm_jax.analysis import pages
from mtmm_jax.analysis.examples import input_html
from mtmm_jax.analysis.explanation import SHARES, Explanation, reliability, worth
from mtmm_jax.analysis.overview import looked_at
from mtmm_jax.analysis.pictures import heat_maps, patch_attention
from mtmm_jax.analysis.report import NAMES_AS_TEXT, PAGE_STYLE, image_of, png_of
from mtmm_jax.batch import Modality
from mtmm_jax.inference.finished import Finished
from mtmm_jax.inference.prediction import absent, kept_tokenizer
from mtmm_jax.markup import COLOUR_STYLE, cards, escape, page
from mtmm_jax.modalities import kind_of
from mtmm_jax.modalities.units import OverLine, OverPicture
from mtmm_jax.store.files import file_name, write

_FOR, _AGAINST, _LOOKED = "#1f77b4", "#d62728", "#2ca02c"
_MOST = 10  # units that are named
_LARGE = ".seen { max-width: 480px }"


def picture(
    explanation: Explanation, inputs: Mapping[str, Any], kinds: Mapping[str, Modality]
) -> Figure:
    """The modalities' shares, then for each what carried the answer, and the deletion curves."""
    names = list(explanation.units)
    figure, rows = plt.subplots(
        len(names), 3, figsize=(12, 3.2 * len(names)), squeeze=False, layout="constrained"
    )
    shares = rows[0][0]
    _bars(shares, list(explanation.modalities), list(explanation.modalities.values()))
    shares.set_title(f"{explanation.task}: what each input adds")
    shares.set_xlabel("to the probability" if explanation.likelihood else "to the number")
    for row in rows[1:]:
        row[0].axis("off")
    for row, name in zip(rows, names, strict=True):
        _units(row[1], explanation, name, np.asarray(inputs[name]["x"][0]), kinds[name])
        row[1].set_title(f"{name}: for (blue) and against (red)")
        curve = explanation.curves[name]
        row[2].plot(SHARES, curve["highest"], color=_AGAINST, label="what counted most first")
        row[2].plot(SHARES, curve["random"], "--", color="#777", label="at random")
        if "attention" in curve:
            row[2].plot(SHARES, curve["attention"], color=_LOOKED, label="what was looked at most")
        row[2].set_title(f"{name}: taken away bit by bit")
        row[2].set_xlabel("share taken away")
        row[2].set_ylabel("probability" if explanation.likelihood else "number")
        if explanation.likelihood:
            row[2].set_ylim(-0.03, 1.03)
        row[2].legend(frameon=False, fontsize=8)
    return figure


def _bars(axis: Axes, names: Sequence[str], values: Sequence[float]) -> None:
    colours = [_FOR if value >= 0 else _AGAINST for value in values]
    axis.barh(range(len(names)), values, color=colours)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.axvline(0, color="#444", linewidth=0.8)


def _units(
    axis: Axes, explanation: Explanation, name: str, x: np.ndarray, modality: Modality
) -> None:
    values = explanation.units[name]
    top = max(float(np.abs(values).max()), 1e-9)
    scale = {"cmap": "RdBu", "vmin": -top, "vmax": top}
    drawn = kind_of(modality).units.draw(values, x, modality)
    if isinstance(drawn, OverPicture):
        axis.imshow(drawn.picture, extent=(0, 1, 1, 0), cmap="gray", vmin=0, vmax=1)
        axis.imshow(drawn.values, extent=(0, 1, 1, 0), alpha=0.55, **scale)
        axis.set_xlabel(drawn.caption)
        axis.set_xticks([])
        axis.set_yticks([])
        if not drawn.caption:
            axis.set_axis_off()
    elif isinstance(drawn, OverLine):
        seconds, high = drawn.seconds, max(float(np.abs(drawn.line).max()), 1e-6)
        axis.imshow(drawn.values[None], extent=(0, seconds, -high, high), aspect="auto", **scale)
        times = np.linspace(0, seconds, len(drawn.line))
        axis.plot(times, drawn.line, color="#222", linewidth=0.4)
        axis.set_xlabel("seconds")
    else:
        labels = explanation.names[name]
        values = values[: len(labels)]
        shown = np.sort(np.argsort(-np.abs(values))[:_MOST])
        _bars(axis, [labels[i] for i in shown], values[shown])


def _shown(x: np.ndarray) -> np.ndarray:
    return np.clip((x + 1) / 2, 0, 1)


def sentences(run: Finished, explanation: Explanation) -> list[str]:
    """The explanation as sentences: prediction, attributions, reliability, absent modalities."""
    lines = []
    if explanation.likelihood:
        lines.append(
            f"{explanation.task}: {explanation.answer}, with a probability of "
            f"{explanation.value:.0%}; with no input at all it would be {explanation.nothing:.1%}."
        )
        unit = lambda value: f"{100 * value:+.0f} points"  # noqa: E731
    else:
        lines.append(
            f"{explanation.task}: {explanation.answer}; with no input at all "
            f"{explanation.nothing:.4g}."
        )
        unit = lambda value: f"{value:+.3g}"  # noqa: E731
    order = sorted(explanation.modalities, key=lambda name: -abs(explanation.modalities[name]))
    lines.append(
        "Of the difference: "
        + ", ".join(f"{n} {unit(explanation.modalities[n])}" for n in order)
        + "."
    )
    for name in order:
        lost = explanation.harm(name)
        change = {
            key: f"{100 * value:.0f} points" if explanation.likelihood else f"{value:.3g}"
            for key, value in lost.items()
        }
        lines.append(
            f"{name}: {_carriers(explanation, name)}. Taking away the fifth of it that counted "
            f"most changes the answer by {change['highest']}, a random fifth by {change['random']}."
        )
        if name in explanation.attention:
            lines[-1] += (
                f" The model looked most at "
                f"{_first(explanation, name, explanation.attention[name])}; taking away the "
                f"most attended fifth changes the answer by {change['attention']}"
                + ("." if lost["attention"] > lost["random"] else ": no more than chance.")
            )
    known = reliability(run.workdir, explanation.task)
    unseen = f"Of {known['n']:,} rows never seen" if "n" in known else "Of rows never seen"
    if "accuracy" in known:
        lines.append(f"{unseen} it was right in {known['accuracy']:.0%}.")
        if "ece" in known:
            lines[-1] += f" Its probabilities are off by {known['ece']:.1%} on average."
    elif "mae" in known:
        lines.append(f"{unseen} it was off by {known['mae']:.3g} on average.")
    if explanation.missing:
        learned = worth(run.workdir, explanation.task, explanation.missing)
        costs = [
            f"{name} (without it {without:.3f} instead of {whole:.3f} over many samples)"
            for name, (whole, without) in learned.items()
        ]
        costs += [name for name in explanation.missing if name not in learned]
        lines.append(f"Not given, though the model can use it: {', '.join(costs)}.")
    return lines


def _carriers(explanation: Explanation, name: str) -> str:
    """The units that spoke most for the answer."""
    best = _first(explanation, name, explanation.units[name])
    return f"most came from {best}" if best else "no part of it spoke for the answer"


def _first(explanation: Explanation, name: str, values: np.ndarray, most: int = 3) -> str:
    """The units of the highest values above 0."""
    best = [int(i) for i in np.argsort(-values)[:most] if values[i] > 0]
    return ", ".join(explanation.names[name][i] for i in best if i < len(explanation.names[name]))


def weighed(run: Finished, inputs: Mapping[str, Any]) -> dict[str, Figure]:
    """The model's own attention, gates and weights for the sample, as far as it has some."""
    whole = {**absent(run, 1), **inputs}
    heat, patches = looked_at(run, whole, ("this sample",))
    drawn = {"gates and weights": heat_maps(heat)} if heat else {}
    if patches and patches[0].modality in inputs:
        x = np.asarray(inputs[patches[0].modality]["x"][0])
        own = [one for one in patches if one.path == patches[0].path]
        drawn["attention over patches"] = patch_attention(
            own, {0: _shown(x)} if x.ndim == 3 else {}
        )
    return drawn


@NAMES_AS_TEXT
def save(
    run: Finished, explanations: Sequence[Explanation], inputs: Mapping[str, Any], folder: Path
) -> list[Path]:
    """Writes `explanation.html` and a PNG of each task; returns the paths, the page first."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds = run.experiment.model.spec.modalities
    paths, body = [folder / "explanation.html"], []
    for explanation in explanations:
        png = png_of(picture(explanation, inputs, kinds))
        paths.append(folder / f"{file_name(explanation.task)}.png")
        write(paths[-1], png)
        words = "".join(f"<p>{escape(line)}</p>" for line in sentences(run, explanation))
        texts = "".join(
            f"<p>{escape(name)}: {_coloured(explanation, name)}</p>"
            for name in explanation.units
            if kind_of(kinds[name]).units.words
        )
        title = escape(f"{explanation.task}: {explanation.answer}")
        body.append(f"<h2>{title}</h2>{words}{texts}{image_of(png, explanation.task)}")
    for name, figure in weighed(run, inputs).items():
        png = png_of(figure)
        paths.append(folder / f"{file_name(name)}.png")
        write(paths[-1], png)
        caption = escape(pages.CAPTIONS[name])
        body.append(f"<h2>{name.capitalize()}</h2><p>{caption}</p>{image_of(png, name)}")
    gap = max(explanation.gap for explanation in explanations)
    note = (
        "What an input adds is its Shapley value: the mean of what it adds over all orders in "
        "which the inputs could arrive. What its parts carried is an integrated gradient from an "
        "input that says nothing (a picture of its border's colour, unknown words, silence); the "
        f"parts add up to the whole but for {gap:.1%}. The curves check it: where the red line "
        "falls faster than the dashed one, the parts named are those that the answer stands on. "
        "The green line, where there is one, checks in the same way what attention fell "
        "on, through its encoder and its fusion. "
        "It shows what the model used, not whether the model is right."
    )
    seen = _seen(run, inputs)
    whole = f"<h1>Why this answer</h1>{seen}{''.join(body)}<p><i>{note}</i></p>"
    style = COLOUR_STYLE + PAGE_STYLE + cards(380) + _LARGE
    write(paths[0], page("explanation", style, whole).encode())
    return paths


def _seen(run: Finished, inputs: Mapping[str, Any]) -> str:
    """The model's input as a large picture."""
    parts = []
    for name, modality in run.experiment.model.spec.modalities.items():
        if name not in inputs or not np.all(inputs[name]["present"]):
            continue
        mask = np.asarray(inputs[name]["mask"][0]) if "mask" in inputs[name] else None
        x = np.asarray(inputs[name]["x"][0])
        shown = input_html(name, modality, x, mask, kept_tokenizer(run.workdir, name))
        parts.append(f"<div class=example><h3>{escape(name)}</h3>{shown}</div>")
    return f"<div class=examples>{''.join(parts)}</div>"


def _coloured(explanation: Explanation, name: str) -> str:
    values = explanation.units[name]
    top = max(float(np.abs(values).max()), 1e-9)
    spans = []
    for word, value in zip(explanation.names[name], values, strict=False):
        red, green, blue = (31, 119, 180) if value >= 0 else (214, 39, 40)
        alpha = 0.6 * abs(float(value)) / top
        spans.append(
            f"<span style='background:rgba({red},{green},{blue},{alpha:.2f})'>{escape(word)}</span>"
        )
    return " ".join(spans)
