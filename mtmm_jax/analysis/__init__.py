"""What people look at: the report of a run."""

from mtmm_jax.analysis.report import write_report as write_report
