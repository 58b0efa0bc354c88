"""Tables of many short runs: rows in a JSON file, seeds, baselines, bars."""
