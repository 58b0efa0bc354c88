"""One self-contained HTML page about a run, from what its workdir holds."""

from __future__ import annotations

import base64
import io
import json
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from mtmm_jax.analysis import examples, pages, plots, samples
from mtmm_jax.analysis.incidents import incidents
from mtmm_jax.analysis.pictures import task_relatedness
from mtmm_jax.analysis.summary import summary
from mtmm_jax.markup import COLOUR_STYLE, escape, page, row
from mtmm_jax.objectives.relatedness import FILE as RELATEDNESS
from mtmm_jax.store.files import file_name, understood, write
from mtmm_jax.store.workdir import Workdir
from mtmm_jax.training.logs import certainty_cells, read_journal
from mtmm_jax.training.results import RUN, SPLITS, comparison

PAGE_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em;
       color: #222 } h1, h2, h3 { font-weight: 600 } img { max-width: 100% }
table { border-collapse: collapse; margin: 1em 0 } td, th { padding: .25em .8em; text-align: right;
       border-bottom: 1px solid #ddd } td:first-child, th:first-child, td:nth-child(2),
       th:nth-child(2) { text-align: left }
pre { background: #f6f6f6; padding: 1em; overflow: auto; font-size: 13px }
nav a { margin-right: 1em }
"""

NAMES_AS_TEXT = matplotlib.rc_context({"text.parse_math": False})
"""Around what draws: a "$" in the name of a class begins no formula."""

TOP = 12  # confusions that are listed where there are too many classes for numbers in the matrix

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


def figures(workdir: Workdir, records: Any = None, arrays: Any = None) -> dict[str, Figure]:
    """The run's pictures by name: results, curves, weights, what tasks do for each other (where it
    was measured), conflicts, confusion, retrieval, and those of its analysis if there was one."""
    config, results = workdir.config(), workdir.read("results.json")
    model = samples.model_of(workdir)
    headlines = {name: task.headline for name, task in model.tasks.items()}
    records = _records(workdir, config["steps"]) if records is None else records
    arrays = _examples(workdir) if arrays is None else arrays
    drawn = {
        "results": plots.comparison(comparison(results, "test"), headlines),
        "learning curves": plots.learning_curves(records, headlines),
    }
    if _vary(records, headlines):
        drawn["task weights"] = plots.task_weights(records, tuple(headlines))
    if (workdir.path / RELATEDNESS).exists():
        drawn["task relatedness"] = task_relatedness(workdir.read(RELATEDNESS))
    measured = [r for r in records if "cosines" in r]
    if measured and len(headlines) > 1:
        drawn["gradient conflicts"] = plots.gradient_conflicts(measured)
    for name, task in model.tasks.items():
        if f"confusion/{name}" in arrays:
            classes = model.spec.targets[task.target].classes
            drawn[f"confusion {name}"] = plots.confusion(arrays[f"confusion/{name}"], classes, name)
        if len(points := arrays.get(f"points/{name}", ())):
            drawn[f"predicted and true {name}"] = plots.predicted_against_true(points, name)
        if np.any(bins := arrays.get(f"calibration/{name}", 0)):
            drawn[f"calibration {name}"] = plots.calibration(bins, name)
    for key in arrays:
        if key.startswith("query/"):
            _, way, task = key.split("/")
            drawn[f"{task} {way.replace('_', ' ')}"] = plots.answers(arrays, f"{way}/{task}")
    return drawn | (pages.analysis_figures(workdir) if pages.present(workdir) else {})


@NAMES_AS_TEXT
def write_report(workdir: Workdir, trust_paths: bool = False) -> None:
    """Writes `report.html`: figures, tables, speech to listen to, examples and the config; no other
    file is needed.

    Args:
        workdir: of a finished run.
        trust_paths: as `open_run` has it; the speech to listen to is made of the run's data.
    """
    with understood(workdir.path, UNFIT):
        write(workdir.report, _page(workdir, trust_paths).encode())


UNFIT = "its files do not fit together; MTMM_JAX_TRACEBACK=1 shows where"


def _page(workdir: Workdir, trust_paths: bool) -> str:
    config, results = workdir.config(), workdir.read("results.json")
    records, arrays = _records(workdir, config["steps"]), _examples(workdir)
    pictures = {
        name: image_of(png_of(figure), name) + _caption(workdir, name)
        for name, figure in figures(workdir, records, arrays).items()
    }
    if pages.present(workdir):
        for name, (head, *rows) in pages.analysis_tables(workdir).items():
            table = f"<table>{row(head, 'th')}{''.join(map(row, rows))}</table>" if rows else ""
            pictures[name] = pictures.get(name, "") + table
    tables = "".join(
        f"<h3>{split}</h3>"
        f"{_table(comparison(results, split), results.get('intervals', {}).get(split))}"
        for split in reversed(SPLITS)
    )
    spec, model = workdir.spec(), samples.model_of(workdir)
    run = _run(workdir)
    lines = incidents(records, results, spec, model.tasks, run.get("present"))
    noted = f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else ""
    speech = samples.speech(workdir, trust_paths)
    for name, table in _top_confusions(model, spec, arrays).items():
        pictures[f"confusion {name}"] = table + pictures[f"confusion {name}"]
    shown = examples.section(workdir, model.tasks, spec, arrays)
    sections = {
        "Results": pictures.pop("results") + tables + _mixture(results, model),
        **({"While training": noted} if noted else {}),
        **({"Speech": speech} if speech else {}),
        **({"Worst and best": shown} if shown else {}),
        **{name.capitalize(): picture for name, picture in pictures.items()},
        "Config": f"<pre>{escape(json.dumps(config, indent=2))}</pre>",
    }
    body = "".join(
        f"<h2 id='part{i}'>{escape(name)}</h2>{part}"
        for i, (name, part) in enumerate(sections.items())
    )
    links = "".join(f"<a href='#part{i}'>{escape(name)}</a>" for i, name in enumerate(sections))
    tasks = [name for name, task in config["tasks"].items() if task is not None]
    inputs = [name for name, encoder in config["model"]["encoders"].items() if encoder is not None]
    title = f"{config['data']['kind']}: {', '.join(tasks)}"
    lead = (
        f"{_steps(config, results)} of {config['batch_size']} examples; inputs: "
        f"{', '.join(inputs)}; balancing: {_kind(config['balancing'])}; seed {config['seed']}."
    )
    words = summary(results, model.tasks, spec, tuple(inputs), run)
    paragraphs = "".join(f"<p>{escape(line)}</p>" for line in words)
    body = (
        f"<h1>{escape(title)}</h1>{paragraphs}{_remarks(results)}<p>{escape(lead)}</p>"
        f"<nav>{links}</nav>{body}"
    )
    return page(title, COLOUR_STYLE + PAGE_STYLE + examples.STYLE, body)


def _vary(records: Any, tasks: Mapping[str, str]) -> bool:
    """Whether balancing gave tasks weights that are worth a picture."""
    weights = [[r["weight"][task] for task in tasks] for r in records if r["split"] == "train"]
    return (
        len(tasks) > 1
        and bool(weights)
        and bool(np.ptp(np.asarray(weights, float), axis=0).max() > 1e-6)
    )


def _top_confusions(model: Any, spec: Any, arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """`{task: table}` of tasks with many classes: which are taken for which, most often first."""
    found = {}
    for name, task in model.tasks.items():
        counts = arrays.get(f"confusion/{name}")
        if counts is None or len(counts) <= plots.FEW_CLASSES:
            continue
        classes, totals = spec.targets[task.target].classes, counts.sum(1)
        wrong = counts - np.diag(np.diag(counts))
        order = np.argsort(-wrong, axis=None, kind="stable")[:TOP]
        places = [np.unravel_index(i, wrong.shape) for i in order if wrong.flat[i] > 0]
        rows = [
            row([classes[t], classes[p], f"{wrong[t, p]:.0f} of {totals[t]:.0f}"])
            for t, p in places
        ]
        if rows:
            head = row(["label", "predicted", "rows"], "th")
            found[name] = f"<table>{head}{''.join(rows)}</table>"
    return found


@NAMES_AS_TEXT
def save_figures(workdir: Workdir, folder: Path) -> list[Path]:
    """Writes the run's pictures as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with understood(workdir.path, UNFIT):
        drawn = figures(workdir)
    for name, figure in drawn.items():
        paths.append(folder / f"{file_name(name)}.png")
        write(paths[-1], png_of(figure))
    return paths


def _records(workdir: Workdir, steps: int) -> list[dict[str, Any]]:
    """The journal; a line on stderr where it ends before the run did."""
    records = read_journal(workdir.metrics)
    last = max((r["step"] for r in records if r["split"] == "train"), default=0)
    if workdir.metrics.exists() and last < steps:
        print(f"{workdir.metrics}: ends at step {last} of {steps}", file=sys.stderr)
    return records


def _run(workdir: Workdir) -> dict[str, Any]:
    path = workdir.path / RUN
    if not path.exists():
        print(f"{path}: is missing; the report does not say what the run cost", file=sys.stderr)
        return {}
    return workdir.read(RUN)


def _examples(workdir: Workdir) -> dict[str, np.ndarray]:
    if not workdir.examples.exists():
        print(f"{workdir.examples}: is missing; the report has no examples", file=sys.stderr)
    return workdir.arrays(workdir.examples)


def png_of(figure: Figure) -> bytes:
    """The figure as a PNG; it is closed."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # of a name: drawn as a box
        figure.savefig(buffer, format="png", dpi=110)
    plots.plt.close(figure)
    return buffer.getvalue()


def _steps(config: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    course = results.get("training", {})
    steps = f"{course.get('last_step', config['steps'])} steps"
    return (
        f"{steps} (stopped early, of {config['steps']})" if course.get("stopped_early") else steps
    )


def _remarks(results: Mapping[str, Any]) -> str:
    items = "".join(f"<li>{escape(remark)}</li>" for remark in results.get("remarks", ()))
    return f"<p><b>What to do next</b></p><ul>{items}</ul>" if items else ""


def _mixture(results: Mapping[str, Any], model: Any) -> str:
    """The weight of the network and of each linear model in the prediction, and their headlines."""
    linear = results.get("linear")
    if not linear:
        return ""
    rows = [row(["task", "expert", "weight", "metric", *SPLITS], "th")]
    for task, weights in linear["weights"].items():
        metric = model.tasks[task].headline
        for i, (expert, weight) in enumerate(weights.items()):
            found = [linear["results"].get(s, {}).get(task, {}).get(expert, {}) for s in SPLITS]
            values = ["-" if (v := one.get(metric)) is None else f"{v:.3f}" for one in found]
            name = expert if expert != "linear" else "linear, all"
            rows.append(row([task if i == 0 else "", name, f"{weight:.2f}", metric, *values]))
    words = (
        "A task's prediction is a mixture of the network and of linear models of fixed features; "
        "weights are those that are best on validation."
    )
    return f"<h3>what predicts</h3><p>{words}</p><table>{''.join(rows)}</table>"


def _kind(spec: Any) -> str:
    return spec if isinstance(spec, str) else spec["kind"]


def image_of(png: bytes, alternative: str) -> str:
    """An `<img>` that holds its picture."""
    data = base64.b64encode(png).decode()
    return f"<img alt='{escape(alternative)}' src='data:image/png;base64,{data}'>"


def _caption(workdir: Workdir, name: str) -> str:
    caption = _CAPTIONS.get(name) or (
        pages.caption(workdir, name) if pages.present(workdir) else ""
    )
    return f"<p>{escape(caption)}</p>" if caption else ""


def _table(columns: Mapping[str, Mapping[str, Mapping[str, float | None]]], certainty: Any) -> str:
    """The first column with its 95 % intervals and numbers of examples, where they are known."""
    first, *others = columns
    head = row(["task", "metric", first, *(["95 %", "n"] if certainty else []), *others], "th")
    rows = []
    for task, metrics in next(iter(columns.values())).items():
        for i, metric in enumerate(metrics):
            values = [results.get(task, {}).get(metric) for results in columns.values()]
            cells = ["-" if v is None else f"{v:.3f}" for v in values]
            if certainty:
                cells[1:1] = certainty_cells(certainty.get(task, {}).get(metric))
            rows.append(row([task if i == 0 else "", metric.replace("_", " "), *cells]))
    return f"<table>{head}{''.join(rows)}</table>"
