"""One pure step on any devices: jit, pmap, meshes, partition rules, several processes."""
