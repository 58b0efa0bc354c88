"""Votes become labels: like a slow EM by hand, better than a majority, and by a command."""

import json

import numpy as np
import pytest

from mtmm_jax.data.inspect.annotations import main
from mtmm_jax.data.inspect.annotators import METHODS, dawid_skene, majority
from mtmm_jax.registry import ConfigError


def simulate(items=600, seed=0, missing=0.3, skills=(0.95, 0.9, 0.4, 0.4, 0.4), classes=3):
    """Annotators who are right with a certain chance, and whose mistakes have a habit."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(classes, items, p=[0.5, 0.3, 0.2])
    confusion = np.empty((len(skills), classes, classes))
    for a, skill in enumerate(skills):
        for k in range(classes):
            wrong = rng.dirichlet(np.ones(classes - 1)) * (1 - skill)
            confusion[a, k] = np.insert(wrong, k, skill)
    votes = np.array([[rng.choice(classes, p=m[k]) for m in confusion] for k in truth])
    votes[rng.random(votes.shape) < missing] = -1
    return truth, votes, confusion


def slow(votes, classes, smoothing, iterations):
    """Dawid and Skene's EM in loops."""
    items, people = votes.shape
    q = np.zeros((items, classes))
    for i in range(items):
        for v in votes[i]:
            if v >= 0:
                q[i, v] += 1
        q[i] /= q[i].sum()
    history = []
    for _ in range(iterations):
        prior = np.array([smoothing / classes + sum(q[:, k]) for k in range(classes)])
        prior /= prior.sum()
        matrix = np.full((people, classes, classes), smoothing / classes)
        for a in range(people):
            for i in range(items):
                if votes[i, a] >= 0:
                    for k in range(classes):
                        matrix[a, k, votes[i, a]] += q[i, k]
        matrix /= matrix.sum(2, keepdims=True)
        total = 0.0
        for i in range(items):
            p = prior.copy()
            for a in range(people):
                if votes[i, a] >= 0:
                    p = p * matrix[a, :, votes[i, a]]
            total += np.log(p.sum())
            q[i] = p / p.sum()
        if smoothing:
            total += smoothing / classes * (np.log(prior).sum() + np.log(matrix).sum())
        history.append(total)
    return q, prior, matrix, history


@pytest.mark.parametrize("smoothing", [0.0, 0.5])
def test_it_is_the_em_of_the_paper(smoothing):
    _, votes, _ = simulate(40)
    votes = votes[(votes >= 0).any(1)]
    found = dawid_skene(votes, smoothing=smoothing, iterations=7, tolerance=0)
    posterior, prior, matrix, history = slow(votes, 3, smoothing, 7)
    np.testing.assert_allclose(found.posterior, posterior, atol=1e-9)
    np.testing.assert_allclose(found.prior, prior, atol=1e-12)
    np.testing.assert_allclose(found.confusion, matrix, atol=1e-12)
    np.testing.assert_allclose(found.history, history, rtol=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 1.0, 10.0])
@pytest.mark.parametrize("seed", range(4))
def test_the_objective_never_falls(smoothing, seed):
    _, votes, _ = simulate(120, seed, missing=0.5)
    history = dawid_skene(votes, smoothing=smoothing, iterations=60, tolerance=0).history
    assert len(history) > 20
    assert np.isfinite(history).all()
    assert (np.diff(history) > -1e-9 * abs(history[-1])).all()
    assert history[-1] > history[0]


@pytest.mark.parametrize("seed", range(3))
def test_unequal_annotators_are_distinguished(seed):
    truth, votes, confusion = simulate(2000, seed)
    heard = (votes >= 0).any(1)
    right = {
        name: (method(votes).labels == truth)[heard].mean() for name, method in METHODS.items()
    }
    assert right["dawid_skene"] > right["majority"] + 0.05
    found = dawid_skene(votes)
    assert np.abs(found.confusion - confusion).max() < 0.12
    assert np.abs(found.prior - [0.5, 0.3, 0.2]).max() < 0.05
    accuracy = np.einsum("k,akk->a", [0.5, 0.3, 0.2], confusion)
    assert np.abs(found.reliability - accuracy).max() < 0.06
    doubt = found.uncertainty()
    wrong = (found.labels != truth)[heard]
    assert doubt[heard][wrong].mean() > 2 * doubt[heard][~wrong].mean()


