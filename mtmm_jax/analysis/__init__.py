"""The report of a run, its plots, and the analysis of its modalities and tasks."""

from mtmm_jax.analysis.boxes import draw_detections as draw_detections
from mtmm_jax.analysis.contribution import contributions as contributions
from mtmm_jax.analysis.contribution import missing_modalities as missing_modalities
from mtmm_jax.analysis.cost import step_cost as step_cost
from mtmm_jax.analysis.modality_affinity import affinity as affinity
from mtmm_jax.analysis.modality_affinity import cca as cca
from mtmm_jax.analysis.modality_affinity import cka as cka
from mtmm_jax.analysis.modality_affinity import cross_prediction as cross_prediction
from mtmm_jax.analysis.modality_affinity import mean_cca as mean_cca
from mtmm_jax.analysis.modality_affinity import suggested_fusion as suggested_fusion
from mtmm_jax.analysis.overview import save_study as save_study
from mtmm_jax.analysis.overview import study as study
from mtmm_jax.analysis.report import figures as figures
from mtmm_jax.analysis.report import save_figures as save_figures
from mtmm_jax.analysis.report import write_report as write_report
from mtmm_jax.analysis.selection import mutual_information as mutual_information
from mtmm_jax.analysis.selection import rank as rank
from mtmm_jax.analysis.selection import selection as selection
