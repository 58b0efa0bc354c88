"""Files that are decoded once give what decoding them in every epoch gives, whatever happens."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import soundfile
from PIL import Image

from mtmm_jax.data import build
from mtmm_jax.data.sources.manifest import decoded, eviction, manifest
from mtmm_jax.data.sources.manifest.shards import Damaged, _digest, open_shard
from mtmm_jax.modalities import audio, image, video
from mtmm_jax.readers import clips as readers_clips
from mtmm_jax.registry import ConfigError

KINDS = {
    "photo": {"kind": "image", "size": 16},
    "sound": {"kind": "audio", "rate": 8000, "seconds": 0.25},
    "stretch": {"kind": "audio", "column": "sound", "rate": 8000, "seconds": 0.25, "random": True},
}
TARGETS = {"boxes": {"kind": "boxes", "classes": 2, "units": "pixels"}}
COUNT = 12


@pytest.fixture
def folder(tmp_path):
    """Pictures with and without transparency, sounds of two rates; one of each is broken."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(COUNT):
        pixels = rng.integers(0, 256, (10 + 3 * i, 30, 3 + i % 2), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        rate = (8000, 22050)[i % 2]
        soundfile.write(tmp_path / f"{i}.wav", rng.uniform(-0.5, 0.5, rate * (1 + i % 3)), rate)
        box = {"box": [1, 2, 8, 16], "class": i % 2}
        files = {"photo": f"{i}.png", "sound": f"{i}.wav"}
        rows.append({**files, "boxes": [box], "split": "train"})
    (tmp_path / "3.png").write_bytes(b"no picture")
    (tmp_path / "4.wav").write_bytes(b"no sound")
    rows[5]["photo"] = "missing.png"
    rows[6]["photo"] = None
    rows[7]["photo"] = rows[8]["photo"]
    rows[-1]["split"] = "test"
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def source_of(folder, where, **options):
    kinds = {"modalities": KINDS, "targets": TARGETS, "decoded": where, **options}
    return manifest(folder / "m.jsonl", **kinds)


def batches(source):
    rows = np.arange(COUNT)
    chance = np.linspace(0, 0.99, COUNT)[:, None]
    return [source.compose(rows, u) for u in (None, chance)]


def same(a, b) -> bool:
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


@pytest.fixture
def calls(monkeypatch):
    """How many files were decoded."""
    made = []
    decoders = {image: "decode_image", audio: "decode_audio"}

    def counting(decode):
        return lambda *args: made.append(args) or decode(*args)

    for module, name in decoders.items():
        monkeypatch.setattr(module, name, counting(getattr(module, name)))
    return made


def shards(folder):
    return sorted((folder / "cache").glob("*/*.json"))


def test_decoding_once_gives_what_decoding_each_time_gives(folder, calls):
    lazy = source_of(folder, False)
    want = batches(lazy)
    source = source_of(folder, str(folder / "cache"))
    source.prepare()
    del calls[:]
    assert same(batches(source), want)
    assert not calls
    assert source.compose.bad.problems == lazy.compose.bad.problems
    assert len(source.compose.bad) == 3
    stretches = [batch["inputs"]["stretch"]["x"] for batch in want]
    assert not np.array_equal(*stretches)  # drawn at random, in both


def test_training_decodes_first_and_another_run_nothing(folder, calls, capsys):
    where = str(folder / "cache")
    first = source_of(folder, where).train(4, seed=1)
    epoch = [next(first) for _ in range(4)]
    decodes = len(calls)
    assert decodes == 9 + 2 * COUNT  # of 12 cells one is empty, one missing, one there twice
    assert "decoding 9 files of column 'photo' once" in capsys.readouterr().err
    again = source_of(folder, where).train(4, seed=1)
    assert same([next(again) for _ in range(4)], epoch)
    assert len(calls) == decodes
    assert not capsys.readouterr().err


def test_evaluation_fills_no_folder(folder):
    source = source_of(folder, str(folder / "cache"))
    assert len(list(source.batches("test", 1))) == 1
    assert not (folder / "cache").exists()


CLIPS = {
    "spread": {"kind": "video", "column": "clip", "frames": 3, "size": 8},
    "middle": {"kind": "video", "column": "clip", "frames": 3, "size": 8, "sample": "centre"},
    "slow": {"kind": "video", "column": "clip", "frames": 3, "size": 12, "sample": "rate"},
}


@pytest.fixture
def clips(tmp_path):
    """Folders of frames and animations; one folder and one animation have a broken frame."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(6):
        frames = [Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)) for _ in range(7 + i)]
        if i % 2:
            frames[0].save(
                tmp_path / f"{i}.gif", save_all=True, append_images=frames[1:], duration=80
            )
        else:
            (tmp_path / str(i)).mkdir()
            for at, frame in enumerate(frames):
                frame.save(tmp_path / str(i) / f"{at}.png")
        rows.append({"clip": f"{i}.gif" if i % 2 else str(i), "split": "train"})
    (tmp_path / "2" / "8.png").write_bytes(b"no picture")
    gif = (tmp_path / "3.gif").read_bytes()
    (tmp_path / "3.gif").write_bytes(gif[: len(gif) - len(gif) // 8])
    (tmp_path / "5.gif").write_bytes(b"no clip")
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def clip_batches(folder, where):
    source = manifest(folder / "m.jsonl", modalities=CLIPS, targets={}, decoded=where)
    source.prepare()
    draws = [None, *np.random.default_rng(0).uniform(size=(5, 6, source.draws))]
    return [source.compose(np.arange(6), u) for u in draws], source.compose.bad.problems


def test_clips_are_kept_whole_and_drawn_from_in_each_epoch(clips, monkeypatch):
    want = clip_batches(clips, False)
    where = str(clips / "cache")
    clip_batches(clips, where)
    decoded = []
    read = video.read_clip
    monkeypatch.setattr(
        video, "read_clip", lambda name, *rest: decoded.append(name) or read(name, *rest)
    )
    found = clip_batches(clips, where)
    assert same(found[0], want[0])
    assert found[1] == want[1]
    assert set(decoded) <= {"2", "3.gif"}  # of which a frame is broken, which not all epochs see
    assert not same(want[0][1], want[0][2])


def test_a_clip_that_is_too_large_is_decoded_in_every_epoch(clips, monkeypatch):
    want = clip_batches(clips, False)
    monkeypatch.setattr(readers_clips, "WHOLE_BYTES", 7 * 12 * 12 * 3)
    assert same(clip_batches(clips, str(clips / "cache"))[0], want[0])
    arrays = [
        record.shape
        for index in shards(clips)
        for record in open_shard(index).records.values()
        if record.stored and not record.reason
    ]
    assert arrays
    assert max(shape[0] * shape[1] ** 2 for shape in arrays) <= 7 * 12 * 12


def test_a_changed_frame_is_seen(clips):
    where = str(clips / "cache")
    before, _ = clip_batches(clips, where)
    Image.new("RGB", (12, 9), "blue").save(clips / "0" / "3.png")
    after, _ = clip_batches(clips, where)
    assert not same(after[0], before[0])
    assert same(after, clip_batches(clips, False)[0])


@pytest.mark.parametrize("suffix", ["json", "bin"])
@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "gone"])
def test_a_damaged_shard_is_found_and_made_again(folder, suffix, damage, calls, capsys):
    where = str(folder / "cache")
    source = source_of(folder, where)
    source.prepare()
    want = batches(source)
    path = shards(folder)[0].with_suffix(f".{suffix}")
    data = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes({"bit": data, "cut": data[:-1], "empty": b""}[damage])
    capsys.readouterr()
    del calls[:]
    again = source_of(folder, where)
    again.prepare()
    assert calls
    assert same(batches(again), want)
    lines = [line for line in capsys.readouterr().err.splitlines() if "decoded anew" in line]
    assert len(lines) == (0 if damage == "gone" and suffix == "json" else 1)
    assert all(str(path.with_suffix(".json")) in line for line in lines)
    for index in shards(folder):
        open_shard(index)
    assert len(list((folder / "cache").glob("*/*.bin"))) == len(shards(folder)) == 3


def test_a_record_outside_of_its_shard_is_damage(folder):
    source_of(folder, str(folder / "cache")).prepare()
    index = shards(folder)[0]
    body = json.loads(index.read_text())
    for field, value in (("offset", -8), ("shape", [10**9]), ("dtype", "object")):
        changed = json.loads(json.dumps(body))
        del changed["index_sha256"]
        next(iter(changed["records"].values()))[field] = value
        index.write_text(json.dumps({**changed, "index_sha256": _digest(changed)}))
        with pytest.raises(Damaged):
            open_shard(index)
    index.write_text(json.dumps(body).replace('"offset": 0', '"offset": 64', 1))
    with pytest.raises(Damaged, match="its index is not what was written"):
        open_shard(index)


def test_a_changed_file_alone_is_decoded_anew(folder, calls):
    where = str(folder / "cache")
    source_of(folder, where).prepare()
    Image.new("RGB", (30, 10), "blue").save(folder / "0.png")
    del calls[:]
    again = source_of(folder, where)
    again.prepare()
    assert len(calls) == 1
    assert same(batches(again), batches(source_of(folder, False)))
    assert again.compose(np.array([0]), None)["inputs"]["photo"]["x"][0, 8, 8, 2] == 1


def test_a_file_rewritten_with_the_same_size_and_time_is_seen(folder, calls):
    where, path = str(folder / "cache"), folder / "raw.bmp"
    Image.new("RGB", (8, 8), "red").save(path)
    (folder / "m.jsonl").write_text(json.dumps({"photo": "raw.bmp", "split": "train"}))
    kinds = {"modalities": {"photo": KINDS["photo"]}, "targets": {}}
    source_of(folder, where, **kinds).prepare()
    before = path.stat()
    Image.new("RGB", (8, 8), "blue").save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    again = source_of(folder, where, **kinds)
    again.prepare()
    assert len(calls) == 2
    assert again.compose(np.array([0]), None)["inputs"]["photo"]["x"][0, 8, 8].tolist() == [
        -1,
        -1,
        1,
    ]


def column(root, number, size, age, of):
    """A folder of shards as `decoded` makes them."""
    path = root / f"{number:016x}"
    path.mkdir(parents=True)
    (path / "a.bin").write_bytes(bytes(size))
    for name, text in ((eviction.LOCK, ""), (eviction.ABOUT, str(of))):
        (path / name).write_text(text)
    os.utime(path / eviction.LOCK, (1e9 - age, 1e9 - age))
    return path


def test_room_is_made_by_what_is_gone_and_what_was_used_longest_ago(tmp_path, capsys):
    root = tmp_path / "decoded"
    old, gone, new, mine = (
        column(root, n, 1000, age, of)
        for n, age, of in ((1, 30, root), (2, 0, tmp_path / "none"), (3, 20, root), (4, 99, root))
    )
    (root / "notes").mkdir()
    (root / "notes" / "a.bin").write_bytes(bytes(5000))
    assert eviction.make_room(mine, 10**6) == []
    assert eviction.make_room(mine, 3500) == [gone]
    assert eviction.make_room(mine, 2500) == [old]
    assert "decoded files" in capsys.readouterr().err
    with (new / eviction.LOCK).open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # another process fills it
        assert eviction.make_room(mine, 1) == []
    assert eviction.make_room(mine, 1) == [new]
    assert sorted(path.name for path in root.iterdir()) == [mine.name, "notes"]


def test_only_the_shared_folder_is_made_room_in(folder, monkeypatch):
    monkeypatch.setattr(eviction, "SHARE", 0.0)
    monkeypatch.setattr(decoded, "default_root", lambda: folder / "shared")
    for root in ("shared", "named"):
        column(folder / root, 1, 1000, 10, folder)
    source_of(folder, str(folder / "named")).prepare()
    assert (folder / "named" / f"{1:016x}").exists()
    source = source_of(folder, None)
    source.prepare()
    assert not (folder / "shared" / f"{1:016x}").exists()
    assert same(batches(source), batches(source_of(folder, False)))  # its own columns went in turn


def test_other_options_have_a_folder_of_their_own(folder):
    where = str(folder / "cache")
    source_of(folder, where).prepare()
    for changed in ({"size": 8}, {"size": 32}):
        kinds = {**KINDS, "photo": {"kind": "image", **changed}}
        other = source_of(folder, where, modalities=kinds)
        other.prepare()
        assert same(batches(other), batches(source_of(folder, False, modalities=kinds)))
    tight = source_of(folder, where, limits={"pixels": 600})
    tight.prepare()
    assert same(batches(tight), batches(source_of(folder, False, limits={"pixels": 600})))
    assert len(list((folder / "cache").iterdir())) == 3 + 2 + 3


SLOW = """
import sys, time
from mtmm_jax.data.sources.manifest import decoded, manifest
from mtmm_jax.modalities import image
decode = image.decode_image
def slow(*args):
    print("decoding", flush=True)
    time.sleep(float(sys.argv[3]))
    return decode(*args)
image.decode_image = slow
decoded._SHARD_SECONDS = 0.0
manifest(sys.argv[1], modalities={"photo": {"kind": "image", "size": 16}}, targets={},
         decoded=sys.argv[2]).prepare()
"""


def start(folder, seconds):
    command = [sys.executable, "-c", SLOW, str(folder / "m.jsonl"), str(folder / "cache")]
    return subprocess.Popen([*command, str(seconds)], stdout=subprocess.PIPE, text=True)


def files_in(indices) -> list[str]:
    return [name for index in indices for name in open_shard(index).records]


def test_a_killed_process_is_resumed(folder, calls):
    process = start(folder, 0.5)
    deadline = time.monotonic() + 120
    while len(shards(folder)) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    kept = len(files_in(shards(folder)))
    assert 2 <= kept < 9
    (shards(folder)[0].parent / ".left.json.1.part").write_bytes(b"half")
    kinds = {"photo": KINDS["photo"]}
    source = source_of(folder, str(folder / "cache"), modalities=kinds)
    source.prepare()
    assert len(calls) == 9 - kept
    assert sorted(files_in(shards(folder))) == sorted(set(files_in(shards(folder))))
    assert not list((folder / "cache").glob("*/.*.part"))
    assert same(batches(source), batches(source_of(folder, False, modalities=kinds)))


def test_two_processes_decode_each_file_once(folder):
    both = [start(folder, 0.05) for _ in range(2)]
    printed = [process.communicate(timeout=240)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum(text.count("decoding") for text in printed) == 9
    assert len(files_in(shards(folder))) == 9


def test_a_folder_that_cannot_be_written_is_named(folder, capsys, monkeypatch):
    (folder / "file").write_text("")
    with pytest.raises(ConfigError, match=r"data.decoded: cannot write to .*file.*or False"):
        source_of(folder, str(folder / "file")).train(4)
    monkeypatch.setattr(decoded, "default_root", lambda: folder / "file")
    source = source_of(folder, None)
    source.train(4)
    assert capsys.readouterr().err.count("data.decoded: cannot write") == len(KINDS)
    assert same(batches(source), batches(source_of(folder, False)))


DEFAULT = decoded.default_root  # tests have another


def test_the_default_folder_is_below_the_cache(folder, monkeypatch):
    monkeypatch.setenv("MTMM_JAX_DATA", str(folder / "cache"))
    monkeypatch.setattr(decoded, "default_root", DEFAULT)
    section = {"kind": "manifest", "path": str(folder / "m.jsonl"), "targets": {}}
    source = build({**section, "modalities": KINDS})
    source.train(4)
    assert len(list((folder / "cache" / "decoded").iterdir())) == 3
    with pytest.raises(ConfigError, match=r"data.decoded: True"):
        build({**section, "modalities": KINDS, "decoded": True})


def test_a_mixture_decodes_the_files_of_all_its_sources(folder, calls):
    section = {"kind": "manifest", "path": str(folder / "m.jsonl"), "targets": {}}
    parts = {
        name: {**section, "modalities": {name: KINDS[name]}, "decoded": str(folder / "cache")}
        for name in ("photo", "sound")
    }
    source = build({"kind": "mixture", "sources": parts})
    source.train(4)
    assert len(shards(folder)) == 2


def test_progress_is_a_line_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr(decoded, "_SHARD_SECONDS", 0.0)
    with decoded._progress(2) as advance:
        advance()
    assert "decoded 1 of 2 files, 0 s left" in capsys.readouterr().err
