"""Every colab runs from top to bottom, and is what its reviewable script says."""

import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest

COLABS = sorted((Path(__file__).parent.parent / "colabs").glob("*.ipynb"))
EXECUTE = """
import sys, nbclient, nbformat
notebook = nbformat.read(sys.argv[1], 4)
client = nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3",
                                 resources={"metadata": {"path": sys.argv[2]}})
client.execute()
shown = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
print(sum("image/png" in o.get("data", {}) for o in shown))
"""


@pytest.mark.slow
@pytest.mark.parametrize("colab", COLABS, ids=lambda path: path.stem)
def test_colab_runs_and_shows_pictures(colab, tmp_path):
    command = [sys.executable, "-c", EXECUTE, str(colab), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[-1]) >= 2


@pytest.mark.parametrize("colab", COLABS, ids=lambda path: path.stem)
def test_colab_is_its_script(colab):
    notebook = nbformat.read(colab, 4)
    script = jupytext.read(colab.with_suffix(".py"))
    assert [c.source for c in notebook.cells] == [c.source for c in script.cells]
    assert not any(c.get("outputs") for c in notebook.cells)
