"""Initialise parameters from another run or from pretrained weights, by regex over paths.

    config.init_from = {"workdir": "runs/emoji", "map": [["encoders/(.*)", r"encoders/\\1"]]}
    config.init_from = {"weights": "minilm/", "at": "encoders/text", "freeze": ["encoders/text/.*"]}

A workdir gives the parameters of one of its checkpoints (their average, if the run kept one) and
its batch statistics; weights are files of torchvision or Hugging Face (`transfer.import_*`) under
the paths of the encoder `at`. A map takes a part, or elsewhere. What was loaded is listed in a
table, and kept as `init_from.json`. A run that resumes from a checkpoint of its own loads nothing.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from mtmm_jax import transfer
from mtmm_jax.assembly import Parts
from mtmm_jax.devices.mesh import Layout
from mtmm_jax.devices.parallel import jit_once
from mtmm_jax.model import flatten, shared_parameters
from mtmm_jax.paths import mapped, regexes, renames, some
from mtmm_jax.ranges import Natural, Regex, Regexes
from mtmm_jax.registry import ConfigError, choose, section_of
from mtmm_jax.transfer import pretrained
from mtmm_jax.transfer.origins import WHERE, Origin, check_meaning, of_run
from mtmm_jax.transfer.weights import import_weights, weights_file

FILE = "init_from.json"
BEGIN_AS_NOTHING = ("lora", "adapters")  # rooms that change nothing before they have learned


@dataclasses.dataclass(frozen=True)
class InitFromSettings:
    """`config.init_from`.

    Attributes:
        workdir: a run's folder; or
        weights: a `.safetensors` file, or a folder with one and, for texts, `tokenizer.json`.
        step: of the workdir: "best", "last" or a number.
        at: of the weights: the encoder whose kind and preset say how they are read, such as
            "encoders/text", and, without a map, that takes them whole.
        map: (regex, replacement): the first regex that matches the whole path of a parameter of
            the origin says where it goes, as `re.Match.expand` has it; what none matches is not
            loaded. Without any, every path is its own.
        freeze: regexes that are added to `optimizer.freeze`.
        strict: whether all that is ours must be found, in its shape: of a workdir everything but
            the heads of tasks that the origin has no head for, and `lora` and `adapters` where
            the origin has none; of weights what is below `at` but its last linear map, as
            without a map.
    """

    workdir: str | None = None
    weights: str | None = None
    step: Literal["best", "last"] | Natural = "best"
    at: str | None = None
    map: Mapping[Regex, str] | Sequence[tuple[Regex, str]] | None = ()
    freeze: Regexes | None = ()
    strict: bool = False


def read(section: Any, where: str = WHERE) -> InitFromSettings | None:
    """The section, checked; None where there is none. Looks at no file: a finished run is opened
    without its origin."""
    if section is None:
        return None
    given = section_of(section, InitFromSettings, where, "{'workdir': 'runs/a'}")
    given = {key: value for key, value in given.items() if value is not None}
    given["map"] = renames(given.get("map", ()), f"{where}.map")
    given["freeze"] = regexes(given.get("freeze", ()), f"{where}.freeze")
    settings = InitFromSettings(**given)
    if (settings.workdir is None) == (settings.weights is None):
        raise ConfigError(f"{where}: needs one of workdir, weights")
    foreign = ("at",) if settings.weights is None else ("step",)
    for key in foreign:
        if (
            key in given
            and getattr(settings, key) != InitFromSettings.__dataclass_fields__[key].default
        ):
            other = "weights" if settings.weights is None else "workdir"
            raise ConfigError(f"{where}.{key}: belongs to {other}")
    if settings.weights is not None and not settings.at:
        raise ConfigError(f"{where}.at: is missing; the encoder that takes the weights")
    return settings


@dataclasses.dataclass(frozen=True)
class Report:
    """The origin of every parameter: `{collection/path: ...}`.

    Attributes:
        origin: in words.
        loaded: our path -> `{"shape", "from"}`.
        skipped: path, ours or `origin: ` and its own -> why.
        numbers: how many parameters were loaded, and how many there are.
    """

    origin: str
    loaded: dict[str, dict[str, Any]]
    skipped: dict[str, str]
    numbers: tuple[int, int]

    def to_dict(self) -> dict[str, Any]:
        loaded, total = self.numbers
        counts = {"loaded": loaded, "parameters": total}
        return {"origin": self.origin, **counts, "paths": self.loaded, "skipped": self.skipped}

    def table(self) -> Any:
        """A line for each path that was loaded, and from where; then what was not and why, a line
        for each module."""
        from rich.table import Table
        from rich.text import Text

        loaded, total = self.numbers
        title = f"init_from {self.origin}: {loaded:,} of {total:,} parameters"
        table = Table(title=title)
        for column in ("path", "shape", "from"):
            table.add_column(column, overflow="fold")
        for path, entry in self.loaded.items():
            table.add_row(path, str(entry["shape"]), entry["from"])
        table.add_section()
        modules: dict[tuple[str, str], list[str]] = {}
        for path, why in self.skipped.items():
            modules.setdefault(("/".join(path.split("/")[:2]), why), []).append(path)
        for (module, why), paths in modules.items():
            path = paths[0] if len(paths) == 1 else f"{module}/... ({len(paths)})"
            table.add_row(path, "", Text(f"skipped: {why}", style="dim"))
        return table


def _flat(variables: Mapping[str, Any]) -> dict[tuple[str, str], Any]:
    """`(collection, path) -> leaf`."""
    return {
        (collection, path): leaf
        for collection, tree in variables.items()
        for path, leaf in flatten(tree).items()
    }


def _matched(
    settings: InitFromSettings, origin: Origin, ours: Mapping[tuple[str, str], Any]
) -> tuple[dict[tuple[str, str], tuple[str, str]], dict[str, str]]:
    """Our leaf -> the origin's, and what was skipped and why."""
    pairs: dict[tuple[str, str], tuple[str, str]] = {}
    skipped: dict[str, str] = {}
    differ: list[str] = []
    theirs = _flat(origin.variables)
    for pattern, _ in settings.map:
        if not any(re.fullmatch(pattern, path) for _, path in theirs):
            paths = some(dict.fromkeys(path for _, path in theirs))
            raise ConfigError(f"{WHERE}.map: {pattern!r} matches nothing of {origin.name}: {paths}")
    for (collection, path), leaf in theirs.items():
        to = mapped(path, settings.map)
        here = (collection, to)
        if to is None:
            skipped[f"origin: {path}"] = "not matched by map"
        elif here not in ours:
            skipped[f"origin: {path}"] = "no counterpart here"
        elif here in pairs:
            first = pairs[here][1]
            raise ConfigError(f"{WHERE}.map: {first} and {path} both go to {to}; keep one")
        elif tuple(ours[here].shape) != tuple(leaf.shape):
            shapes = f"{list(leaf.shape)} there, {list(ours[here].shape)} here"
            skipped[to] = f"other shape: {shapes}, from {path}"
            differ.append(f"{path} is {list(leaf.shape)} there, {to} is {list(ours[here].shape)}")
        else:
            pairs[here] = (collection, path)
    if settings.strict and differ:
        raise ConfigError(f"{WHERE}.strict: shapes differ: {some(differ, 4)}")
    if not pairs:
        why = f"; of other shapes: {some(differ, 4)}" if differ else ""
        raise ConfigError(
            f"{WHERE}: nothing of {origin.name} goes here{why}; there: "
            f"{some(path for _, path in theirs)}; here: {some(path for _, path in ours)}"
        )
    for _, path in (key for key in ours if key not in pairs):
        skipped.setdefault(path, "no counterpart in the origin")
    return pairs, skipped


