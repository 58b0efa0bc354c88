"""Pages opened in a browser: what it makes of them, and whether a script ran.

Each page is opened as it is, and again without its content security policy, so that escaping and
policy are tested apart. A page that is known to run a script is opened before: a browser that runs
none would find nothing.
"""

from __future__ import annotations

import html
import html.parser
import re
import subprocess
import tempfile
from collections.abc import Collection
from pathlib import Path

from mtmm_jax.registry import ConfigError

PAYLOAD = "document['title']=1"  # a script that ran is seen by the title; names have no dots
SECONDS = 120
_POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')


class _Elements(html.parser.HTMLParser):
    """The tags of a page, and the text of its title."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.title, self._in_title = "", False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self._in_title = tag == "title"

    def handle_endtag(self, tag: str) -> None:
        self._in_title = False

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data


def _read(text: str) -> _Elements:
    found = _Elements()
    found.feed(text)
    return found


def dom(browser: str, path: Path) -> str:
    """The document that a browser has of a file when it is loaded.

    Args:
        browser: the command of Chromium or Chrome.
        path: of the page.
    """
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-extensions"]
        command += [f"--user-data-dir={profile}", "--dump-dom", path.absolute().as_uri()]
        try:
            done = subprocess.run(command, capture_output=True, timeout=SECONDS, check=True)
        except (OSError, subprocess.SubprocessError) as error:
            raise ConfigError(f"--browser: {browser} did not open {path.name}: {error}") from error
    return done.stdout.decode("utf-8", "replace")


def check_browser(browser: str, folder: Path) -> None:
    """Raises a `ConfigError` where a browser does not run a script, or runs it despite a policy."""
    plain = f"<!doctype html><title>0</title><script>{PAYLOAD}</script>"
    policy = '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'">'
    for text, title in ((plain, "1"), (plain.replace("<title>", f"{policy}<title>"), "0")):
        path = folder / "control.html"
        path.write_text(text)
        if _read(dom(browser, path)).title != title:
            raise ConfigError(f"--browser: {browser} shows a known page as no browser does")
        path.unlink()


def opened_faults(browser: str, path: Path, allowed: Collection[str]) -> list[str]:
    """The parts of a page in a browser that should not be there.

    Args:
        browser: the command.
        path: of the page.
        allowed: the elements that this package writes.
    """
    text, faults = path.read_text(), []
    expected = " ".join(_read(text).title.split())
    bare = path.with_name(f"{path.stem}.bare.htm")
    bare.write_text(_POLICY.sub("", text))
    for file, how in ((path, "with its policy"), (bare, "without a policy")):
        found = _read(dom(browser, file))
        if strange := sorted(found.tags - {*allowed, "tbody"}):
            faults.append(f"{how}: elements {', '.join(strange)}")
        if " ".join(found.title.split()) != expected:
            faults.append(f"{how}: the title is {found.title[:60]!r}, not {expected[:60]!r}")
    bare.unlink()
    return faults
