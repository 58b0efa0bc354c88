"""Metrics as monoids: each batch gives a state, states merge, the end divides once."""
