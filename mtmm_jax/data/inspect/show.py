"""A page of what a source holds: `python -m mtmm_jax.data.inspect.show emoji --out emoji.html`."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mtmm_jax.batch import Batch, Target
from mtmm_jax.data import SOURCES, Source, build
from mtmm_jax.data.inspect.page import Card, Counted, page
from mtmm_jax.data.inspect.parts import sheet
from mtmm_jax.data.pipeline.source import SPLITS
from mtmm_jax.encoders import backbones
from mtmm_jax.ranges import Count
from mtmm_jax.registry import ConfigError, check, choose, entry_of, one_line
from mtmm_jax.store import config as configs

_BATCH = 64  # examples composed at once while counting


def parser() -> argparse.ArgumentParser:
    names = "\n".join(
        textwrap.shorten(f"  {name}: {(inspect.getdoc(make) or '').splitlines()[0]}", 100)
        for name, make in SOURCES.items()
    )
    p = argparse.ArgumentParser(
        prog="python -m mtmm_jax.data.inspect.show",
        description="A page of a source's examples, labels and statistics; one HTML file.",
        epilog=f"options of the source: --config.KEY=VALUE, such as --config.image_size=64\n\n"
        f"sources:\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument("name", nargs="?", metavar="NAME", help="which source")
    p.add_argument("--config", metavar="FILE.py", help="a config of training, instead of NAME")
    p.add_argument("--out", required=True, metavar="PAGE.html", help="the page to write")
    p.add_argument("--png", metavar="SHEET.png", help="a sheet of the pictures besides")
    p.add_argument("--split", default="train", help="train (default), validation or test")
    p.add_argument("--count", type=int, default=24, help="examples to show (default 24)")
    p.add_argument("--augment", action="store_true", help="as training sees them")
    p.add_argument(
        "--sample",
        type=int,
        default=2048,
        help="examples of each split that the statistics are counted on (default 2048)",
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    arguments, rest = parser().parse_known_args(argv)
    try:
        for path in show(arguments, *_section(arguments, rest)):
            print(f"wrote {path} ({path.stat().st_size:,} bytes)")
    # `mtmm_jax.command` would do this, but data stands below it.
    except ConfigError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


def _section(
    arguments: argparse.Namespace, rest: Sequence[str]
) -> tuple[str, dict[str, Any], dict[str, str]]:
    """The source, its options and tokenizers: named, or those of a config with its overrides."""
    if (arguments.name is None) == (arguments.config is None):
        raise ConfigError("show: needs a source's NAME or --config FILE.py, one of them")
    if arguments.config is None:
        return choose(arguments.name, SOURCES, "show", "source"), options(rest), {}
    config = configs.apply_overrides(configs.load(arguments.config), rest)
    config = configs.as_dict(config)
    section = entry_of(config["data"], "data")
    tokenizers = backbones.tokenizers(config["model"].get("encoders"))
    return choose(section.pop("kind", None), SOURCES, "data.kind", "source"), section, tokenizers


def show(
    arguments: argparse.Namespace,
    name: str,
    config: dict[str, Any],
    tokenizers: Mapping[str, str],
) -> list[Path]:
    """Writes the chosen files. Returns the paths."""
    choose(arguments.split, SPLITS, "--split", "split")
    for key in ("count", "sample"):
        check(getattr(arguments, key), Count, f"--{key}")
    if arguments.augment and arguments.split != "train":
        raise ConfigError(f"--augment: examples of {arguments.split} are never augmented")
    source = build({"kind": name, **config}, tokenizers=tokenizers)
    if arguments.augment and not source.draws:
        raise ConfigError(f"--augment: {name} has no augmentation")
    batch = examples(source, arguments.split, arguments.count, arguments.augment)
    writes = {}
    if arguments.png:
        image = sheet(source, batch)
        if image is None:
            raise ConfigError(f"--png: {name} has no pictures; leave it out, the page has the rest")
        writes[Path(arguments.png)] = lambda path: image.save(path, format="PNG")
    counted = {split: count(source, split, arguments.sample) for split in source.rows}
    views = "as training sees them" if arguments.augment else "without augmentation"
    card = Card(
        name=name,
        config=config,
        about=inspect.getdoc(SOURCES[name]) or "",
        card=data_card(SOURCES[name]),
        shown=f"{len(batch['id'])} examples of {arguments.split}, {views}",
    )
    text = page(source, card, counted, batch)
    writes[Path(arguments.out)] = lambda path: path.write_text(text, encoding="utf-8")
    for path, write in writes.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
    return list(writes)


def options(words: Sequence[str]) -> dict[str, Any]:
    """`["--config.a=1", "--config.b.c=x"]` -> `{"a": 1, "b": {"c": "x"}}`."""
    config: dict[str, Any] = {}
    for word in words:
        match = re.fullmatch(r"--config\.([\w.]+)=(.*)", word, re.DOTALL)
        if not match:
            raise ConfigError(
                f"show: cannot make sense of {word!r}; options of the source are written "
                "--config.KEY=VALUE, for others see --help"
            )
        *folders, key = match[1].split(".")
        place = config
        for folder in folders:
            place = place.setdefault(folder, {})
            if not isinstance(place, dict):
                raise ConfigError(f"show: {word!r}: {folder} has been given a value already")
        place[key] = _value(match[2])
    return config


def _value(text: str) -> Any:
    """JSON or a Python literal, else the text as it stands."""
    for read, error in ((json.loads, ValueError), (ast.literal_eval, (ValueError, SyntaxError))):
        try:
            return read(text)
        except error:
            continue
    return text


def data_card(constructor: Callable[..., Any]) -> str:
    """The CARD.md next to the source's code, if there is one."""
    path = Path(inspect.getfile(inspect.unwrap(constructor))).parent / "CARD.md"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def examples(source: Source, split: str, number: int, augment: bool) -> Batch:
    """Some examples: evenly spaced over a split, or the first of training with its augmentation."""
    number = min(number, source.split_size(split))
    if augment:
        return next(
            dataclasses.replace(source, augment=True, workers=0, prepare=lambda: None).train(number)
        )
    return next(_some(source, split, number).batches(split, number))


