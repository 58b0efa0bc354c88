"""Packed rows give what the table's own source gives, whatever form it has and whatever happens."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time

import jax
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from mtmm_jax import data
from mtmm_jax.data import pack
from mtmm_jax.data.sources.sharded import load_plan, make_plan, open_stream, plan, source, tars
from mtmm_jax.data.sources.sharded.stream import is_held
from mtmm_jax.readers.limits import LIMITS, Limits
from mtmm_jax.registry import ConfigError
from tests.data import packs, stranger

BOXES = {
    "modalities": {"photo": {"kind": "image", "size": 12}, "grid": {"kind": "series", "length": 4}},
    "targets": {
        "where": {"kind": "boxes", "units": "pixels"},
        "words": {"kind": "tokens", "column": "caption"},
        "tags": {"kind": "labels"},
    },
    "split": {"train": 0.7, "validation": 0.1, "test": 0.2, "group": "maker_id"},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("table")
    rows = stranger.draw(root, 60)
    rows[7]["price"] = "dear"
    for i, row in enumerate(rows):
        row["where"] = [{"box": [1, 1, 6, 5 + i % 3], "class": "ab"[i % 2]}] * (i % 3)
        row["tags"] = "|".join("xyz"[: i % 4]) or None
        row["grid"] = [float(i), 2.0, 3.0]
    rows[9]["where"] = [{"box": [0, 0, 5000, 5], "class": "a"}]
    stranger.write_table(root, rows, "t.jsonl")
    return root


def same(a, b) -> bool:
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        jax.tree.leaves(jax.tree.map(np.array_equal, a, b))
    )


def take(batches, count):
    return [next(batches) for _ in range(count)]


@pytest.fixture(scope="module", params=["plain", "boxes"])
def both(request, root):
    """The table's own source and that of its pack, in shards of 16 rows."""
    options = {"plain": packs.OPTIONS, "boxes": BOXES}[request.param]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "_MOST", 16)
        out = packs.pack_table(root / "t.jsonl", root / f"shards-{request.param}", options)
    assert load_plan(root / f"shards-{request.param}").shards == 4
    kinds = {"kind": "manifest", "path": str(root / "t.jsonl"), "decoded": False, **options}
    return data.build(kinds), data.build({"kind": "packed", "path": out})


def test_batches_are_those_of_the_table(both):
    table, packed = both
    assert packed.spec == table.spec
    assert list(packed.spec.modalities) == list(table.spec.modalities)
    assert packed.assets.items() >= table.assets.items()
    assert packed.draws == table.draws
    rows = np.concatenate(list(packed.rows.values()))
    usable = np.concatenate(list(table.rows.values()))
    for u in (None, np.linspace(0, 0.99, len(rows) * table.draws).reshape(len(rows), -1)):
        u = None if u is None else u.astype(np.float32)
        assert same(packed.compose(rows, u), table.compose(rows, u))
    for row in usable.tolist():
        table.compose(np.array([row]), None)
    for split, found in packed.rows.items():
        wanted = [row for row in table.rows[split].tolist() if row not in table.compose.bad]
        assert found.tolist() == wanted
    assert len(table.compose.bad) > 0
    for row in rows[:9].tolist():
        assert packed.describe(row) == table.describe(row)
        assert np.array_equal(packed.picture(row), table.picture(row))


def test_what_is_bad_is_kept_with_its_reason(both, root):
    table, packed = both
    for split in table.rows.values():
        table.compose(split, None)
    from mtmm_jax.data.inspect.packs import packed_problems

    found = packed_problems(packed.compose.shards.out, lambda rows, total: rows)
    assert {(p.line, p.column, p.reason) for p in found} == {
        (p.line, p.column, p.reason) for p in table.compose.bad.problems
    }


@pytest.mark.parametrize("workers", [0, 3])
def test_resuming_is_exact_with_any_number_of_threads(both, workers):
    packed = data.build({"kind": "packed", "path": str(both[1].compose.shards.out)})
    whole = take(iter(packed.train(8, seed=3)), 12)
    again = data.build(
        {"kind": "packed", "path": str(packed.compose.shards.out), "workers": workers}
    )
    first = iter(again.train(8, seed=3))
    take(first, 5)
    state = json.loads(json.dumps(first.get_state()))
    resumed = iter(again.train(8, seed=3))
    resumed.set_state(state)
    assert same(take(resumed, 7), whole[5:])


