"""Rows of Parquet files, of folders of files and of columns in memory, as plain Python values."""

from __future__ import annotations

import datetime
import decimal
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from mtmm_jax.modalities import MODALITIES
from mtmm_jax.registry import ConfigError

FILE = "file_name"
"""The column of a metadata file that names a row's file, as on the Hugging Face hub."""
_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.tsv", "metadata.parquet")
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""How folders of splits are called -> the split."""


def rows_of_parquet(file: BinaryIO) -> list[dict[str, Any]]:
    """The rows of a Parquet file; a column of bytes is refused, since files are read by name."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(file)
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"cannot be read as Parquet: {reason}") from error
    for field in table.schema:
        if holds_bytes(field.type):
            raise ConfigError(
                f"column {field.name!r} holds bytes, of which training reads shards: python -m "
                'mtmm_jax.data.pack TABLE --out shards, then data = {"kind": "packed", "path": '
                '"shards"}'
            )
    return [{key: plain(value) for key, value in row.items()} for row in table.to_pylist()]


def holds_bytes(kind: Any) -> bool:
    """Whether a column of this pyarrow type holds bytes, itself or in a field (`{bytes, path}`)."""
    import pyarrow

    fields = [part.type for part in kind] if pyarrow.types.is_struct(kind) else []
    binary = (pyarrow.types.is_binary, pyarrow.types.is_large_binary, pyarrow.types.is_binary_view)
    return any(test(one) for one in (kind, *fields) for test in binary)


def rows_of_columns(table: Any) -> list[dict[str, Any]]:
    """The rows of a dict of lists, or of a frame with `to_pydict()` or `to_dict("list")`."""
    if hasattr(table, "to_pydict"):
        table = table.to_pydict()
    elif not isinstance(table, Mapping) and hasattr(table, "to_dict"):
        table = table.to_dict("list")
    if not isinstance(table, Mapping) or not table:
        raise ConfigError(
            f"manifest: {type(table).__name__} is no table; give a path, a dict of lists or a frame"
        )
    for name, column in table.items():
        if isinstance(column, str) or not hasattr(column, "__len__"):
            raise ConfigError(f"manifest: column {name!r} is {type(column).__name__}, not a list")
    sizes = {str(name): len(column) for name, column in table.items()}
    if len(set(sizes.values())) > 1:
        raise ConfigError(f"manifest: columns have different numbers of rows: {sizes}")
    cells = [[plain(value) for value in column] for column in table.values()]
    return [dict(zip(sizes, row, strict=True)) for row in zip(*cells, strict=True)]


def plain(value: Any) -> Any:
    """A value as JSON has it; `None` for what frames write where nothing is (NaN, NaT)."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, datetime.date | datetime.time):
        return None if value != value else value.isoformat()
    if isinstance(value, decimal.Decimal):
        return float(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # of NumPy, and of what is like it
        return plain(value.tolist())
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [plain(part) for part in value]
    return None if value != value else value


def metadata_files(root: Path) -> list[tuple[Path, str, str | None]]:
    """`(file, folder that its names are relative to, split)`: in the root, or one for a split."""
    for name in _METADATA:
        if (root / name).is_file():
            return [(root / name, "", None)]
    return [
        (folder / name, folder.name, SPLIT_NAMES[folder.name.lower()])
        for folder in sorted(root.iterdir())
        if folder.is_dir() and folder.name.lower() in SPLIT_NAMES
        for name in _METADATA
        if (folder / name).is_file()
    ]


def placed(row: Mapping[str, Any], below: str, split: str | None) -> dict[str, Any]:
    """A row of a metadata file, its file named from the root and its split by the folder."""
    name = row.get(FILE)
    if below and isinstance(name, str):
        name = f"{below}/{name}"
    top = name.split("/")[0].lower() if isinstance(name, str) and "/" in name else ""
    found = {**row, FILE: name} if FILE in row else dict(row)
    if (split := split or SPLIT_NAMES.get(top)) is not None:
        found.setdefault("split", split)
    return found


def files_by_class(root: Path) -> list[dict[str, Any]]:
    """`class/file` or `split/class/file`: a row a file, with its class as `label`.

    The column of the file is called as the kind of modality whose endings it has.
    """
    folders = _folders(root)
    splits = {
        folder: SPLIT_NAMES[folder.name.lower()]
        for folder in folders
        if folder.name.lower() in SPLIT_NAMES and _folders(folder)
    }
    if splits and len(splits) < len(folders):
        odd = next(folder.name for folder in folders if folder not in splits)
        raise ConfigError(
            f"manifest {root}: has folders of splits ({', '.join(f.name for f in splits)}) and "
            f"{odd!r}, which is none; classes stand within the splits"
        )
    tops = list(splits) or [root]
    rows = [
        {kind: file.relative_to(root).as_posix(), "label": folder.name}
        | ({"split": splits[top]} if top in splits else {})
        for top in tops
        for folder in _folders(top)
        for file in sorted(folder.rglob("*"))
        if (kind := _kind(file)) is not None
    ]
    if not rows:
        known = ", ".join(ending for row in MODALITIES.values() for ending in row.endings)
        raise ConfigError(
            f"manifest {root}: is a folder without {', '.join(_METADATA)} and without "
            f"class/file; endings of files: {known}"
        )
    return rows


def _folders(root: Path) -> list[Path]:
    return [p for p in sorted(root.iterdir()) if p.is_dir() and not p.name.startswith(".")]


def _kind(file: Path) -> str | None:
    if file.name.startswith(".") or not file.is_file():
        return None
    for name, row in MODALITIES.items():
        if file.name.lower().endswith(row.endings) and row.endings:
            return name
    return None
