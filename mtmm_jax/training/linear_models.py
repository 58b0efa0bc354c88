"""Fixed features and linear models in a run: fitted before the first step, mixed at validations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from rich.table import Table

from mtmm_jax.devices import parallel, processes
from mtmm_jax.devices.mesh import Layout
from mtmm_jax.evaluation import linear
from mtmm_jax.registry import ConfigError
from mtmm_jax.store.files import finite
from mtmm_jax.store.workdir import Workdir

FILE = "linear.json"  # of the workdir: {"results": split -> task -> expert -> metrics, "about"}


def begin(experiment: Any, state: Any) -> tuple[Any, linear.Fitted | None]:
    """The state with the statistics of fixed encoders and with linear models, where it has some."""
    if not linear.fixed_encoders(experiment.model):
        return state, None
    if isinstance(experiment.devices, Layout):
        raise ConfigError(
            "model: fixed encoders and linear models are not fitted on a mesh; set devices to a "
            "number, or choose learned encoders and model.linear=None"
        )
    rows = experiment.config["evaluation"]["batch_size"]
    own = experiment.model.linear
    if own is not None and own.backbones and experiment.config.get("lora"):
        formulas = {n: "..." for n in own.encoders if n not in own.backbones}
        raise ConfigError(
            f"model.linear: vectors of {', '.join(own.backbones)} would change with lora; name "
            f"formulas, such as {formulas}, or set it to None"
        )
    fitted = linear.fit_linear(experiment.model, state.variables, experiment.source, rows)
    return state.replace(
        batch_stats=linear.with_variables(state.batch_stats, fitted.variables)
    ), fitted


def show(fitted: linear.Fitted | None, experiment: Any, workdir: Workdir, console: Any) -> None:
    """Prints the table of linear models, and keeps their results in the workdir."""
    if fitted is None or not fitted.about:
        return
    console.print(table(fitted, experiment.model))
    content = {"results": finite(fitted.results), "about": fitted.about}
    processes.on_primary(lambda: workdir.write(FILE, content), "--workdir")


def table(fitted: linear.Fitted, model: Any) -> Table:
    """Each task's linear models: the headline on validation and on test, rows, penalty, seconds."""
    shown = Table(title="linear models of fixed features")
    for column in ("task", "reads", "metric"):
        shown.add_column(column)
    for column in ("validation", "test", "train rows", "C", "seconds"):
        shown.add_column(column, justify="right")
    for task, experts in fitted.about.items():
        headline = model.tasks[task].headline
        for i, (expert, about) in enumerate(experts.items()):
            values = [
                fitted.results[split].get(task, {}).get(expert, {}).get(headline, np.nan)
                for split in ("validation", "test")
            ]
            shown.add_row(
                task if i == 0 else "",
                expert.removeprefix("linear").removeprefix(", ") or "all",
                headline if i == 0 else "",
                *(f"{value:.3f}" if np.isfinite(value) else "-" for value in values),
                f"{about['rows']:,}",
                f"{about['strength']:g}",
                f"{about['seconds']:.1f}",
            )
        shown.add_section()
    return shown


def reweigh(experiment: Any, state: Any) -> Any:
    """The state with the mixtures that are best on validation, where it has linear models."""
    model = experiment.model
    if model.linear is None or not len(experiment.source.rows["validation"]):
        return state
    rows = experiment.config["evaluation"]["batch_size"]
    with jax.transfer_guard_device_to_host("allow"):
        whole = parallel.first(state, experiment.devices)
        found, _ = linear.fit_weights(model, whole.variables, experiment.source, rows)
        stats = linear.with_variables(whole.batch_stats, found)
    return state.replace(batch_stats=parallel.replicate(stats, experiment.devices))


def results(workdir: Workdir, variables: Mapping[str, Any], model: Any) -> dict[str, Any] | None:
    """For `results.json`: metrics of the linear models, and each expert's weight in the mixture."""
    if model.linear is None:
        return None
    kept = workdir.read(FILE)
    stats = variables["batch_stats"][linear.STACK]
    weights = {
        task: dict(zip(model.linear.names(task), np.asarray(own["weights"]).tolist(), strict=True))
        for task, own in stats.items()
    }
    return {**kept, "weights": weights}