def _of_weights(settings: InitFromSettings, ours: Any) -> Origin:
    """Imported weights under the paths of `at`; without a map they must fill it."""
    at = str(settings.at).strip("/")
    choose(at, [f"encoders/{name}" for name in ours.model.encoders], f"{WHERE}.at", "encoder")
    file = weights_file(settings.weights, f"{WHERE}.weights")
    encoder = ours.model.encoders[at.removeprefix("encoders/")]
    imported = import_weights(file, encoder, f"{WHERE}.at: {at}")
    if not settings.map:
        shapes = {"params": ours.shapes.params, "batch_stats": ours.shapes.batch_stats}
        transfer.load_pretrained(shapes, imported, at)
    placed = {
        collection: {f"{at}/{path}": leaf for path, leaf in flatten(tree).items()}
        for collection, tree in imported.items()
    }
    tokenizer_file = file.parent / "tokenizer.json"
    words = tokenizer_file.read_bytes() if tokenizer_file.is_file() else None
    return Origin(str(file), placed, None, lambda _: words)


def _required(settings: InitFromSettings, origin: Origin, path: str) -> bool:
    """Whether strict wants a parameter of ours to be loaded."""
    if settings.at:
        own = path.removeprefix(f"{settings.at.strip('/')}/")
        return own != path and not own.startswith("project/")
    room, name, *_ = [*path.split("/"), ""]
    if room == "heads":
        return name in origin.variables["params"].get("heads", {})
    return room not in BEGIN_AS_NOTHING or room in origin.variables["params"]


def extend(section: Any, parts: Parts) -> Parts:
    """The extension `init_from`: what it freezes; `load` gives the parameters."""
    return parts.replace(freeze=(*parts.freeze, *read(section).freeze))


