"""Side-by-side timings: `python -m mtmm_jax.benchmarks.X`, results as JSON with the machine."""
