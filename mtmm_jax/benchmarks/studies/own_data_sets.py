"""The tables of `studies.own_data`, from packages that anyone can install.

    apt-get download tuxpaint-stamps-default && dpkg -x tuxpaint-stamps-default*.deb stamps
    npm pack @tabler/icons @tabler/icons-png      # each unpacked, as icons/ and icons-png/
    python -m mtmm_jax.benchmarks.studies.own_data_sets sets --stamps stamps --icons icons \\
        --pictures icons-png --packages

stamps: pictures, captions, some with a sound; kind, saturation, wide (log of width over height).
icons: 1,500 pictures of 240 px and four tags each; category, added (version). packages: 2,500
entries of Debian's index (`apt-cache dumpavail`): summary, team and columns; section, log_size.
Licences are those of the packages (GPL and public domain; MIT; as the packages say); nothing of
them is part of this repository.
"""

from __future__ import annotations

import argparse
import colorsys
import csv
import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ICONS, PACKAGES = 1500, 2500


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m mtmm_jax.benchmarks.studies.own_data_sets",
        description="Tables of packages of pictures, sounds and texts.",
    )
    p.add_argument("out", type=Path, help="a folder for them")
    p.add_argument("--stamps", type=Path, help="tuxpaint-stamps-default, unpacked")
    p.add_argument("--icons", type=Path, help="@tabler/icons, unpacked")
    p.add_argument("--pictures", type=Path, help="@tabler/icons-png, unpacked")
    p.add_argument("--packages", action="store_true", help="of this machine's index of packages")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    given = parser().parse_args(argv)
    if given.stamps:
        write(given.out / "stamps", stamps(given.stamps, given.out / "stamps" / "files"))
    if given.icons and given.pictures:
        rows = icons(given.icons, given.pictures, given.out / "icons" / "files")
        write(given.out / "icons", rows)
    if given.packages:
        write(given.out / "packages", packages())
    return 0


def write(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{folder.name}.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"{len(rows)} rows in {path}")


def stamps(package: Path, files: Path) -> list[dict[str, Any]]:
    files.mkdir(parents=True, exist_ok=True)
    base, rows = package / "usr/share/tuxpaint/stamps", []
    for picture in sorted(base.rglob("*.png")):
        text, sound = picture.with_suffix(".txt"), picture.with_suffix(".ogg")
        image = Image.open(picture).convert("RGBA")
        pixels = np.asarray(image.resize((32, 32))).reshape(-1, 4) / 255.0
        seen = pixels[pixels[:, 3] > 0.5]
        if not text.exists() or not len(seen):
            continue
        name = "_".join(picture.relative_to(base).parts)
        shutil.copy(picture, files / name)
        heard = ""
        if sound.exists():
            heard = f"files/{Path(name).stem}.ogg"
            shutil.copy(sound, files / Path(heard).name)
        rows.append(
            {
                "image": f"files/{name}",
                "sound": heard,
                "caption": text.read_text(errors="replace").splitlines()[0].strip(),
                "kind": picture.relative_to(base).parts[0],
                "saturation": round(
                    float(np.mean([colorsys.rgb_to_hsv(*colour[:3])[1] for colour in seen])), 4
                ),
                "wide": round(float(np.log(image.size[0] / image.size[1])), 4),
            }
        )
    return rows


def icons(package: Path, pictures: Path, files: Path) -> list[dict[str, Any]]:
    files.mkdir(parents=True, exist_ok=True)
    about = json.loads((package / "icons.json").read_text())
    place = pictures / "icons" / "outline"
    names = sorted(n for n in about if (place / f"{n}.png").exists() and about[n]["category"])
    random.Random(0).shuffle(names)
    rows = []
    for name in names[:ICONS]:
        shutil.copy(place / f"{name}.png", files)
        tags = [tag for tag in about[name]["tags"] if isinstance(tag, str)]
        major, minor = about[name]["styles"]["outline"]["version"].split(".")[:2]
        rows.append(
            {
                "picture": f"files/{name}.png",
                "tags": ", ".join(tags[:4]),
                "category": about[name]["category"],
                "added": int(major) * 100 + int(minor),
            }
        )
    return rows


def packages() -> list[dict[str, Any]]:
    index = subprocess.run(
        ["apt-cache", "dumpavail"], capture_output=True, text=True, check=True
    ).stdout
    entries = [
        dict(line.groups() for line in re.finditer(r"^([\w-]+): (.*)$", block, re.MULTILINE))
        for block in index.split("\n\n")
    ]
    needed = {"Package", "Section", "Description", "Installed-Size", "Priority"}
    entries = [entry for entry in entries if needed <= entry.keys()]
    random.Random(1).shuffle(entries)

    def count(entry: dict[str, str], key: str) -> int | str:
        return len(entry[key].split(",")) if key in entry else ""

    return [
        {
            "summary": entry["Description"],
            "team": entry.get("Maintainer", "").split("<")[0].strip(),
            "architecture": entry["Architecture"],
            "priority": entry["Priority"],
            "depends": count(entry, "Depends"),
            "suggests": count(entry, "Suggests"),
            "homepage": int("Homepage" in entry),
            "section": entry["Section"].split("/")[-1],
            "log_size": round(float(np.log10(max(1, int(entry["Installed-Size"])))), 4),
        }
        for entry in entries[:PACKAGES]
    ]


if __name__ == "__main__":
    sys.exit(main())
