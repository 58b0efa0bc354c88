"""Optax optimisers from a config: rules, schedules, rates by path and task, averages, privacy."""
