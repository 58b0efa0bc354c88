"""One self-contained HTML page about a run, from what its workdir holds."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mtmm_jax.model import build
from mtmm_jax.training.logs import read_journal
from mtmm_jax.training.results import SPLITS, comparison
from mtmm_jax.training.workdir import Workdir, write

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em;
       color: #222 } h1, h2, h3 { font-weight: 600 } img { max-width: 100% }
table { border-collapse: collapse; margin: 1em 0 } td, th { padding: .25em .8em; text-align: right;
       border-bottom: 1px solid #ddd } td:first-child, th:first-child, td:nth-child(2),
       th:nth-child(2) { text-align: left } .answers td { text-align: center; font-size: 12px;
       width: 110px; vertical-align: top } .right { outline: 3px solid #2a9d4a }
.answers img { width: 64px; image-rendering: auto } .best { font-weight: 600 }
pre { background: #f6f6f6; padding: 1em; overflow: auto; font-size: 13px }
nav a { margin-right: 1em }
"""


def write_report(workdir: Workdir) -> None:
    """Writes `report.html`: figures, tables, examples and the config; no other file is needed."""
    from matplotlib import pyplot as plt

    from mtmm_jax.analysis import plots

    config, results, spec = (
        workdir.read("config.json"),
        workdir.read("results.json"),
        workdir.spec(),
    )
    model = build(config["model"], config["tasks"], spec)
    headlines = {name: task.headline for name, task in model.tasks.items()}
    records = read_journal(workdir.metrics)
    arrays = dict(np.load(workdir.examples)) if workdir.examples.exists() else {}

    def picture(figure: Any, alternative: str) -> str:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
        plt.close(figure)
        return _image(buffer.getvalue(), alternative)

    sections = {
        "Results": picture(
            plots.comparison(comparison(results, "test"), headlines), "headline figures on test"
        )
        + "".join(
            f"<h3>{split}</h3>{_table(comparison(results, split))}" for split in reversed(SPLITS)
        ),
        "Learning curves": picture(plots.learning_curves(records, headlines), "learning curves"),
        "Task weights": picture(plots.task_weights(records, tuple(headlines)), "task weights"),
        "Confusion": "".join(
            picture(
                plots.confusion(
                    arrays[f"confusion/{name}"], spec.targets[task.target].classes, name
                ),
                f"confusion matrix of {name}",
            )
            for name, task in model.tasks.items()
            if f"confusion/{name}" in arrays
        ),
        "Retrieval": "".join(
            f"<h3>{html.escape(key.removeprefix('query/').replace('_', ' '))}</h3>"
            + _answers(arrays, key.removeprefix("query/"))
            for key in arrays
            if key.startswith("query/")
        ),
        "Config": f"<pre>{html.escape(json.dumps(config, indent=2))}</pre>",
    }
    body = "".join(
        f"<h2 id='{name}'>{name}</h2>{content}" for name, content in sections.items() if content
    )
    links = "".join(
        f"<a href='#{name}'>{name}</a>" for name, content in sections.items() if content
    )
    title = f"{config['data']['kind']}: {', '.join(headlines)}"
    inputs = ", ".join(model.encoders)
    page = (
        f"<!doctype html><meta charset='utf-8'><title>{html.escape(title)}</title>"
        f"<style>{_STYLE}</style><h1>{html.escape(title)}</h1>"
        f"<p>{config['steps']} steps of {config['batch_size']} examples; inputs: "
        f"{html.escape(inputs)}; balancing: {html.escape(_kind(config['balancing']))}; seed "
        f"{config['seed']}.</p><nav>{links}</nav>{body}"
    )
    write(workdir.report, page.encode())


def _kind(spec: Any) -> str:
    return spec if isinstance(spec, str) else spec["kind"]


def _image(png: bytes, alternative: str) -> str:
    data = base64.b64encode(png).decode()
    return f"<img alt='{html.escape(alternative)}' src='data:image/png;base64,{data}'>"


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


def _answers(arrays: Mapping[str, np.ndarray], key: str) -> str:
    """Each query and its five best answers; the right one is framed."""

    def cell(identity: int, right: bool = False) -> str:
        name = html.escape(str(arrays[f"name/{identity}"]))
        frame = " class='right'" if right else ""
        return f"<td><div{frame}>{_picture(arrays[f'picture/{identity}'], name)}</div>{name}</td>"

    rows = "".join(
        f"<tr>{cell(int(query))}<td>&rarr;</td>"
        + "".join(cell(int(answer), answer == query) for answer in answers)
        + "</tr>"
        for query, answers in zip(arrays[f"query/{key}"], arrays[f"answer/{key}"], strict=True)
    )
    return f"<table class='answers'>{rows}</table>"


def _picture(pixels: np.ndarray, name: str) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return _image(buffer.getvalue(), name)
