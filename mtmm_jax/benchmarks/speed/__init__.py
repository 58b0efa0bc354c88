"""Time and memory: encoders, readers, the first step, the loop, devices."""
