"""Pretrained encoders from a folder of weights: a table `BACKBONES`, one file a family.

config.model.encoders.text = {"kind": "pretrained", "weights": "path/to/folder"}

model, variables = backbones.load("path/to/folder")
backbones.vectors("path/to/folder", ["a text", "another"])  # [2, D]
"""

from mtmm_jax.encoders.backbones.backbone import Backbone as Backbone
from mtmm_jax.encoders.backbones.bert import import_bert as import_bert
from mtmm_jax.encoders.backbones.folder import WeightsFolder as WeightsFolder
from mtmm_jax.encoders.backbones.folder import tokenizer_at as tokenizer_at
from mtmm_jax.encoders.backbones.mapping import PathRule as PathRule
from mtmm_jax.encoders.backbones.mapping import convert as convert
from mtmm_jax.encoders.backbones.pooling import MODES as MODES
from mtmm_jax.encoders.backbones.pooling import Pooling as Pooling
from mtmm_jax.encoders.backbones.pooling import pooling_of as pooling_of
from mtmm_jax.encoders.backbones.pretrained import BACKBONES as BACKBONES
from mtmm_jax.encoders.backbones.pretrained import check_kept as check_kept
from mtmm_jax.encoders.backbones.pretrained import check_weights as check_weights
from mtmm_jax.encoders.backbones.pretrained import load as load
from mtmm_jax.encoders.backbones.pretrained import pretrained as pretrained
from mtmm_jax.encoders.backbones.pretrained import sections as sections
from mtmm_jax.encoders.backbones.pretrained import tokenizers as tokenizers
from mtmm_jax.encoders.backbones.pretrained import variables_of as variables_of
from mtmm_jax.encoders.backbones.pretrained import with_sizes as with_sizes
from mtmm_jax.encoders.backbones.safetensors import read_safetensors as read_safetensors
from mtmm_jax.encoders.backbones.vectors import vectors as vectors
