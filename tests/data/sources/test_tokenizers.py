"""Every source of texts takes a foreign tokenizer; those of made-up ids refuse it in one line."""

import csv
import json

import numpy as np
import pytest

from mtmm_jax import data
from mtmm_jax.registry import ConfigError
from mtmm_jax.text import encode_present, padding_id, read_tokenizer, tokenizer_of, unknown_id
from tests.toy import GOLDEN

LENGTH = 12


def _renumbered():
    """The tokenizer of the golden BERT with other ids: nothing pads with 0 or is unknown as 1."""
    known = json.loads((GOLDEN / "bert" / "tokenizer.json").read_text())
    vocabulary = known["model"]["vocab"]
    new = lambda i: (i + 7) % len(vocabulary)  # noqa: E731
    known["model"]["vocab"] = {token: new(i) for token, i in vocabulary.items()}
    for token in known["added_tokens"]:
        token["id"] = new(token["id"])
    for end in ("sep", "cls"):
        name, i = known["post_processor"][end]
        known["post_processor"][end] = [name, new(i)]
    known["padding"]["pad_id"] = new(known["padding"]["pad_id"])
    return json.dumps(known)


OTHER = _renumbered()
TOKENIZER = read_tokenizer(OTHER)
CLS = TOKENIZER.token_to_id("[CLS]")


def _manifest(folder, suffix):
    rows = [{"id": str(i), "text": "the cat sat" if i % 3 else None, "kind": "ab"[i % 2]}
            for i in range(12)]  # fmt: skip
    path = folder / f"t{suffix}"
    if suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        import pyarrow.parquet as parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t" if suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return _table(path)


def _table(path):
    return {
        "kind": "manifest",
        "path": str(path),
        "modalities": {"text": {"kind": "text", "length": LENGTH}},
        "targets": {"kind": "class"},
        "split": {"train": 0.6, "validation": 0.2, "test": 0.2},
    }


def _folder(folder):
    (folder / "metadata.csv").write_text(
        "file_name,text,kind\n" + "".join(f"{i}.png,a dog ran,{'ab'[i % 2]}\n" for i in range(12))
    )
    return _table(folder)


def _texts(folder):
    (folder / "text_data").mkdir()
    for i in range(12):
        (folder / "text_data" / f"{i}.txt").write_text("the man sat" if i % 3 else " ")
    return {
        "kind": "video_folder",
        "root": str(folder),
        "frames": None,
        "audios": None,
        "options": {"text": {"length": LENGTH}},
    }


def _packaged(kind, **options):
    return lambda folder, cache: {
        "kind": kind, "text_length": LENGTH, "data_dir": str(cache), **options
    }  # fmt: skip


SOURCES = {
    "csv": lambda folder, cache: _manifest(folder, ".csv"),
    "tsv": lambda folder, cache: _manifest(folder, ".tsv"),
    "jsonl": lambda folder, cache: _manifest(folder, ".jsonl"),
    "parquet": lambda folder, cache: _manifest(folder, ".parquet"),
    "folder": lambda folder, cache: _folder(folder),
    "files": lambda folder, cache: _texts(folder),
    "emoji": _packaged("emoji"),
    "emoji with keywords": _packaged("emoji", text="name+keywords"),
    "clips": _packaged("emoji_clips"),
    "films": _packaged("films", text="title"),
    "renamed": lambda folder, cache: {**_packaged("emoji", rename={"text": "said"})(folder, cache)},
    "mixture": lambda folder, cache: {
        "kind": "mixture",
        "sources": {
            "a": _packaged("emoji", keep=["text"])(folder, cache),
            "b": {**_packaged("films", text="title", keep=["text"])(folder, cache)},
        },
    },
}


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_texts_are_in_the_ids_of_the_tokenizer_that_is_given(name, tmp_path, cache):
    section = SOURCES[name](tmp_path, cache)
    text = "said" if name == "renamed" else "text"
    source = data.build(section, tokenizers={text: OTHER})
    kept = read_tokenizer(tokenizer_of(source.assets, text))
    assert kept.get_vocab() == TOKENIZER.get_vocab()
    assert source.spec.modalities[text].vocabulary == TOKENIZER.get_vocab_size()
    batch = next(source.batches("train", 12))
    entry = batch["inputs"][text]
    there = entry["present"]
    np.testing.assert_array_equal(there, entry["mask"].any(1))
    assert there.any()
    np.testing.assert_array_equal(entry["x"][there, 0], CLS)
    assert (entry["x"][entry["mask"]] != padding_id(TOKENIZER)).all()
    if name in ("csv", "tsv", "jsonl", "parquet", "files"):
        assert not there.all()  # nothing but special tokens is no text
    again = source.train(12, seed=0)
    seen = np.concatenate([np.unique(next(again)["inputs"][text]["x"]) for _ in range(3)])
    plain = [np.unique(b["inputs"][text]["x"]) for b in source.batches("train", 512)]
    assert set(seen) <= {*np.concatenate(plain), unknown_id(TOKENIZER), padding_id(TOKENIZER)}


def test_a_text_of_a_manifest_keeps_its_own_and_the_others_share_one(tmp_path):
    rows = "id,text,note,kind\n" + "".join(f"{i},the cat,a note {i},a\n" for i in range(9))
    (tmp_path / "t.csv").write_text(rows)
    section = _table(tmp_path / "t.csv")
    section["modalities"]["note"] = {"kind": "text", "length": 5}
    source = data.build(section, tokenizers={"text": OTHER})
    assert set(source.assets) == {"text.tokenizer.json", "tokenizer.json"}
    ids, mask = encode_present(TOKENIZER, ["the cat"], LENGTH)
    entry = next(source.batches("train", 1))["inputs"]["text"]
    np.testing.assert_array_equal(entry["x"], ids)
    np.testing.assert_array_equal(entry["mask"], mask)
    trained = read_tokenizer(tokenizer_of(source.assets, "note"))
    assert "note" in "".join(trained.get_vocab())


@pytest.mark.parametrize("section", [{"kind": "scenarios", "scenario": "sign"}])
def test_made_up_ids_have_no_other_tokenizer(section):
    source = data.build(section)
    name = next(name for name, m in source.spec.modalities.items() if m.is_a("text"))
    with pytest.raises(ConfigError, match=f"'{name}' of scenarios is text in its own tokens"):
        data.build(section, tokenizers={name: OTHER})
