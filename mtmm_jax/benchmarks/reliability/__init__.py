"""A harness that damages, kills and attacks runs, and counts what they do about it."""
