"""Cross-modal distillation: a model of pictures learns from one that also reads and hears.

python -m mtmm_jax.train --config fusion_late --workdir runs/fusion_late
python -m mtmm_jax.train --config distil_cross_modal --workdir runs/distil_cross_modal

The teacher reads name and voice of each training row, the student only ever its picture; next to
what it says, the student's features are to look like the teacher's fused ones. Baseline:
independent_image, the student alone, --config.teachers=None.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("independent_image")
    config.teachers = {
        "workdirs": ["runs/fusion_late"],
        "temperature": 2.0,
        "alpha": 2.0,
        "features": {"fused": 0.5},
    }
    return config
