"""Files that are written and read back: configs, the folder of a run, its checkpoints."""
