"""A run on packed rows goes through the commands, and answers of the table that was packed."""

import json

import pytest

from mtmm_jax import evaluate, predict, train
from mtmm_jax.data.inspect import show
from tests.data import packs, stranger

OPTIONS = {
    "modalities": {
        "photo": {"kind": "image", "size": 8},
        "words": {"kind": "text", "column": "caption", "length": 6, "vocabulary": 100},
    },
    "targets": {"hue": {"kind": "class", "column": "colour"}},
    "split": {"train": 0.6, "validation": 0.2, "test": 0.2},
}
CONFIG = """
from mtmm_jax import training

def get_config():
    config = training.load("emoji")
    config.data = {{"kind": "packed", "path": {path!r}}}
    config.model.encoders = {{"words": "text_gru"}}
    config.model.modality_dropout = 0.0
    config.tasks = {{"hue": "classification"}}
    config.model.width = 16
    config.steps, config.batch_size = 2, 8
    config.evaluation.every = config.checkpoint.every = 2
    return config
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("packed")
    rows = stranger.draw(root, 40)
    out = packs.pack_table(stranger.write_table(root, rows, "t.jsonl"), root / "shards", OPTIONS)
    (root / "own.py").write_text(CONFIG.format(path=out))
    assert train.main(["--config", str(root / "own.py"), "--workdir", str(root / "run")]) == 0
    return root


def test_it_is_shown_evaluated_and_asked(folder, capsys):
    page = folder / "page.html"
    assert show.main(["--config", str(folder / "own.py"), "--out", str(page)]) == 0
    assert page.stat().st_size > 1000
    assert evaluate.main(["--workdir", str(folder / "run"), "--split", "test"]) == 0
    assert "hue" in capsys.readouterr().out
    assert train.main(["--config", str(folder / "own.py"), "--dry_run"]) == 0
    table, out = folder / "t.jsonl", folder / "predictions.jsonl"
    arguments = ["--workdir", str(folder / "run"), "--manifest", str(table), "--out", str(out)]
    assert predict.main(arguments) == 0
    predicted = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(predicted) == 40  # whose column is `caption`, which the packing knows
    assert {row["id"] for row in predicted} <= {f"n{i:03d}" for i in range(40)}
