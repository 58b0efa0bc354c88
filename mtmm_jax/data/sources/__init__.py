"""The data sets, a folder or a file each; `mtmm_jax.data.SOURCES` lists them."""
