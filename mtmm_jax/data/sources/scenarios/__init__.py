"""Made-up mixes of sensors and tasks as they occur together: driving, medicine, service, ..."""

from mtmm_jax.data.sources.scenarios.source import scenarios

__all__ = ["scenarios"]
