"""Several teachers: one model of all modalities learns from three that know one each.

for m in image text audio; do
  python -m mtmm_jax.train --config configs/independent_$m.py --workdir runs/independent_$m
done
python -m mtmm_jax.train --config distil_unimodal --workdir runs/distil_unimodal

What the three say on average, T = 2, next to the labels. Baselines: the student alone,
--config.teachers=None, which is fusion_late; the teachers asked together (predict --workdirs).
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("fusion_late")
    members = [f"runs/independent_{name}" for name in ("image", "text", "audio")]
    config.teachers = {"workdirs": members, "temperature": 2.0, "alpha": 1.0}
    return config
