"""Clips, texts and sounds in three folders that name an example alike, and a list of labels."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtmm_jax.data.pipeline.source import Source
from mtmm_jax.data.sources.manifest.bad import ON_BAD, BadRows
from mtmm_jax.data.sources.manifest.decoded import Where
from mtmm_jax.data.sources.manifest.rows import Rows
from mtmm_jax.data.sources.manifest.source import check_limits, from_rows
from mtmm_jax.ranges import Natural, Share, Threads
from mtmm_jax.readers.files import Folder
from mtmm_jax.readers.limits import Limits, Unreadable
from mtmm_jax.registry import ConfigError, choose
from mtmm_jax.text import Tokenizers

_SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}
_WHERE = "data.video_folder"


def video_folder(
    *,
    frames: str | None = "video_frames",
    texts: str | None = "text_data",
    audios: str | None = "audio_data",
    labels: Mapping[str, str] | str | os.PathLike[str] | None = None,
    root: str | os.PathLike[str] = ".",
    options: Mapping[str, Mapping[str, Any]] | None = None,
    split: Mapping[str, Share] | None = None,
    on_bad: str = "skip",
    limits: Mapping[str, Any] | Limits | None = None,
    augment: bool = True,
    seed: Natural = 0,
    workers: Threads = 1,
    decoded: Where = None,
    tokenizers: Tokenizers = None,
) -> Source:
    """`video_frames/<id>/<i>.jpg`, `text_data/<id>.txt` and `audio_data/<id>.wav` under `root`.

    An example is an id that at least one of the folders has; the modalities are "video", "text" and
    "audio", any of which an example may lack. The target is "label".

    Costs decoding, once if cached. Use it: for the three folders of the video example. Not: for
    labels of your own (`manifest`).

    Args:
        frames, texts, audios: the folders; `None` for a modality that is not there.
        labels: id -> class: a mapping, a JSON object, or a CSV whose first two columns are that,
            under a header. A path is relative to `root`. An example without one has no label.
        root: of the folders, out of which nothing leads.
        options: modality -> options of its kind, such as `{"video": {"frames": 16}}`.
        split: the share of each split, decided by the hash of the id; 8 to 1 to 1 by default.
        on_bad, limits, augment, seed, workers, decoded, tokenizers: as in `manifest`.
    """
    limits = check_limits(limits)
    choose(on_bad, ON_BAD, f"{_WHERE}.on_bad")
    folder = Folder(root, limits)
    places = {
        name: (place, suffix)
        for name, place, suffix in (
            ("video", frames, ""),
            ("text", texts, ".txt"),
            ("audio", audios, ".wav"),
        )
        if place is not None
    }
    for name in options or {}:
        choose(name, places, f"{_WHERE}.options", "modality")
    classes = _labels(labels, Path(root))
    rows = _rows(places, classes, folder)
    kinds = {name: {"kind": name, **(options or {}).get(name, {})} for name in places}
    if "text" in kinds:
        kinds["text"]["from"] = "file"
    return from_rows(
        rows,
        folder,
        BadRows(rows.path, rows.lines, on_bad),
        limits,
        modalities=kinds,
        targets={"label": {"kind": "class"}} if classes else {},
        split=split or _SHARES,
        augment=augment,
        seed=seed,
        workers=workers,
        decoded=decoded,
        tokenizers=tokenizers,
        name="video_folder",
    )


def _rows(
    places: Mapping[str, tuple[str, str]], classes: Mapping[str, Any], folder: Folder
) -> Rows:
    """One row for each id in any of the folders, as if a manifest had been written."""
    found: dict[str, dict[str, Any]] = {}
    root = Path(folder.root)
    for name, (place, suffix) in places.items():
        if not (root / place).is_dir():
            raise ConfigError(f"{_WHERE}: {root / place} is no folder; give None for no {name}")
        for entry in sorted((root / place).iterdir()):
            if entry.name.startswith(".") or entry.is_dir() != (not suffix):
                continue
            if entry.name.endswith(suffix):
                id = entry.name.removesuffix(suffix)
                found.setdefault(id, {"id": id})[name] = f"{place}/{entry.name}"
    if not found:
        raise ConfigError(
            f"{_WHERE}: there is no example in {', '.join(p for p, _ in places.values())}"
        )
    lost = sorted(set(classes) - set(found))
    if lost:
        raise ConfigError(f"{_WHERE}.labels: {len(lost)} ids have no file, such as {lost[0]!r}")
    values = [{**found[id], "label": classes.get(id)} for id in sorted(found)]
    columns = frozenset((*places, "id", "label"))
    return Rows(root, values, list(range(1, len(values) + 1)), columns)


def _labels(
    labels: Mapping[str, str] | str | os.PathLike[str] | None, root: Path
) -> dict[str, Any]:
    if labels is None or isinstance(labels, Mapping):
        return dict(labels or {})
    path = root / labels
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            found = json.loads(text)
        else:
            found = [row[:2] for row in csv.reader(text.splitlines()) if row][1:]
            if len(dict(found)) < len(found):
                raise Unreadable("an id has two rows")
        return dict(found)
    except (OSError, ValueError, TypeError, RecursionError, csv.Error) as error:
        raise ConfigError(
            f"{_WHERE}.labels: cannot read {path}: {error}; wanted a JSON object or a CSV with a "
            "header and two columns, id and class"
        ) from error
