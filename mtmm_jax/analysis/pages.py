"""Figures, tables and captions of the report from an analysed workdir."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mtmm_jax.analysis import pictures
from mtmm_jax.analysis.intermediates import Axis, HeatMap, PatchMap
from mtmm_jax.store.workdir import Workdir

NUMBERS, ARRAYS = "analysis.json", "analysis.npz"
SELECTION = "what modalities say about the labels"

CAPTIONS = {
    "modality contribution": "What each input is worth to each task: the Shapley value, the mean "
    "of what an input adds over all orders in which the inputs could arrive. The bars of a task "
    "add up to what the model is better than a predictor that looks at nothing. Two inputs that "
    "say the same share the merit.",
    "missing modalities": "Each task's metric when the model sees only some of its inputs. Where a "
    "task finds none of what it reads, the trivial predictor answers, so all rows are about the "
    "same samples.",
    "robustness": "Each input damaged more and more, the others left alone. Dashed: the model with "
    "nothing but its best single input; where that is the damaged one, it falls too.",
    "gates and weights": "What the model weighed, by the name of the part that did: how much each "
    "input counted for each sample, which experts were used, what tasks took from each other.",
    "attention over patches": "How much each word (or token of the model's own) looked at each "
    "patch of the picture; bright: a lot. One scale for each sample.",
}


def present(workdir: Workdir) -> bool:
    """Whether the run was analysed."""
    there = (workdir.path / NUMBERS).exists()
    if not there and (workdir.path / ARRAYS).exists():
        print(f"{workdir.path / NUMBERS}: is missing; analyze writes it again", file=sys.stderr)
    return there


def analysis_figures(workdir: Workdir) -> dict[str, Figure]:
    """`{name: figure}` of an analysed run, in the order of the report."""
    report, arrays = workdir.read(NUMBERS), _arrays(workdir)
    drawn = {
        "modality contribution": pictures.contribution_bars(report["contribution"]),
        "missing modalities": pictures.subset_map(report["subsets"]),
    }
    if len(report["affinity"]["modalities"]) > 1:
        drawn["modality affinity"] = pictures.affinity_maps(report["affinity"])
    drawn["robustness"] = pictures.robustness_curves(report["robustness"])
    heat = [
        HeatMap(m["path"], _axis(m["rows"]), _axis(m["columns"]), arrays[f"heat/{i}"])
        for i, m in enumerate(report["intermediates"]["heat"])
    ]
    if heat:
        drawn["gates and weights"] = pictures.heat_maps(heat)
    for i, maps in enumerate(_patches(report, arrays).values()):
        shown = {m.sample: arrays[key] for m in maps if (key := _picture(m)) in arrays}
        name = "attention over patches" + (f" {i + 1}" if i else "")
        drawn[name] = pictures.patch_attention(maps, shown)
    return drawn


def caption(workdir: Workdir, name: str) -> str:
    """The caption of a figure of the analysis; the affinity's suggests a fusion."""
    report = workdir.read(NUMBERS)
    if name == "modality affinity":
        suggestion = report["affinity"]["suggestion"]
        return (
            "How alike the inputs are to the encoders: 1 where two say the same, 0 where they "
            f"have nothing in common. A fusion to try first: {suggestion['fusion']} "
            f"({suggestion['reason']})."
        )
    return CAPTIONS.get(name.rstrip("0123456789 "), "")


def analysis_tables(workdir: Workdir) -> dict[str, list[list[str]]]:
    """`{name: rows}`, the head first: subsets and robustness in numbers, and the cost."""
    report = workdir.read(NUMBERS)
    return {
        "missing modalities": subset_rows(report["subsets"]),
        "modality affinity": affinity_rows(report["affinity"]),
        **({SELECTION: selection_rows(report["selection"])} if report.get("selection") else {}),
        "robustness": robustness_rows(report["robustness"]),
        "cost": cost_rows(report["cost"]),
    }


def subset_rows(subsets: Mapping[str, Any]) -> list[list[str]]:
    """The missing-modality table: a row for each subset, metrics and losses of the tasks."""
    head = [f"{task} {metric}" for task, metric in subsets["tasks"].items()]
    rows = [["modalities", *head, *(f"{task} loss" for task in subsets["tasks"])]]
    for row in subsets["subsets"]:
        numbers = [row[key][task] for key in ("metric", "loss") for task in subsets["tasks"]]
        rows.append([" + ".join(row["modalities"]) or "nothing", *map(number, numbers)])
    return rows


def contribution_rows(contribution: Mapping[str, Any]) -> list[list[str]]:
    """A row for each task and measure, a column for each modality."""
    known = [c[key] for c in contribution.values() for key in ("metric", "loss") if c[key]]
    names = list(dict.fromkeys(name for shares in known for name in shares))
    rows = [["task", "by", *names]]
    for task, shares in contribution.items():
        for key, measure in (("metric", shares["name"]), ("loss", "loss")):
            values = shares[key] or {}
            rows.append([task if key == "metric" else "", measure,
                         *(number(values.get(name)) for name in names)])  # fmt: skip
    return rows