def load(experiment: Any, state: Any, assemble: Callable[..., Any]) -> tuple[Any, Report | None]:
    """The state before the first step with what pretrained encoders and `config.init_from` give,
    each leaf where it lay.

    Optimiser and balancing begin with the new parameters. Nothing is asked of the origin but its
    folder: it may have been trained on other devices.

    Args:
        experiment: the run's.
        state: its state, drawn.
        assemble: `training.assemble`.

    Raises:
        ConfigError: where nothing fits, where strict finds a gap, with both shapes and both paths,
            and where what fits means something else.
    """
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    ours, values, reports = _flat(variables), {}, []
    for settings, origin in _origins(experiment, assemble):
        found, report = _values(settings, origin, experiment, ours)
        values |= found
        reports.append(report)
    if not reports:
        return state, None

    def replaced(collection: str) -> Any:
        def one(keys: Any, leaf: Any) -> Any:
            return values.get((collection, "/".join(key.key for key in keys)), leaf)

        return jax.tree_util.tree_map_with_path(one, variables[collection])

    state = _initial(experiment, state, replaced("params"), replaced("batch_stats"))
    sizes = {key: math.prod(leaf.shape) for key, leaf in ours.items() if key[0] == "params"}
    got = sum(size for key, size in sizes.items() if key in values)
    return state, _joined(reports, (got, sum(sizes.values())))


def _origins(
    experiment: Any, assemble: Callable[..., Any]
) -> Iterator[tuple[InitFromSettings, Origin]]:
    """The folders of pretrained encoders, then what `init_from` names; the last one decides."""
    for at, origin in pretrained.origins(experiment):
        yield InitFromSettings(weights=origin.name, at=at, strict=True), origin
    settings = read(experiment.config.get(WHERE))
    if settings is not None and settings.workdir is not None:
        yield settings, of_run(settings, experiment, assemble)
    elif settings is not None:
        yield settings, _of_weights(settings, experiment)


def _joined(reports: Sequence[Report], numbers: tuple[int, int]) -> Report:
    """One report of all origins; what some origin has is not skipped."""
    loaded = {path: entry for report in reports for path, entry in report.loaded.items()}
    skipped = {path: why for report in reports for path, why in report.skipped.items()}
    left = {path: why for path, why in skipped.items() if path not in loaded}
    return Report(" and ".join(report.origin for report in reports), loaded, left, numbers)


def _values(
    settings: InitFromSettings, origin: Origin, experiment: Any, ours: Mapping[tuple[str, str], Any]
) -> tuple[dict[tuple[str, str], Any], Report]:
    """Our leaf -> what the origin has for it, placed as ours."""
    pairs, skipped = _matched(settings, origin, ours)
    missing = [p for key in ours if key not in pairs and _required(settings, origin, p := key[1])]
    if settings.strict and missing:
        raise ConfigError(
            f"{WHERE}.strict: {origin.name} has nothing for: {some(missing)}; it has: "
            f"{some(path for _, path in _flat(origin.variables))}"
        )
    skipped |= dict.fromkeys(check_meaning(experiment, origin, pairs), "not compared")
    theirs = _flat(origin.variables)
    values = {key: _placed(theirs[source], ours[key]) for key, source in pairs.items()}
    loaded = {
        path: {"shape": list(ours[collection, path].shape), "from": source}
        for (collection, path), (_, source) in pairs.items()
    }
    return values, Report(origin.name, loaded, skipped, (0, 0))


def _placed(value: Any, like: Any) -> Any:
    """The value in our dtype, where our leaf lies."""
    if not isinstance(value, jax.Array):
        value = np.asarray(value)
    if value.dtype != like.dtype:
        value = value.astype(like.dtype)
    return jax.device_put(value, like.sharding)


def _initial(experiment: Any, state: Any, params: Any, batch_stats: Any) -> Any:
    """The state with new parameters, and what is made of them: averages, masks, balancing."""

    def rest(params: Any) -> Any:
        own = experiment.optimizer.init(params)
        return own, experiment.balancer.init(params, shared_parameters)

    layout: dict[str, Any] = {}
    if isinstance(experiment.devices, Layout):
        layout["out_shardings"] = experiment.devices.of((state.optimizer, state.balancing))
    optimizer, balancing = jit_once(rest, **layout)(params)
    return state.replace(
        params=params, batch_stats=batch_stats, optimizer=optimizer, balancing=balancing
    )


def tell(report: Report | None, workdir: Any, console: Any) -> None:
    """Prints the table and keeps it in the workdir."""
    from mtmm_jax.devices import processes

    if report is None:
        return
    console.print(report.table())
    processes.on_primary(lambda: workdir.write(FILE, report.to_dict()), "--workdir")
