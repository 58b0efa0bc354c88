"""What tasks share: `Tokens` -> {task: `Tokens`}.

A sharing is a Linen module with the field `tasks`, called as `sharing(copies, train=...,
axis_name=...)`, where `copies[task]` is that task's own copy of the fused tokens (the copies are
equal; they are separate so that each task's gradient can be read off its own).
"""

from mtmm_jax.sharing.hard import Hard as Hard

SHARINGS = {"hard": Hard}
