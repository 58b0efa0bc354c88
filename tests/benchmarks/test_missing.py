"""The table of missing modalities: losses are shares of the plain model's loss."""

import pytest
from ml_collections import ConfigDict

from mtmm_jax import training
from mtmm_jax.benchmarks.studies import missing
from mtmm_jax.registry import ConfigError

KEY = {"fusion": "tensor", "unimodal": None, "without": None, "seed": 0}


def _row(way, dropout, whole, text, image, **more):
    metrics = {"all": whole, "no text": text, "no image": image}
    return {**KEY, "missing": way, "dropout": dropout, "metrics": metrics, **more}


ROWS = [
    _row("mask", 0.0, 0.9, 0.4, 0.8),
    _row("mask", 0.0, 0.8, 0.3, 0.8, seed=1),
    _row("mask", 0.3, 0.9, 0.6, 0.5),
    _row("reconstruct", 0.0, 0.8, 0.6, 0.8),
    {**KEY, "missing": "mask", "dropout": 0.0, "without": "text", "metrics": {"no text": 0.5}},
]


def test_a_share_is_of_the_plain_models_greatest_loss():
    assert missing.lost(ROWS[2:3], ROWS) == ("no text", pytest.approx(0.6))
    assert missing.lost(ROWS[3:4], ROWS) == ("no text", pytest.approx(0.4))
    assert missing.lost(ROWS[2:3], ROWS[2:]) is None  # no plain model with everything
    nothing = [_row("mask", 0.0, 0.5, 0.5, 0.6)]
    assert missing.lost(nothing, nothing) is None


def test_the_table_has_a_line_for_each_way():
    table = missing.table([*ROWS, _row("mask", 0.0, 0.9, 0.7, 0.8, unimodal=["kind"])], "kind")
    cells = [list(column.cells) for column in table.columns[1:4]]
    ways = list(zip(*cells, strict=True))
    assert ways == [
        ("mask", "0.0", "2"),
        ("mask", "0.3", "1"),
        ("reconstruct", "0.0", "1"),
        ("mask", "0.0 + kind", "1"),
    ]
    shares = list(table.columns[-1].cells)
    assert shares == ["", "0.60 (no text)", "0.40 (no text)", "0.40 (no text)"]


def test_configs_are_changed_as_the_row_says():
    base = training.load("emoji")
    config = missing.changed(base, "tensor", "reconstruct", "text=0.6", ["year"], None)
    assert config.model.fusion == "tensor"
    assert config.model.missing == "reconstruct"
    assert dict(config.model.modality_dropout) == {"text": 0.6}
    assert config.tasks.year.unimodal
    gone = missing.changed(base, "concat", "mask", 0.0, None, "text")
    assert gone.model.encoders.text is None
    assert gone.tasks.retrieval is None
    assert base.model.encoders.text is not None


def test_missing_takes_rates_of_single_modalities_and_heads_on_each():
    dropout = missing.dropout_of("text=.6, image=0.30")
    assert dropout == "image=0.3,text=0.6"
    assert missing.dropout_of(".5") == 0.5
    with pytest.raises(ConfigError, match=r"--dropout: 'text=much' is neither .* text=\.6"):
        missing.dropout_of("text=much")
    rates = "--config.model.modality_dropout={'text': 0.6}"
    assert training.apply_overrides(training.load("emoji"), [rates]).model.modality_dropout == (
        ConfigDict({"text": 0.6})
    )
    base = training.load("emoji")
    config = missing.changed(base, "tensor", "mask", dropout, ["category"], None)
    assert dict(config.model.modality_dropout) == {"image": 0.3, "text": 0.6}
    assert config.tasks.category.unimodal is True
    plain = missing.changed(base, "tensor", "mask", 0.0, None, None)
    assert plain.model.modality_dropout == 0.0
    assert "unimodal" not in plain.tasks.category
    built = training.assemble(config).model
    assert built.modality_dropout == {"image": 0.3, "text": 0.6}
    assert "category_audio" in built.tasks


def test_what_dropout_loses_is_a_share_of_what_the_plain_model_loses():
    plain = [{"missing": "mask", "dropout": 0.0, "metrics": {"all": 0.9, "no a": 0.8, "no b": 0.5}}]
    with_dropout = [
        {"missing": "mask", "dropout": 0.3, "metrics": {"all": 0.8, "no a": 0.7, "no b": 0.7}}
    ]
    label, share = missing.lost(with_dropout, plain + with_dropout)
    assert label == "no b"
    assert share == pytest.approx(0.25)
    nothing = [{"missing": "mask", "dropout": 0.0, "metrics": {"all": 0.5, "no a": 0.5}}]
    assert missing.lost(nothing, nothing) is None
