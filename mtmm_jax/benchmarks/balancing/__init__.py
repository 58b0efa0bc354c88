"""Balancing methods: cost, the toy landscape, learning rates by task."""
