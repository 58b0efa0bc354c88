"""Files of pretrained weights, read for an encoder that knows their form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mtmm_jax.encoders import Bert, ResNet
from mtmm_jax.encoders.backbones.bert import import_bert
from mtmm_jax.encoders.backbones.safetensors import read_safetensors
from mtmm_jax.encoders.backbones.sums import check_sums
from mtmm_jax.registry import ConfigError
from mtmm_jax.transfer.torchvision import import_resnet

IMPORTS = {Bert: import_bert, ResNet: import_resnet}


def weights_file(path: str | Path, where: str) -> Path:
    """The `.safetensors` file that is meant: itself, or the only one in a folder."""
    if not path or not Path(path).exists():
        raise ConfigError(f"{where}: no file or folder {str(path)!r}")
    path = Path(path)
    if not path.is_dir():
        return path
    files = sorted(path.rglob("*.safetensors"))
    if len(files) != 1:
        raise ConfigError(f"{where}: {path} has {len(files)} .safetensors, not one")
    return files[0]


def import_weights(file: Path, encoder: Any, where: str) -> dict[str, Any]:
    """The file's variables under the paths of an encoder of this kind and preset."""
    for kind, read in IMPORTS.items():
        if isinstance(encoder, kind):
            check_sums([file], where)
            return read(read_safetensors(file), encoder.preset)
    raise ConfigError(f"{where}: is a {type(encoder).__name__}; imports are known of: bert, resnet")
