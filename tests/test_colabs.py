"""Every colab runs from top to bottom, and is what its reviewable script says."""

import json
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest

COLABS = sorted((Path(__file__).parent.parent / "colabs").glob("*.ipynb"))
# Fewer steps than a person takes; every cell runs all the same.
SHORTER = {
    "fusion_and_missing": {"steps = 250": "steps = 40"},
    "own_data": {"batch_size = 150, 32": "batch_size = 30, 32", "every = 75": "every = 15"},
    "quickstart": {
        "steps = 100": "steps = 20",
        "every = 50": "every = 20\nconfig.data.image_size, config.data.seconds = 32, 1.0",
    },
    "transfer": {"steps // 2": "steps // 16", "steps = steps\n": "steps = steps // 8\n"},
}
EXECUTE = """
import json, sys, nbclient, nbformat
notebook = nbformat.read(sys.argv[1], 4)
for before, after in json.loads(sys.argv[3]).items():
    assert any(before in cell.source for cell in notebook.cells), before
    for cell in notebook.cells:
        cell.source = cell.source.replace(before, after)
client = nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3",
                                 resources={"metadata": {"path": sys.argv[2]}})
client.execute()
shown = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
print(sum("image/png" in o.get("data", {}) for o in shown))
"""


@pytest.mark.slow
@pytest.mark.parametrize("colab", COLABS, ids=lambda path: path.stem)
def test_colab_runs_and_shows_pictures(colab, tmp_path):
    shorter = json.dumps(SHORTER.get(colab.stem, {}))
    command = [sys.executable, "-c", EXECUTE, str(colab), str(tmp_path), shorter]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[-1]) >= 2


@pytest.mark.parametrize("colab", COLABS, ids=lambda path: path.stem)
def test_colab_is_its_script(colab):
    notebook = nbformat.read(colab, 4)
    script = jupytext.read(colab.with_suffix(".py"))
    assert [c.source for c in notebook.cells] == [c.source for c in script.cells]
    assert not any(c.get("outputs") for c in notebook.cells)
