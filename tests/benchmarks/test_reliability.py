"""The harness of the trust boundary, in a short form: a few damages, gadgets, names and disks."""

import os
import random
import shutil

import pytest

from mtmm_jax.benchmarks.reliability import calls, damages, disks, gadgets, names, world
from mtmm_jax.markup import escape


def _call(command, *arguments, seconds=0.0, **environment):
    """A command in this process; the tests' programs are in memory."""
    found = calls.call(command, arguments, {"MTMM_JAX_CACHE": "", **environment})
    return {"seconds": seconds, "bytes": 0, **found}


NAMES = world.Names(
    classes=(names.HOSTILE[0], names.HOSTILE[3], "c"),
    words=(*names.HOSTILE[:3], "red", "square"),
    number=names.HOSTILE[1],
    files="&lt;script&gt;",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run; copies of it lie where it was made, as its config names its manifest."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "copy").mkdir()
    made = world.make(folder / "copy", _call, NAMES, analysed=False)
    found = _call("export", *made.commands["export"][1:])
    assert found["code"] == 0, found["error"]
    shutil.move(made.root / "again.zip", made.exported)
    shutil.move(made.root, folder / "whole")
    return world.World(folder / "whole")


@pytest.fixture(scope="module")
def expected(whole):
    return damages.references(whole, _call, ("predict", "report"))


DAMAGES = [
    ("config", "predict", "flip"),
    ("spec", "predict", "flip"),
    ("assets", "predict", "half"),
    ("tensors", "predict", "flip"),
    ("results", "report", "flip"),
    ("journal", "report", "junk"),
    ("journal", "report", "gone"),
    ("run", "report", "gone"),
    ("examples", "report", "empty"),
]


@pytest.mark.parametrize(("place", "command", "how"), DAMAGES)
def test_a_damage_is_named_or_changes_nothing(whole, expected, monkeypatch, place, command, how):
    one = damages.PLACES[place]._replace(commands=(command,))
    monkeypatch.setitem(damages.PLACES, place, one)
    draw = random.Random(0)
    row = damages.damage(whole, place, how, draw, _call, expected)
    assert row["fault"] is None, row
    if place not in ("tensors", "examples"):  # of what is not read, it changes nothing
        assert row["said"], row


def test_names_are_text_in_the_report(expected):
    page = expected["report"]
    assert names.page_faults(page) == []
    for name in (NAMES.classes[0], NAMES.number):
        assert escape(name) in page
        assert name not in page


def test_the_harness_finds_faults():
    """Numbers that differ, a traceback, and two lines of error are seen."""
    fine = {"code": 0, "out": "{}", "error": "", "seconds": 0, "bytes": 0}
    assert calls.fault(fine) is None
    trace = "Traceback (most recent call last):\nValueError: x"
    assert "traceback" in calls.fault({**fine, "code": 1, "error": trace})
    assert "2 lines" in calls.fault({**fine, "code": 2, "error": "error: a\nerror: b\n"})
    assert "exit code 1" in calls.fault({**fine, "code": 1})
    assert calls.fault({**fine, "code": 2, "error": "a note\nerror: b\n"}) is None
    one = world.World(os.curdir)
    problem = damages.wrong(one, "predict", fine, {"kind": 1}, world.Path("spec.json"))
    assert problem == "other numbers with exit code 0, and the file is not named"
    said = {**fine, "error": "spec.json: is made again"}
    assert damages.wrong(one, "predict", said, {"kind": 1}, world.Path("spec.json")) is None
    assert names.page_faults("<b onclick=x><script>")[:2] == ["<b onclick>", "<script>"]
    assert names.page_faults("<a href='javascript:x'>") == ["<a href=javascript:x>", "no policy"]


GADGETS = {
    "pickles_in_npz": ("predict", "report"),
    "pickles_in_an_export": ("exported",),
    "a_cache_of_pickles_that_the_config_names": ("evaluate",),
    "assets_that_lead_out": ("export",),
    "a_report_that_is_a_link": ("report",),
    "a_zip_that_slips": ("exported",),
    "a_deep_config": ("predict",),
    "pipes": ("report",),
    "a_spec_that_is_none": ("predict",),
    "a_tokenizer_that_tracks_back": ("predict",),
}


@pytest.mark.parametrize("name", GADGETS)
def test_a_gadget_does_nothing(whole, monkeypatch, name):
    one = gadgets.GADGETS[name]
    assert set(GADGETS[name]) <= set(one.commands)
    monkeypatch.setitem(gadgets.GADGETS, name, one._replace(commands=GADGETS[name]))
    for row in gadgets.attack(whole, name, _call):
        assert row["fault"] is None, row
        assert row["code"] == 2 or name == "a_report_that_is_a_link", row


@pytest.mark.parametrize("case", ["below a file", "too long", "read-only", "tmpfs of 32k"])
def test_a_disk_that_refuses_is_one_line(tmp_path, monkeypatch, case):
    monkeypatch.setattr(disks, "STEPS", 6)
    row = disks.CASES[case](tmp_path, _call)
    assert row["fault"] is None, row
    if row["said"] == "cannot mount":
        pytest.skip("this user may not mount")
    assert row["code"] == 2
