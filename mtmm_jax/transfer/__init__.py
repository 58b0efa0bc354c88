"""Transfer: pretrained weights into a model's variables, LoRA, quantisation.

imported = import_bert(read_safetensors("model.safetensors"), "minilm")
variables = load_pretrained(variables, imported, at="encoders/text")

And what makes a model smaller, or tunes little of it: `lora`, `pruning`, `quantising`.
"""

from mtmm_jax.encoders.backbones.bert import import_bert as import_bert
from mtmm_jax.encoders.backbones.mapping import PathRule as PathRule
from mtmm_jax.encoders.backbones.mapping import convert as convert
from mtmm_jax.encoders.backbones.safetensors import read_safetensors as read_safetensors
from mtmm_jax.transfer.graft import load_pretrained as load_pretrained
from mtmm_jax.transfer.torchvision import import_resnet as import_resnet
