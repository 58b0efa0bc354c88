"""Shared parts of the data sets in the package: from a small asset to examples in memory.

The data set `name` is the package `mtmm_jax.data.<name>`: its `assets/`, and the TFDS builder in
`<name>_dataset_builder.py` that reads them. Pack scripts, which made the assets once, use the
second half of this file.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import io
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mtmm_jax.chance import stretches
from mtmm_jax.data.pipeline.source import SPLITS
from mtmm_jax.data.sources import kept
from mtmm_jax.data.transforms import augment
from mtmm_jax.registry import ConfigError, choose
from mtmm_jax.store import files
from mtmm_jax.store.digests import of_folder

_ROOM = Path(__file__).parent


class Examples(NamedTuple):
    """A prepared data set, read whole.

    Attributes:
        rows: the examples of all splits, in the order of their `id`.
        split: `[N]` the split of each.
        classes: field, or `field/inner` -> the names of its classes.
    """

    rows: list[dict[str, Any]]
    split: np.ndarray
    classes: dict[str, tuple[str, ...]]


def cache(data_dir: str | os.PathLike[str] | None = None) -> Path:
    """The folder of prepared data: the argument, else `$MTMM_JAX_DATA`, else the user's cache."""
    chosen = data_dir or os.environ.get("MTMM_JAX_DATA") or "~/.cache/mtmm_jax"
    return Path(chosen).expanduser()


def assets(name: str) -> list[Path]:
    """The files that a data set was packed into."""
    return sorted((_ROOM / name / "assets").iterdir())


def digest(paths: Iterable[Path]) -> str:
    """A short hash of the files' names and bytes."""
    total = hashlib.sha256()
    for path in paths:
        total.update(path.name.encode() + path.read_bytes())
    return total.hexdigest()[:12]


