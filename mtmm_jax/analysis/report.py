"""One self-contained HTML page about a run, from what its workdir holds."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mtmm_jax.analysis import pages, plots, samples
from mtmm_jax.analysis.pictures import task_relatedness
from mtmm_jax.model import build
from mtmm_jax.objectives.relatedness import FILE as RELATEDNESS
from mtmm_jax.store.files import write
from mtmm_jax.store.workdir import Workdir
from mtmm_jax.training.logs import read_journal
from mtmm_jax.training.results import SPLITS, comparison

PAGE_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em;
       color: #222 } h1, h2, h3 { font-weight: 600 } img { max-width: 100% }
table { border-collapse: collapse; margin: 1em 0 } td, th { padding: .25em .8em; text-align: right;
       border-bottom: 1px solid #ddd } td:first-child, th:first-child, td:nth-child(2),
       th:nth-child(2) { text-align: left }
pre { background: #f6f6f6; padding: 1em; overflow: auto; font-size: 13px }
nav a { margin-right: 1em }
"""

# For a reader who does not train models; by the figure's name.
_CAPTIONS = {
    "gradient conflicts": "While learning, each task pulls the shared part of the model its own "
    "way: on the left, tasks that pulled the same way on average are blue and tasks that pulled "
    "against each other red; on the right, over the steps, the share of pairs at odds, how hard "
    "each task pulled, and how unbalanced the pulls were (similarity 1: equally hard; a high "
    "condition number: one drowns another, or two are almost the same or opposite).",
    "task relatedness": "Measured before training began: what one small step on the task of a "
    "column did to the loss of the task of a row (blue: it helped, red: it harmed), and whether "
    "the tasks pull the shared part of the model the same way. Frames: the groups that were made "
    "of it, each with layers of its own. Weights: how much each task then counted; 1 is the mean.",
}


def figures(workdir: Workdir) -> dict[str, Figure]:
    """The run's pictures by name: results, curves, weights, what tasks do for each other (where it
    was measured), conflicts, confusion, retrieval, and those of its analysis if there was one."""
    config, results, spec = (
        workdir.config(),
        workdir.read("results.json"),
        workdir.spec(),
    )
    model = build(config["model"], config["tasks"], spec)
    headlines = {name: task.headline for name, task in model.tasks.items()}
    records = read_journal(workdir.metrics)
    arrays = _examples(workdir)
    drawn = {
        "results": plots.comparison(comparison(results, "test"), headlines),
        "learning curves": plots.learning_curves(records, headlines),
        "task weights": plots.task_weights(records, tuple(headlines)),
    }
    if (workdir.path / RELATEDNESS).exists():
        drawn["task relatedness"] = task_relatedness(workdir.read(RELATEDNESS))
    told = [r for r in records if "cosines" in r]
    if told and len(headlines) > 1:
        drawn["gradient conflicts"] = plots.gradient_conflicts(told)
    for name, task in model.tasks.items():
        if f"confusion/{name}" in arrays:
            classes = spec.targets[task.target].classes
            drawn[f"confusion {name}"] = plots.confusion(arrays[f"confusion/{name}"], classes, name)
    for key in arrays:
        if key.startswith("query/"):
            _, way, task = key.split("/")
            drawn[f"{task} {way.replace('_', ' ')}"] = plots.answers(arrays, f"{way}/{task}")
    return drawn | (pages.analysis_figures(workdir) if pages.present(workdir) else {})


def write_report(workdir: Workdir, trust_paths: bool = False) -> None:
    """Writes `report.html`: figures, tables, speech to listen to, examples and the config; no other
    file is needed.

    Args:
        workdir: of a finished run.
        trust_paths: as `open_run` has it; the speech to listen to is made of the run's data.
    """
    config, results = workdir.config(), workdir.read("results.json")
    pictures = {
        name: image_of(png_of(figure), name) + _caption(workdir, name)
        for name, figure in figures(workdir).items()
    }
    if pages.present(workdir):
        for name, (head, *rows) in pages.analysis_tables(workdir).items():
            cells = "".join(_row(row, "td") for row in rows)
            table = f"<table>{_row(head, 'th')}{cells}</table>" if rows else ""
            pictures[name] = pictures.get(name, "") + table
    tables = "".join(
        f"<h3>{split}</h3>{_table(comparison(results, split))}" for split in reversed(SPLITS)
    )
    speech = samples.speech(workdir, trust_paths)
    sections = {
        "Results": pictures.pop("results") + tables,
        **({"Speech": speech} if speech else {}),
        **{name.capitalize(): picture for name, picture in pictures.items()},
        "Config": f"<pre>{html.escape(json.dumps(config, indent=2))}</pre>",
    }
    body = "".join(f"<h2 id='{name}'>{name}</h2>{part}" for name, part in sections.items())
    links = "".join(f"<a href='#{name}'>{name}</a>" for name in sections)
    tasks = [name for name, task in config["tasks"].items() if task is not None]
    inputs = [name for name, encoder in config["model"]["encoders"].items() if encoder is not None]
    title = f"{config['data']['kind']}: {', '.join(tasks)}"
    page = (
        f"<!doctype html><meta charset='utf-8'><title>{html.escape(title)}</title>"
        f"<style>{PAGE_STYLE}</style><h1>{html.escape(title)}</h1>"
        f"<p>{config['steps']} steps of {config['batch_size']} examples; inputs: "
        f"{html.escape(', '.join(inputs))}; balancing: {html.escape(_kind(config['balancing']))}; "
        f"seed {config['seed']}.</p><nav>{links}</nav>{body}"
    )
    write(workdir.report, page.encode())


def save_figures(workdir: Workdir, folder: Path) -> list[Path]:
    """Writes the run's pictures as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in figures(workdir).items():
        paths.append(folder / f"{name.replace(' ', '_')}.png")
        write(paths[-1], png_of(figure))
    return paths


def _examples(workdir: Workdir) -> dict[str, np.ndarray]:
    return workdir.arrays(workdir.examples)


def png_of(figure: Figure) -> bytes:
    """The figure as a PNG; it is closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plots.plt.close(figure)
    return buffer.getvalue()


def _kind(spec: Any) -> str:
    return spec if isinstance(spec, str) else spec["kind"]


def image_of(png: bytes, alternative: str) -> str:
    """An `<img>` that holds its picture."""
    data = base64.b64encode(png).decode()
    return f"<img alt='{html.escape(alternative)}' src='data:image/png;base64,{data}'>"


def _caption(workdir: Workdir, name: str) -> str:
    told = _CAPTIONS.get(name) or (pages.caption(workdir, name) if pages.present(workdir) else "")
    return f"<p>{html.escape(told)}</p>" if told else ""


def _table(columns: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> str:
    head = _row(["task", "figure", *columns], "th")
    rows = []
    for task, figures in next(iter(columns.values())).items():
        for i, figure in enumerate(figures):
            values = [results.get(task, {}).get(figure) for results in columns.values()]
            cells = ["-" if v is None else f"{v:.3f}" for v in values]
            rows.append(_row([task if i == 0 else "", figure.replace("_", " "), *cells], "td"))
    return f"<table>{head}{''.join(rows)}</table>"


def _row(cells: Iterable[str], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"
