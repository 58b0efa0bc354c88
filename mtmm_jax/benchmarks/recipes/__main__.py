"""`python -m mtmm_jax.benchmarks.recipes`."""

import sys

from mtmm_jax.benchmarks.recipes.recipes import main

sys.exit(main())
