"""Pages: text is text, and nothing runs or is loaded."""

import pytest

from mtmm_jax import markup
from mtmm_jax.benchmarks.reliability.names import HOSTILE, page_faults


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_stays_text(name):
    shown = markup.escape(name)
    body = f"<p title='{shown}'>{shown}</p>{markup.row([name])}<div title=\"{shown}\"></div>"
    assert page_faults(markup.page(name, "p { color: red }", body)) == []
    assert not {"\x1b", "\x00", "\u202e"} & set(shown)


def test_text_that_is_no_unicode_is_written():
    assert markup.escape("\ud800<") == "?&lt;"


def test_what_is_not_escaped_is_found():
    assert page_faults(markup.page("x", "", "<img src=x onerror=y>")) == [
        "<img src=x>",
        "<img onerror>",
    ]
    assert page_faults("<p>x</p>") == ["no policy"]
