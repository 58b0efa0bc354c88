"""Boxes: geometry, maps of centres, matching, exact assignment. Pure, under jit."""
