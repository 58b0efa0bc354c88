"""torchvision's ResNets -> the variables of `encoders.ResNet` with `stem_kind="large"`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mtmm_jax.encoders import ResNet
from mtmm_jax.encoders.backbones.mapping import PathRule, convert, hwio
from mtmm_jax.registry import choose

RESNETS = ("18", "34", "50")
_BLOCK = r"layer(\d)\.(?P<index>\d+)\."
_STATISTICS = {
    "weight": "params/{}/scale",
    "bias": "params/{}/bias",
    "running_mean": "batch_stats/{}/mean",
    "running_var": "batch_stats/{}/var",
}


def _norm(pattern: str, path: str) -> list[PathRule]:
    return [PathRule(rf"{pattern}\.{n}", to.replace("{}", path)) for n, to in _STATISTICS.items()]


RULES = (
    PathRule(r"conv1\.weight", "params/conv1/kernel", hwio),
    *_norm("bn1", "norm1"),
    PathRule(rf"{_BLOCK}conv(\d)\.weight", "params/stage{0}_block{next}/conv{2}/kernel", hwio),
    *_norm(rf"{_BLOCK}bn(\d)", "stage{0}_block{next}/norm{2}"),
    PathRule(
        rf"{_BLOCK}downsample\.0\.weight", "params/stage{0}_block{next}/shortcut/kernel", hwio
    ),
    *_norm(rf"{_BLOCK}downsample\.1", "stage{0}_block{next}/shortcut_norm"),
)
# The classifier, and a counter that no forward pass reads.
IGNORED = r"fc\.(weight|bias)|.*\.num_batches_tracked"


def import_resnet(state_dict: Mapping[str, Any], preset: str) -> dict[str, Any]:
    """Variables `{"params", "batch_stats"}` of a ResNet, without its last linear map.

    The encoder that fits is `{"kind": "resnet", "preset": preset, "stem_kind": "large", "pixels":
    "imagenet"}`; give the result to `load_pretrained`.

    Args:
        state_dict: torchvision's names -> arrays (`{k: v.numpy() for k, v in ...}`, or
            `read_safetensors`).
        preset: 18, 34 or 50.

    Raises:
        ConfigError: naming every tensor that is missing, left over or of another shape.
    """
    choose(preset, RESNETS, "import_resnet.preset", "preset")
    width = 2048 if preset == "50" else 512
    module = ResNet(width, preset=preset, stem_kind="large", projected=False)
    entry = {"x": jnp.zeros((1, 64, 64, 3)), "present": jnp.ones(1, bool)}
    wanted = jax.eval_shape(module.init, jax.random.key(0), entry)
    return convert(state_dict, RULES, wanted, f"import_resnet {preset}", IGNORED)
