"""Sharing between tasks: `Tokens` -> {task: `Tokens`}. One file per family.

A sharing is a Linen module with the field `tasks`, called as `sharing(copies, train=...,
axis_name=...)`, where `copies[task]` are that task's own tokens. It takes those of its `tasks` and
leaves others alone. `keeps_layout` says whether a head still finds a modality's grid in what it
gives, `has_auxiliary`, where it is there, that it adds a loss of its own.

In a config `tasks` are those that read "fused": their copies are equal, and separate so that each
task's gradient can be read off its own. `model.sharing.tasks` names others, of one read each:

    config.model.sharing = {"kind": "shared_middle", "tasks": ["digit", "speaker"]}
    config.tasks.digit.reads, config.tasks.speaker.reads = "pix", "series"

Every task then enters with what it reads: as many tokens as there are, of the one `model.width`.
What is shown once for all tasks, such as `task_weights`, is from the first one's tokens.

Task k's output is computed from copies[k] and from nothing else. A scheme that mixes the features
of several tasks (`CrossStitch`, `Sluice`, `PLE`, `TaskAttention`) runs every tower on copies[k] on
its way to output k. So the gradient at copies[k] is task k's own, whole and unmixed: balancing may
weigh it, and may drop it where task k has no label, without touching what another task says. The
price is paid in the backward pass, K times that of one pass over all towers; forward, equal copies
are one computation once compiled, others are K. The towers belong to all tasks that reach them.

    >>> import jax, jax.numpy as jnp
    >>> from mtmm_jax.batch import Tokens
    >>> from mtmm_jax.sharing import MMoE
    >>> tokens = Tokens.of(jnp.ones((2, 3, 8)), jnp.ones((2, 3), bool), "text")
    >>> sharing = MMoE(tasks=("kind", "size"), experts=2)
    >>> copies = {"kind": tokens, "size": tokens}
    >>> shared = sharing.apply(sharing.init(jax.random.key(0), copies), copies)
    >>> shared["kind"].values.shape
    (2, 3, 8)
"""

from mtmm_jax.sharing.branching import Branching as Branching
from mtmm_jax.sharing.conditioned import Adapter as Adapter
from mtmm_jax.sharing.conditioned import FiLM as FiLM
from mtmm_jax.sharing.dselect import DSelect as DSelect
from mtmm_jax.sharing.experts import CGC as CGC
from mtmm_jax.sharing.experts import PLE as PLE
from mtmm_jax.sharing.experts import MMoE as MMoE
from mtmm_jax.sharing.hard import Hard as Hard
from mtmm_jax.sharing.masks import MTAN as MTAN
from mtmm_jax.sharing.masks import TaskGates as TaskGates
from mtmm_jax.sharing.separate import Separate as Separate
from mtmm_jax.sharing.separate import SharedMiddle as SharedMiddle
from mtmm_jax.sharing.stitch import CrossStitch as CrossStitch
from mtmm_jax.sharing.stitch import Sluice as Sluice
from mtmm_jax.sharing.task_attention import TaskAttention as TaskAttention
from mtmm_jax.sharing.task_attention import TaskQueries as TaskQueries

SHARINGS = {
    "hard": Hard,
    "shared_middle": SharedMiddle,
    "separate": Separate,
    "cross_stitch": CrossStitch,
    "sluice": Sluice,
    "mtan": MTAN,
    "mmoe": MMoE,
    "cgc": CGC,
    "ple": PLE,
    "dselect": DSelect,
    "branching": Branching,
    "film": FiLM,
    "adapter": Adapter,
    "task_attention": TaskAttention,
    "task_gates": TaskGates,
    "task_queries": TaskQueries,
}
