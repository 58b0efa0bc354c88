"""The commands of the README's section on data of your own run as they stand, on a drawn folder."""

import re
import shlex
from pathlib import Path

import pytest

from mtmm_jax import train
from mtmm_jax.data.inspect import check, show
from tests.data import stranger

README = (Path(__file__).parent.parent / "README.md").read_text()
SECTION = README.partition("A table of your own is")[2].partition("\n## ")[0]
MAINS = {
    "mtmm_jax.data.inspect.check": check.main,
    "mtmm_jax.data.inspect.show": show.main,
    "mtmm_jax.train": train.main,
}
SMALL = [
    *("--config.steps=2", "--config.batch_size=8", "--config.model.width=16"),
    *("--config.evaluation.every=2", "--config.checkpoint.every=2"),
    *("--config.data.modalities.photo.size=8", "--config.data.modalities.sound.seconds=0.2"),
]


def commands():
    (block,) = re.findall(r"```bash\n(.*?)```", SECTION, re.DOTALL)
    return [shlex.split(line) for line in block.strip().splitlines()]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    stranger.write_table(tmp_path, stranger.draw(tmp_path, 60), "things.csv")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("written", [True, False])
def test_the_commands_of_own_data_run(folder, written, capsys):
    """With the config that `check` writes, which the dry run compiles (`fit` trains such a one:
    `test_own_data.py`), and with the one that stands in the section, which is trained."""
    (block,) = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
    for words in commands():
        module, arguments = words[2], words[3:]
        if module == "mtmm_jax.train":
            if ("--dry_run" in arguments) != written:
                continue
            arguments += SMALL
        assert MAINS[module](arguments) in (0, 1), capsys.readouterr().err
        if "--write" in arguments:
            text = (folder / "things.py").read_text()
            for key, value in (("photo", '"image"'), ("sound", '"audio"')):
                text = text.replace(f'"{key}": {value}', f'"{key}": {{"kind": {value}, "size": 8}}')
            text = text.replace('"audio", "size": 8', '"audio", "seconds": 0.2')
            (folder / "things.py").write_text(text if written else block)
    assert (folder / "things.html").stat().st_size > 1000
    assert (folder / "runs" / "things" / "report.html").exists() != written
    assert check.main(["--config", "things.py"]) in (0, 1)
