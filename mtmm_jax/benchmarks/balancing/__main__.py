"""`python -m mtmm_jax.benchmarks.balancing`."""

import sys

from mtmm_jax.benchmarks.balancing.cost import main

sys.exit(main())