def prepare(name: str, data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Makes the TFDS data set unless it is there. Returns the folder to give TFDS as `data_dir`.

    Any number of processes may do so at once: each prepares in a folder of its own, and the first
    to finish renames it into place. The folder's name carries a digest of the asset and of the
    builder, so that a newer package never reads an older one's data.
    """
    builder = _ROOM / name / f"{name}_dataset_builder.py"
    final = cache(data_dir) / f"{name}-{digest([*assets(name), builder])}"
    if final.is_dir():
        return final
    print(f"preparing the {name} data set in {final} (once, a few seconds)", file=sys.stderr)
    with _writable(final.parent):
        final.parent.mkdir(parents=True, exist_ok=True)
        own = Path(tempfile.mkdtemp(prefix=f"{final.name}.incomplete-", dir=final.parent))
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # TFDS speaks of a download
                _builder(name, own).download_and_prepare(file_format="array_record")
            shutil.rmtree(own / "downloads", ignore_errors=True)
            files.write(own / _SEAL, files.sealed({"files": of_folder(own)}))
            own.chmod(0o755)
            os.rename(own, final)
        except OSError:
            if not final.is_dir():  # anything but another process having been first
                raise
        finally:
            shutil.rmtree(own, ignore_errors=True)
    return final


_SEAL = "digests.json"
"""In a prepared folder: the SHA-256 of each of its files."""


@contextlib.contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"data.data_dir: cannot write to {folder}: {files.reason(error)}; name a folder with "
            "room, or set MTMM_JAX_DATA to one"
        ) from error


def _builder(name: str, data_dir: Path) -> Any:
    import tensorflow_datasets as tfds  # half a second to import, only when data are wanted

    tfds.disable_progress_bar()
    module = importlib.import_module(f"mtmm_jax.data.sources.{name}.{name}_dataset_builder")
    return module.Builder(data_dir=os.fspath(data_dir), file_format="array_record")


def load(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    make: Callable[[Examples], Any] = lambda examples: examples._asdict(),
    restore: Callable[[Any], Any] = lambda tree: Examples(**tree),
) -> Any:
    """A data set, read whole; prepared if need be.

    What `make` makes of it is kept for as long as no file of `data/` changes: to take records
    apart, and pictures, took two seconds of every start. What is damaged is made again.

    Args:
        name: of the data set.
        data_dir: where prepared data are kept.
        make: examples -> a tree as `kept.save` takes it.
        restore: such a tree -> what is returned.
    """
    folder = prepare(name, data_dir)
    place = folder / f"made-{digest(sorted(_ROOM.parent.rglob('*.py')))}"
    if place.with_suffix(".json").exists():
        try:
            return restore(kept.load(place))
        except files.Damaged as error:
            print(f"{error}; it is made again", file=sys.stderr)
    made = make(_whole(name, data_dir, folder))
    with contextlib.suppress(OSError):  # a full disk, a folder of somebody else's
        kept.save(made, place)
        for old in {*folder.glob("made-*")} - {place.with_suffix(s) for s in (".npz", ".json")}:
            old.unlink(missing_ok=True)
    return restore(made)


def _whole(name: str, data_dir: str | os.PathLike[str] | None, folder: Path) -> Examples:
    """The prepared examples; where their files are damaged, they are prepared anew, once."""
    why = _damage(folder)
    if not why:
        try:
            return _read(name, folder)
        except Exception as error:  # TFDS and array_record raise many classes
            why = f"cannot be read: {type(error).__name__}: {files.reason(error)[:120]}"
    print(f"{folder}: {why}; the {name} data set is prepared anew", file=sys.stderr)
    aside = Path(tempfile.mkdtemp(prefix=f"{folder.name}.damaged-", dir=folder.parent))
    with _writable(folder), contextlib.suppress(FileNotFoundError):
        folder.rename(aside / folder.name)
    shutil.rmtree(aside, ignore_errors=True)
    return _read(name, prepare(name, data_dir))


def _damage(folder: Path) -> str:
    """The name of a prepared file that is damaged; empty where none is."""
    seal = folder / _SEAL
    try:
        written = files.unsealed(files.read_bytes(seal), seal)[0]["files"]
        found = of_folder(folder)
    except (files.Damaged, KeyError, OSError) as error:
        return files.reason(error)
    wrong = [name for name, value in written.items() if found.get(name) != value]
    return f"{wrong[0]} is not what was written" if wrong else ""


def _read(name: str, folder: Path) -> Examples:
    builder = _builder(name, folder)
    decoders = getattr(sys.modules[type(builder).__module__], "decoders", dict)()
    rows, splits = [], []
    for split in SPLITS:
        source = builder.as_data_source(split, decoders=decoders)
        rows += source.__getitems__(range(len(source)))
        splits += [split] * len(source)
    order = np.argsort([row["id"] for row in rows])
    classes = dict(_classes(builder.info.features))
    return Examples([rows[i] for i in order], np.array(splits)[order], classes)


def _classes(features: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, tuple[str, ...]]]:
    for field, of in features.items():
        if hasattr(of, "items"):
            yield from _classes(of, f"{above}{field}/")
        elif hasattr(of, "names"):
            yield above + field, tuple(of.names)


def rows_by_split(split: np.ndarray) -> dict[str, np.ndarray]:
    """`Source.rows` of a data set whose rows are its examples."""
    return {name: np.flatnonzero(split == name) for name in SPLITS}


def scale(values: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of `[N, ...]` over its `train` rows, not-a-number left out.

    What does not vary gets a deviation of 1, so that it can be divided by.
    """
    mean, std = np.nanmean(values[train], axis=0), np.nanstd(values[train], axis=0)
    return mean, np.where(std > 0, std, 1)


def noisy(x: np.ndarray, level: float, chance: np.ndarray) -> np.ndarray:
    """`x` `[B, ...]`, half of it with noise of a deviation up to `level`; two draws an example."""
    return augment.noise(x, chance[:, :1], stretches(chance[:, 1], x.shape[1:]), level)


def checked(
    chosen: str | Iterable[str], choices: Iterable[str], where: str, what: str
) -> tuple[str, ...]:
    """One or more different names of `choices`."""
    names = (chosen,) if isinstance(chosen, str) else tuple(chosen)
    for name in names:
        choose(name, choices, where, what)
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"{where}: {names} must name one or more different {what}s")
    return names


