"""Small solvers for K tasks: pure, inside jit, batched by vmap, bounded with early exit.

All take the geometry of the task gradients, their norms `[K]` and the Gramian of their unit vectors
`[K, K]` (the cosines), and a mask of the tasks that count. The contract:

- The result is that of the problem with the other rows and columns deleted, and 0 for them.
- One scaling: every matrix that is factorised has a unit diagonal, so that float32 is enough at any
  ratio of norms. Norms enter only as ratios.
- One ridge, `scaling.ridge`, in factorisations alone; solutions are refined without it.
- The result is finite for all finite input: loops are bounded, keep their best iterate, and never
  take a step that is not finite.
- Where the problem has no solution (a Pareto stationary point, constraints that exclude each
  other) the result is the point that the function documents.

Loops stop as soon as they have converged, so easy problems are cheap.
"""

from mtmm_jax.balancing.base import divide
from mtmm_jax.balancing.solvers.barrier import power_fixed_point
from mtmm_jax.balancing.solvers.quadratic import (
    MinimumNorm,
    QuadraticSolution,
    cone_projections,
    min_norm_point,
    nonnegative_qp,
    solve_refined,
)
from mtmm_jax.balancing.solvers.radius import furthest_common_step
from mtmm_jax.balancing.solvers.scaling import (
    inverse_scale,
    masked_softmax,
    masked_sum,
    off_diagonal,
    project_simplex,
    rank_tolerance,
    ridge,
    task_count,
    uniform,
)
from mtmm_jax.balancing.solvers.spectral import Spectrum, graded_spectrum, pseudo_inverse_product

__all__ = [
    "MinimumNorm",
    "QuadraticSolution",
    "Spectrum",
    "cone_projections",
    "divide",
    "furthest_common_step",
    "graded_spectrum",
    "inverse_scale",
    "masked_softmax",
    "masked_sum",
    "min_norm_point",
    "nonnegative_qp",
    "off_diagonal",
    "power_fixed_point",
    "project_simplex",
    "pseudo_inverse_product",
    "rank_tolerance",
    "ridge",
    "solve_refined",
    "task_count",
    "uniform",
]
