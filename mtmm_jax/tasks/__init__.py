"""A task is a head, a loss, metrics, what it reads and where its labels are. One file a task.

`tasks.build(name, spec, ...)` makes a `Task` from its config and the source's `Spec`.
"""

from mtmm_jax.tasks.classification import classification as classification
from mtmm_jax.tasks.metrics import Metric as Metric
from mtmm_jax.tasks.multilabel import multilabel as multilabel
from mtmm_jax.tasks.regression import regression as regression
from mtmm_jax.tasks.retrieval import retrieval as retrieval
from mtmm_jax.tasks.task import Task as Task
from mtmm_jax.tasks.task import parse_reads as parse_reads

TASKS = {
    "classification": classification,
    "multilabel": multilabel,
    "regression": regression,
    "retrieval": retrieval,
}
