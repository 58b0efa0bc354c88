"""A finished run: open it, predict, label a manifest, export it as one file."""
