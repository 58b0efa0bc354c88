"""Loss terms next to the tasks' losses: on features, predictions, parameters and domains."""
