"""The systems of the literature as configs, each run next to its baselines."""
