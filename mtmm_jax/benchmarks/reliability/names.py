"""Hostile names of tasks, modalities, classes, texts and files, through every page.

    python -m mtmm_jax.benchmarks.reliability.names --browser chromium --json names.json

Each set of names makes a small run; the report, an explanation, an export and the page of the data
are written, and opened in a browser where one is given. A name may be refused in one line. A fault
is what `calls.fault` says, an element or an attribute in a page that this package does not write, a
script that ran, or a file outside the run's folder.
"""

from __future__ import annotations

import argparse
import html.parser
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mtmm_jax.benchmarks.reliability import calls
from mtmm_jax.benchmarks.reliability.browser import PAYLOAD, check_browser, opened_faults
from mtmm_jax.benchmarks.reliability.world import Names, World, write_data
from mtmm_jax.command import console, guarded
from mtmm_jax.ranges import Count
from mtmm_jax.registry import check

HOSTILE = (
    f"<script>{PAYLOAD}</script>",
    f"'><img src=x onerror={PAYLOAD}>",
    f'"><svg onload={PAYLOAD}>',
    f"</title><script>{PAYLOAD}</script>",
    f"</style><script>{PAYLOAD}</script>",
    "&lt;script&gt;",
    f"javascript:{PAYLOAD}",
    "data:text/html,<b>",
    "../../../escaped",
    "/tmp/escaped",
    "..",
    "C:\\escaped",
    "a/b",
    "~root",
    "CON",
    ".hidden",
    "-rf",
    "$\\frac{1}{",
    "[bold]x[/bold]",
    "[/]",
    "{0.__class__}",
    "%s%n",
    "\u202egnp.exe",
    "\x1b[2J\x1b[31mred",
    "two\nlines",
    "\x00null",
    "\U0001f600",
    "x" * 300,
    " ",
    "__proto__",
)
TAGS = {
    "br", "ul", "li",
    "html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "nav", "a",
    "table", "tr", "td", "th", "pre", "code", "div", "span", "img", "svg", "polygon",
    "polyline", "rect", "audio", "details", "summary", "dl", "dt", "dd", "i", "b", "em",
}  # fmt: skip
ATTRIBUTES = {
    "lang", "charset", "http-equiv", "content", "name", "id", "href", "class", "style",
    "title", "alt", "src", "viewbox", "preserveaspectratio", "fill", "points", "stroke",
    "vector-effect", "controls", "preload", "x", "y", "width", "height", "stroke-width",
}  # fmt: skip