def test_hosts_read_their_part_and_no_other(both, monkeypatch):
    section = {"kind": "packed", "path": str(both[1].compose.shards.out), "workers": 0}
    plain = data.build(section)
    whole = take(iter(plain.train(8)), 3)
    read, see, mine = [], source.Shards.read, plain.compose.shards

    def counted(self, rows):
        if self is mine:  # and not one whose threads another test left behind
            read.append(len(rows))
        return see(self, rows)

    monkeypatch.setattr(source.Shards, "read", counted)
    parts = [take(iter(plain.train(8, shard=(i, 4))), 3) for i in range(4)]
    joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    assert same(joined, whole)
    assert set(read) == {2}


# Other forms of a table.

PICTURES = {
    "modalities": {"image": {"kind": "image", "size": 8}, "text": {"kind": "text", "length": 6}},
    "targets": {"cls": "class", "price": "number"},
    "split": {"train": 0.5, "validation": 0.25, "test": 0.25},
}


@pytest.fixture(scope="module")
def pictures():
    """Rows with a picture's bytes; one is broken, one is missing."""
    rng, rows = np.random.default_rng(0), []
    for i in range(30):
        out = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (9, 8, 3), np.uint8)).save(out, "PNG")
        data = b"no picture" if i == 4 else None if i == 5 else out.getvalue()
        words = f"a thing of {('red', 'blue')[i % 2]}"
        rows.append({"id": f"k{i}", "image": data, "text": words, "cls": i % 2, "price": i + 0.5})
    return rows


def as_files(root, rows):
    """The same rows with files, and what they look like to the table's own source."""
    for row in rows:
        if row["image"] is not None:
            (root / f"{row['id']}.png").write_bytes(row["image"])
    named = [
        {**row, "image": row["image"] and f"{row['id']}.png", "cls": str(row["cls"])}
        for row in rows
    ]
    path = stranger.write_table(root, named, "files.jsonl")
    return data.build({"kind": "manifest", "path": str(path), "decoded": False, **PICTURES})


def write_parquet(path, rows, group=7):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=group)


def write_hub(path, rows):
    pictures = [{"bytes": row["image"], "path": f"{row['id']}.png"} for row in rows]
    pictures = [None if one["bytes"] is None else one for one in pictures]
    write_parquet(path, [{**r, "image": one} for r, one in zip(rows, pictures, strict=True)])


