"""Metrics of a model over a split: with every modality, and with some of them hidden or damaged."""

from mtmm_jax.evaluation.intervals import certainty as certainty
from mtmm_jax.evaluation.robustness import curves as curves
from mtmm_jax.evaluation.robustness import effective_robustness as effective_robustness
from mtmm_jax.evaluation.robustness import relative_robustness as relative_robustness
from mtmm_jax.evaluation.skill import mean_skill as mean_skill
from mtmm_jax.evaluation.skill import skills as skills
from mtmm_jax.evaluation.split import Evaluator as Evaluator
from mtmm_jax.evaluation.split import headlines as headlines
from mtmm_jax.evaluation.split import restrict as restrict
from mtmm_jax.evaluation.split import trivial_results as trivial_results
from mtmm_jax.evaluation.split import trivial_states as trivial_states
from mtmm_jax.evaluation.subsets import Probe as Probe
from mtmm_jax.evaluation.subsets import shapley as shapley
from mtmm_jax.evaluation.subsets import subset_scores as subset_scores
