"""What people look at: the report of a run and its pictures."""

from mtmm_jax.analysis.boxes import draw_detections as draw_detections
from mtmm_jax.analysis.report import figures as figures
from mtmm_jax.analysis.report import save_figures as save_figures
from mtmm_jax.analysis.report import write_report as write_report