def write_tar(path, rows):
    mode = "w:gz" if path.suffix == ".tgz" else "w"
    with tarfile.open(path, mode) as tar:
        for row in rows:
            about = json.dumps({"price": row["price"]}).encode()
            files = {"json": about, "txt": row["text"].encode(), "cls": str(row["cls"]).encode()}
            if row["image"] is not None:
                files["png"] = row["image"]
            for ending, content in files.items():
                member = tarfile.TarInfo(f"{row['id']}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def write_parts(path, rows, write=write_tar, ending="tar"):
    path.mkdir()
    for i in range(3):
        write(path / f"part-{i}.{ending}", rows[10 * i : 10 * i + 10])


FORMS = {
    "bytes.parquet": write_parquet,
    "hub.parquet": write_hub,
    "one.tar": write_tar,
    "one.tgz": write_tar,
    "tars": write_parts,
    "parquets": lambda path, rows: write_parts(path, rows, write_parquet, "parquet"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_table_gives_the_same_rows(form, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "_MOST", 16)
    want = as_files(tmp_path, pictures)
    FORMS[form](tmp_path / form, pictures)
    packed = data.build(
        {
            "kind": "packed",
            "path": packs.pack_table(tmp_path / form, tmp_path / "out", PICTURES),
        }
    )
    for split in ("train", "validation", "test"):
        rows = packed.rows[split]
        assert rows.tolist() == [row for row in want.rows[split].tolist() if row != 4]
        assert same(packed.compose(rows, None), want.compose(rows, None))
    assert packed.spec.targets["cls"].classes == ("0", "1")


def test_train_reads_no_bytes_of_a_table_but_names_pack(pictures, tmp_path):
    write_parquet(tmp_path / "b.parquet", pictures)
    with pytest.raises(ConfigError, match=r"'image' holds bytes.*mtmm_jax.data.pack"):
        data.build({"kind": "manifest", "path": str(tmp_path / "b.parquet"), **PICTURES})


def test_rows_that_are_not_wanted_are_not_read(pictures, tmp_path):
    write_parquet(tmp_path / "b.parquet", pictures, group=10)
    write_tar(tmp_path / "b.tar", pictures)
    for name in ("b.parquet", "b.tar"):
        stream = open_stream(tmp_path / name, LIMITS)
        rows = [row for _, row in stream.entries(lambda place: place >= 20)]
        assert [row is None for row in rows] == [True] * 20 + [False] * 10
        chunks = list(stream.chunks(8, lambda number: number in (0, 2)))
        assert [(chunk.first, len(chunk)) for chunk in chunks] == [(0, 8), (16, 8)]
        assert all(is_held(row["image"]) for row in chunks[1].values)
        without = [row for _, row in stream.entries(without={"image"})]
        assert {row.get("image") for row in without} <= {tars.SKIPPED, None}


def hostile(path, name, content=b"x", kind=tarfile.REGTYPE):
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo(name)
        member.size, member.type, member.linkname = len(content), kind, "/etc/passwd"
        tar.addfile(member, io.BytesIO(content))


def test_a_tar_is_data_and_writes_nothing(tmp_path):
    path = tmp_path / "inner" / "t.tar"
    path.parent.mkdir()

    def read(limits=LIMITS):
        return list(tars.samples(path, limits, lambda place: True))

    hostile(path, "../../outside.png")
    assert read()[0]["id"] == "../../outside"
    hostile(path, "/etc/link.png", b"", tarfile.SYMTYPE)
    assert read() == []
    hostile(path, "big.png", bytes(5000))
    assert "over the limit" in read(Limits(file_bytes=100))[0]
    hostile(path, "a.json", b"[" * 100_000)
    assert "is not JSON" in read()[0]
    hostile(path, "a.json", b'{"x": "\\ud800"}')
    assert "is not JSON" in read()[0]
    hostile(path, "a.txt", b"\xff\xfe")
    assert "is not UTF-8" in read()[0]
    hostile(path, "././@LongLink", bytes(2**21), tarfile.GNUTYPE_LONGNAME)
    with pytest.raises(ConfigError, match=r"cannot be read as a tar: .*a heade") as error:
        read()
    assert "\n" not in str(error.value)
    for damage in (b"", b"no tar at all" * 99, path.read_bytes()[:700]):
        path.write_bytes(damage)
        with pytest.raises(ConfigError, match=r"t\.tar"):
            read()
    assert [file.name for file in tmp_path.rglob("*")] == ["inner", "t.tar"]


# Kills, damage and parts.


def run(*arguments):
    return pack.main([str(argument) for argument in arguments])


@pytest.fixture
def small(root, tmp_path, monkeypatch):
    """The arguments of a packing into shards of 16 rows, and its folder."""
    monkeypatch.setattr(plan, "_MOST", 16)
    config = tmp_path / "d.json"
    config.write_text(json.dumps(packs.OPTIONS))
    out = tmp_path / "out"
    return [root / "t.jsonl", "--config", config, "--out", out, "--workers", 1], out


def digests(out):
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_parts_make_up_the_whole_and_only_what_is_missing_is_made(small, capsys, monkeypatch):
    arguments, out = small
    assert run(*arguments, "--part", "1/3") == 0
    assert sorted(path.name for path in out.glob("rows-*.json")) == ["rows-000001.json"]
    assert "3 of 4 are still to do" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"3 of 4 shards are not there.*rows-000000.json"):
        data.build({"kind": "packed", "path": str(out)})
    for part in ("0/3", "2/3"):
        assert run(*arguments, "--part", part) == 0
    assert "train" in capsys.readouterr().out
    whole = digests(out)
    assert run(*arguments) == 0
    (out / "rows-000002.json").unlink()
    assert run(*arguments) == 0
    assert digests(out) == whole
    monkeypatch.setattr(plan, "_MOST", 64)  # of a new plan; the folder has one
    (out / "rows-000003.json").unlink()
    assert run(*arguments) == 0
    assert digests(out) == whole


def test_another_table_or_other_options_are_refused(small, root, tmp_path, capsys):
    arguments, _ = small
    assert run(*arguments) == 0
    other = {**packs.OPTIONS, "split": {"train": 0.5, "validation": 0.3, "test": 0.2}}
    (tmp_path / "d.json").write_text(json.dumps(other))
    assert run(*arguments) == 2
    assert "another table, or of other options" in capsys.readouterr().err
    for wrong in ("3/3", "1", "-1/2", "a/b"):
        assert run(*arguments, f"--part={wrong}") == 2
        assert "--part" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["row", "split", "index", "cut", "header", "plan"])
def test_damage_is_one_line_with_the_file_and_the_way_out(small, damage):
    arguments, out = small
    assert run(*arguments) == 0
    want = data.build({"kind": "packed", "path": str(out)})
    want = next(want.batches("train", 8))
    name = {"header": "pack.json", "plan": "plan.bin", "index": "rows-000001.json"}.get(
        damage, "rows-000001.bin"
    )
    path = out / name
    content = bytearray(path.read_bytes())
    at = len(content) // 2
    if damage == "split":  # whose row would be validated on instead of trained on
        at = json.loads(path.with_suffix(".json").read_text())["records"]["part"]["offset"]
    content[at] ^= 1
    path.write_bytes(content[:-900] if damage == "cut" else content)
    with pytest.raises(ConfigError, match=name.split(".")[0]) as caught:
        if damage == "plan":
            load_plan(out)
        damaged = data.build({"kind": "packed", "path": str(out)})
        for split in damaged.rows:
            list(damaged.batches(split, 8))
    assert "\n" not in str(caught.value)
    if damage in ("row", "split", "index", "cut"):
        for file in out.glob("rows-000001.*"):
            file.unlink()
        assert run(*arguments) == 0
        assert same(
            next(data.build({"kind": "packed", "path": str(out)}).batches("train", 8)), want
        )


def test_a_killed_packing_goes_on_and_leaves_no_process(root, tmp_path):
    rows = [json.loads(line) for line in (root / "t.jsonl").read_text().splitlines()]
    many = stranger.write_table(
        root, [{**rows[i % 60], "id": f"r{i}"} for i in range(600)], "m.jsonl"
    )
    config = tmp_path / "d.json"
    config.write_text(json.dumps(packs.OPTIONS))
    out = tmp_path / "out"
    code = f"""
import sys
from mtmm_jax.data import pack
from mtmm_jax.data.sources.sharded import plan
plan._MOST = 16
if __name__ == "__main__":
    sys.exit(pack.main({[str(many), "--config", str(config), "--out", str(out), "--workers", "2"]}))
"""
    (tmp_path / "go.py").write_text(code)
    command = [sys.executable, str(tmp_path / "go.py")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        deadline = time.monotonic() + 240
        while len(list(out.glob("rows-*.json"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(child.pid, signal.SIGKILL)
        child.communicate(timeout=120)  # its processes hold the pipes until they end
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("rows-*.json")}
    assert 3 <= len(kept) < 38
    assert subprocess.run(command, check=True, capture_output=True, text=True).returncode == 0
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept
    packed = data.build({"kind": "packed", "path": str(out)})
    options = {"kind": "manifest", "path": str(many), "decoded": False, **packs.OPTIONS}
    table = data.build(options)
    assert same(packed.compose(packed.rows["test"], None), table.compose(packed.rows["test"], None))


def test_inputs_are_fitted_to_a_sample_of_many_rows(root, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "FIT_ROWS", 16)
    stream = open_stream(root / "t.jsonl", LIMITS)
    found, _ = make_plan(stream, packs.OPTIONS)
    seen, train = found.header["fitted_on"]
    assert seen <= 16 < train
    whole = data.build({"kind": "manifest", "path": str(root / "t.jsonl"), **packs.OPTIONS})
    assert found.spec.targets == whole.spec.targets  # of all rows
    assert found.spec.modalities["numbers"].names == whole.spec.modalities["numbers"].names
