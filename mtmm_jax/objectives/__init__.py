"""What may join the tasks' losses: distillation, semi-supervision, imbalance, relatedness."""