def test_a_majority_counts_and_reports_its_ties():
    votes = np.array([[0, 0, 1], [2, 1, -1], [1, 2, 0], [-1, -1, -1], [2, -1, -1], [2, 2, -1]])
    found = majority(votes)
    assert found.labels.tolist() == [0, 2, 2, -1, 2, 2]  # 2 was said most often
    assert found.ties.tolist() == [False, True, True, False, False, False]
    np.testing.assert_allclose(found.posterior[0], [2 / 3, 1 / 3, 0])
    np.testing.assert_allclose(found.posterior[3], found.prior)
    np.testing.assert_allclose(found.prior, np.array([3, 3, 5]) / 11)
    np.testing.assert_allclose(found.confusion.sum(2), 1)
    assert found.history == ()
    level = majority(np.array([[1, 0], [0, 1]]))
    assert (level.labels.tolist(), level.ties.tolist()) == ([0, 0], [True, True])
    perfect = majority(np.array([[0, 0], [1, 1]]), classes=3)
    assert perfect.confusion[:, :2].tolist() == [[[1, 0, 0], [0, 1, 0]]] * 2


def test_dawid_skene_says_what_nobody_answered_and_what_is_level():
    votes = np.array([[0, 1], [1, 0], [-1, -1]])
    found = dawid_skene(votes)
    assert found.labels[2] == -1
    np.testing.assert_allclose(found.posterior[2], found.prior)
    assert found.ties.tolist() == [True, True, False]
    assert found.labels.tolist()[:2] == [0, 0]
    again = dawid_skene(votes)
    assert np.array_equal(found.posterior, again.posterior)
    one = dawid_skene(np.zeros((4, 2), int))
    assert one.labels.tolist() == [0] * 4
    assert not one.uncertainty().any()


def test_uncertainty_is_entropy_or_margin():
    found = majority(np.array([[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 1]]), classes=4)
    p = np.array([0.75, 0.25])
    expected = [0, -(p * np.log(p)).sum() / np.log(4), 0.5]
    np.testing.assert_allclose(found.uncertainty("entropy"), expected, atol=1e-12)
    np.testing.assert_allclose(found.uncertainty("margin"), [0, 0.5, 1])
    with pytest.raises(ConfigError, match="unknown kind 'doubt'"):
        found.uncertainty("doubt")


@pytest.mark.parametrize(
    ("votes", "options", "said"),
    [
        (np.zeros(3, int), {}, r"int64\[3\]"),
        (np.zeros((3, 2)), {}, "float64"),
        (np.full((3, 2), -1), {}, "at least one vote"),
        (np.full((3, 2), -2), {}, "-1 for none"),
        (np.full((3, 2), 4), {"classes": 3}, "there is a class 4, and only 3"),
    ],
)
def test_refused_votes(votes, options, said):
    for method in METHODS.values():
        with pytest.raises(ConfigError, match=said):
            method(votes, **options)


def test_refused_settings():
    with pytest.raises(ConfigError, match="smoothing -1"):
        dawid_skene(np.zeros((2, 2), int), smoothing=-1)


# The command.

NAMES = ("ann", "bob", "cy", "dee", "eve")
CLASSES = ("bird", "cat", "dog")


def cells(style, row):
    """One row's votes as a manifest may hold them."""
    said = {n: CLASSES[v] for n, v in zip(NAMES, row, strict=True) if v >= 0}
    placed = [CLASSES[v] if v >= 0 else "" for v in row]
    return {
        "dict": {"category": said},
        "list": {"category": [label or None for label in placed]},
        "string": {"category": "|".join(placed)},
        "named": {"category": "|".join(said.values()), "who": "|".join(said)},
    }[style]


def manifest(folder, rows, ending="jsonl"):
    path = folder / f"manifest.{ending}"
    if ending == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
        path.write_text("\n".join(lines))
    return path


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("style", "ending"),
    [
        ("dict", "jsonl"),
        ("list", "jsonl"),
        ("string", "csv"),
        ("string", "jsonl"),
        ("named", "jsonl"),
        ("named", "csv"),
    ],
)
def test_the_command_aggregates_every_form(style, ending, tmp_path, capsys):
    _, votes, _ = simulate(60, missing=0.3)
    votes[3], votes[5] = -1, -1
    rows = [{"image": f"{i}.png", **cells(style, row)} for i, row in enumerate(votes)]
    path = manifest(tmp_path, rows, ending)
    out, ask = tmp_path / "labels.jsonl", tmp_path / "ask.jsonl"
    named = ["--annotators", "who"] if style == "named" else []
    files = ["--out", str(out), "--uncertain", str(ask), "--count", "7"]
    assert main([str(path), "--column", "category", *files, *named]) == 0
    found = dawid_skene(votes, 3)
    labels = read(out)
    assert [row["image"] for row in labels] == [f"{i}.png" for i in range(60)]
    wanted = [CLASSES[k] if k >= 0 else None for k in found.labels]
    assert [row["category"] for row in labels] == wanted
    p = [row["category_probability"] for row in labels]
    assert p[3] is None
    assert p[0] == pytest.approx(found.posterior[0].max(), abs=1e-6)
    asked = read(ask)
    assert len(asked) == 7
    assert [row["category_row"] for row in asked[:2]] == [4, 6]
    doubt = found.uncertainty()
    doubt[[3, 5]] = -1
    assert [row["category_row"] for row in asked[2:]] == (
        np.argsort(-doubt.round(9), kind="stable")[:5] + 1
    ).tolist()
    assert (
        asked[2]["category"]
        == json.loads(json.dumps(rows[asked[2]["category_row"] - 1]))["category"]
    )
    assert sum(asked[2]["category_likely"].values()) == pytest.approx(1, abs=1e-5)
    printed = capsys.readouterr().out
    for name in NAMES if style in ("dict", "named") else "12345":
        assert f" {name} " in printed
    assert f"{(votes >= 0).sum()} votes; 2 rows without one" in printed
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [path.name, "ask.jsonl", "labels.jsonl"]
    )