def _some(source: Source, split: str, number: int) -> Source:
    """With no more than `number` rows in a split, evenly spaced."""
    rows = source.rows[split]
    if len(rows) > number:
        rows = rows[np.arange(number) * len(rows) // number]
    return dataclasses.replace(source, rows={**source.rows, split: rows})


def count(source: Source, split: str, sample: int) -> Counted:
    """Shares of what is present, and values of the labels, over a sample of a split."""
    total = source.split_size(split)
    present: dict[str, list[np.ndarray]] = {
        name: [] for name in (*source.spec.modalities, *source.spec.targets)
    }
    labels: dict[str, list[Any]] = {name: [] for name in source.spec.targets}
    for batch in _some(source, split, sample).batches(split, min(_BATCH, total)) if total else ():
        real = batch["id"] >= 0
        for group, names in (
            ("inputs", source.spec.modalities),
            ("targets", source.spec.targets),
        ):
            for name in names:
                entry = batch[group].get(name)
                here = np.asarray(entry["present"]) & real if entry else np.zeros_like(real)
                present[name].append(here[real])
                if entry and group == "targets":
                    labels[name].append(_summary(source.spec.targets[name], entry["y"], here))
    return Counted(
        total=total,
        sample=min(total, sample),
        present={
            name: float(np.concatenate(parts).mean()) if parts else 0.0
            for name, parts in present.items()
        },
        values={
            name: np.concatenate(parts) if parts else np.zeros(0) for name, parts in labels.items()
        },
    )


def _summary(target: Target, y: Any, here: np.ndarray) -> np.ndarray:
    """Label values for the plot: `[n, C]` per class, or `[n]` numbers; `[n, 0]` for nothing."""
    count = target.traits.count
    if count is None:
        return np.zeros((int(here.sum()), 0))
    return count.of(target, jax.tree.map(lambda leaf: np.asarray(leaf)[here], y))


if __name__ == "__main__":
    sys.exit(main())
