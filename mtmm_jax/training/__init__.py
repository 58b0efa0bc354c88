"""State, one pure step, the loop around it, checkpoints and what a user watches."""

from mtmm_jax.store.config import apply_overrides as apply_overrides
from mtmm_jax.training.experiment import Experiment as Experiment
from mtmm_jax.training.experiment import assemble as assemble
from mtmm_jax.training.experiment import check_config as check_config
from mtmm_jax.training.experiment import load as load
from mtmm_jax.training.step import TrainState as TrainState
from mtmm_jax.training.step import make_step as make_step
