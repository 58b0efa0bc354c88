"""From examples to batches: sources, mixing, bucketing, augmentation, labels, pipes, folds."""
