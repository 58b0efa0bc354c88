# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own pictures, texts and labels
#
# A folder of files and one list that says what belongs together: that is a data set. Below a small
# one is made, checked, trained on and asked. Put your own in its place.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("mtmm_jax") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "mtmm_jax"], check=True)

# %%
import json
import tempfile
from pathlib import Path

from mtmm_jax.command import prepare_jax

prepare_jax()

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import display
from PIL import Image, ImageDraw

from mtmm_jax import training

# %% [markdown]
# ## A folder
#
# Pictures of a shape in a colour, and a sentence about each. The picture shows the shape, the
# sentence tells how large it is meant to be. One line of JSON for each example: the name of its
# files, its values and its labels. What a row lacks is left out of it.

# %%
folder = Path(tempfile.mkdtemp()) / "shapes"
folder.mkdir()
rng = np.random.default_rng(0)
COLOURS = ("red", "green", "blue")
SIZES = {"tiny": 0.1, "small": 0.4, "large": 0.7, "huge": 1.0}


def draw(shape, colour):
    """A picture with some noise."""
    noise = rng.integers(200, 256, (32, 32, 3), np.uint8)
    picture = Image.fromarray(noise)
    x, y = rng.integers(2, 12, 2)
    box = (int(x), int(y), int(x) + 16, int(y) + 16)
    pen = ImageDraw.Draw(picture)
    pen.ellipse(box, fill=colour) if shape == "circle" else pen.rectangle(box, fill=colour)
    return picture


rows = []
for i in range(400):
    shape, colour = ("circle", "square")[rng.integers(2)], COLOURS[rng.integers(3)]
    word = list(SIZES)[rng.integers(4)]
    draw(shape, colour).save(folder / f"{i}.png")
    row = {"id": i, "image": f"{i}.png", "text": f"a {word} thing", "shape": shape}
    row["size"] = SIZES[word] + 0.05 * float(rng.standard_normal())
    if i % 10 == 0:
        del row["text"]  # a missing modality
    if i % 7 == 0:
        del row["size"]  # a missing label
    rows.append(row)
manifest = folder / "shapes.jsonl"
manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
print(manifest.read_text()[:240])

# %%
figure, axes = plt.subplots(1, 6, figsize=(11, 2.2))
for axis, row in zip(axes, rows, strict=False):
    axis.imshow(Image.open(folder / row["image"]))
    axis.set_title(row.get("text", "(no text)"), fontsize=9)
    axis.axis("off")
plt.show()

# %% [markdown]
# ## Is it sound?
#
# The checker opens every file and names every problem by its line. (On the command line:
# `python -m mtmm_jax.data.inspect.check shapes.jsonl`.)

# %%
from mtmm_jax.data.inspect.check import check

description = {
    "modalities": {
        "image": {"kind": "image", "size": 32},
        "text": {"kind": "text", "vocabulary": 100, "length": 8},
    },
    "targets": {"shape": {"kind": "class"}, "size": {"kind": "number"}},
    "split": {"train": 0.7, "validation": 0.1, "test": 0.2},
}
report = check(manifest, description)
print(report.rows, "rows;", report.splits)
print("problems:", report.summary or "none")

# %%
spoilt = folder / "spoilt.jsonl"
broken = [dict(rows[1], image="gone.png"), dict(rows[2], size="very large"), rows[3], rows[3]]
spoilt.write_text("".join(json.dumps(row) + "\n" for row in [*rows[5:60], *broken]))
for problem in check(spoilt, description).problems:
    print(problem)

# %% [markdown]
# ## Training
#
# The config of the emoji with other data, encoders and tasks. A row without a text, or without a
# label, teaches what it can.

# %%
config = training.load("emoji")
config.steps, config.batch_size = 150, 32
config.data = {"kind": "manifest", "path": str(manifest), **description}
config.model.width = 32
config.model.encoders = {
    "image": {"kind": "resnet", "preset": "tiny", "stem_kind": "half"},
    "text": {"kind": "text_bag"},
}
config.tasks = {"shape": {"kind": "classification"}, "size": {"kind": "regression"}}
config.checkpoint.every = config.evaluation.every = 75
experiment = training.assemble(config)

# %%
from mtmm_jax.analysis import figures
from mtmm_jax.store.workdir import Workdir
from mtmm_jax.train import fit

workdir = folder.parent / "run"
results = fit(experiment, workdir)

# %%
for name, figure in figures(Workdir(workdir)).items():
    if name in ("results", "learning curves"):
        display(figure)
    plt.close(figure)

# %% [markdown]
# ## Asking
#
# What was learned of the data (classes, tokenizer, means) lies in the run's folder. Any of the
# inputs may be left out. (On the command line: `python -m mtmm_jax.predict --workdir run --image
# new.png --text 'a huge thing'`.)

# %%
from mtmm_jax.inference.finished import open_run
from mtmm_jax.inference.sample import read_inputs
from mtmm_jax.predict import ask, show

new = folder / "new.png"
draw("circle", "orange").save(new)
run = open_run(workdir)
asked = read_inputs(["--image", str(new), "--text", "a huge thing"], run.workdir)
show(ask(run, asked))

# %%
show(ask(run, read_inputs(["--image", str(new)], run.workdir)))