def frequencies(labels: np.ndarray, classes: int) -> tuple[float, ...]:
    """`Target.frequencies` of a class target, from the labels `[N]` of the train split."""
    counts = np.bincount(labels, minlength=classes)
    return tuple((counts / counts.sum()).tolist())


# What pack scripts share.


def deal(
    keys: Sequence[str], held_out: Mapping[str, float], strata: Sequence[str] | None = None
) -> list[str]:
    """The split of each key: held-out splits take their shares, "train" the rest.

    Keys are dealt in the order of their hashes, which no meaning or place has a part in; equal keys
    are one, and stay together. With `strata`, such as classes, each stratum is dealt by itself.
    """
    keys = list(zip(strata or [""] * len(keys), keys, strict=True))
    split = {}
    for stratum in sorted({stratum for stratum, _ in keys}):
        own = {key for key in keys if key[0] == stratum}
        order = sorted(own, key=lambda key: hashlib.sha256(" ".join(key).encode()).digest())
        split.update(dict.fromkeys(order, "train"))
        start = 0
        for name, share in held_out.items():
            stop = start + round(share * len(order))
            split.update(dict.fromkeys(order[start:stop], name))
            start = stop
    return [split[key] for key in keys]


def fetch(wheel: Path, members: Mapping[str, str]) -> dict[str, bytes]:
    """Files of a downloaded wheel, or of the folder it was unpacked or installed into.

    Args:
        wheel: file or folder.
        members: path inside the wheel -> the SHA-256 that it must have: another release may hold
            other data under another licence.
    """
    found = {}
    for member, wanted in members.items():
        try:
            if wheel.is_dir():
                found[member] = (wheel / member).read_bytes()
            else:
                with zipfile.ZipFile(wheel) as archive:
                    found[member] = archive.read(member)
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise ConfigError(f"--wheel: no {member} in {wheel}: {error}") from error
        got = hashlib.sha256(found[member]).hexdigest()
        if got != wanted:
            raise ConfigError(f"--wheel: {member} has SHA-256 {got}, not {wanted}: another release")
    return found


def table(head: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """A Markdown table; whole numbers get thousands separators."""

    def cell(value: object) -> str:
        return f"{value:,}" if isinstance(value, int | np.integer) else str(value)

    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(map(cell, row))} |" for row in rows)


def main(
    name: str,
    about: str,
    limit: int,
    members: Mapping[str, str],
    pack: Callable[[Mapping[str, bytes], Path], None],
    render: Callable[[Path], str],
    arguments: Sequence[str] | None,
) -> int:
    """The command of a pack script.

    Args:
        name: of the data set.
        about: the script's docstring, shown as help.
        limit: bytes that the asset may have.
        members: files of the wheel that it is made from, as `fetch` takes them.
        pack: `(files, folder)`: writes the asset.
        render: folder -> the text of CARD.md.
        arguments: of the command line.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m mtmm_jax.data.{name}.pack",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--wheel", type=Path, required=True, metavar="PATH", help="the wheel, or its folder"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=_ROOM / name / "assets",
        metavar="DIR",
        help="folder of the asset; the data card goes next to it (default: inside the package)",
    )
    options = parser.parse_args(arguments)
    try:
        files = fetch(options.wheel, members)
        options.out.mkdir(parents=True, exist_ok=True)
        pack(files, options.out)
        size = sum(path.stat().st_size for path in options.out.iterdir())
        if size > limit:
            raise ConfigError(f"{options.out}: {size:,} bytes; at most {limit:,} may ship")
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    card = options.out.parent / "CARD.md"
    card.write_text(render(options.out), encoding="utf-8")
    print(f"{size:,} bytes in {options.out}; card: {card}", file=sys.stderr)
    return 0
