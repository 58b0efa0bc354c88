"""Metrics of a model over a split: with every modality, and with some of them hidden."""

from mtmm_jax.evaluation.split import Evaluator as Evaluator
from mtmm_jax.evaluation.split import headlines as headlines
from mtmm_jax.evaluation.split import restrict as restrict
from mtmm_jax.evaluation.split import trivial_results as trivial_results