def test_the_command_breaks_a_majoritys_ties_and_keeps_other_types(tmp_path):
    rows = [{"stars": [1, 5]}, {"stars": [5, 5]}, {}, {"stars": None}, {"stars": 1}]
    out = tmp_path / "out.jsonl"
    arguments = [str(manifest(tmp_path, rows)), "--column", "stars", "--method", "majority"]
    assert main([*arguments, "--out", str(out)]) == 0
    assert read(out) == [
        {"stars": 5, "stars_probability": 0.5, "stars_tie": True},
        {"stars": 5, "stars_probability": 1.0, "stars_tie": False},
        {"stars": None, "stars_probability": None, "stars_tie": False},
        {"stars": None, "stars_probability": None, "stars_tie": False},
        {"stars": 1, "stars_probability": 1.0, "stars_tie": False},
    ]


@pytest.mark.parametrize(
    ("rows", "options", "said"),
    [
        ([{"a": "x"}], ["--column", "b"], "unknown column 'b'"),
        ([{"a": "x"}], ["--column", "a", "--method", "vote"], "--method: unknown method 'vote'"),
        ([{"a": "x"}], ["--column", "a", "--count", "0"], "--count: 0"),
        ([{"a": ""}], ["--column", "a"], "has no label in any row"),
        (
            [{"a": "x|y", "who": "p"}],
            ["--column", "a", "--annotators", "who"],
            "row 1: 2 labels and 1",
        ),
        (
            [{"a": "x|y", "who": "p|p"}],
            ["--column", "a", "--annotators", "who"],
            "'p' answers twice",
        ),
        ([{"a": {"p": "x"}, "who": "p"}], ["--column", "a", "--annotators", "who"], "too much"),
        ([{"a": [["x"]]}], ["--column", "a"], "row 1: ['x'] is not one label"),
        ([{"a": "{x"}], ["--column", "a"], "row 1: is not JSON"),
        ([1], ["--column", "a"], "row 1 is not a set of named columns"),
        ([], ["--column", "a"], "has no rows"),
        ([{"a": "x"}], ["--column", "a", "--out", "nowhere/x.jsonl"], "--out: there is no folder"),
        ([{"a": "x"}], ["--column", "a", "--out", "manifest.jsonl"], "is MANIFEST already"),
        ([{"a": "x"}], ["--column", "a", "--by", "guess"], "--by: unknown uncertainty 'guess'"),
    ],
)
def test_the_command_says_what_is_wrong(rows, options, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = manifest(tmp_path, rows)
    assert main([path.name, *options]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.jsonl"]


def test_the_command_needs_a_manifest_that_it_can_read(tmp_path, capsys):
    for name in ("none.jsonl", "table.txt"):
        assert main([str(tmp_path / name), "--column", "a"]) == 2
    said = capsys.readouterr().err
    assert "none.jsonl: cannot be read" in said
    assert "unknown ending '.txt'; choices: .csv, .jsonl" in said


def test_who_was_never_asked_comes_first_however_sure_the_guess(tmp_path):
    rows = [{"a": ["x", "x"]}] * 8 + [{"a": ["x", "y"]}, {"a": []}]
    ask = tmp_path / "ask.jsonl"
    arguments = [str(manifest(tmp_path, rows)), "--column", "a", "--method", "majority"]
    for kind in ("entropy", "margin"):
        assert main([*arguments, "--uncertain", str(ask), "--count", "3", "--by", kind]) == 0
        assert [row["a_row"] for row in read(ask)] == [10, 9, 1]
        assert read(ask)[0]["a_uncertainty"] < read(ask)[1]["a_uncertainty"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path, capsys, monkeypatch):
    out = tmp_path / "out.jsonl"
    out.write_text("before")

    def fail(_):
        raise OSError("disk full")

    monkeypatch.setattr("mtmm_jax.data.inspect.annotations.os.fsync", fail)
    path = manifest(tmp_path, [{"a": "x|y"}])
    assert main([str(path), "--column", "a", "--out", str(out)]) == 2
    assert "out.jsonl: cannot be written: disk full" in capsys.readouterr().err
    assert out.read_text() == "before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["manifest.jsonl", "out.jsonl"]
