"""Guesses of what a table's columns mean, with reasons, from the content of files and cells."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import re
from collections.abc import Collection, Sequence
from typing import Any

from mtmm_jax.data.sources.manifest.formats import FILE
from mtmm_jax.data.sources.manifest.rows import Rows
from mtmm_jax.modalities import MODALITIES
from mtmm_jax.readers.cells import is_number
from mtmm_jax.readers.files import Folder, check_path
from mtmm_jax.readers.limits import Unreadable
from mtmm_jax.registry import choose
from mtmm_jax.targets import TARGETS
from mtmm_jax.targets.column import is_date, most

TAIL = 5  # rows below which a class is in the tail
_OPENED = 20  # files whose content is looked at
_CATEGORIES = 256  # of an input column at most
_ID_NAME = re.compile(r"(?i)^(id|uuid|guid|index)$")
_GROUP_NAME = re.compile(r"(?i)([_ -]id|^group|_group|session|patient|subject|speaker)$")


@dataclasses.dataclass(frozen=True)
class ColumnLook:
    """A column, what it is taken for, and what it holds.

    Attributes:
        name: of the column.
        role: "modality", "target", "table" (one of the columns of a table that is an input), "id",
            "group", "time", "split" or "" (left out).
        kind: of the modality or target; empty for other roles.
        why: in words.
        options: of the kind.
        present, missing, distinct: rows with a value, without one, and different values.
        classes: class -> rows, of a column of classes.
    """

    name: str
    role: str
    kind: str
    why: str
    options: dict[str, Any]
    present: int
    missing: int
    distinct: int
    classes: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def tail(self) -> int:
        """The number of classes with fewer than `TAIL` rows."""
        return sum(count < TAIL for count in self.classes.values())


def look_at_columns(rows: Rows, folder: Folder, labels: Collection[str] = ()) -> list[ColumnLook]:
    """Every column of a table.

    Args:
        rows: of the table.
        folder: of the files that rows name.
        labels: the columns to predict; all that can be by default. With labels other numbers and
            classes are columns of a table, which is an input.
    """
    for label in labels:
        choose(label, rows.columns, "--label", f"column of {rows.path}")
    order = dict.fromkeys(key for row in rows.values for key in row)
    return [look_at_column(name, rows, folder, labels) for name in order]


def look_at_column(
    name: str, rows: Rows, folder: Folder, labels: Collection[str] = ()
) -> ColumnLook:
    """One column of a table; the arguments as of `look_at_columns`."""
    cells = [row.get(name) for row in rows.values]
    values = [cell for cell in cells if cell not in (None, "")]
    names = collections.Counter(map(plain_key, values))
    role, kind, why, options = "", "", "has no value", {}
    if values:
        role, kind, why, options = _meaning(name, values, len(names), folder, name in labels)
    if role == "target" and labels and name not in labels:
        role, kind, why, options = _as_input(kind, why, values, len(names))
    discrete = kind == "category" or (kind in TARGETS and TARGETS[kind].discrete)
    classes = {str(_plain(value)): count for value, count in names.items()} if discrete else {}
    missing = len(rows) - len(values)
    return ColumnLook(name, role, kind, why, options, len(values), missing, len(names), classes)


def _meaning(
    name: str, values: Sequence[Any], distinct: int, folder: Folder, label: bool
) -> tuple[str, str, str, dict[str, Any]]:
    """`(role, kind, why, options)`."""
    if name == "split" and not label:
        return "split", "", "its name", {}
    if not label:
        if (found := _files(values, folder)) is not None:
            return found
        if most(values, is_date):
            return "time", "", "dates; `split.time` can divide by them", {}
        if (why := _names_rows(name, values, distinct)) is not None:
            return "id", "", why, {}
        if _GROUP_NAME.search(name) and distinct > 1:
            return "group", "", f"its name, and {len(values) / distinct:.1f} rows each", {}
    # The last kind of the table that claims a column has it.
    for kind, row in reversed(TARGETS.items()):
        options = None if row.guess is None or row.column is None else row.guess(values)
        if options is not None:
            return "target", kind, _why(kind, values, distinct), options
    if label:
        return "target", "class", f"a label, {distinct} different", {}
    return "modality", "text", f"texts, {distinct} of {len(values)} different", _length(values)


def _length(values: Sequence[Any]) -> dict[str, Any]:
    """The tokens that 95 of 100 texts need at most, 4 for 3 words, between 16 and 128."""
    words = sorted(len(str(value).split()) for value in values)
    need = math.ceil(words[int(0.95 * (len(words) - 1))] * 4 / 3)
    return {"length": min(max(-(-need // 8) * 8, 16), 128)}


def _why(kind: str, values: Sequence[Any], distinct: int) -> str:
    if not most(values, is_number):
        return f"{distinct} different in {len(values)}"
    if TARGETS[kind].discrete:
        return f"whole numbers without a gap, {distinct} different"
    return f"numbers, {distinct} different"


def _as_input(
    kind: str, why: str, values: Sequence[Any], distinct: int
) -> tuple[str, str, str, dict[str, Any]]:
    """A column that could be a label and is none: a column of the table that is an input, or a
    text where it has too many classes."""
    number = kind in TARGETS and TARGETS[kind].value is not None and not TARGETS[kind].discrete
    if number or (kind in TARGETS and TARGETS[kind].discrete and distinct <= _CATEGORIES):
        return "table", "number" if number else "category", why, {}
    if all(isinstance(value, str) for value in values) and not most(values, is_number):
        return "modality", "text", f"{why}: too many for categories", _length(values)
    return "", "", f"{why}; no label, and no column of a table", {}


def _names_rows(name: str, values: Sequence[Any], distinct: int) -> str | None:
    """The reason why a column is an id of rows; None where it is not."""
    if _ID_NAME.search(name):
        return "its name"
    if distinct < len(values) or len(values) < TAIL:
        return None
    texts = [str(value) for value in values]
    if all(text.isdigit() for text in texts):
        numbers = sorted(int(text[-18:]) for text in texts)
        gapless = numbers[-1] - numbers[0] == len(numbers) - 1
        return "whole numbers that count the rows" if gapless else None
    single = [text for text in texts if " " not in text and re.search(r"\d", text)]
    words = len(single) == len(texts) and not most(values, is_number)
    return "different in every row, one word with digits" if words else None


def _files(values: Sequence[Any], folder: Folder) -> tuple[str, str, str, dict[str, Any]] | None:
    """The kind of files that a column names, by their first bytes, else by their endings."""
    texts = [value for value in values if isinstance(value, str)]
    if len(texts) <= len(values) / 2:
        return None
    sample = texts[:: max(len(texts) // _OPENED, 1)]
    contents = [_content(value, folder) for value in sample]
    kinds: collections.Counter[str] = collections.Counter()
    for value, data in zip(sample, contents, strict=True):
        kinds[_kind_of_file(value, data, folder, len(set(sample)) > len(sample) / 2)] += 1
    kinds.pop("", None)
    if not kinds or kinds.total() <= len(sample) / 2:
        return None
    kind, count = kinds.most_common(1)[0]
    why = f"{count} of {len(sample)} looked at are such files"
    if others := [other for other in kinds if other != kind]:
        why += f" (others: {', '.join(others)})"
    return "modality", kind, why, MODALITIES[kind].guess(list(filter(None, contents)))


def _kind_of_file(value: str, data: bytes, folder: Folder, clips: bool) -> str:
    """The modality of a file of that content, or of a folder where `clips`; empty where the text
    names none."""
    with contextlib.suppress(Unreadable, ValueError):
        if clips and folder.is_folder(check_path(value)):
            return "video"
    by_content = [
        n
        for n, row in MODALITIES.items()
        if (row.magic and re.match(row.magic, data[:16], re.DOTALL)) or row.claims(data)
    ]
    by_ending = [
        n for n, row in MODALITIES.items() if row.endings and value.lower().endswith(row.endings)
    ]
    return next(iter((*by_content, *by_ending)), "")


def _content(value: str, folder: Folder) -> bytes:
    """Of a file; empty where there is none that can be read."""
    try:
        return folder.read(check_path(value))
    except (Unreadable, ValueError):
        return b""


def name_of(look: ColumnLook) -> str:
    """The name of the modality or target of a column."""
    return look.kind if look.name == FILE else look.name


def description_of(rows: Rows, looks: Sequence[ColumnLook]) -> dict[str, Any]:
    """The arguments of `manifest` that describe the columns."""
    found: dict[str, Any] = {"modalities": {}, "targets": {}}
    for look in looks:
        if look.role in ("modality", "target"):
            place = found["modalities" if look.role == "modality" else "targets"]
            name = name_of(look)
            own = {} if name == look.name else {"column": look.name}
            options = {**own, **look.options}
            place[name] = {"kind": look.kind, **options} if options else look.kind
    # Without a kind a column of texts is of categories, one of numbers of numbers.
    table = [
        {"column": one.name, "kind": one.kind}
        if one.kind == "category" and all(map(is_number, one.classes))
        else one.name
        for one in looks
        if one.role == "table"
    ]
    if table:
        found["modalities"]["table"] = {"kind": "table", "columns": table}
    if not any(look.role == "split" for look in looks):
        found["split"] = {"train": 0.8, "validation": 0.1, "test": 0.1}
        classes = [look for look in looks if look.role == "target" and look.classes]
        groups = [look for look in looks if look.role == "group"]
        if len(classes) == 1:
            found["split"]["stratified"] = classes[0].name
        if len(groups) == 1:
            found["split"]["group"] = groups[0].name
    ids = [look.name for look in looks if look.role == "id" and not look.missing]
    if ids and "id" not in rows.columns:
        found["id"] = ids[0]
    return found


def _plain(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value


def plain_key(value: Any) -> Any:
    """A value that can be counted: itself, or how Python writes it."""
    return value if isinstance(value, str | int | float | bool) else repr(value)