def affinity_rows(affinity: Mapping[str, Any]) -> list[list[str]]:
    """A row for each pair."""
    names = affinity["modalities"]
    rows = [["pair", "samples", "CKA", "CCA", "R2 there", "R2 back"]]
    for i, first in enumerate(names):
        for j in range(i + 1, len(names)):
            places = [("cka", i, j), ("cca", i, j), ("r2", i, j), ("r2", j, i)]
            numbers = [number(affinity[key][a][b]) for key, a, b in places]
            pair = f"{first}, {names[j]}"
            rows.append([pair, str(affinity["samples"][i][j]), *numbers])
    return rows


def selection_rows(selection: Mapping[str, Any]) -> list[list[str]]:
    """Rows of labels and modalities, the most informative first."""
    rows = [["label", "modality", "samples", "bits", "beyond the best other", "best features"]]
    for label, ranked in selection.items():
        for i, row in enumerate(ranked):
            beyond = number(row["alone"]) + (f" ({row['next_to']})" if row["next_to"] else "")
            best = ", ".join(f"{feature}: {bits:.2f}" for feature, bits in row["features"])
            rows.append([label if i == 0 else "", row["modality"], str(row["samples"]),
                         number(row["bits"]), beyond, best or "-"])  # fmt: skip
    return rows


def robustness_rows(robustness: Mapping[str, Any]) -> list[list[str]]:
    """A row for each task, modality and kind of damage."""
    rows = [["task", "damage", "undamaged", "severity 3", "severity 5", "relative",
             "effective (raw)", "effective (equalised)"]]  # fmt: skip
    for task, summary in robustness.items():
        first = True
        for modality, kinds in summary["modalities"].items():
            for damage, n in kinds.items():
                values = [n["metrics"][0], n["metrics"][3], n["metrics"][5], n["relative"],
                          n["raw"], n["equalised"]]  # fmt: skip
                name = f"{task} ({summary['metric']})" if first else ""
                rows.append([name, f"{modality}: {damage}", *map(number, values)])
                first = False
    return rows


def cost_rows(cost: Mapping[str, Any]) -> list[list[str]]:
    """Rows of the table of costs: quantity, part, value."""
    rows = [["what", "of", "how much"]]
    for room, modules in cost["parameters"].items():
        for i, (module, count) in enumerate(modules.items()):
            rows.append([f"parameters, {room}" if i == 0 else "", module, f"{count:,}"])
    rows.append(["parameters", "all", f"{cost['total_parameters']:,}"])
    samples = f"{cost['batch_size']} samples"
    for key, name in (("forward_flops", "forward pass"), ("step_flops", "training step")):
        count = cost[key]
        shown = "not reported by this backend" if count is None else f"{count / 1e9:,.3f} GFLOP"
        rows.append([name, samples, shown])
    seconds = cost["step_seconds"]
    where = f"{samples}, one {cost['device']}"
    rows.append(["training step, median", where, f"{1e3 * seconds:,.1f} ms"])
    return rows


def number(value: float | None) -> str:
    return "-" if value is None or not np.isfinite(value) else f"{value:.3f}"


def stored(heat: list[HeatMap], patches: list[PatchMap]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The intermediates as `analysis.json` and `analysis.npz` keep them."""

    def axis(value: Axis) -> dict[str, Any]:
        return {"name": value.name, "labels": list(value.labels)}

    numbers = {
        "heat": [{"path": m.path, "rows": axis(m.rows), "columns": axis(m.columns)} for m in heat],
        "patches": [
            {"path": m.path, "modality": m.modality, "sample": m.sample, "rows": axis(m.rows)}
            for m in patches
        ],
    }
    arrays = {f"heat/{i}": m.values for i, m in enumerate(heat)}
    return numbers, arrays | {f"patches/{i}": m.values for i, m in enumerate(patches)}


def _axis(value: Mapping[str, Any]) -> Axis:
    return Axis(value["name"], tuple(value["labels"]))


def _patches(report: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> dict:
    maps: dict[str, list[PatchMap]] = {}
    for i, m in enumerate(report["intermediates"]["patches"]):
        shown = PatchMap(m["path"], m["modality"], m["sample"], _axis(m["rows"]),
                         arrays[f"patches/{i}"])  # fmt: skip
        maps.setdefault(m["path"], []).append(shown)
    return maps


def _picture(shown: PatchMap) -> str:
    return f"picture/{shown.modality}/{shown.sample}"


def _arrays(workdir: Workdir) -> dict[str, np.ndarray]:
    return workdir.arrays(workdir.path / ARRAYS)
