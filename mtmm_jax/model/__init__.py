"""Encoders, fusion, sharing and heads assembled from a config; nothing else does that."""

from mtmm_jax.model.build import build as build
from mtmm_jax.model.forward import STAGES as STAGES
from mtmm_jax.model.model import Model as Model
from mtmm_jax.model.model import shared_parameters as shared_parameters
from mtmm_jax.model.parameters import Rewrite as Rewrite
from mtmm_jax.model.parameters import flatten as flatten
