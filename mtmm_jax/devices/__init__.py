"""How one pure step runs anywhere: jit, pmap, meshes, partition rules, several processes."""
