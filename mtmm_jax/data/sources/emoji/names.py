"""Names and keywords of emoji, from the three npm packages' metadata."""

from __future__ import annotations

import dataclasses
import json
import re
import unicodedata
from pathlib import Path
from typing import Any

from mtmm_jax.registry import ConfigError

PACKAGES = {
    "emoji-datasource-google": "16.0.0",
    "emoji-datasource-twitter": "16.0.0",
    "emojibase-data": "17.0.0",
}
# The year in which the Unicode Consortium released each emoji version.
YEARS = {
    **{"0.6": 2010, "0.7": 2014, "1.0": 2015, "2.0": 2015, "3.0": 2016, "4.0": 2016, "5.0": 2017},
    **{"11.0": 2018, "12.0": 2019, "12.1": 2019, "13.0": 2020, "13.1": 2020, "14.0": 2021},
    **{"15.0": 2022, "15.1": 2023, "16.0": 2024},
}
_SPOKEN = {"&": " and ", "’": "'", "#": "hash", "*": "asterisk"}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One emoji before it is drawn and spoken. `spoken` keeps capitals: "ATM" is spelt out."""

    code: str
    image: str
    spoken: str
    keywords: tuple[str, ...]
    category: str
    subcategory: str
    year: int


def readable(label: str) -> str:
    """A CLDR short name as one would say it: "flag: Åland Islands" -> "flag of Åland Islands"."""
    text = unicodedata.normalize("NFKC", label).replace("flag: ", "flag of ")
    for sign, word in _SPOKEN.items():
        text = text.replace(sign, word)
    text = re.sub(r"[^\w\s'-]", " ", text.replace(".", "")).replace(" - ", " ")
    return " ".join(text.split())


def read_entries(npm: Path) -> list[Entry]:
    """Every emoji without skin-tone variants and components, in the order of the code charts."""
    check_versions(npm)
    named = {row["hexcode"]: row for row in _json(npm, "emojibase-data", "en/data.json")}
    rows = _json(npm, "emoji-datasource-google", "emoji.json")
    rows = sorted(rows, key=lambda row: row["sort_order"])
    return [_entry(row, _find(named, row)) for row in rows if row["category"] != "Component"]


def check_versions(npm: Path) -> None:
    """The packages must be the ones whose counts the card states."""
    for package, version in PACKAGES.items():
        found = _json(npm, package, "package.json")["version"]
        if found != version:
            raise ConfigError(f"--npm {npm}: {package} is version {found}; wanted {version}")


def _json(npm: Path, package: str, name: str) -> Any:
    path = npm / "node_modules" / package / name
    if not path.is_file():
        wanted = " ".join(f"{key}@{value}" for key, value in PACKAGES.items())
        raise ConfigError(f"--npm {npm}: has no {path}; run `npm install {wanted}` in that folder")
    return json.loads(path.read_text(encoding="utf-8"))


def _find(named: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    for code in (row["unified"], row["non_qualified"], row["unified"].replace("-FE0F", "")):
        if code in named:
            return named[code]
    raise ConfigError(f"emojibase-data has no name for {row['unified']} ({row['name']})")


def _entry(row: dict[str, Any], named: dict[str, Any]) -> Entry:
    tags = (readable(tag).lower() for tag in named.get("tags", ()))
    return Entry(
        code=row["unified"],
        image=row["image"],
        spoken=readable(named["label"]),
        keywords=tuple(dict.fromkeys(tag for tag in tags if tag)),
        category=row["category"],
        subcategory=row["subcategory"],
        year=YEARS[row["added_in"]],
    )
