"""Whether a run survives what happens to it."""
