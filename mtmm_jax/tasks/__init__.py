"""A task is a head, a loss, metrics, what it reads and where its labels are. One file a task.

`tasks.build(name, spec, ...)` makes a `Task` from its config and the source's `Spec`.
"""

from mtmm_jax.tasks.captioning import captioning as captioning
from mtmm_jax.tasks.classification import classification as classification
from mtmm_jax.tasks.detection import detection as detection
from mtmm_jax.tasks.metrics.monoids import Metric as Metric
from mtmm_jax.tasks.multilabel import multilabel as multilabel
from mtmm_jax.tasks.ordinal import ordinal as ordinal
from mtmm_jax.tasks.recognition import recognition as recognition
from mtmm_jax.tasks.reconstruction import reconstruction as reconstruction
from mtmm_jax.tasks.regression import regression as regression
from mtmm_jax.tasks.retrieval import retrieval as retrieval
from mtmm_jax.tasks.segmentation import segmentation as segmentation
from mtmm_jax.tasks.synthesis import synthesis as synthesis
from mtmm_jax.tasks.task import Task as Task
from mtmm_jax.tasks.task import parse_reads as parse_reads
from mtmm_jax.tasks.terms.regularisers import REGULARISERS as REGULARISERS
from mtmm_jax.tasks.waypoints import waypoints as waypoints
from mtmm_jax.tasks.words import words as words

TASKS = {
    "classification": classification,
    "multilabel": multilabel,
    "regression": regression,
    "ordinal": ordinal,
    "retrieval": retrieval,
    "detection": detection,
    "segmentation": segmentation,
    "waypoints": waypoints,
    "reconstruction": reconstruction,
    "words": words,
    "recognition": recognition,
    "captioning": captioning,
    "synthesis": synthesis,
}
