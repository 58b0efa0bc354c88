"""Objectives besides the tasks' losses: distillation, semi-supervision, imbalance, relatedness."""
