"""Video understanding on your own clips: three folders that name an example alike, and labels.

python -m mtmm_jax.train --config configs/video_folders.py --workdir runs/video_folders

Under clips/: video_frames/<id>/<i>.jpg, text_data/<id>.txt, audio_data/<id>.wav and labels.csv (id,
class); --config.data.root=... for another place. Any file of an example may be missing. Baseline:
each modality alone, which evaluation prints beside it.
"""

from ml_collections import ConfigDict

from mtmm_jax import training


def get_config() -> ConfigDict:
    config = training.load("video_understanding")
    config.data = {
        "kind": "video_folder",
        "root": "clips",
        "labels": "labels.csv",
        "options": {"video": {"frames": 16, "size": 64}, "audio": {"seconds": 5.0}},
    }
    config.tasks = {"label": {"kind": "classification"}}
    return config