class Reader(html.parser.HTMLParser):
    """Collects what a page should not have."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.wrong: list[str] = []
        self.policy = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in TAGS:
            self.wrong.append(f"<{tag}>")
        for name, value in attrs:
            if name not in ATTRIBUTES:
                self.wrong.append(f"<{tag} {name}>")
            plain = (value or "").strip().lower()
            if name in ("src", "href") and not plain.startswith(
                ("#", "data:image/", "data:audio/")
            ):
                self.wrong.append(f"<{tag} {name}={plain[:40]}>")
            self.policy |= value is not None and "default-src 'none'" in value


def page_faults(text: str) -> list[str]:
    """Elements and attributes that this package does not write, and a missing policy."""
    reader = Reader()
    reader.feed(text)
    return reader.wrong + ([] if reader.policy else ["no policy"])


def names_of(name: str, place: str) -> Names:
    """One hostile name in one place."""
    if place == "classes":
        return Names(classes=(name, f"{name}2", "c"))
    if place == "words":
        return Names(words=(name, f"{name} {name}", "red", "green"))
    return Names(**{place: name})


PLACES = ("task", "number", "text", "image", "classes", "words", "files")


def trial(
    folder: Path, name: str, place: str, call: Any, browser: str | None = None
) -> dict[str, Any]:
    """One name in one place, through the commands."""
    world = World(folder / "names" / "world")
    world.root.mkdir(parents=True)
    row = {"name": name[:60], "place": place, "code": None, "said": "", "pages": 0}
    row["fault"] = None
    try:
        write_data(world, names_of(name, place))
    except (OSError, ValueError) as error:  # of a file name that the system refuses
        return {**row, "said": f"not a file name here: {calls.shown(str(error), 200)}"}
    before = _outside(folder)
    run = str(world.run)
    page, wanted = str(world.root / "data.html"), ("--text", "red", "--explain")
    text = names_of(name, place).text
    for command, *arguments in (
        ("train", "--config", str(world.root / "config.py"), "--workdir", run),
        ("predict", "--workdir", run, f"--{text}", *wanted[1:], str(world.root / "why")),
        ("report", "--workdir", run, "--figures", str(world.root / "figures")),
        ("export", "--workdir", run, "--out", str(world.root / "out.zip")),
        ("data.inspect.show", "--config", str(world.root / "config.py"), "--out", page),
    ):
        found = call(command, *arguments, seconds=300, **world.environment)
        row |= {"code": found["code"], "said": calls.shown(found["error"])}
        if problem := calls.fault(found):
            row["fault"] = f"{command}: {problem}"
            break
        if found["code"] == 2 and command == "train":
            break
    for path in sorted(world.root.rglob("*.html")):
        wrong = page_faults(path.read_text())
        row["pages"] += 1
        if browser:
            wrong += opened_faults(browser, path, TAGS)
        if wrong:
            row["fault"] = f"{path.name}: {wrong[:3]}"
    if new := _outside(folder) - before:
        row["fault"] = f"wrote {sorted(new)[:3]}"
    return row


def _outside(folder: Path) -> set[str]:
    """The files around the world, and where absolute names lead."""
    around = {path.as_posix() for path in (folder, folder / "names") for path in path.iterdir()}
    return around | {path.as_posix() for path in Path(tempfile.gettempdir()).glob("escaped*")}


def chosen(count: int, seed: int = 0) -> Iterator[tuple[str, str]]:
    """Each name in one place, the places in turns, moved on by the seed."""
    for i in range(count):
        yield HOSTILE[i % len(HOSTILE)], PLACES[(i + i // len(HOSTILE) + seed) % len(PLACES)]


def run(
    count: int, seed: int, folder: Path, out: Any = None, browser: str | None = None
) -> list[dict[str, Any]]:
    """A row for each name."""
    rows = []
    with calls.caller() as call:
        for name, place in chosen(count, seed):
            rows.append(trial(folder, name, place, call, browser))
            shutil.rmtree(folder / "names", ignore_errors=True)
            if out is not None and rows[-1]["fault"]:
                out.print(json.dumps(rows[-1]), soft_wrap=True, highlight=False)
    return rows


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(
        prog="python -m mtmm_jax.benchmarks.reliability.names",
        description="Trains runs with hostile names, and reads every page they reach.",
    )
    p.add_argument("--count", type=int, default=len(HOSTILE), help="how many (default: 30)")
    p.add_argument("--seed", type=int, default=0, help="which places (default: 0)")
    p.add_argument("--browser", help="a command such as chromium, which opens every page")
    p.add_argument("--json", help="a file for what happened")
    arguments = p.parse_args(argv)
    check(arguments.count, Count, "--count")
    out = console()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.browser:
            check_browser(arguments.browser, Path(folder))
        rows = run(arguments.count, arguments.seed, Path(folder), out, arguments.browser)
    faults = sum(row["fault"] is not None for row in rows)
    refused = sum(row["code"] == 2 for row in rows)
    out.print(f"{len(rows)} names, {refused} refused, {faults} faults", highlight=False)
    settings = {"seed": arguments.seed, "names": len(rows), "refused": refused}
    opened = sum(row["pages"] for row in rows) if arguments.browser else 0
    settings |= {"pages": sum(row["pages"] for row in rows), "opened_in_a_browser": opened}
    return calls.finish(rows, arguments.json, **settings)


if __name__ == "__main__":
    sys.exit(main())
