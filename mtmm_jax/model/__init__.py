"""Encoders, fusion, sharing and heads assembled from a config; nothing else does that."""

from mtmm_jax.model.build import build as build
from mtmm_jax.model.model import Model as Model
from mtmm_jax.model.paths import flatten as flatten
from mtmm_jax.model.paths import shared_parameters as shared_parameters
from mtmm_jax.model.rewrite import Rewrite as Rewrite
from mtmm_jax.model.stages import STAGES as STAGES
